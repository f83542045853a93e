"""Language model of 1300M parameters with a memory of what came before, in every way of mixing it in.

1,299,966,592 parameters at a vocabulary of 32,000, within 3% with every mix. Blocks, width, learning rate,
segments of 4,096 tokens and updates of half a million are those of the models of this size in Miras
(arXiv:2504.13173). The head is the embedding, and wider feed-forward layers take its place. It has not been
trained: no accelerator was at hand. Text and vocabulary are prepared as for configs/memory_40m.py, which also
has siblings for a CPU.

  python -m atlas_jax.main --config=configs/memory_1300m.py --workdir=runs/memory_1300m
  python -m atlas_jax.main --config=configs/memory_1300m.py:mix=context --workdir=runs/context_1300m
  python -m atlas_jax.main --config=configs/memory_1300m.py:smoke --workdir=runs/smoke

Mixes are the files of atlas_jax/models/blocks: gate, layer, context, only, e2e, none, conv.

Results: none yet.
"""
from atlas_jax import config as base

FF_WIDTHS = {"gate": 7_968, "layer": 7_968, "context": 7_808, "only": 8_384,
             "e2e": 7_808, "none": 8_416, "conv": 7_968}


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, smoke=False, mix="gate", corpus="lm1b")
  if arg.smoke and arg.corpus != "lm1b":
    raise ValueError(f"config arguments 'corpus={arg.corpus}' and 'smoke' exclude each other: smoke reads the"
                     " standard library; set --config.data.name for another corpus")
  config = base.default()
  config.recipe = "memory_lm"
  config.data.update(name=arg.corpus, tokenizer=f"runs/{arg.corpus}_32k", segment_len=4_096, batch_rows=128)
  config.model.update(vocab_size=32_000, width=2_048, depth=18, heads=32, window_tokens=512, remat="block",
                      memory_layers="1,5,9,13")
  config.model.memory.update(heads=32, key_dim=64, value_dim=64, chunk_size=64)
  config.loss.block_tokens = 4_096
  config.optim.update(lr=7e-4, warmup_steps=1_000, steps=200_000)
  config.train.update(log_every_steps=50, eval_every_steps=2_000, accumulate_steps=4)
  config.checkpoint.update(every_steps=1_000)
  config.eval.update(batch_rows=16, max_tokens=2_000_000, baselines=False)
  base.set_mix(config, arg.mix, base.default(), ff_widths=FF_WIDTHS, inner_width=2_816)
  return base.shrink(config) if arg.smoke else config
