"""Kinds of training, one per file, found by file name. A recipe is all that the loop knows of a kind."""
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from atlas_jax import modules


class Tables(NamedTuple):
  """How a batch reads and changes tables too large for a gradient of their own shape.

  The loss is differentiated with respect to the rows of one batch; the optimizer never sees the tables.
  """

  rows: Callable  # (tables, batch, carry) -> rows, a pytree whose leaves lead with B
  update: Callable  # (tables, batch, carry, grads, *, scale) -> tables; scale 0 must leave them as they are


class Given(NamedTuple):
  """What is read from files in place of what `Init` would draw; placed on the mesh."""

  params: Any = None  # None: as `Init` has them
  frozen: Mapping[str, Any] = MappingProxyType({})  # parts of `Init.frozen`, by name
  tables: Any = None  # None: as `Init` has them


class Anchor(NamedTuple):
  """A reference that follows the parameters: the loss sees it as frozen["reference"].

  Source: Gorbatovski et al. 2024, arXiv:2404.09656.
  """

  every_steps: int  # updates between its moves
  share: float  # share of the parameters in it after a move


class LossOut(NamedTuple):
  """What one batch gives."""

  loss: jax.Array  # [] mean over counted tokens (or what `Recipe.unit` says), in nats
  weight: jax.Array  # [] how many of them count
  carry: Any  # what the next batch starts from; () if nothing
  metrics: dict  # name -> [] array
  seen: Any = None  # [] how many the batch holds of what `Recipe.unit` says, also those that the loss leaves
                    # out; None: the weight


class Recipe(NamedTuple):
  """One kind of training."""

  init: Callable  # rng -> Init
  loss: Callable  # (params, batch, *, frozen, carry, rng) -> LossOut; with tables also rows=; see by_step
  source: Any  # data.source.Source: host side, where batches come from
  evals: Mapping[str, Any]  # name -> evals.Eval
  tables: Tables | None = None
  # (step) -> what the loss is given besides, by name, such as how far attention sees; step: [] int32, updates
  # so far. The loss has a default for what no update is made of. None: nothing.
  by_step: Callable | None = None
  # What is counted, by `LossOut.weight` and `seen`; names metrics, such as perf/tokens_per_s.
  unit: str = "tokens"
  finish: Callable = lambda means: means  # (LossOut.metrics averaged by weight) -> metrics, for ratios
  may_be_absent: tuple[str, ...] = ()  # Metrics that are NaN, and not written, where nothing is to tell.
  backward_frac: float = 1.0  # Share of the forward pass that has a backward pass, for counting FLOPs.
  keep: Callable = lambda workdir: None  # Saves what using the run needs beside its parameters.
  fits: Callable = lambda workdir: None  # Refuses, by ValueError, a run whose data are not these.
  read: Callable | None = None  # (mesh, fresh) -> Given; params and tables are wanted only of a fresh run
  anchor: Anchor | None = None
  # (frozen, workdir or None) -> None: hands source and evals what they need of both; called before them.
  bind: Callable = lambda frozen, workdir: None
  # (workdir, params, summary) -> None: writes what a finished run leaves besides; every process calls it with
  # the parameters that evaluations use, and the summary is {} but in process 0.
  leave: Callable = lambda workdir, params, summary: None


def names() -> list[str]:
  """Returns the names of all recipes in this folder."""
  return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(config, mesh) -> Recipe:
  """Makes the recipe that `config.recipe` names, for a mesh.

  Raises:
    ValueError: if there is no such recipe, which says where it was looked for, or the config does not fit it.
  """
  name = config.recipe
  if "." not in name and name not in names():
    raise ValueError(f"config.recipe={name!r} is unknown; recipes are {', '.join(names())}")
  if "." in name:
    return modules.attribute(name, "make", field="recipe")(config, mesh)
  return importlib.import_module(f"{__name__}.{name}").make(config, mesh)
