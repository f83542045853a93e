"""Sets of puzzles: groups of puzzles of examples, encoded when they are asked for.

A group is one original task or board with all its augmentations, a puzzle one augmentation, an example one
pair of input and label. Tokens are small integers; 0 is padding in inputs and means "not scored" in labels.
"""
import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence

import numpy as np

BLANK_ID = 0  # The row of the puzzle table that padding has.


@dataclasses.dataclass(frozen=True)
class PuzzleSet:
  """One split of a set of puzzles.

  Attributes:
    group_starts: [groups + 1] first puzzle of each group, and the number of puzzles.
    puzzle_starts: [puzzles + 1] first example of each puzzle, and the number of examples.
    puzzle_ids: [puzzles] int32, row of the puzzle table; 0 where puzzles have no rows of their own.
    seq_len: tokens of an example.
    vocab_size: tokens are below it.
    n_ids: rows of the puzzle table, the blank one included; the same in all splits of a set.
    identity: JSON of all that decides the contents: name, source, digest, seed, numbers.
    read: (example indices [n], draw) -> (inputs [n, seq_len], labels [n, seq_len]) as uint8 or int32; `draw`
      is a NumPy Generator for what varies from visit to visit, or None for the frozen form.
    names: what an id stands for, position = id; () where ids mean nothing.
    group_names: one per group, for messages and pictures; () if there are none.
  """

  group_starts: np.ndarray
  puzzle_starts: np.ndarray
  puzzle_ids: np.ndarray
  seq_len: int
  vocab_size: int
  n_ids: int
  identity: dict
  read: Callable
  names: Sequence[str] = ()
  group_names: Sequence[str] = ()

  @property
  def n_groups(self) -> int:
    """Counts the groups."""
    return len(self.group_starts) - 1

  @property
  def n_puzzles(self) -> int:
    """Counts the puzzles."""
    return len(self.puzzle_ids)

  @property
  def n_examples(self) -> int:
    """Counts the examples."""
    return int(self.puzzle_starts[-1])

  @property
  def fingerprint(self) -> str:
    """Returns a digest of `identity`: equal for equal contents."""
    # Of the identity, not of tokens: a set may encode its examples when asked, and has gigabytes of them.
    return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()

  def puzzles_of(self, examples: np.ndarray) -> np.ndarray:
    """Returns the puzzle of each example."""
    # "right" steps over puzzles without examples, which begin where the next one does.
    return np.searchsorted(self.puzzle_starts, examples, side="right") - 1

  def ids_of(self, examples: np.ndarray) -> np.ndarray:
    """Returns the row of the puzzle table of each example, int32."""
    return self.puzzle_ids[self.puzzles_of(examples)].astype(np.int32)


def of_arrays(inputs, labels, *, vocab_size: int, identity: dict, group_starts=None, puzzle_starts=None,
              puzzle_ids=None, n_ids: int = 1, names: Sequence[str] = (),
              group_names: Sequence[str] = ()) -> PuzzleSet:
  """Makes a set of arrays at hand; by default every example is a puzzle and a group of its own, with id 0.

  Args:
    inputs, labels: [examples, seq_len] integers below vocab_size.
    vocab_size, identity, group_starts, puzzle_starts, puzzle_ids, n_ids, names, group_names: see `PuzzleSet`.

  Raises:
    ValueError: if the arrays do not fit each other.
  """
  inputs = np.asarray(inputs)
  labels = np.asarray(labels)
  each = np.arange(len(inputs) + 1)
  puzzle_starts = each if puzzle_starts is None else np.asarray(puzzle_starts)
  ids = np.zeros(len(puzzle_starts) - 1, np.int32) if puzzle_ids is None else np.asarray(puzzle_ids, np.int32)
  groups = np.arange(len(ids) + 1) if group_starts is None else np.asarray(group_starts)
  if inputs.shape != labels.shape or inputs.ndim != 2:
    raise ValueError(f"inputs {inputs.shape} and labels {labels.shape} must both be [examples, seq_len]")
  ranges = (("puzzle_starts", puzzle_starts, len(inputs)), ("group_starts", groups, len(ids)))
  # Refused here, or a batch would read examples of another puzzle without an error.
  for name, starts, end in ranges:
    if starts[0] != 0 or starts[-1] != end or np.any(np.diff(starts) < 0):
      raise ValueError(f"{name} must rise from 0 to {end}, got {starts[0]} to {starts[-1]}")
  bounds = (("inputs", inputs, vocab_size), ("labels", labels, vocab_size), ("ids", ids, n_ids))
  # On a device an id beyond the table is clamped to its last row, without an error.
  for name, array, bound in bounds:
    if array.size and not 0 <= array.min() <= array.max() < bound:
      raise ValueError(f"{name} run from {array.min()} to {array.max()}, they must be in 0..{bound - 1}")

  def read(examples, draw=None):
    del draw  # Nothing varies.
    return inputs[examples], labels[examples]

  return PuzzleSet(groups, puzzle_starts, ids, inputs.shape[1], vocab_size, n_ids, identity, read, names,
                   group_names)
