"""The train state: all that changes while training, hence all that is saved."""
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from atlas_jax import tree
from atlas_jax.models import placement
from atlas_jax.optim import build as optim
from atlas_jax.optim import precision


class Init(NamedTuple):
  """The state that training starts from."""

  params: Any  # changed by the optimizer
  frozen: Any = ()  # reference or teacher parameters by name, handed to the loss; () if none
  carry: Any = ()  # what the first batch starts from; every leaf leads with B
  tables: Any = ()  # rows of which a batch changes few; see recipes.Tables


class LoadedParams(NamedTuple):
  """Parameters read from files in place of those that `Init` would draw; placed on the mesh."""

  params: Any = None  # None: as `Init` has them
  frozen: Mapping[str, Any] = MappingProxyType({})  # parts of `Init.frozen`, by name
  tables: Any = None  # None: as `Init` has them


class Trained(NamedTuple):
  """The trained model as the loop hands it to sources and evaluations; all of it on the mesh."""

  params: Any  # of the next update for a source; for an evaluation the moving average where a run keeps one
  frozen: Any = ()  # reference or teacher parameters by name, as `Init` has them or as they were read
  tables: Any = ()  # of the train state


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
  anchor: Any = ()  # a reference that follows params now and then; () if none


def field_used(config) -> str:
  """Names the field of a run's state that is evaluated and served: "ema" if it keeps one, else "params"."""
  return "params" if config.optim.ema_decay is None else "ema"


def params_used(state: TrainState):
  """Returns the parameters that are evaluated and served, as `field_used` names them."""
  return state.params if isinstance(state.ema, tuple) else state.ema


def first(recipe_init, seed: int):
  """Returns what a run starts from, Init(params, frozen, carry, tables); equal for equal seeds."""
  # Steps fold their number into the same root, and no run makes so many. Jitted, it is traced once for all
  # the programs that a start makes of it.
  return jax.jit(recipe_init)(jax.random.fold_in(jax.random.key(seed), 2**31 - 1))


def create(recipe_init, optimizer_of, ema_decay: float | None, seed: int, anchored: bool = False,
           param_dtype: str = "float32", params=None, tables=None) -> TrainState:
  """Makes the first state of a run; also under `jax.eval_shape` and `jax.jit`.

  Args:
    recipe_init: rng -> Init(params, frozen, carry, tables).
    optimizer_of: params -> optax transformation.
    ema_decay: None for no moving average.
    seed: of the run.
    anchored: whether a copy of the parameters is kept as a reference.
    param_dtype: of the parameters that `optim.build.kernel_mask` marks.
    params, tables: what to start from in place of what recipe_init draws.
  """
  start = first(recipe_init, seed)
  params = stored(start.params if params is None else params, param_dtype)
  tables = start.tables if tables is None else tables
  none = jnp.zeros((), jnp.int32)

  def copied(wanted):
    # They move by small parts of a difference, which bfloat16 would round away.
    return jax.tree.map(jnp.copy, precision.wide(params)) if wanted else ()

  opt_state = optimizer_of(params).init(params)
  ema = copied(ema_decay is not None)
  return TrainState(none, params, opt_state, start.carry, ema, jax.random.key(seed), none, none, tables,
                    copied(anchored))


def stored(params, param_dtype: str):
  """Returns parameters as a run stores them, those that `optim.build.kernel_mask` marks in param_dtype."""
  return precision.stored(params, optim.kernel_mask(params), param_dtype)


def abstract(mesh: Mesh, *args) -> TrainState:
  """Returns the shapes, dtypes and shardings of `create(*args)` on a mesh, without computing anything."""
  shapes = jax.eval_shape(lambda: create(*args))
  return placement.abstract(mesh, shapes)


def build(abstract_state: TrainState, *args, params=None, tables=None) -> TrainState:
  """Computes `create(*args, params, tables)` in place: each device makes its own part; both are used up.

  Parameters that are given are float32, and stored as the state has them.

  Raises:
    ValueError: if params have other shapes than those of the model; names the first.
  """
  shardings = jax.tree.map(lambda x: x.sharding, abstract_state)
  given = {name: value for name, value in (("params", params), ("tables", tables)) if value is not None}
  for name, value in given.items():
    check_same(value, precision.wide_shapes(getattr(abstract_state, name)))

  def started(given):
    return create(*args, **given)

  return jax.jit(started, out_shardings=shardings, donate_argnums=0)(given)


def check_same(params, wanted) -> None:
  """Refuses parameters that were read if they are not of the shapes and types wanted.

  Raises:
    ValueError: names the first that differs.
  """
  found = {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in tree.named_leaves(params)}
  needed = {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in tree.named_leaves(wanted)}
  for name in sorted({*found, *needed}):
    if found.get(name) != needed.get(name):
      raise ValueError(f"config.model.path gives parameters of another model: {name} is "
                       f"{found.get(name, 'absent')} there and {needed.get(name, 'absent')} in this config; "
                       "set the fields of the model as they were there")
