"""Puzzles as batches: without end in a sampler's order for training, once and in order for evaluation."""
import json
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from atlas_jax.puzzles import sampler as samplers
from atlas_jax.puzzles.puzzle_set import BLANK_ID, PuzzleSet
from atlas_jax.puzzles.sampler import BatchPlace

NOT_SCORED = -100  # Label in a batch; in a set it is 0.
AHEAD = 8          # Batches prepared ahead of the loop.
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
      while len(self._recent) >= RECENT:
        del self._recent[next(iter(self._recent))]
      self._recent[step] = planned
      if not (step + 1) % MARK_STEPS:
        self._marks[step + 1] = planned.next
    return self._recent[step]

  def _place(self, step: int) -> BatchPlace:
    if step < 0:
      raise IndexError(f"there is no step {step}; the first one is 0")
    if step - 1 in self._recent:
      return self._recent[step - 1].next
    known = {**self._marks, **{planned + 1: found.next for planned, found in self._recent.items()}}
    near = max(found for found in known if found <= step)
    place = known[near]
    while (mark := near + MARK_STEPS - near % MARK_STEPS) <= step:
      near, place = mark, self._sampler.skip(place, mark - near)
      self._marks[near] = place
    return self._sampler.skip(place, step - near)


class _Batches:
  """Random access to the batches of a source from a step on, as Grain wants it."""

  def __init__(self, source: "PuzzleSource", first_step: int):
    self._source = source
    self._first_step = first_step

  def __len__(self) -> int:
    return 2**40  # Without end.

  def __getitem__(self, index) -> dict:
    return self._source.batch(self._first_step + int(index))

  def __repr__(self) -> str:
    return f"_Batches(first_step={self._first_step})"


