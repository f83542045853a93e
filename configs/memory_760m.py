"""Language model of 760M parameters with a memory of what came before, in every way of mixing it in.

761,274,576 parameters at a vocabulary of 32,000, within 3% with every mix. Blocks, width, learning rate,
segments of 4,096 tokens and updates of half a million are those of the models of this size in Miras
(arXiv:2504.13173). The head is the embedding, and wider feed-forward layers take its place. It has not been
trained: no accelerator was at hand. Text and vocabulary are prepared as for configs/memory_40m.py, which also
has siblings for a CPU.

  python -m atlas_jax.main --config=configs/memory_760m.py --workdir=runs/memory_760m
  python -m atlas_jax.main --config=configs/memory_760m.py:mix=context --workdir=runs/context_760m
  python -m atlas_jax.main --config=configs/memory_760m.py:smoke --workdir=runs/smoke

Mixes are the files of atlas_jax/models/blocks: gate, layer, context, only, e2e, none, conv.

Results: none yet.
"""
from atlas_jax import config as base

FF_WIDTHS = {"gate": 4_000, "layer": 4_000, "context": 3_872, "only": 4_352,
             "e2e": 3_872, "none": 4_384, "conv": 4_000}


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, smoke=False, mix="gate", corpus="lm1b")
  if arg.smoke and arg.corpus != "lm1b":
    raise ValueError(f"config arguments 'corpus={arg.corpus}' and 'smoke' exclude each other: smoke reads the"
                     " standard library; set --config.data.name for another corpus")
  config = base.default()
  config.recipe = "memory_lm"
  config.data.update(name=arg.corpus, tokenizer=f"runs/{arg.corpus}_32k", segment_len=4_096, batch_rows=128)
  config.model.update(vocab_size=32_000, width=1_536, depth=24, heads=24, window_tokens=512, remat="block",
                      memory_layers="1,5,9,13,17,21")
  config.model.memory.update(heads=24, key_dim=64, value_dim=64, chunk_size=64)
  config.loss.block_tokens = 4_096
  config.optim.update(lr=1.25e-3, warmup_steps=1_000, steps=60_000)
  config.train.update(log_every_steps=50, eval_every_steps=2_000, accumulate_steps=4)
  config.checkpoint.update(every_steps=1_000)
  config.eval.update(batch_rows=16, max_tokens=2_000_000, baselines=False)
  base.set_mix(config, arg.mix, base.default(), ff_widths=FF_WIDTHS, inner_width=2_048)
  return base.shrink(config) if arg.smoke else config
