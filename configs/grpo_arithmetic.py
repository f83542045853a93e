"""Policy optimisation on sums, each right digit earning its part.  Results: experiments/grpo_arithmetic.

It starts from runs/sft_sums, the run of experiments/grpo_arithmetic/sft.py, whose supervised tuning is broken
off while most answers are wrong:

  python -m atlas_jax.main --config=configs/grpo_arithmetic.py --workdir=runs/grpo_sums

A sibling that starts from nothing at all, and learns less, how much is luck:

  python -m atlas_jax.main --config=configs/grpo_arithmetic.py:cpu --workdir=runs/grpo
  python -m atlas_jax.main --config=configs/grpo_arithmetic.py:smoke --workdir=runs/grpo_smoke

The first two take minutes on two cores, smoke seconds.
"""
from atlas_jax import config as base


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, cpu=False, smoke=False)
  config = base.default()
  config.recipe = "grpo"
  config.model.kind = "decoder"
  config.data.options = {"operations": "+", "digits": 2, "style": "direct", "carries": (0, 0)}
  config.data.update(name="arithmetic", tokenizer="byte", batch_rows=256, group_size=16, held_out_frac=0.1,
                     max_prompt_tokens=8)
  config.decoder.scan_unroll = 2
  config.sampler.max_tokens = 3
  config.rollout.pad_tokens = 1
  config.rewards = "places"
  config.policy.entropy_weight = 0.02
  config.optim.update(lr=1e-3, warmup_steps=20, steps=1_000, weight_decay=0.0)
  config.train.update(log_every_steps=10, eval_every_steps=100)
  config.checkpoint.update(every_steps=100, best_metric="val_accuracy", best_mode="max")
  config.eval.update(batch_rows=64, max_problems=64)
  if arg.cpu or arg.smoke:
    config.decoder.update(width=64, depth=2, heads=4, kv_heads=4, head_dim=16, ff_width=128)
  if arg.cpu:
    config.policy.entropy_weight = 0.03  # Nothing is known yet: more has to be tried.
    config.optim.lr = 1.5e-3
  elif not arg.smoke:
    config.model.path = "runs/sft_sums"
  return _smoke(config) if arg.smoke else config


def _smoke(config):
  config = base.shrink(config)
  config.data.update(name="arithmetic", held_out_frac=0.2, max_prompt_tokens=8)
  config.rewards = "letters"  # In four updates nothing is right by chance, and nothing would be learnt from.
  config.eval.max_problems = 8
  return config
