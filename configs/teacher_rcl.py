"""A teacher learns to guide a frozen student, rewarded by what its guidance does.  Results: docs/results.md.

TEACHER and STUDENT are folders of pretrained Llama or Qwen models (or hf:NAME, or workdirs of runs, such as
one of configs/teacher_sft.py), FILE.jsonl has rows with a `prompt` or `question`, and an `answer`:

  python -m atlas_jax.main --config=configs/teacher_rcl.py --workdir=runs/teacher_rcl \
    --config.model.path=TEACHER --config.teacher.student=STUDENT --config.data.files=FILE.jsonl

The settings are those of Arc-ATLAS's reinforcement stage, but for a probe of 50 tokens; the student may be
left out, and is then a copy of what the teacher starts from. config.teacher.shown=failure shows the teacher
failed attempts in place of probes; config.teacher.reward.preset chooses the reward.

Siblings that need neither models nor data: with cpu a small model that is drawn here learns what to tell a
student that forgets to carry, in a minute; smoke runs every part with a student that is a model, in seconds:

  python -m atlas_jax.main --config=configs/teacher_rcl.py:cpu --workdir=runs/teacher_rcl_cpu
  python -m atlas_jax.main --config=configs/teacher_rcl.py:smoke --workdir=runs/teacher_rcl_smoke
"""
from atlas_jax import config as base


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, cpu=False, smoke=False)
  config = base.default()
  config.recipe = "teacher"
  config.model.kind = "decoder"
  if base.choose(arg, "", "cpu", "smoke"):
    _toy(config)
    return _smoke(config) if arg.smoke else config
  config.data.update(name="files", tokenizer="model", chat_template="model", batch_rows=128, group_size=32,
                     max_prompt_tokens=4_096, overlong="truncate", held_out_frac=0.1)
  config.decoder.update(dtype="bfloat16", remat="block", attention_block_tokens=512)
  config.sampler.update(max_tokens=4_096, temperature=0.7)
  config.teacher.update(max_tokens=4_096, temperature=0.7)
  config.rollout.pad_tokens = 512  # As attention_block_tokens: no part of a block is attended.
  config.policy.update(preset="grpo", kl_weight=0.04, reference_every_steps=2, reference_share=0.9)
  config.loss.block_tokens = 2_048
  config.optim.update(lr=1e-6, warmup_steps=8, steps=250, weight_decay=0.0, final_lr_frac=1.0)
  config.train.update(accumulate_steps=16, log_every_steps=1, eval_every_steps=10)
  config.checkpoint.update(every_steps=10, best_metric="teaching_accuracy", best_mode="max")
  config.eval.batch_rows = 32
  return config


def _toy(config):
  config.data.options = {"operations": "+", "digits": 2, "style": "direct"}
  config.data.update(name="arithmetic", tokenizer="byte", batch_rows=64, group_size=16, held_out_frac=0.1,
                     max_prompt_tokens=16)
  config.decoder.update(width=32, depth=2, heads=2, kv_heads=2, head_dim=16, ff_width=64, scan_unroll=2)
  config.sampler.max_tokens = 3
  config.teacher.update(sampler="atlas_jax.rollout.toy_student", templates="plain", probe_tokens=0,
                        max_tokens=8, fixed_hint="add")
  config.rollout.pad_tokens = 1
  config.optim.update(lr=1e-2, warmup_steps=5, steps=60, weight_decay=0.0, final_lr_frac=1.0)
  config.train.update(log_every_steps=1, eval_every_steps=30)
  config.checkpoint.update(every_steps=30, best_metric="teaching_accuracy", best_mode="max")
  config.eval.update(batch_rows=64, max_problems=64)


def _smoke(config):
  # What the others read decides on what is small: the student is a model here, a copy of the drawn teacher.
  config.teacher.update(sampler="native", probe_tokens=4)
  config = base.shrink(config)
  config.data.update(name="arithmetic", held_out_frac=0.2)
  config.teacher.grader = "letters"  # Nothing is right by chance, and nothing would be learnt from.
  config.decoder.scan_unroll = 1
  config.eval.max_problems = 8
  return config
