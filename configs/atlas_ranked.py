"""A decoder tuned on ranked responses to prompts.  Results: docs/results.md.

The published setting, a model of 1,102,345,728 parameters from scratch with a vocabulary of 52,000, on files
of your own; the first command makes the two data files and the tokenizer out of them:

  python scripts/prepare_grpo_data.py --out=data --files=FILES --vocab_size=52000
  python -m atlas_jax.main --config=configs/atlas_ranked.py --workdir=runs/atlas_1b

A small one on bytes, with responses to sums that are made here, in minutes on two cores:

  python scripts/prepare_grpo_data.py --out=data
  python -m atlas_jax.main --config=configs/atlas_ranked.py:cpu --workdir=runs/ranked
  python -m atlas_jax.main --config=configs/atlas_ranked.py:smoke --workdir=runs/smoke

It fits a card of 16 GB with rows of 2,048 tokens and four responses to a prompt, one prompt at a time, as
tests/recipes/test_ranked.py adds up:

  parameters   1,019,215,872 of kernels in 2 bytes, 83,129,856 others in 4    2.37 GB
  Adam         mean and squares, 2 bytes each                                 4.41 GB
  gradients    of a prompt, and their sum over the prompts, as parameters     4.74 GB
  activations  inputs of 36 blocks, 4 x 2,048 x 1,536 x 2 bytes each          0.91 GB
  one block    gate, up, their product and gradients, 6 x 4 x 2,048 x 4,096
               x 2 bytes, and 256 queries' scores, weights and gradients,
               3 x 4 x 24 x 256 x 2,048 x 4 bytes                             1.01 GB
  logits       of 1,024 tokens, three times 1,024 x 52,000 x 4 bytes          0.64 GB
  together     if all of them were held at once                              14.07 GB

The compiler's own account for an RTX 5060 Ti of 16 GB, compiled and not run, jax 0.10.2: 13.42 GB.

In float32 parameters, Adam and gradients alone would be 22.0 GB. Kernels are bfloat16 with updates that are
rounded at random, and so are Adam's squares: see `train.param_dtype`, `optim.first_moment` and
`optim.second_moment`. With --config.optim.second_moment=factored Adam needs 2.2 GB less.

A pretrained model goes on from where it is with --config.model.path=FOLDER --config.data.tokenizer=model, and
with --config.data.chat_template=model for one that chats.
"""
from atlas_jax import config as base


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, cpu=False, smoke=False)
  config = base.default()
  config.recipe = "ranked"
  config.model.kind = "decoder"
  config.decoder.update(vocab_size=52_000, width=1_536, depth=36, heads=24, kv_heads=24, head_dim=64,
                        ff_width=4_096, learned_positions=2_048, tied=True, dtype="bfloat16", remat="block")
  config.data.update(name="arithmetic", files="data/grpo_training.json",
                     tokenizer="data/tokenizer", segment_len=2_048, batch_rows=4, epochs=10)
  config.ranked.update(eval_files="data/validation.json",
                       folder="model" if arg.cpu or arg.smoke else "atlas_1.1B")
  config.loss.block_tokens = 1_024
  config.decoder.attention_block_tokens = 256
  config.optim.update(lr=5e-6, steps=None, first_moment="bfloat16", second_moment="bfloat16")
  config.train.update(param_dtype="bfloat16", accumulate_steps=4)
  config.train.eval_every_steps = 1_000
  config.checkpoint.update(every_steps=1_000, best_metric="val_pairs_right_frac", best_mode="max")
  config.eval.batch_rows = 4
  if arg.cpu:
    _small(config)
  if arg.cpu or arg.smoke:  # Small enough for float32, and for whole rows.
    config.decoder.attention_block_tokens = None
    config.optim.update(first_moment="float32", second_moment="float32")
    config.train.update(param_dtype="float32", accumulate_steps=1)
  return base.shrink(config) if arg.smoke else config


def _small(config):
  config.decoder.update(vocab_size=257, width=96, depth=3, heads=3, kv_heads=3, head_dim=32, ff_width=256,
                        learned_positions=128, dtype="float32", remat="none")
  config.data.update(tokenizer="byte", segment_len=96, batch_rows=16, epochs=4)
  # Sharper than published: after 563 updates 88% of held-out pairs are in order, else 80%.
  config.ranked.update(score_scale=2.0, margin_scale=4.0)
  config.decoder.attention_block_tokens = None
  config.loss.block_tokens = None
  config.optim.update(lr=2e-3, warmup_steps=50, first_moment="float32", second_moment="float32")
  config.train.update(param_dtype="float32", accumulate_steps=1)
  config.train.update(eval_every_steps=200)
  config.checkpoint.update(every_steps=200)
  config.eval.batch_rows = 50
