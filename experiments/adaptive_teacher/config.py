"""Settings of the study: a student that obeys hints, a teacher that writes any, and what each may learn.

  python -m atlas_jax.main --config=experiments/adaptive_teacher/config.py:stage=student --workdir=runs/s

Stages: "student" and "teacher_start" are tuned on texts that are made here. "teacher" trains the teacher by
what its hints do to the student (--config.model.path=TEACHER_START --config.teacher.student=STUDENT), and
"unlinked" does where no hint is better for one letter than for another. "alone" trains the student by policy
optimisation without a teacher (--config.model.path=STUDENT), and "taught" tunes it on answers that it gave
with hints (--config.model.path=STUDENT --config.data.files=ROWS.jsonl). `smoke` makes all of them tiny.
"""
from atlas_jax import config as base
from atlas_jax.data.convention import FORMATS as FORMATS

STUDENT = dict(width=96, depth=3, heads=4, kv_heads=2, head_dim=24, ff_width=256, scan_unroll=3)
TEACHER = dict(width=64, depth=2, heads=4, kv_heads=4, head_dim=16, ff_width=128, scan_unroll=2)
ANSWER_TOKENS = 8  # Of an answer, its end included; the longest is "-198" or "198198".
HINT_TOKENS = 12
PROBE_TOKENS = 8
GROUP = 8  # Completions per prompt in policy optimisation.


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, stage="student", seed=0, smoke=False)
  stages = {"student": student, "teacher_start": teacher_start, "teacher": teacher, "unlinked": unlinked,
            "alone": alone, "taught": taught}
  if arg.stage not in stages:
    raise ValueError(f"stage={arg.stage!r} is unknown; known stages: {', '.join(stages)}")
  config = stages[arg.stage](arg.seed)
  return _smoke(config) if arg.smoke else config


def student(seed: int):
  """Returns the config of the student: it adds, names the kind of problem, and obeys hints."""
  config = _model(seed, STUDENT)
  config.recipe = "sft"
  config.rewards = config.eval.grader = "verbatim"
  config.data.options = {"act": "student"}
  config.data.update(name="convention", segment_len=128, batch_rows=24, max_problems=60_000)
  config.sampler.max_tokens = ANSWER_TOKENS
  config.optim.update(lr=3e-3, warmup_steps=50, steps=1_500)
  return config


def teacher_start(seed: int):
  """Returns the config of the teacher before it learns: it writes valid hints, whatever the letter."""
  config = _model(seed, TEACHER)
  config.recipe = "sft"
  config.data.options = {"act": "teacher"}
  config.data.update(name="convention", segment_len=128, batch_rows=16, max_problems=8_000)
  config.sampler.max_tokens = HINT_TOKENS
  config.optim.update(lr=3e-3, warmup_steps=20, steps=200)
  return config


def teacher(seed: int, *, linked: bool = True):
  """Returns the config of the teacher that learns from what its hints do to the student."""
  config = _model(seed, dict(scan_unroll=TEACHER["scan_unroll"]))
  config.recipe = "teacher"
  config.data.options = {"tag_seed": seed, "linked": linked}
  config.data.update(name="convention", batch_rows=8 * GROUP, group_size=GROUP, max_prompt_tokens=24)
  config.teacher.update(templates="plain", grader="verbatim", max_tokens=ANSWER_TOKENS,
                        probe_tokens=PROBE_TOKENS, fixed_hint="plain")
  config.teacher.formats.update({name: text for name, text in FORMATS.items() if name != "reply"})
  config.sampler.max_tokens = HINT_TOKENS
  config.rollout.pad_tokens = 8
  # Strong, for the start tries all hints: with less the policy settles on what helps most letters, before it
  # looks at the letter, and no group differs any more.
  config.policy.kl_weight = 0.5
  config.optim.update(lr=1e-3, warmup_steps=10, steps=500, weight_decay=0.0)
  config.train.eval_every_steps = 100
  config.eval.max_problems = 128
  return config


def unlinked(seed: int):
  """Returns the config of the teacher's control: rewards as before, which no letter has to do with."""
  config = teacher(seed, linked=False)
  config.optim.steps = 200
  config.train.eval_every_steps = 40
  return config


def alone(seed: int):
  """Returns the config of a student that is rewarded for right answers to the questions, without hints."""
  config = _model(seed, dict(scan_unroll=STUDENT["scan_unroll"]))
  config.recipe = "grpo"
  config.rewards = config.eval.grader = "verbatim"
  config.data.options = {"act": "alone", "tag_seed": seed}
  config.data.update(name="convention", batch_rows=8 * GROUP, group_size=GROUP, max_prompt_tokens=16)
  config.sampler.max_tokens = ANSWER_TOKENS
  config.rollout.pad_tokens = 8
  config.policy.entropy_weight = 0.02
  config.optim.update(lr=3e-4, warmup_steps=10, steps=2_000, weight_decay=0.0)
  config.train.update(idle_limit=None, eval_every_steps=400)  # To the end, even if nothing is learnt.
  config.eval.max_problems = 128
  return config


def taught(seed: int):
  """Returns the config of a student that learns to give without hints what it answered with them."""
  config = _model(seed, dict(scan_unroll=STUDENT["scan_unroll"]))
  config.recipe = "sft"
  config.data.update(name="files", segment_len=128, batch_rows=24, held_out_frac=0.0)
  config.optim.update(lr=1e-3, warmup_steps=10, steps=300)
  return config


def _model(seed: int, decoder):
  config = base.default()
  config.seed = seed
  config.model.kind = "decoder"
  config.decoder.update(decoder)
  config.data.update(tokenizer="byte", held_out_frac=0.1)
  config.optim.weight_decay = 0.01
  config.eval.update(max_problems=256, batch_rows=128, sample_tokens=0)
  config.train.update(log_every_steps=10, eval_every_steps=250)
  config.checkpoint.update(every_steps=100_000, keep_best=0)
  config.monitor.update(tensorboard=False, progress=False, report=False)
  return config


def _smoke(config):
  if config.data.options.to_dict().get("act") in ("student", "teacher"):  # The others start from these.
    config.decoder.update(width=16, depth=1, heads=2, kv_heads=1, head_dim=8, ff_width=16)
  config.decoder.scan_unroll = 1
  config.optim.update(steps=2, warmup_steps=1)
  config.data.batch_rows = 8 if config.recipe == "sft" else 2 * GROUP
  if config.data.name == "convention" and config.recipe == "sft":
    config.data.max_problems = 64
  config.eval.update(max_problems=8, batch_rows=8)
  return config
