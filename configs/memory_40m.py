"""Titans-memory LM, 40M parameters.  Result: README, row memory_40m.

  python -m atlas_jax.main --config=configs/memory_40m.py --workdir=runs/memory_40m
  python -m atlas_jax.main --config=configs/memory_40m.py:cpu --workdir=runs/quickstart
"""
from atlas_jax import config as base


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, cpu=False, cpu_1h=False, baseline=False, smoke=False, rule="titans")
  config = base.default()
  config.recipe = "memory_lm"
  if arg.cpu or arg.cpu_1h:
    config.data.update(segment_len=256, batch_rows=8)
    config.model.update(width=192, depth=4, heads=4, ff_width=512, window_tokens=64, dtype="float32", scan_unroll=4)
    config.model.memory.update(heads=4, key_dim=32, value_dim=32, chunk_size=32)
    config.optim.update(lr=3e-3, warmup_steps=30, steps=360)
    config.train.update(log_every_steps=5)
    config.checkpoint.update(every_steps=180)
    config.eval.update(batch_rows=8, max_tokens=100_000, gain_max_tokens=32_768)
  if arg.cpu_1h:
    config.optim.update(warmup_steps=100, steps=5_000)
    config.train.update(log_every_steps=20, eval_every_steps=1_000)
    config.checkpoint.update(every_steps=500)
    config.eval.update(max_tokens=None, gain_max_tokens=131_072)
  if arg.baseline:
    config.model.memory_mix = "none"
  config.model.memory.rule = arg.rule
  return base.shrink(config) if arg.smoke else config
