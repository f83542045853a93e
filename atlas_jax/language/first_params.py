"""The parameters that a tuning run starts from, drawn or read, and a reference that stays what they were.

A reference is a copy of what is trained, in `frozen`, which the loss compares with; so may a student be.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from atlas_jax.language.initial_model import InitialModel
from atlas_jax.state import Init, LoadedParams

REFERENCE = "reference"


def init_of(start: InitialModel, *, reference: bool = False, copies: tuple[str, ...] = ()) -> Callable:
  """Makes the function from a key to what training starts from; see `recipes.Recipe.init`.

  Args:
    start: of what is trained.
    reference: whether there is one that stays.
    copies: names in `frozen` of further copies of what is trained, such as of a student.
  """
  names = (*((REFERENCE,) if reference else ()), *copies)

  def init(rng) -> Init:
    params, frozen = start.init(rng)
    frozen = {**frozen, **{name: jax.tree.map(jnp.copy, params) for name in names}}
    return Init(params, frozen=frozen or ())

  return init


def load_of(start: InitialModel, *, reference: bool = False, copies: tuple[str, ...] = ()) -> Callable | None:
  """Makes the reader of what training starts from; None where all of it is drawn; see `Recipe.load`.

  Arguments are those of `init_of`.
  """
  names = (*((REFERENCE,) if reference else ()), *copies)
  if start.read_base is None:
    return None
  # Where what is trained is drawn, the reference is drawn with it, from the seed, at every start.
  reads_copies = bool(names) and start.reads_trained

  def load(mesh, fresh: bool) -> LoadedParams:
    params, frozen = start.read(mesh, fresh or reads_copies)
    if reads_copies:  # Copies: the parameters themselves are used up by the first update.
      frozen = {**frozen, **{name: jax.tree.map(jnp.copy, params) for name in names}}
    # A run that goes on has its parameters from the checkpoint.
    return LoadedParams(params if fresh else None, frozen)

  return load
