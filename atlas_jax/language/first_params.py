"""The parameters that a tuning run starts from, drawn or read, and a reference that stays what they were.

A reference is a copy of what is trained, in `frozen`, and the loss compares with it.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from atlas_jax.language.initial_model import InitialModel
from atlas_jax.state import Init, LoadedParams

REFERENCE = "reference"


def init_of(start: InitialModel, *, reference: bool = False) -> Callable:
  """Makes the function from a key to what training starts from; see `recipes.Recipe.init`."""
  def init(rng) -> Init:
    params, frozen = start.init(rng)
    if reference:
      frozen = {**frozen, REFERENCE: jax.tree.map(jnp.copy, params)}
    return Init(params, frozen=frozen or ())

  return init


def load_of(start: InitialModel, *, reference: bool = False) -> Callable | None:
  """Makes the reader of what training starts from; None where all of it is drawn; see `Recipe.load`."""
  if start.read_base is None:
    return None
  # Where what is trained is drawn, the reference is drawn with it, from the seed, at every start.
  reads_reference = reference and start.reads_trained

  def load(mesh, fresh: bool) -> LoadedParams:
    params, frozen = start.read(mesh, fresh or reads_reference)
    if reads_reference:  # A copy: the parameters themselves are used up by the first update.
      frozen = {**frozen, REFERENCE: jax.tree.map(jnp.copy, params) if fresh else params}
    # A run that goes on has its parameters from the checkpoint.
    return LoadedParams(params if fresh else None, frozen)

  return load
