"""Problems: a question, an answer that a program can check, and a text that solves it."""
import hashlib
import types
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

NOTHING: Mapping[str, Any] = types.MappingProxyType({})


class Problem(NamedTuple):
  """One question."""

  where: str  # file:line, dataset:row, or task@index
  prompt: str | list[dict]  # a text, or messages {"role", "content"} that end before the answer
  answer: str | None = None  # what graders compare a completion with; None: there is none
  solution: str | None = None  # what SFT learns to write after the prompt; None: there is none
  extra: Mapping[str, Any] = NOTHING  # what else is known of it, such as other columns
  reply: tuple[dict, ...] = ()  # the messages of the solution, where they are more than one text
  values: Mapping[str, Any] = NOTHING  # what its chat template may use besides messages, such as tools
  read: Mapping[str, Mapping[str, Any]] = NOTHING  # "prompt", "solution", "answer", "template" -> its columns

  @property
  def columns(self) -> dict[str, Any]:
    """Returns all columns of the row by name, as functions that ask for one by name are given it."""
    found = {name: value for columns in self.read.values() for name, value in columns.items()}
    return {**self.extra, **{name: value for name, value in found.items() if not name.endswith("[-1]")}}

  @property
  def read_from(self) -> dict[str, str]:
    """Returns the column that "prompt", "answer" and "solution" were read from, each where there is one."""
    return {role: next(iter(columns)) for role, columns in self.read.items() if columns}


class Problems(Protocol):
  """Problems by index."""

  fingerprint: str  # equal for sets whose problem(i) are equal

  @property
  def count(self) -> int | None: ...  # how many there are; None: without end
  def problem(self, index: int) -> Problem: ...
  def first(self, count: int) -> list[Problem]: ...  # that differ from each other; fewer if there are fewer


class StableRandom:
  """Random integers that depend on the given words alone, the same under every NumPy."""

  def __init__(self, *words: int):
    """Starts from integers that are not negative, such as a seed and an index."""
    self._bits = np.random.PCG64(np.random.SeedSequence(words))

  def below(self, end: int) -> int:
    """Draws from 0 .. end-1."""
    return int(self._bits.random_raw()) % end

  def between(self, low: int, high: int) -> int:
    """Draws from low .. high."""
    return low + self.below(high - low + 1)


def uniform_hash(key: str) -> float:
  """Returns a number in [0, 1) that depends on the key alone, and so decides on its side of a split."""
  # Of a digest and not of Python's hash, which differs from process to process.
  return int.from_bytes(hashlib.sha256(key.encode("utf-8", "replace")).digest()[:8], "big") / 2**64


def threshold(places, held_out_frac: float, noun: str) -> float:
  """Returns the bound below which places are held out, so that with a fraction above 0 both splits have some.

  It is the fraction itself unless that leaves a split empty; then the item of the smallest place is held out,
  or the item of the largest place is trained on.

  Args:
    places: numbers in [0, 1), one per item; items of the same place stay together.
    held_out_frac: fraction of the items to hold out; with 0 all are trained on.
    noun: what the items are, for the error.

  Raises:
    ValueError: if the items cannot be split, because they have one place.
  """
  if not held_out_frac:
    return 0.0  # Also of a single item, which could not be split.
  ordered = np.unique(np.asarray(places, np.float64))
  if len(ordered) < 2:
    raise ValueError(f"config.data.held_out_frac={held_out_frac}: {len(ordered)} {noun} cannot be split into "
                     "training and held-out ones; give more, or set config.data.held_out_frac=0 to train on "
                     "all without evaluation")
  return float(min(max(held_out_frac, ordered[1]), ordered[-1]))


def in_split(key: str, split: str, held_out_frac: float) -> bool:
  """Returns whether the problem of that key belongs to "train" or "held_out"; each belongs to one of them."""
  return (uniform_hash(key) < held_out_frac) == (split == "held_out")


def check_split(split: str, held_out_frac: float) -> None:
  """Raises ValueError if there is no such split, or the fraction held out leaves nothing to train on."""
  if split not in ("train", "held_out"):
    raise ValueError(f"split={split!r} must be 'train' or 'held_out'")
  if not 0 <= held_out_frac < 1:
    raise ValueError(f"config.data.held_out_frac={held_out_frac} must be in [0, 1)")
  if split == "held_out" and not held_out_frac:
    raise ValueError("config.data.held_out_frac=0 leaves nothing to evaluate on; set it above 0, such as 0.1")


def drawn(task: Problems, key_of, count: int, *, tries: int = 20) -> list[Problem]:
  """Returns the first problems of an endless task that differ from each other.

  Args:
    task: where they come from.
    key_of: problem -> what makes it the same as another.
    count: how many are wanted.
    tries: indices looked at per problem wanted, at most.

  Raises:
    ValueError: if there are not so many different ones.
  """
  found: dict[Any, Problem] = {}
  for index in range(count * tries):
    if len(found) == count:
      break
    problem = task.problem(index)
    found.setdefault(key_of(problem), problem)
  if len(found) < count:
    raise ValueError(f"the task has only about {len(found)} different problems in this split, {count} are "
                     f"wanted; ask for fewer, hold out a larger fraction, or make its numbers larger")
  return list(found.values())
