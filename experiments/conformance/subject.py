"""The form in which a memory is handed to the checks, whatever package it comes from.

An adapter is a file of `adapters/`, found by its name, that says PACKAGE (the distribution that it needs),
DOCUMENTED (where its usage is described) and `subjects()`. It imports the package inside functions alone, so
that it can be named where the package is missing. Arrays at this border are NumPy's.
"""
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

FEATURES = ("state", "padding", "documents", "float64")


class Model(Protocol):
  """A memory at its start. Inputs are [B, T, size] floats, or [B, T] ids; outputs [B, T, ...]."""

  def read(self, x, *, keep_BT=None, doc_BT=None) -> np.ndarray:
    """Reads rows that begin here; keep_BT is False at padding, doc_BT numbers packed documents."""

  def read_on(self, x, state) -> tuple[np.ndarray, Any]:
    """Reads on from a state that an earlier call returned; None: the rows begin here."""

  def write_parameters(self) -> Mapping[str, np.ndarray]:
    """Returns the parameters of keys, values and write gates, by name."""

  def loss(self, x, start: int, nudge: Mapping[str, np.ndarray]) -> tuple[float, Mapping[str, np.ndarray]]:
    """Returns `mean_loss` from token `start` on, and its gradients, with parameters moved by `nudge`.

    A parameter without a gradient is left out.
    """


class Subject(NamedTuple):
  """One row of the table."""

  name: str
  build: Callable[..., Model]  # (dtype, seed, **option): the same model at every call
  size: int  # features of an input vector, or the number of ids
  settings: str  # what was set, and what recommends it
  chunk: int = 16  # tokens after which writes are seen, or any number where they are at once
  ids: bool = False  # inputs are ids, not vectors
  lacks: Mapping[str, str] = {}  # a feature that is not offered -> why
  options: Mapping[str, Mapping] = {}  # documented settings to try where a check fails: label -> of `build`
  says: Mapping[str, str] = {}  # a check that its documentation says does not hold -> its words, and where
  release: Callable[[], None] = lambda: None  # drops what its models have left, when its row is judged


def loss_weights(shape: tuple[int, ...], start: int) -> np.ndarray:
  """Returns what `mean_loss` weighs outputs with: fixed random numbers, zero before token `start`."""
  weight = np.random.default_rng(0).normal(size=shape)
  weight[:, :start] = 0.0
  return weight / np.count_nonzero(weight)


def mean_loss(y, weight):
  """Returns the weighted sum of outputs; of arrays of any library."""
  return (y * weight).sum()


def leaves(tree, parts: Iterable[str]) -> dict:
  """Returns the leaves of a JAX tree whose paths hold one of some texts, by path."""
  import jax

  found = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
  return {name: leaf for name, leaf in found.items() if any(part in name for part in parts)}
