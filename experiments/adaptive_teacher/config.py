"""Settings of the study: a student that obeys hints, a teacher that writes any hint, and how it learns which.

  python -m atlas_jax.main --config=experiments/adaptive_teacher/config.py:student --workdir=runs/student
"""
from atlas_jax import config as base

STUDENT = dict(width=96, depth=3, heads=4, kv_heads=2, head_dim=24, ff_width=256, scan_unroll=3)
TEACHER = dict(width=64, depth=2, heads=4, kv_heads=4, head_dim=16, ff_width=128, scan_unroll=2)


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, student=False, seed=0)
  return student(arg.seed)


def student(seed: int):
  """Returns the config of the student: it adds, names the kind of problem, and obeys hints."""
  config = _sft(seed, "student", STUDENT)
  config.data.update(segment_len=128, batch_rows=24, max_problems=60_000)
  config.optim.update(lr=3e-3, warmup_steps=50, steps=1_500)
  return config


def teacher_start(seed: int):
  """Returns the config of the teacher before it learns: it writes valid hints, whatever the letter."""
  config = _sft(seed, "teacher", TEACHER)
  config.data.update(segment_len=128, batch_rows=16, max_problems=8_000)
  config.optim.update(lr=3e-3, warmup_steps=20, steps=200)
  return config


def _sft(seed: int, act: str, decoder):
  config = base.default()
  config.recipe = "sft"
  config.seed = seed
  config.model.kind = "decoder"
  config.decoder.update(decoder)
  config.data.options = {"act": act}
  config.data.update(name="convention", tokenizer="byte", held_out_frac=0.1)
  config.optim.weight_decay = 0.01
  config.sampler.max_tokens = 12
  config.rewards = config.eval.grader = "verbatim"
  config.eval.update(max_problems=256, batch_rows=256, sample_tokens=0)
  config.train.update(log_every_steps=20, eval_every_steps=250)
  config.checkpoint.update(every_steps=100_000, keep_best=0)
  config.monitor.update(tensorboard=False, progress=False, report=False)
  return config
