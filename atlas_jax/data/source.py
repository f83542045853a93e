"""The protocol of a source of batches, and finding one by its file name.

A file of this folder is a source if it defines `make` and BATCH, the names of the arrays in its batches. One
of your own is a module that defines `make`, named with dots by config.data.source; see `stepped`.
"""
import importlib
import inspect
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import numpy as np

from atlas_jax import modules


class Source(Protocol):
  """Host side of training: gives this process's rows of one batch after another.

  A source may have more, which is called where it is there: `close()` ends its threads and processes;
  `metrics() -> evals.EvalOut` gives numbers and text about the batch given last, logged with its update;
  `steps_of(epochs) -> int` counts the batches of so many passes; `passages(step) -> list[dict]` says more of
  a row than `provenance`: its "origin", and its "documents" as `data.text` lists them.
  """

  def next(self, trained) -> dict:
    """Returns the next batch, name -> numpy array; only rollouts use `trained`, a `state.Trained`."""

  def state(self) -> dict:
    """Returns what JSON can hold and `restore` needs to go on with the very next batch."""

  def restore(self, state: dict) -> None:
    """Goes to the place that `state` names; ValueError if it belongs to other data or settings."""

  def provenance(self, step: int) -> list[str]:
    """Names where the rows of that step's batch come from, one "file@byte" per row of this process."""


def names(reads: Collection[str] = ()) -> list[str]:
  """Lists the sources of this folder whose batches hold all the arrays of these names."""
  # Read as text: importing all files of the folder would load libraries that the run does without.
  texts = {file.stem: file.read_text(encoding="utf-8") for file in pathlib.Path(__file__).parent.glob("*.py")}
  known = [name for name, text in texts.items() if "\ndef make(" in text and "\nBATCH = " in text]
  return sorted(name for name in known if set(reads) <= set(_module_of(name).BATCH))


def check(source: str, reads: Collection[str], *, recipe: str) -> None:
  """Refuses a source of this folder whose batches a recipe cannot read.

  Args:
    source: as of `load`; a module of one's own is not looked into.
    reads: names of the arrays that the recipe reads.
    recipe: its name.

  Raises:
    ValueError: names what the batches lack, and the sources that the recipe can read.
  """
  if "." in source or source in names(reads):
    return  # With dots it may be of any kind, and the first batch shows what it holds.
  # What the recipe can read, and not all there is: the next choice should be the last one.
  able = f"known sources: {', '.join(names(reads))}, or a module of your own such as experiments.mqar.task"
  if source not in names():
    raise ValueError(f"config.data.source={source!r} is unknown; {able}")
  # Here and not at the first batch, where a KeyError would name an array and no field.
  lacking = ", ".join(sorted(set(reads) - set(_module_of(source).BATCH)))
  raise ValueError(f"config.data.source={source!r} gives no {lacking}, which config.recipe={recipe!r} reads; "
                   f"{able}")


def load(source: str, **fields) -> Source:
  """Builds the source of that file name from the fields of config.data and the run.

  Args:
    source: a name of `names()`, or a dotted module that defines `make`.
    **fields: of which `make` is handed those that it names, or all if it takes any.

  Raises:
    ValueError: if there is no such source.
  """
  make = _make_of(source)
  # One group of the config serves all sources, so each takes what it names; `readers` refuses the rest.
  return make(**{name: value for name, value in fields.items() if _takes(make, name)})


def fields_of(data: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of config.data that the source it names takes, and "source" itself.

  Raises:
    ValueError: if there is no such source.
  """
  make = _make_of(data["source"])
  return {name: data[name] for name in data if name == "source" or _takes(make, name)}


class InVocabulary:
  """A source whose ids are checked as they come, which a compiled program cannot do."""

  # On the device an id beyond the table reads its last row, so a wrong source would train without a word.

  def __init__(self, source: Source, *, name: str, vocab_size: int):
    """Wraps a source.

    Args:
      source: gives tokens_BT with doc_BT, and targets_BT with weight_BT, or some of them.
      name: of config.data.source.
      vocab_size: of the model.
    """
    self._source = source
    self._name = name
    self._vocab_size = vocab_size

  def __getattr__(self, name: str):
    # Of all else, such as `close` and `steps_of`, the loop asks whether it is there.
    return getattr(self._source, name)

  def next(self, trained) -> dict:
    """Returns the next batch.

    Raises:
      ValueError: if a real token or a target that counts is no id of the model.
    """
    batch = self._source.next(trained)
    if "tokens_BT" in batch:
      self._check("tokens_BT", np.asarray(batch["tokens_BT"]), np.asarray(batch.get("doc_BT", 0)) >= 0)
    if "targets_BT" in batch:
      counts_BT = np.asarray(batch.get("weight_BT", 1)) > 0
      self._check("targets_BT", np.asarray(batch["targets_BT"]), counts_BT)
    return batch

  def _check(self, name: str, ids_BT, counts_BT) -> None:
    # Where nothing counts, -1 is a usual mark; below -vocab_size a score is no number, whatever weighs it.
    wrong_BT = (ids_BT < np.where(counts_BT, 0, -self._vocab_size)) | (ids_BT >= self._vocab_size)
    if wrong_BT.any():
      wrong = ids_BT[wrong_BT][0]
      raise ValueError(f"config.data.source={self._name!r} gives the id {wrong} in {name}; ids are "
                       f"0..{self._vocab_size - 1}; give such ids, or raise config.model.vocab_size="
                       f"{self._vocab_size} with a tokenizer that has them")


def checked(source: Source, *, name: str, vocab_size: int) -> Source:
  """Returns a source of one's own, which has a dotted name, as one whose ids are checked."""
  # Those of the package check ids where they encode, once and not at every step.
  return InVocabulary(source, name=name, vocab_size=vocab_size) if "." in name else source


def _make_of(source: str) -> Callable:
  if "." not in source and source not in names():
    raise ValueError(f"config.data.source={source!r} is unknown; known sources: {', '.join(names())}")
  if "." in source:
    return modules.attribute(source, "make", field="data.source")
  return _module_of(source).make


def _module_of(source: str):
  return importlib.import_module(f"atlas_jax.data.{source}")


def _takes(make: Callable, name: str) -> bool:
  named = inspect.signature(make).parameters
  return name in named or any(one.kind is one.VAR_KEYWORD for one in named.values())
