"""The protocol of a source of batches, and finding one by its file name."""
import importlib
import pathlib
from typing import Protocol


class Source(Protocol):
  """Host side of training: gives this process's rows of one batch after another."""

  def next(self, params) -> dict:
    """Gives the next batch, name -> numpy array; only rollouts use `params`."""

  def state(self) -> dict:
    """Gives what JSON can hold and `restore` needs to go on with the very next batch."""

  def restore(self, state: dict) -> None:
    """Goes to the place that `state` names; ValueError if it belongs to other data or settings."""

  def provenance(self, step: int) -> list[str]:
    """Names where the rows of that step's batch come from, one "file@byte" per row of this process."""


def names() -> list[str]:
  """Lists the sources that `load` knows: the files of this folder that define `make`."""
  files = pathlib.Path(__file__).parent.glob("*.py")
  return sorted(file.stem for file in files if "\ndef make(" in file.read_text(encoding="utf-8"))


def load(source: str, **fields) -> Source:
  """Builds the source of that file name from the fields of config.data and the run.

  Args:
    source: a name of `names()`, or a dotted module that defines `make`.
    **fields: handed to `make`, so that an unknown field is its TypeError.

  Raises:
    ValueError: if there is no such source.
  """
  if "." not in source and source not in names():
    raise ValueError(f"config.data.source={source!r} is unknown; known sources: {', '.join(names())}")
  module = source if "." in source else f"atlas_jax.data.{source}"
  return importlib.import_module(module).make(**fields)
