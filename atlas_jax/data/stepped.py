"""The skeleton of sources whose place is a step: rows of a process, batches by number, saved places.

A source of your own is most likely an `IndexedSource` with `read_row`, the arrays of one row, and `origin`,
where it comes from.
"""
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from atlas_jax.data import packing

ENDLESS = 2**40  # Batches of a source without end: Grain asks for a number.
AHEAD = 8        # Batches prepared ahead of the loop.
NOT_NESTED: Mapping[str, str] = {}


def this_process() -> dict[str, Any]:
  """Returns process_index and process_count of this process of the run."""
  return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def rows_of(batch_rows: int, process_index: int, process_count: int, *,
            field: str = "config.data.batch_rows") -> range:
  """Returns the rows of a batch that are one process's: a block, in the order of processes.

  Args:
    batch_rows: rows of the batch over all processes.
    process_index: which process.
    process_count: how many there are.
    field: that says how many rows there are, for the error.

  Raises:
    ValueError: if they do not divide by the processes.
  """
  if batch_rows < 1 or batch_rows % process_count:
    raise ValueError(f"{field}={batch_rows} does not divide by the {process_count} processes; take a "
                     f"multiple of {process_count}")
  # `hosts.global_batch` puts the rows of processes one after another: only blocks keep a batch's order.
  block = batch_rows // process_count
  return range(process_index * block, (process_index + 1) * block)


def stacked(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Turns the arrays of rows into those of a batch, such as the tokens_T of each into tokens_BT."""
  return {_batched(name): np.stack([row[name] for row in rows]) for name in rows[0]}


def _batched(name: str) -> str:
  base, _, axes = name.rpartition("_")
  return f"{base}_B{axes}" if axes.isupper() else f"{name}_B"  # A number per row has no axes.


class SteppedSource:
  """A source whose place is the number of batches given; saved places are checked against its settings.

  Attributes:
    step: the step that `next` gives.
  """

  NESTED = NOT_NESTED  # See `check_place`.

  def __init__(self, settings: Mapping[str, Any], mine: range):
    """Starts at step 0.

    Args:
      settings: by which a step means the same batch, such as a fingerprint of the data, the seed and sizes;
        what JSON can hold. Numbers of processes and threads are none of them: a run may go on with others.
      mine: rows of the whole batch that are this process's; see `rows_of`.
    """
    self.step = 0
    self._mine = mine
    # As text: each state is a copy then, and equals what comes back from a file, where a tuple is a list.
    self._settings = json.dumps(settings)

  def state(self) -> dict:
    """Returns the place and what it is valid for; independent of the number of processes and threads."""
    return {"step": self.step, **json.loads(self._settings)}

  def restore(self, state: dict) -> None:
    """Goes to the saved place.

    Raises:
      ValueError: if it was saved with other data or settings; says which.
    """
    # Before anything changes: data that are not those of the checkpoint would be read on in silence.
    check_place(state, json.loads(self._settings), nested=self.NESTED)
    self.step = int(state["step"])


class IndexedSource(SteppedSource):
  """A source that makes any batch from its step alone, if asked to in threads ahead of the loop.

  A subclass defines `read_row` and `origin`, or `batch` and `provenance` where rows are made together.
  Threads call `batch` at the same time.
  """

  def __init__(self, settings: Mapping[str, Any], mine: range, *, steps: int | None = None, threads: int = 0):
    """Starts at step 0.

    Args:
      settings, mine: see `SteppedSource`.
      steps: how many there are; None: without end.
      threads: that prepare batches; 0 prepares each when asked.
    """
    super().__init__(settings, mine)
    self._steps = steps
    self._threads = threads
    self._ahead: Any = None

  def read_row(self, step: int, row: int) -> dict[str, np.ndarray]:
    """Returns the arrays of a row of the whole batch, without the axis B."""
    raise NotImplementedError

  def origin(self, step: int, row: int) -> str:
    """Names where a row of the whole batch comes from, such as "file@byte"."""
    raise NotImplementedError

  def next(self, trained=None) -> dict:
    """Returns the batch of `step`, this process's rows, and goes on to the next step.

    Raises:
      StopIteration: after the last step, where there is one.
    """
    del trained
    if self._steps is not None and self.step >= self._steps:
      raise StopIteration
    if self._threads and self._ahead is None:
      self._ahead = self._prepare()
    # The loop must not wait for data; which thread made a batch changes nothing, as its step says all of it.
    batch = self.batch(self.step) if self._ahead is None else next(self._ahead)
    self.step += 1
    return batch

  def batch(self, step: int) -> dict:
    """Returns this process's rows of any step, as `next` did or will; the place stays."""
    return stacked([self.read_row(step, row) for row in self._mine])

  def provenance(self, step: int) -> list[str]:
    """Names where each of this process's rows of that step's batch comes from."""
    return [self.origin(step, row) for row in self._mine]

  def restore(self, state: dict) -> None:
    """Goes to the saved place; see `SteppedSource.restore`."""
    super().restore(state)
    self.close()  # Batches prepared ahead are those after the place that was left.

  def close(self) -> None:
    """Stops the threads that prepare batches; `next` would start them again."""
    if self._ahead is not None:
      self._ahead.close()
      self._ahead = None

  def _prepare(self):
    import grain  # Takes seconds to import; a program that only reads plans needs none of it.
    # Threads and no processes: NumPy frees the lock while it copies, and a corpus is memory-mapped once.
    options = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=AHEAD)
    left = ENDLESS if self._steps is None else self._steps - self.step
    return iter(grain.MapDataset.source(_BatchesFrom(self.batch, self.step, left)).to_iter_dataset(options))


