"""Supervised tuning on sums, broken off while most answers are still wrong: where the study of GRPO starts.

  python -m atlas_jax.main --config=experiments/grpo_arithmetic/sft.py --workdir=runs/sft_sums
"""
from atlas_jax import config as base


def get_config(arg=None):
  """Returns the config; see the module."""
  base.parse_arg(arg)
  config = base.default()
  config.recipe = "sft"
  config.model.kind = "decoder"
  config.data.options = {"operations": "+", "digits": 2, "style": "direct", "carries": (0, 0)}
  config.data.update(name="arithmetic", tokenizer="byte", segment_len=64, batch_rows=16, held_out_frac=0.1,
                     max_problems=1_000)
  config.decoder.update(width=64, depth=2, heads=4, kv_heads=4, head_dim=16, ff_width=128, scan_unroll=2)
  config.sampler.max_tokens = 3
  config.optim.update(lr=3e-3, warmup_steps=30, steps=100, weight_decay=0.0)
  config.train.update(log_every_steps=10, eval_every_steps=50)
  config.checkpoint.update(every_steps=100, best_metric="val_accuracy", best_mode="max")
  config.eval.update(batch_rows=64, max_problems=64, sample_tokens=0)
  return config
