"""Puzzles as batches: without end in a sampler's order for training, once and in order for evaluation."""
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from atlas_jax.data.stepped import IndexedSource, rows_of
from atlas_jax.puzzles import sampler as samplers
from atlas_jax.puzzles.puzzle_set import BLANK_ID, PuzzleSet
from atlas_jax.puzzles.sampler import BatchPlace

NOT_SCORED = -100  # Label in a batch; in a set it is 0.
RECENT = 64        # Batches whose examples are kept: those prepared ahead, and a few to be asked about.
MARK_STEPS = 256   # Steps between the places that are kept to start a search from.
START = BatchPlace(0, 0)
FRESH = 2          # Stream of a seed that draws what varies from visit to visit; the sampler has 0 and 1.


class _Planned(NamedTuple):
  """A step: its examples on all processes, and where the next one begins."""

  examples: np.ndarray
  next: BatchPlace


class Steps:
  """The examples of every step, found from the nearest known place; safe to share between threads."""

  def __init__(self, sampler: samplers.PuzzleSampler, step: int = 0, place: BatchPlace = START):
    """Starts with the place of one step, besides that of step 0."""
    self._sampler = sampler
    self._lock = threading.Lock()
    self._marks = {0: START, step: place}
    self._recent: dict[int, _Planned] = {}

  def examples(self, step: int) -> np.ndarray:
    """Returns the examples of the whole batch of a step."""
    with self._lock:
      return self._plan(step).examples

  def place(self, step: int) -> BatchPlace:
    """Returns where the batch of a step begins."""
    with self._lock:
      return self._place(step)

  def steps_of(self, epochs: int) -> int:
    """Counts the full batches of the first `epochs` epochs."""
    with self._lock:
      return self._sampler.steps_of(epochs)

  def _plan(self, step: int) -> _Planned:
    if step not in self._recent:
      planned = _Planned(*self._sampler.batch(self._place(step)))
      while len(self._recent) >= RECENT:  # The oldest go first: a dictionary keeps the order of its keys.
        del self._recent[next(iter(self._recent))]
      self._recent[step] = planned
      if not (step + 1) % MARK_STEPS:
        self._marks[step + 1] = planned.next
    return self._recent[step]

  def _place(self, step: int) -> BatchPlace:
    if step < 0:
      raise IndexError(f"there is no step {step}; the first one is 0")
    # A batch begins where the one before it ended: as epochs are of unequal length, no formula says where.
    if step - 1 in self._recent:
      return self._recent[step - 1].next
    known = {**self._marks, **{planned + 1: found.next for planned, found in self._recent.items()}}
    # Marks are left on the way, so that a second look back at a long run does not count from its start.
    near = max(found for found in known if found <= step)
    place = known[near]
    while (mark := near + MARK_STEPS - near % MARK_STEPS) <= step:
      near, place = mark, self._sampler.skip(place, mark - near)
      self._marks[near] = place
    return self._sampler.skip(place, step - near)


class PuzzleSource(IndexedSource):
  """Training batches of puzzles.

  A batch has inputs_BT, labels_BT (-100 where not scored) and ids_B (rows of the puzzle table), all int32.
  All processes find the same examples for a step, and each reads its own rows of them.

  Attributes:
    train: the puzzles.
    step: the step that `next` gives.
  """

  NESTED = {"identity": "puzzles."}

  def __init__(self, train: PuzzleSet, *, batch_rows: int, seed: int, threads: int = 2,
               process_index: int = 0, process_count: int = 1, fresh_shift: bool = False,
               sampler: str = "counter", epochs_per_iteration: int | None = None):
    """Serves a set of puzzles.

    Args:
      train: the puzzles.
      batch_rows: rows of the batch over all processes.
      seed: draws the order, and what is fresh.
      threads: threads that prepare batches; 0 prepares each when asked.
      process_index, process_count: whose rows these are, see `stepped.rows_of`.
      fresh_shift: whether what the set leaves to chance is drawn anew at each visit (else it is the frozen
        form). Each process then reads the rows of all, for one generator draws for the whole batch.
      sampler: "counter" (ours) or "original" (the reference program's order).
      epochs_per_iteration: for "original" only, see `sampler.OriginalSampler`.

    Raises:
      ValueError: for a field that cannot be, naming it.
    """
    # An order that differs makes other batches of the same puzzles, so its settings are part of the place.
    super().__init__(
        {"fingerprint": train.fingerprint, "seed": seed, "batch_rows": batch_rows, "sampler": sampler,
         "epochs_per_iteration": epochs_per_iteration, "fresh_shift": fresh_shift,
         "identity": train.identity},
        rows_of(batch_rows, process_index, process_count), threads=threads)
    self.train = train
    self._sampler = samplers.make(sampler, train, batch_rows=batch_rows, seed=seed,
                                  epochs_per_iteration=epochs_per_iteration)
    self._order = Steps(self._sampler)
    self._seed = seed
    self._fresh = fresh_shift

  def batch(self, step: int) -> dict:
    """Returns this process's rows of any step, as `next` did or will; the place stays."""
    examples = self._order.examples(step)
    if not self._fresh:
      return _encode(self.train, examples[self._mine])
    # Counted from the step: threads draw batches in any order, and a resumed run draws the same.
    philox = np.random.Philox(key=np.array([self._seed, FRESH], np.uint64), counter=step << 64)
    whole = _encode(self.train, examples, np.random.Generator(philox))
    return {name: array[self._mine] for name, array in whole.items()}

  def steps_of(self, epochs: int) -> int:
    """Counts the full batches of the first `epochs` epochs; an epoch draws one puzzle of every group."""
    return self._order.steps_of(epochs)

  def state(self) -> dict:
    """Returns the place and what it is valid for; independent of the number of processes and threads."""
    # The order's own place too: to find it again from the step alone takes seconds in a long run.
    return {**super().state(), "place": list(self._order.place(self.step))}

  def restore(self, state: dict) -> None:
    """Goes to the saved place; see `SteppedSource.restore`."""
    super().restore(state)
    self._order = Steps(self._sampler, self.step, BatchPlace(*map(int, state["place"])))

  def provenance(self, step: int) -> list[str]:
    """Names the puzzle and the example of each of this process's rows in the batch of that step.

    A step long before the place this process resumed from is found by counting from the start, which takes
    seconds for a run of many epochs.

    Returns:
      One "NAME@EXAMPLE" per row; NAME is the id's where ids have names, else the group's, else puzzleN.
    """
    examples = self._order.examples(step)[self._mine]
    puzzles = self.train.puzzles_of(examples)
    return [f"{puzzle_name(self.train, int(puzzle))}@{example}" for puzzle, example in zip(puzzles, examples)]


