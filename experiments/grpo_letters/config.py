"""A random decoder is rewarded for ASCII letters: the task that trainers are timed and compared on.

  python -m atlas_jax.main --config=experiments/grpo_letters/config.py --workdir=runs/letters
  python -m atlas_jax.main --config=experiments/grpo_letters/config.py:small --workdir=runs/letters_small

8 prompts of 32 ids with 4 completions of exactly 64 ids each, one update of AdamW, float32. Steps of this
config are what `scripts/bench.py grpo` measures. Result: README.md.
"""
from atlas_jax import config as base

SIZES = {"tiny": dict(vocab_size=1024, width=128, depth=4, heads=4, kv_heads=2, head_dim=32, ff_width=352),
         "small": dict(vocab_size=2048, width=256, depth=4, heads=8, kv_heads=4, head_dim=32, ff_width=704)}


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, small=False)
  config = base.default()
  config.recipe = "grpo"
  config.model.kind = "decoder"
  config.decoder.update(SIZES["small" if arg.small else "tiny"], qkv_bias=True, remat="dots")
  config.data.update(name="files", files="experiments/grpo_letters/prompts.jsonl", batch_rows=32,
                     group_size=4, held_out_frac=0.0, max_prompt_tokens=32)
  config.rewards = "experiments.grpo_letters.reward.letters"
  config.sampler.update(max_tokens=64, stop_end=False)
  config.rollout.update(pad_tokens=32)
  config.policy.update(preset="grpo")
  config.optim.update(lr=3e-3, warmup_steps=0, steps=40, schedule="cosine", final_lr_frac=1.0,
                      weight_decay=0.0, beta2=0.999, clip_norm=1.0)
  config.train.update(log_every_steps=1, accumulate_steps=8)  # Pieces that stay in a processor's cache.
  config.checkpoint.update(every_steps=1_000, keep_best=0)
  return config
