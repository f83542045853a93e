"""Tiny recursive models on mazes of 30x30 cells.  Results: docs/results.md.

The published setting (attention, 6,822,914 parameters; `mlp` has 18,795,522). Without a folder of Maze-Hard,
mazes are generated, their shortest paths longer than 110 cells:

  python -m atlas_jax.main --config=configs/trm_maze.py --workdir=runs/maze
  python -m atlas_jax.main --config=configs/trm_maze.py:hub --workdir=runs/maze_hard
  python -m atlas_jax.main --config=configs/trm_maze.py:cpu --workdir=runs/maze_cpu
  python -m atlas_jax.main --config=configs/trm_maze.py:smoke --workdir=runs/smoke

`hub` fetches the data set; `cpu` is a small model on mazes of 9x9 cells.
"""
from atlas_jax import config as base


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, mlp=False, hub=False, cpu=False, smoke=False)
  config = base.published_trm(base.default())
  config.optim.update(lr=1e-4, weight_decay=1.0)
  config.puzzles.update(name="maze", side=30, n_train=1_000, n_test=1_000, n_augmentations=0, min_rating=110,
                        epochs=50_000)
  config.trm.update(n_inner=4)
  if arg.mlp:
    config.trm.update(mixer="mlp", positions="none")
  config.train.update(eval_every_steps=6_510)
  if arg.hub:
    config.data.download = True
    config.puzzles.path = "hub"
  if arg.cpu:
    config.trm.update(width=128, heads=4, n_outer=2, n_inner=3, n_prefix=0, row_width=0, dtype="float32")
    config.supervision.update(n_supervision=8)
    config.data.batch_rows = 32
    config.puzzles.update(side=9, n_train=1_000, n_test=200, n_augmentations=7, min_rating=12, epochs=None)
    config.optim.update(lr=1e-3, weight_decay=0.1, warmup_steps=50, steps=1_000, ema_decay=0.99)
    config.train.update(log_every_steps=20, eval_every_steps=250)
    config.checkpoint.update(every_steps=250)
    config.eval.batch_rows = 100
  else:
    config.table.update(lr=1e-4, weight_decay=1.0)
  return base.shrink(config) if arg.smoke else config
