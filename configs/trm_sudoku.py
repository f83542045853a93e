"""Tiny recursive models on Sudoku.  Results: docs/results.md and experiments/trm_sudoku.

The published setting, 9x9 Sudoku-Extreme with 1,000 boards and 1,000 shuffles of each: 5,028,866 parameters
with `mlp` (the default), 6,828,034 with `att`. Without a folder of the data set, boards are generated:

  python -m atlas_jax.main --config=configs/trm_sudoku.py --workdir=runs/sudoku_mlp
  python -m atlas_jax.main --config=configs/trm_sudoku.py:att --workdir=runs/sudoku_att
  python -m atlas_jax.main --config=configs/trm_sudoku.py:hub --workdir=runs/sudoku_extreme

Small ones, with boards of our own, in minutes on two cores:

  python -m atlas_jax.main --config=configs/trm_sudoku.py:4x4 --workdir=runs/sudoku4
  python -m atlas_jax.main --config=configs/trm_sudoku.py:6x6 --workdir=runs/sudoku6
  python -m atlas_jax.main --config=configs/trm_sudoku.py:smoke --workdir=runs/smoke
"""
from atlas_jax import config as base


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, **{"mlp": False, "att": False, "4x4": False, "6x6": False, "hub": False,
                               "smoke": False})
  mixer = base.choose(arg, "mlp", "att")
  side = {"4x4": 4, "6x6": 6}.get(base.choose(arg, "9x9", "4x4", "6x6"), 9)
  config = base.published_trm(base.default())
  config.optim.update(lr=1e-4, weight_decay=1.0)
  config.puzzles.update(name="sudoku", side=side, n_train=1_000, n_augmentations=1_000, epochs=50_000)
  config.trm.update(n_inner=6)
  if mixer == "mlp":
    config.trm.update(mixer="mlp", positions="none")
  config.train.update(eval_every_steps=6_510)
  if arg.hub:
    config.data.download = True
    # Published as boards of one solution; to search all 423,786 for a second one would take an hour.
    config.puzzles.update(path="hub", n_test=422_786, one_solution=False)
  if side < 9:
    _small(config, side)
  else:
    config.table.update(lr=1e-4, weight_decay=1.0)
  return base.shrink(config) if arg.smoke else config


def _small(config, side: int):
  config.trm.update(width=64 if side == 4 else 96, heads=4, n_inner=3,
                    n_outer=2, n_prefix=0, row_width=0, dtype="float32")
  config.supervision.update(n_supervision=8)
  config.data.batch_rows = 64
  config.puzzles.update(n_train=500 if side == 4 else 2_000, n_test=250, epochs=None)
  config.optim.update(lr=2e-3, weight_decay=0.1, warmup_steps=50, steps=600 if side == 4 else 1_400,
                      ema_decay=0.99)
  config.train.update(log_every_steps=20, eval_every_steps=100 if side == 4 else 250)
  config.checkpoint.update(every_steps=100 if side == 4 else 250)
  config.eval.batch_rows = 125
