"""Language model with the hierarchical memory of TNT, trained in the paper's two stages.

Stage 1 trains with local memories of large chunks, whose shards are read side by side. Stage 2 goes on from
its parameters with chunks of one token for a twentieth as many updates: a model trained with one chunk size
is worse at another, so that the precise one is learnt at the end, where it costs little. The global memory,
its chunks and all shapes of parameters stay as they are; the optimizer starts anew, at a third of the
learning rate. Memory is in one block, beside attention, with keys of the context before a token, as in
memory_40m.py.

  python -m atlas_jax.main --config=configs/memory_tnt.py --workdir=runs/tnt
  python -m atlas_jax.main --config=configs/memory_tnt.py:stage2=runs/tnt --workdir=runs/tnt_stage2
  python -m atlas_jax.main --config=configs/memory_tnt.py:cpu --workdir=runs/tnt_cpu
  python -m atlas_jax.main --config=configs/memory_tnt.py:cpu,stage2=runs/tnt_cpu --workdir=runs/tnt_cpu2
  python -m atlas_jax.main --config=configs/memory_tnt.py:smoke --workdir=runs/smoke

The full size has the shape of configs/memory_40m.py, and that file says how its text and vocabulary, of the
standard library, are prepared. It has not been trained: no accelerator was at hand.  Results: none yet.

Source: Li et al. 2025, TNT, arXiv:2511.07343.
"""
from atlas_jax import config as base

STAGE_2 = 0.05  # Of the updates of stage 1.


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, cpu=False, smoke=False, stage2="")
  config = base.default()
  config.recipe = "memory_lm"
  if arg.cpu:
    config.data.update(segment_len=256, batch_rows=8)
    config.model.update(width=192, depth=4, heads=4, ff_width=672, window_tokens=64, dtype="float32",
                        scan_unroll=4)
    config.model.memory.update(heads=4, key_dim=32, value_dim=32, chunk_size=64)
    config.optim.update(lr=3e-3, warmup_steps=30, steps=300)
    config.train.update(log_every_steps=5)
    config.checkpoint.update(every_steps=150)
    config.eval.update(batch_rows=8, max_tokens=100_000, gain_max_tokens=32_768)
  else:
    config.data.update(tokenizer="runs/python_stdlib_32k", segment_len=2_048, batch_rows=16)
    config.model.update(vocab_size=32_000, width=448, depth=8, heads=7, ff_width=1_744, window_tokens=256,
                        remat="block")
    # At 256 the global memory overshoots at the rule's rate: its loss is 2.5 times that of answering zero.
    config.model.memory.update(heads=7, key_dim=64, value_dim=64, chunk_size=64)
    config.loss.block_tokens = 4_096
    config.optim.update(lr=1e-3, warmup_steps=1_000, steps=40_000)
    config.train.update(log_every_steps=50, eval_every_steps=2_000)
    config.checkpoint.update(every_steps=1_000)
    config.eval.update(batch_rows=16, max_tokens=2_000_000, baselines=False)
  config.model.memory_layers = "1"
  config.model.memory.rule = "tnt"
  config.model.memory.options = {"local_chunks": (1,) if arg.stage2 else (8,)}
  if arg.stage2:
    steps = round(STAGE_2 * config.optim.steps)
    config.model.path = arg.stage2
    config.optim.update(lr=config.optim.lr / 3, steps=steps, warmup_steps=steps // 10)
  return base.shrink(config) if arg.smoke else config