class _BatchesFrom:
  """Random access to batches from a step on, as Grain wants it."""

  def __init__(self, batch, first_step: int, count: int):
    self._batch = batch
    self._first_step = first_step
    self._count = count

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index) -> dict:
    return self._batch(self._first_step + int(index))


class ListedSource(IndexedSource):
  """A source whose rows are items of a list: in an order drawn anew in every epoch, or once in their own.

  Attributes:
    steps_per_epoch: steps until every item was read once, rounded up.
  """

  def __init__(self, settings: Mapping[str, Any], mine: range, *, count: int, batch_rows: int,
               seed: int | None):
    """Lays out items.

    Args:
      settings, mine: see `SteppedSource`; seed and batch_rows are added to the settings.
      count: how many items there are.
      batch_rows: items of a batch over all processes.
      seed: draws the orders, without end; None reads the items once.
    """
    self._count = count
    self._batch_rows = batch_rows
    # An order follows from the seed and the epoch, so that a step far ahead needs none of those before it.
    self._orders = None if seed is None else packing.Orders(count, seed)
    self.steps_per_epoch = self.steps_of(1)
    super().__init__({**settings, "seed": seed, "batch_rows": batch_rows}, mine,
                     steps=self.steps_per_epoch if seed is None else None)

  def steps_of(self, epochs: int) -> int:
    """Returns the steps until every item was read so many times, rounded up."""
    return -(-epochs * self._count // self._batch_rows)

  def item(self, step: int, row: int) -> int | None:
    """Returns the item of a row of the whole batch; None past the end of a source without a seed."""
    place = step * self._batch_rows + row
    if self._orders is not None:
      return self._orders.item(place)  # Epochs meet within a batch, so that no item is left out.
    return place if place < self._count else None


def check_place(saved: Mapping[str, Any], now: Mapping[str, Any], *,
                nested: Mapping[str, str] = NOT_NESTED) -> None:
  """Refuses a saved place of other data or settings.

  Args:
    saved: the place; what `now` does not name is not compared, such as the step.
    now: settings that it must have.
    nested: settings that are mappings -> how the message begins the names of their entries.

  Raises:
    ValueError: names what differs.
  """
  then, here = (_entries({name: place.get(name) for name in now}, nested) for place in (saved, now))
  # Also what only the saved place has: entries that are gone may be all that says which data it is of.
  differ = [name for name in {**here, **then} if then.get(name) != here.get(name)]
  # A digest says nothing to a reader, unless it is all that differs.
  if named := [name for name in differ if name != "fingerprint"] or differ:
    shown = "; ".join(f"{name}={then.get(name)!r} then, {here.get(name)!r} now" for name in named)
    raise ValueError(f"the saved place in the data belongs to other data or settings: {shown}; resume with "
                     "what it was saved with, or start in another workdir")


def _entries(settings: dict[str, Any], nested: Mapping[str, str]) -> dict[str, Any]:
  found = {name: value for name, value in settings.items() if name not in nested}
  for name, before in nested.items():  # One entry that differs says more than two whole mappings.
    found |= {before + entry: value for entry, value in (settings[name] or {}).items()}
  return found
