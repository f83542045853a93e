"""Puzzles in files, runs of recursive models that compile in seconds, and their updates one by one."""

import functools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from atlas_jax import recipes, train
from atlas_jax import state as states
from atlas_jax import step as stepping
from atlas_jax.models import placement
from atlas_jax.parallel import hosts
from atlas_jax.puzzles import files
from tests import runs

SMALL = dict(trm__width=16, trm__row_width=16, trm__n_prefix=1, trm__depth=1, trm__n_inner=1,
             data__batch_rows=8, eval__batch_rows=8, supervision__n_supervision=3)  # fmt: skip
ARC = dict(puzzles__name="arc1", puzzles__canvas=10, puzzles__max_tasks=3, puzzles__n_augmentations=2)
N_GROUPS, N_TOKENS, SIDE = 6, 7, 4


def write_built(folder, *, n_groups=N_GROUPS, seed=0):
  """Writes puzzles in the original's layout; a group is a code, which two puzzles of 1 to 3 examples share.

  Returns:
    The folder.
  """
  draw = np.random.default_rng(seed)
  codes = [np.append(0, 1 + draw.permutation(N_TOKENS - 1)) for _ in range(n_groups)]
  for split in ("train", "test"):
    sizes = draw.integers(1, 4, 2 * n_groups) if split == "train" else np.ones(2 * n_groups, int)
    inputs = draw.integers(1, N_TOKENS, (sizes.sum(), SIDE**2))
    owners = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.stack([codes[puzzle // 2][row] for puzzle, row in zip(owners, inputs)])
    labels[:, 0] = 0
    arrays = {"inputs": inputs.astype(np.uint8), "labels": labels.astype(np.uint8),
              "puzzle_identifiers": np.arange(1, len(sizes) + 1, dtype=np.int32),
              "puzzle_indices": np.append(0, np.cumsum(sizes)).astype(np.int32),
              "group_indices": np.arange(0, len(sizes) + 1, 2, dtype=np.int32)}  # fmt: skip
    facts = dict.fromkeys(files.ZEROS, 0) | {
      "vocab_size": N_TOKENS, "seq_len": SIDE**2, "num_puzzle_identifiers": len(sizes) + 1,
      "total_groups": n_groups, "total_puzzles": len(sizes), "mean_puzzle_examples": float(sizes.mean()),
      "sets": ["all"]}  # fmt: skip
    (folder / split).mkdir(parents=True)
    (folder / split / "dataset.json").write_text(json.dumps(facts))
    for name, array in arrays.items():
      np.save(folder / split / f"all__{name}.npy", array)
  return folder


def small_config(folder, **changes):
  """A resolved config of a model of few parameters, `changes` as in `runs.toy_config`; boards of side 4."""
  return runs.puzzle_config(folder, **(SMALL | changes))


def built_config(folder, **changes):
  """The same on the puzzles that `write_built` wrote there."""
  return small_config(folder, **(dict(puzzles__name="built", puzzles__path=str(folder)) | changes))


def arc_config(folder, **changes):
  """The same on three ARC tasks of each part, on a small canvas."""
  return small_config(folder, **(ARC | changes))


def stirred(recipe):
  """The same recipe from parameters whose halting logits differ from slot to slot, about half above zero."""
  def init(rng):
    start = recipe.init(rng)
    kernel = start.params["halt_kernel"]
    halting = {"halt_kernel": jax.random.normal(jax.random.key(1), kernel.shape, kernel.dtype),
               "halt_bias": jnp.zeros_like(start.params["halt_bias"])}  # fmt: skip
    return start._replace(params={**start.params, **halting})

  return recipe._replace(init=init)


def run(config, workdir, *, mesh=None, stop_at=None, evals=False, change=stirred):
  """Runs a config as `runs.run_lm` does; the recipe goes through `change` first."""
  mesh = mesh or runs.one_device()
  recipe = change(recipes.load(config, mesh))
  before = lambda step: runs.ask_to_stop() if step == stop_at else None
  recipe = recipe._replace(source=runs.Watched(recipe.source, before), evals=recipe.evals if evals else {})
  summary = train.run(config, recipe, mesh, workdir)
  runs.check_names(workdir)
  return summary


class Parts(NamedTuple):
  """What updates are made with, one by one."""

  recipe: recipes.Recipe
  step: object  # (state, batch, frozen, stop) -> (state, metrics)
  state: states.TrainState
  frozen: dict
  mesh: object


@functools.lru_cache
def parts_of(config, mesh=None):
  """The parts of a run that has made no update, from parameters that are stirred."""
  mesh = mesh or runs.one_device()
  recipe = stirred(recipes.load(config, mesh))
  abstract, frozen = train.abstract_state(config, recipe, mesh)
  state = states.build(abstract, *train.state_args(config, recipe))
  where = jax.tree.map(lambda leaf: leaf.sharding, frozen)
  frozen = jax.jit(lambda: states.first(recipe.init, config.seed).frozen, out_shardings=where)()
  return Parts(recipe, stepping.jit_step(config, recipe, mesh, state), host(state), frozen, mesh)


def host(tree):
  """Copies to NumPy, so that no step can donate it; random keys stay."""
  is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
  return jax.tree.map(lambda x: x if is_key(x) else np.array(x), tree)


def placed(parts, state):
  """Puts a state where the step expects it."""
  shardings = placement.shardings(parts.mesh, jax.eval_shape(lambda: state))
  return jax.device_put(state._replace(rng=jax.random.clone(state.rng)), shardings)


def update(parts, state, batch, frozen=None):
  """Makes one update; gives the state after it and the metrics, on the host."""
  frozen = parts.frozen if frozen is None else frozen
  with hosts.StopFlag(parts.mesh) as stop:
    batch = hosts.global_batch(parts.mesh, batch)
    after, metrics = parts.step(placed(parts, state), batch, frozen, stop.array())
  return host(after), host(metrics)
