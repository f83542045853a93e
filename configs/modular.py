"""Modular addition by a small transformer: all training rows by heart first, the rule much later.
Results: experiments/grokking/README.md.

  python -m atlas_jax.main --config=configs/modular.py --workdir=runs/modular
  python -m atlas_jax.main --config=configs/modular.py:smoke --workdir=runs/smoke
"""
from atlas_jax import config as base


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, smoke=False)
  config = base.default()
  config.recipe = "memory_lm"
  config.data.update(source="modular_arithmetic", segment_len=6, batch_rows=512, held_out_frac=0.6,
                     carry=False)
  config.data.options = {"modulus": 97, "operation": "add"}
  # The blocks have no memory; chunk_size is what documents start at multiples of, 6 at least.
  config.model.update(width=128, depth=1, heads=4, ff_width=352, window_tokens=6, memory_mix="none",
                      dtype="float32")
  config.model.memory.chunk_size = 6
  # The decay ends the learning by heart: ten times the usual one (Power et al. 2022, arXiv:2201.02177).
  config.optim.update(lr=2e-3, warmup_steps=10, steps=2_000, final_lr_frac=1.0, beta2=0.98, weight_decay=1.0)
  config.train.update(log_every_steps=10, eval_every_steps=25)
  config.checkpoint.update(every_steps=1_000, best_metric="held_out_accuracy", best_mode="max")
  config.eval.update(batch_rows=512, max_tokens=12_288, accuracy=True, baselines=False, sample_tokens=0)
  if arg.smoke:
    base.shrink(config)
    config.eval.sample_tokens = 0
  return config