class PuzzleSource:
  """Training batches of puzzles; see `data.source.Source`.

  All processes find the same examples for a step, and each reads its own, contiguous rows of them.

  Attributes:
    train: the puzzles.
    step: the step that `next` gives.
  """

  def __init__(self, train: PuzzleSet, *, batch_rows: int, seed: int, threads: int = 2,
               process_index: int = 0, process_count: int = 1, fresh_shift: bool = False,
               sampler: str = "counter", epochs_per_iteration: int | None = None):
    """Serves a set of puzzles.

    Args:
      train: the puzzles.
      batch_rows: rows of the batch over all processes; this one takes a block of batch_rows / process_count.
      seed: draws the order, and what is fresh.
      threads: threads that prepare batches; 0 prepares each when asked.
      process_index: which process this is; rows are contiguous blocks in the order of processes.
      process_count: how many there are.
      fresh_shift: whether what the set leaves to chance is drawn anew at each visit (else it is the frozen
        form). Each process then reads the rows of all, for one generator draws for the whole batch.
      sampler: "counter" (ours) or "original" (the reference program's order).
      epochs_per_iteration: for "original" only, see `sampler.OriginalSampler`.

    Raises:
      ValueError: for a field that cannot be, naming it.
    """
    self.train = train
    self.step = 0
    self._rows = rows_of(batch_rows, process_index, process_count)
    self._sampler = samplers.make(sampler, train, batch_rows=batch_rows, seed=seed,
                                  epochs_per_iteration=epochs_per_iteration)
    self._steps = Steps(self._sampler)
    self._seed = seed
    self._fresh = fresh_shift
    self._threads = threads
    self._settings = {
      "fingerprint": train.fingerprint, "seed": seed, "batch_rows": batch_rows, "sampler": sampler,
      "epochs_per_iteration": epochs_per_iteration, "fresh_shift": fresh_shift,
      "identity": json.loads(json.dumps(train.identity))}  # As it comes back from a file.
    self._batches: Any = None

  def next(self, trained=None) -> dict:
    """Returns this process's rows of the batch of `step`, and goes on to the next step.

    Returns:
      inputs_BT, labels_BT (-100 where not scored), ids_B (rows of the puzzle table), all int32.
    """
    del trained
    self._batches = self._batches or self._open()
    batch = next(self._batches)
    self.step += 1
    return batch

  def batch(self, step: int) -> dict:
    """Returns this process's rows of any step, as `next` did or will; the place stays."""
    examples = self._steps.examples(step)
    if not self._fresh:
      return _encode(self.train, examples[self._rows])
    philox = np.random.Philox(key=np.array([self._seed, FRESH], np.uint64), counter=step << 64)
    whole = _encode(self.train, examples, np.random.Generator(philox))
    return {name: array[self._rows] for name, array in whole.items()}

  def _open(self):
    import grain  # Takes seconds to import; a program that only counts steps needs none of it.
    ahead = AHEAD if self._threads else 0
    options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=ahead)
    return iter(grain.MapDataset.source(_Batches(self, self.step)).to_iter_dataset(options))

  def close(self) -> None:
    """Stops the threads that prepare batches; `next` would start them again."""
    if self._batches is not None:
      self._batches.close()
      self._batches = None

  def steps_of(self, epochs: int) -> int:
    """Counts the full batches of the first `epochs` epochs; an epoch draws one puzzle of every group."""
    return self._steps.steps_of(epochs)

  def state(self) -> dict:
    """Returns the place and what it is valid for; independent of the number of processes and threads."""
    return {"step": self.step, "place": list(self._steps.place(self.step)), **self._settings}

  def restore(self, state: dict) -> None:
    """Goes to the saved place.

    Raises:
      ValueError: if it was saved with other puzzles or other settings; says which.
    """
    saved = _settings_of(state)
    now = _settings_of(self._settings)
    differ = [f"{name}={saved.get(name)!r} then, {now.get(name)!r} now" for name in {**now, **saved}
              if saved.get(name) != now.get(name)]
    if differ or state.get("fingerprint") != self._settings["fingerprint"]:
      raise ValueError("the saved place in the puzzles belongs to other data or settings: "
                       + ("; ".join(differ) or "fingerprints differ")
                       + "; resume with what it was saved with, or start in another workdir")
    self.close()
    self.step = int(state["step"])
    self._steps = Steps(self._sampler, self.step, BatchPlace(*map(int, state["place"])))

  def provenance(self, step: int) -> list[str]:
    """Names the puzzle and the example of each of this process's rows in the batch of that step.

    A step long before the place this process resumed from is found by counting from the start, which takes
    seconds for a run of many epochs.

    Returns:
      One "NAME@EXAMPLE" per row; NAME is the id's where ids have names, else the group's, else puzzleN.
    """
    examples = self._steps.examples(step)[self._rows]
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
      process_index: which process this is; rows are contiguous blocks in the order of processes.
      process_count: how many there are.
      max_examples: ends after so many; None: all.

    Raises:
      ValueError: if the rows do not divide by the processes.
    """
    self.test = test
    self._batch_rows = batch_rows
    self._rows = rows_of(batch_rows, process_index, process_count)
    self.n_examples = test.n_examples if max_examples is None else min(test.n_examples, max_examples)

  def __len__(self) -> int:
    return -(-self.n_examples // self._batch_rows)

  def __iter__(self) -> Iterator[dict]:
    for step in range(len(self)):
      whole = np.arange(step * self._batch_rows, (step + 1) * self._batch_rows)[self._rows]
      examples = whole[whole < self.n_examples]
      batch = _encode(self.test, examples)
      batch["example_B"] = examples.astype(np.int32)
      batch["puzzle_B"] = self.test.puzzles_of(examples).astype(np.int32)
      yield {name: _fill(array, len(whole), PADDING[name]) for name, array in batch.items()}


PADDING = {"inputs_BT": 0, "labels_BT": NOT_SCORED, "ids_B": BLANK_ID, "example_B": -1, "puzzle_B": -1}


def rows_of(batch_rows: int, process_index: int, process_count: int) -> slice:
  """Returns the rows of a batch that are one process's.

  Raises:
    ValueError: if they do not divide by the processes.
  """
  if batch_rows < 1 or batch_rows % process_count:
    raise ValueError(f"batch_rows={batch_rows} does not divide by the {process_count} processes; "
                     f"take a multiple of {process_count}")
  share = batch_rows // process_count
  return slice(process_index * share, (process_index + 1) * share)


def puzzle_name(puzzles: PuzzleSet, puzzle: int) -> str:
  """Names a puzzle: by its id where ids have names, else by its group, else as puzzleN."""
  row = int(puzzles.puzzle_ids[puzzle])
  if row != BLANK_ID and len(puzzles.names):
    return puzzles.names[row]
  if len(puzzles.group_names):
    return puzzles.group_names[int(np.searchsorted(puzzles.group_starts, puzzle, side="right")) - 1]
  return f"puzzle{puzzle}"


def _settings_of(state: dict) -> dict:
  """Returns what two states must agree in, but for the digest: settings, and parts of the identity."""
  own = {name: state[name] for name in state if name not in ("step", "place", "fingerprint", "identity")}
  return {**own, **{f"puzzles.{name}": value for name, value in state.get("identity", {}).items()}}


def _encode(puzzles: PuzzleSet, examples: np.ndarray, draw=None) -> dict:
  """Reads examples and returns them the form that the model takes."""
  empty_BT = np.zeros((0, puzzles.seq_len), np.int32)
  read = puzzles.read(examples, draw) if len(examples) else (empty_BT, empty_BT)
  inputs_BT, labels_BT = (np.asarray(array, np.int32) for array in read)
  labels_BT = np.where(labels_BT == 0, np.int32(NOT_SCORED), labels_BT)
  return {"inputs_BT": inputs_BT, "labels_BT": labels_BT, "ids_B": puzzles.ids_of(examples)}


def _fill(array: np.ndarray, rows: int, value: int) -> np.ndarray:
  """Adds rows of one value at the end."""
  missing = np.full((rows - len(array), *array.shape[1:]), value, np.int32)
  return np.concatenate([array, missing])
