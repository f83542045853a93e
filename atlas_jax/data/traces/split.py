"""Divides traces into those trained on and those held out: whole sessions, and those that ask the same.

The side of a group follows from its key and a seed of its own, not from config.seed: runs with other seeds
are evaluated on the same sessions.
"""
from collections.abc import Sequence

import numpy as np

from atlas_jax.data import problems
from atlas_jax.data.traces.record import Trace

BY = ("session", "learning_key")
LEGACY_FRAC, LEGACY_SEED = 0.1, 42


def key(trace: Trace, by: str = "session") -> str:
  """Returns the key of a trace's group.

  Args:
    trace: the session.
    by: "session": sessions of one task, up to blanks and case, stay together, so that no question is on both
      sides; "learning_key": whole families of tasks do, and sessions without a key as with "session".

  Raises:
    ValueError: for another word.
  """
  if by not in BY:
    raise ValueError(f"config.traces.split_by={by!r} must be one of {', '.join(BY)}")
  if by == "learning_key" and trace.learning_key:
    return f"key:{trace.learning_key}"
  task = " ".join(trace.task.split()).casefold()
  return f"task:{task}" if task else f"session:{trace.identity}"


def place(trace: Trace, *, by: str = "session", seed: int = 42) -> float:
  """Returns the place of a trace's group in [0, 1); those below a bound are held out."""
  return problems.uniform_hash(f"{seed}:{key(trace, by)}")


def sides(places: Sequence[float], held_out_frac: float) -> list[bool]:
  """Returns whether each item is held out; with a fraction above 0 both sides have some.

  Raises:
    ValueError: if all items are of one group, see `problems.threshold`.
  """
  problems.check_split("train", held_out_frac)
  below = problems.threshold(places, held_out_frac, "groups of sessions")
  return [one < below for one in places]


def legacy(count: int, *, held_out_frac: float = LEGACY_FRAC, seed: int = LEGACY_SEED):
  """Splits rows as the original does: shuffled, then divided row by row, so that sessions leak across.

  Args:
    count: how many rows there are.
    held_out_frac: fraction held out, rounded up; 0 holds out nothing.
    seed: of both permutations.

  Returns:
    (training, held out) numbers of rows, in the original's order; None in place of the second where nothing
    is held out.

  Raises:
    ValueError: if nothing is left to train on.

  Source: shuffle(seed) and train_test_split(seed) of datasets 3.2.0, which draw permutations of NumPy's
  default generator.
  """
  shuffled = np.random.default_rng(seed).permutation(count)
  if not held_out_frac:
    return shuffled.tolist(), None
  held_out = int(np.ceil(count * held_out_frac))
  if not 0 < held_out < count:
    raise ValueError(f"config.data.held_out_frac={held_out_frac} leaves one side of {count} rows empty; give "
                     "more rows")
  order = shuffled[np.random.default_rng(seed).permutation(count)]
  return order[held_out:].tolist(), order[:held_out].tolist()
