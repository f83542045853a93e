"""Language model of 170M parameters with a memory of what came before, in every way of mixing it in.

169,788,852 parameters at a vocabulary of 32,000, within 3% with every mix. Blocks, width, learning rate,
segments of 4,096 tokens and updates of half a million are those of the models of this size in Miras
(arXiv:2504.13173). The head is the embedding, and wider feed-forward layers take its place. It has not been
trained: no accelerator was at hand. Text and vocabulary are prepared as for configs/memory_40m.py, which also
has siblings for a CPU.

  python -m atlas_jax.main --config=configs/memory_170m.py --workdir=runs/memory_170m
  python -m atlas_jax.main --config=configs/memory_170m.py:mix=context --workdir=runs/context_170m
  python -m atlas_jax.main --config=configs/memory_170m.py:smoke --workdir=runs/smoke

Mixes are the files of atlas_jax/models/blocks: gate, layer, context, only, e2e, none, conv.

Results: none yet.
"""
from atlas_jax import config as base

FF_WIDTHS = {"gate": 4_032, "layer": 4_032, "context": 3_968, "only": 4_224,
             "e2e": 3_968, "none": 4_224, "conv": 4_032}


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, smoke=False, mix="gate", corpus="lm1b")
  if arg.smoke and arg.corpus != "lm1b":
    raise ValueError(f"config arguments 'corpus={arg.corpus}' and 'smoke' exclude each other: smoke reads the"
                     " standard library; set --config.data.name for another corpus")
  config = base.default()
  config.recipe = "memory_lm"
  config.data.update(name=arg.corpus, tokenizer=f"runs/{arg.corpus}_32k", segment_len=4_096, batch_rows=128)
  config.model.update(vocab_size=32_000, width=768, depth=12, heads=12, window_tokens=512, remat="block",
                      memory_layers="1,5,9")
  config.model.memory.update(heads=12, key_dim=64, value_dim=64, chunk_size=64)
  config.loss.block_tokens = 4_096
  config.optim.update(lr=3e-3, warmup_steps=1_000, steps=30_000)
  config.train.update(log_every_steps=50, eval_every_steps=2_000, accumulate_steps=4)
  config.checkpoint.update(every_steps=1_000)
  config.eval.update(batch_rows=16, max_tokens=2_000_000, baselines=False)
  base.set_mix(config, arg.mix, base.default(), ff_widths=FF_WIDTHS, inner_width=1_024)
  return base.shrink(config) if arg.smoke else config