class EvalBatches:
  """Every example of a set once and in order: iterate as often as needed, `len` batches each time.

  The last batch is filled up at its end with rows of padding. A batch holds, for this process's rows,
  inputs_BT, labels_BT and ids_B as in training, example_B (index in the set, -1 for padding) and puzzle_B
  (index of its puzzle, -1 for padding), all int32.
  """

  def __init__(self, test: PuzzleSet, batch_rows: int, *, process_index: int = 0, process_count: int = 1,
               max_examples: int | None = None):
    """Serves a set of puzzles.

    Args:
      test: the puzzles.
      batch_rows: rows of a batch over all processes.
      process_index, process_count: whose rows these are, see `stepped.rows_of`.
      max_examples: ends after so many; None: all.

    Raises:
      ValueError: if the rows do not divide by the processes.
    """
    self.test = test
    self._batch_rows = batch_rows
    self._mine = rows_of(batch_rows, process_index, process_count, field="config.eval.batch_rows")
    self.n_examples = test.n_examples if max_examples is None else min(test.n_examples, max_examples)

  def __len__(self) -> int:
    return -(-self.n_examples // self._batch_rows)

  def __iter__(self) -> Iterator[dict]:
    for step in range(len(self)):
      whole = step * self._batch_rows + np.array(self._mine)
      examples = whole[whole < self.n_examples]
      batch = _encode(self.test, examples)
      batch["example_B"] = examples.astype(np.int32)
      batch["puzzle_B"] = self.test.puzzles_of(examples).astype(np.int32)
      # Filled up, for one shape; all processes yield equally many, or those with more would wait for ever.
      yield {name: _fill(array, len(whole), PADDING[name]) for name, array in batch.items()}


PADDING = {"inputs_BT": 0, "labels_BT": NOT_SCORED, "ids_B": BLANK_ID, "example_B": -1, "puzzle_B": -1}


def puzzle_name(puzzles: PuzzleSet, puzzle: int) -> str:
  """Names a puzzle: by its id where ids have names, else by its group, else as puzzleN."""
  row = int(puzzles.puzzle_ids[puzzle])
  if row != BLANK_ID and len(puzzles.names):
    return puzzles.names[row]
  if len(puzzles.group_names):
    return puzzles.group_names[int(np.searchsorted(puzzles.group_starts, puzzle, side="right")) - 1]
  return f"puzzle{puzzle}"


def _encode(puzzles: PuzzleSet, examples: np.ndarray, draw=None) -> dict:
  """Reads examples and returns them in the form that the model takes."""
  # The last batch of an evaluation may leave a process no example, and readers want at least one.
  empty_BT = np.zeros((0, puzzles.seq_len), np.int32)
  read = puzzles.read(examples, draw) if len(examples) else (empty_BT, empty_BT)
  inputs_BT, labels_BT = (np.asarray(array, np.int32) for array in read)
  # Sets keep the original program's files, where 0 is "not scored"; to losses that is a token like others.
  labels_BT = np.where(labels_BT == 0, np.int32(NOT_SCORED), labels_BT)
  return {"inputs_BT": inputs_BT, "labels_BT": labels_BT, "ids_B": puzzles.ids_of(examples)}


def _fill(array: np.ndarray, rows: int, value: int) -> np.ndarray:
  """Adds rows of one value at the end."""
  missing = np.full((rows - len(array), *array.shape[1:]), value, np.int32)
  return np.concatenate([array, missing])
