"""Kinds of training, one per file, found by file name. A recipe is all that the loop knows of a kind."""
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from atlas_jax import modules


class LossOut(NamedTuple):
  """The outcome of one batch."""

  loss: jax.Array  # [] mean over counted tokens (or what `Accounting.unit` says), in nats
  weight: jax.Array  # [] how many of them count
  carry: Any  # what the next batch starts from; () if nothing
  metrics: dict  # name -> [] array
  seen: Any = None  # [] how many the batch holds of what `Accounting.unit` says, also those that the loss
                    # leaves out; None: the weight


class Tables(NamedTuple):
  """Functions by which a batch reads and changes tables too large for a gradient of their own shape.

  The loss is differentiated with respect to the rows of one batch; the optimizer never sees the tables.
  """

  rows: Callable  # (tables, batch, carry) -> rows, a pytree whose leaves lead with B
  update: Callable  # (tables, batch, carry, grads, *, scale) -> tables; scale 0 must leave them as they are


class ReferenceUpdate(NamedTuple):
  """A reference that follows the parameters: the loss sees it as frozen["reference"].

  Source: Gorbatovski et al. 2024, arXiv:2404.09656.
  """

  every_steps: int  # updates between its moves
  weight: float  # of the parameters in it after a move


class Update(NamedTuple):
  """The effects of an update besides moving the parameters along the gradient of the loss."""

  tables: Tables | None = None  # if there are any, the loss is also given rows=
  reference: ReferenceUpdate | None = None
  # (step) -> what the loss is given besides, by name, such as how far attention sees; step: [] int32, updates
  # so far. The loss has a default for what no update is made of. None: nothing.
  by_step: Callable | None = None


def as_they_are(means: dict) -> dict:
  """Returns metrics unchanged."""
  return means


class Accounting(NamedTuple):
  """Counting of a batch, and how its metrics are combined."""

  unit: str = "tokens"  # what `LossOut.weight` and `seen` count; names metrics, such as perf/tokens_per_s
  finish: Callable = as_they_are  # (LossOut.metrics averaged by weight) -> metrics, for ratios
  optional: tuple[str, ...] = ()  # metrics that are NaN, and then not written, where there is nothing to say
  backward_frac: float = 1.0  # fraction of the forward pass that has a backward pass, for counting FLOPs
  is_mean_nll: bool = True  # whether the loss is a mean surprise of tokens, of which there is a perplexity


def nothing(workdir, *others) -> None:
  """Leaves a workdir as it is."""


class Assets(NamedTuple):
  """Files of a run's workdir besides checkpoints and metrics."""

  save: Callable = nothing  # (workdir) -> None: writes, before training, what using the run needs
  check: Callable = nothing  # (workdir) -> None: refuses, by ValueError, a run whose data are not these
  # (workdir, trained, summary) -> None: writes what a finished run offers to others; every process calls it
  # with what evaluations get, and the summary is {} but in process 0.
  export: Callable = nothing


class Recipe(NamedTuple):
  """One kind of training. The first four fields are all that a small one needs."""

  init: Callable  # rng -> state.Init
  loss: Callable  # (params, batch, *, frozen, carry, rng) -> LossOut; see `Update` for what else it may take
  source: Any  # data.source.Source: host side, where batches come from
  evals: Mapping[str, Any]  # name -> evals.Eval
  # (mesh, fresh) -> state.LoadedParams; params and tables are wanted only of a fresh run. None: all is drawn.
  load: Callable | None = None
  update: Update = Update()
  accounting: Accounting = Accounting()
  assets: Assets = Assets()


def names() -> list[str]:
  """Returns the names of all recipes in this folder."""
  return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(config, mesh, workdir=None) -> Recipe:
  """Makes the recipe that `config.recipe` names.

  Args:
    config: resolved.
    mesh: all devices.
    workdir: of the run, for what is written as it goes, such as tables of completions; None: nowhere. `make`
      of a recipe is handed it only if it names it.

  Raises:
    ValueError: if there is no such recipe, which says where it was looked for, or the config does not fit it.
  """
  name = config.recipe
  if "." not in name and name not in names():
    raise ValueError(f"config.recipe={name!r} is unknown; recipes are {', '.join(names())}")
  if "." in name:
    make = modules.attribute(name, "make", field="recipe")
  else:
    make = importlib.import_module(f"{__name__}.{name}").make
  # A recipe that writes nothing beside checkpoints and metrics need not take it.
  takes_workdir = "workdir" in inspect.signature(make).parameters
  return make(config, mesh, workdir) if takes_workdir else make(config, mesh)
