"""All that changes while training, hence all that is saved."""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from atlas_jax.parallel import place


class TrainState(NamedTuple):
  """One pytree; random keys are typed."""

  step: jax.Array  # [] int32, batches used so far
  params: Any
  opt_state: Any
  carry: Any  # what the next batch starts from, such as memory; every leaf leads with B; () if nothing
  ema: Any  # moving average of params; () if off
  rng: jax.Array  # the run's root key; a step's key is folded in from it
  skipped: jax.Array  # [] int32, batches without an update because a number was not finite
  skipped_in_row: jax.Array  # [] int32, how many of them came last, one after another
  tables: Any = ()  # rows of which a batch changes few, outside the optimizer; () if none


def first(recipe_init, seed: int):
  """Gives what a run starts from, Init(params, frozen, carry, tables); equal for equal seeds."""
  # Steps fold their number into the same root, and no run makes so many.
  return recipe_init(jax.random.fold_in(jax.random.key(seed), 2**31 - 1))


def create(recipe_init, optimizer_of, ema_decay: float | None, seed: int) -> TrainState:
  """Makes the first state of a run; also under `jax.eval_shape` and `jax.jit`.

  Args:
    recipe_init: rng -> Init(params, frozen, carry, tables).
    optimizer_of: params -> optax transformation.
    ema_decay: None for no moving average.
    seed: of the run.
  """
  start = first(recipe_init, seed)
  none = jnp.zeros((), jnp.int32)
  ema = () if ema_decay is None else jax.tree.map(jnp.copy, start.params)
  opt_state = optimizer_of(start.params).init(start.params)
  return TrainState(none, start.params, opt_state, start.carry, ema, jax.random.key(seed), none, none,
                    start.tables)


def abstract(mesh: Mesh, *args) -> TrainState:
  """Returns the shapes, dtypes and shardings of `create(*args)` on a mesh, without computing anything."""
  shapes = jax.eval_shape(lambda: create(*args))
  return place.abstract(shapes, place.shardings(mesh, shapes))


def build(abstract_state: TrainState, *args) -> TrainState:
  """Computes `create(*args)` in place: each device makes its own part."""
  shardings = jax.tree.map(lambda x: x.sharding, abstract_state)
  return jax.jit(lambda: create(*args), out_shardings=shardings)()
