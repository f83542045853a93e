"""Kinds of training, one per file, found by file name. A recipe is all that the loop knows of a kind."""
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax


class Init(NamedTuple):
  """What training starts from."""

  params: Any  # changed by the optimizer
  frozen: Any = ()  # reference or teacher parameters, handed to the loss
  carry: Any = ()  # what the first batch starts from; every leaf leads with B


class LossOut(NamedTuple):
  """What one batch gives."""

  loss: jax.Array  # [] mean over counted tokens, in nats
  weight: jax.Array  # [] how many tokens count
  carry: Any  # what the next batch starts from; () if nothing
  metrics: dict  # name -> [] array


class Recipe(NamedTuple):
  """One kind of training."""

  init: Callable  # rng -> Init
  loss: Callable  # (params, batch, *, frozen, carry, rng) -> LossOut
  source: Any  # data.source.Source: host side, where batches come from
  evals: Mapping[str, Any]  # name -> evals.Eval


def names() -> list[str]:
  """Returns the names of all recipes in this folder."""
  return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(config, mesh) -> Recipe:
  """Makes the recipe that `config.recipe` names, for a mesh.

  Raises:
    ValueError: if there is no such recipe, or the config does not fit it.
  """
  name = config.recipe
  if "." not in name and name not in names():
    raise ValueError(f"config.recipe={name!r} is unknown; recipes are {', '.join(names())}")
  return importlib.import_module(name if "." in name else f"{__name__}.{name}").make(config, mesh)
