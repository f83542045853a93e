"""The beginning of a run: shapes of its train state, parameters that are not trained, number of updates."""
from typing import Any

import jax
from absl import logging

from atlas_jax import config as configs
from atlas_jax import state as states
from atlas_jax.models import placement
from atlas_jax.optim import build as optim
from atlas_jax.optim import freeze
from atlas_jax.recipes import Recipe
from atlas_jax.state import LoadedParams, TrainState


def abstract_state(config, recipe: Recipe, mesh) -> tuple[TrainState, Any]:
  """Returns shapes and shardings of the train state, and of the frozen parameters, without computing them."""
  first = jax.eval_shape(lambda: states.first(recipe.init, config.seed))
  freeze.check_trained(first.params, config.optim.freeze, has_tables=recipe.update.tables is not None)
  state = states.abstract(mesh, *state_args(config, recipe))
  return state, placement.abstract(mesh, first.frozen)


def state_args(config, recipe: Recipe):
  """Returns what `state.build` and `state.create` take of a config and its recipe."""
  def optimizer_of(params):
    return optim.build(params, **config.optim)

  with_reference = recipe.update.reference is not None
  return (recipe.init, optimizer_of, config.optim.ema_decay, config.seed, with_reference,
          config.train.param_dtype)


def frozen_of(config, recipe: Recipe, mesh, loaded: LoadedParams):
  """Puts on the mesh what the loss is handed besides parameters: what was read, and the rest drawn.

  Args:
    config, recipe, mesh: of the run.
    loaded: what `recipe.load` gave.
  """

  def init():
    return states.first(recipe.init, config.seed).frozen

  wanted = jax.eval_shape(init)
  if not loaded.frozen:
    return jax.jit(init, out_shardings=placement.shardings(mesh, wanted))()
  states.check_same(dict(loaded.frozen), {name: wanted[name] for name in loaded.frozen})
  rest = {name: part for name, part in wanted.items() if name not in loaded.frozen}
  where = placement.shardings(mesh, rest)
  # All of it is drawn in the program, and what is not returned is dropped by the compiler: keys are those of
  # a run that reads nothing.
  drawn = jax.jit(lambda: {name: init()[name] for name in rest}, out_shardings=where)()
  return {**drawn, **loaded.frozen}


def with_steps(config, recipe):
  """Fills config.optim.steps, where it is None, with the batches that the source has in so many epochs."""
  if config.optim.steps is not None:
    return config
  name = "data.epochs" if config.puzzles.epochs is None else "puzzles.epochs"
  epochs = configs.at(config, name)
  if not hasattr(recipe.source, "steps_of"):
    raise ValueError(f"config.optim.steps=None with config.{name}={epochs}: the data of config.recipe="
                     f"{config.recipe!r} have no epochs; set config.optim.steps")
  changed = configs.unfrozen(config)
  # Only the source knows how many rows the data have. The recipe is therefore built while the number of
  # updates is still None.
  changed.optim.steps = recipe.source.steps_of(epochs)
  if not changed.optim.steps:
    raise ValueError(f"config.{name}={epochs} fills no batch of config.data.batch_rows="
                     f"{config.data.batch_rows}; raise the epochs, or lower the rows")
  logging.info("%d epochs are %d updates", epochs, changed.optim.steps)
  # Checked again: bounds on numbers of updates could not be checked while it was None.
  return configs.resolve(changed)
