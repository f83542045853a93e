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
  config.data.update(name=arg.corpus, tokenizer=f"runs/{arg.corpus}_32k")
  base.set_size(config, width=2_048, depth=18, memory_layers="1,5,9,13", lr=7e-4, steps=200_000)
  base.set_mix(config, arg.mix, base.default(), ff_widths=FF_WIDTHS, inner_width=2_816)
  return base.shrink(config) if arg.smoke else config
