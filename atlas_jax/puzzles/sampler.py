"""The order of training examples: in every epoch one puzzle of every group, packed greedily.

A batch takes draws (a group and one of its puzzles, all its examples in random order) until it is full;
examples of the last one that do not fit are dropped, and the next batch begins with the next draw. An epoch
is one draw of every group. `CounterSampler` is the default; `OriginalSampler` draws as the reference program.

A sampler is not safe to share between threads.

Source: Jolicoeur-Martineau 2025, arXiv:2510.04871, and its program, whose order `OriginalSampler` keeps;
`CounterSampler` is ours.
"""
from typing import Any, NamedTuple, Protocol

import numpy as np

from atlas_jax.puzzles.puzzle_set import PuzzleSet

PAGE_DRAWS = 2**12  # Draws that are laid out together and kept for the batches in them.
SLAB_DRAWS = 2**20  # Draws that a walk over many epochs holds at a time.
PAGES = 4           # Pages kept.
ENDLESS = 2**40     # Epochs of a walk without an end.
# `source` draws from stream 2 of the same seed: a new stream here takes another number.
ORDER, INSIDE = 0, 1  # Streams of a seed: groups and their puzzles; order inside a puzzle.


class BatchPlace(NamedTuple):
  """The place where a batch begins.

  Attributes:
    epoch: the epoch, or for `OriginalSampler` the iteration of several epochs; from 0.
    draw: how many draws of it went before.
  """

  epoch: int
  draw: int


class PuzzleSampler(Protocol):
  """The order of training examples; everything follows from the place."""

  def batch(self, place: BatchPlace) -> tuple[np.ndarray, BatchPlace]:
    """Returns the examples of the batch that begins at a place, and where the next one begins."""

  def skip(self, place: BatchPlace, steps: int) -> BatchPlace:
    """Returns the place so many batches later."""

  def steps_of(self, epochs: int) -> int:
    """Counts the full batches of the first `epochs` epochs."""


class _Page(NamedTuple):
  """Draws in a row: where each one's examples end, from 0, and the examples one after another."""

  ends: np.ndarray
  examples: np.ndarray


class CounterSampler:
  """Draws by counters: all of an epoch is a pure function of seed and epoch.

  Random bits are raw Philox output, which no version of NumPy changes. Batches go on across the borders of
  epochs, so that nothing is dropped there.
  """

  def __init__(self, train: PuzzleSet, *, batch_rows: int, seed: int):
    """Prepares the draws.

    Args:
      train: the puzzles; every group needs a puzzle, every puzzle an example.
      batch_rows: examples of a batch.
      seed: names the order, 0 <= seed < 2**64.

    Raises:
      ValueError: if a number is out of range, or a group or puzzle is empty.
    """
    self._groups, self._puzzles = _starts(train, batch_rows, seed)
    self._sizes = np.diff(self._puzzles)
    self._n_groups = len(self._groups) - 1
    self._rows = batch_rows
    self._seed = seed
    # Where all puzzles are of one size, as boards are, every batch has the same number of draws, and the
    # place of any step is a division.
    self._equal = int(self._sizes[0]) if len(set(self._sizes.tolist())) == 1 else None
    # A page holds whole epochs, so that its random bits have a range of counters of their own; small sets
    # have many epochs in one, or a batch would lay out dozens of tiny pages.
    self._page_epochs = max(1, PAGE_DRAWS // self._n_groups)
    largest = np.maximum.reduceat(self._sizes, self._groups[:-1])
    self._most = int(largest.sum())  # Examples that an epoch can have.
    self._pages: dict[int, _Page] = {}

  def batch(self, place: BatchPlace) -> tuple[np.ndarray, BatchPlace]:
    """Returns examples [batch_rows] of the batch that begins at a place, and where the next one begins."""
    # Draws are counted within the page from here on. A batch larger than a page goes on with the next one.
    number, inside = divmod(place.epoch, self._page_epochs)
    draw = inside * self._n_groups + place.draw
    parts = []
    left = self._rows
    while True:
      page = self._page(number)
      start = int(page.ends[draw])
      parts.append(page.examples[start:start + left])
      left -= len(parts[-1])
      if not left:
        break
      number = number + 1
      draw = 0
    # Draws that the batch has begun: the last one may have examples left, which are dropped, so the next
    # batch begins with a whole puzzle. That is the reference's packing.
    end = int(page.ends.searchsorted(start + len(parts[-1])))
    epochs, draw = divmod(end, self._n_groups)
    return np.concatenate(parts), BatchPlace(number * self._page_epochs + epochs, draw)

  def skip(self, place: BatchPlace, steps: int) -> BatchPlace:
    """Returns the place so many batches later; takes longer for more where puzzles differ in size."""
    # A batch takes rows / size draws, rounded up.
    if self._equal:
      draws = place.draw + steps * -(-self._rows // self._equal)
      return BatchPlace(place.epoch + draws // self._n_groups, draws % self._n_groups)
    return self._walk(place, steps, ENDLESS)[1]

  def steps_of(self, epochs: int) -> int:
    """Counts the full batches of the first `epochs` epochs: exactly, in constant memory."""
    if self._equal:
      return epochs * self._n_groups // -(-self._rows // self._equal)
    return self._walk(BatchPlace(0, 0), ENDLESS, epochs)[0]

  def _walk(self, place: BatchPlace, steps: int, epochs: int) -> tuple[int, BatchPlace]:
    """Goes on by at most `steps` batches that end within `epochs`; gives how many, and the place."""
    done = 0
    # Counts examples from the first draw of `place.epoch` on, over slabs of epochs whose sizes
    # double: a search of a few steps stays cheap, one of a whole run holds no more than a slab. Only
    # sizes are drawn, never examples.
    base = 0
    target = None
    first = place.epoch
    slab = self._page_epochs
    while done < steps and first < epochs:
      count = min(slab, epochs - first)
      ends = base + _ends(self._sizes[self._draws(first, count)])
      target = int(ends[place.draw]) + self._rows if target is None else target
      taken, draw, target = _follow(ends, target, self._rows, steps - done)
      if taken:
        done = done + taken
        place = BatchPlace(first + draw // self._n_groups, draw % self._n_groups)
      base = int(ends[-1])
      first = first + count
      slab = max(1, min(2 * slab, SLAB_DRAWS // self._n_groups))
    return done, place

  def _draws(self, first_epoch: int, epochs: int) -> np.ndarray:
    """Returns the puzzles of all draws of some epochs, [epochs * groups]."""
    # One number per group to sort by, one to choose its puzzle with.
    bits = self._bits(ORDER, first_epoch, epochs, 2 * self._n_groups)
    order = bits[:, :self._n_groups].argsort(axis=1, kind="stable")
    pick = bits[:, self._n_groups:]
    counts = np.diff(self._groups).astype(np.uint64)[order]
    # The upper 32 bits scaled to 0..count - 1; the bias is below count / 2**32.
    # No rejection: it would take a number of bits that depends on the bits, and
    # epochs could not be drawn apart.
    chosen = ((pick >> np.uint64(32)) * counts >> np.uint64(32)).astype(np.int64)
    return (self._groups[order] + chosen).reshape(-1)

  def _page(self, number: int) -> _Page:
    """Lays out the draws of one page, or it again."""
    if number not in self._pages:
      if len(self._pages) >= PAGES:
        del self._pages[next(iter(self._pages))]
      first = number * self._page_epochs
      puzzles = self._draws(first, self._page_epochs)
      self._pages[number] = _Page(_ends(self._sizes[puzzles]), self._examples(first, puzzles))
    return self._pages[number]

  def _examples(self, first_epoch: int, puzzles: np.ndarray) -> np.ndarray:
    """Returns the examples of draws, those of each draw together and in random order."""
    if self._equal == 1:
      return self._puzzles[puzzles]
    sizes = self._sizes[puzzles]
    draw = np.repeat(np.arange(len(puzzles)), sizes)
    # As many numbers for every epoch, the most that it may need, of which those behind the drawn sizes are
    # unused: where an epoch's bits begin must not depend on what other epochs drew.
    bits = self._bits(INSIDE, first_epoch, self._page_epochs, self._most)
    used = sizes.reshape(self._page_epochs, self._n_groups).sum(axis=1)
    # Sorted by draw, then by random bits: a shuffle inside every draw at once.
    order = np.lexsort((bits[np.arange(bits.shape[1]) < used[:, None]], draw))
    examples = np.arange(len(draw)) - np.repeat(_ends(sizes)[:-1] - self._puzzles[puzzles], sizes)
    return examples[order]

  def _bits(self, stream: int, first_epoch: int, epochs: int, width: int) -> np.ndarray:
    """Returns the random bits [epochs, width] of epochs; each has its own range of counters."""
    blocks = -(-width // 4)  # A counter gives four numbers.
    # Philox is a counter through a cipher: any place is found at no cost. `counter` is where it starts, key
    # the seed and the stream, which therefore never meet.
    philox = np.random.Philox(key=np.array([self._seed, stream], np.uint64), counter=first_epoch * blocks)
    return philox.random_raw(epochs * blocks * 4).reshape(epochs, blocks * 4)[:, :width]


class OriginalSampler:
  """Draws as the reference program does: iterations of several epochs, each dropping its last, short batch.

  The order of groups and the puzzle of each are its draws bit for bit. The order inside a puzzle comes from a
  generator that its data loader seeds; here it is keyed by seed, iteration and draw, and is the same on all
  processes.
  """

  def __init__(self, train: PuzzleSet, *, batch_rows: int, seed: int, epochs_per_iteration: int):
    """Prepares the draws.

    Args:
      train: the puzzles; every group needs a puzzle, every puzzle an example.
      batch_rows: examples of a batch.
      seed: of the run, 0 <= seed < 2**64.
      epochs_per_iteration: epochs drawn together; the reference takes its evaluation interval.

    Raises:
      ValueError: if a number is out of range, a group or puzzle is empty, or an iteration fills no batch.
    """
    self._groups, self._puzzles = _starts(train, batch_rows, seed)
    self._sizes = np.diff(self._puzzles)
    self._rows = batch_rows
    self._seed = seed
    self._epochs = epochs_per_iteration
    if epochs_per_iteration < 1:
      raise ValueError(f"epochs_per_iteration={epochs_per_iteration} must be at least 1")
    # With the smallest puzzle of every group. `_or_next` goes on to the next iteration without a look at it:
    # each must fill at least one batch.
    surely = epochs_per_iteration * int(np.minimum.reduceat(self._sizes, self._groups[:-1]).sum())
    if surely < batch_rows:
      raise ValueError(f"epochs_per_iteration={epochs_per_iteration} may give only {surely} examples, less "
                       f"than batch_rows={batch_rows}; an iteration must fill a batch: raise it")
    self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}

  def batch(self, place: BatchPlace) -> tuple[np.ndarray, BatchPlace]:
    """Returns examples [batch_rows] of the batch that begins at a place, and where the next one begins."""
    puzzles, ends = self._iteration(place.epoch)
    # Keyed by place, where the reference has one global stream a process: there two processes cut one puzzle
    # in different orders, so their slices repeat some examples and miss others.
    legacy = np.random.RandomState([self._seed % 2**32, place.epoch, place.draw])
    examples, draw = original_batch(self._puzzles, puzzles, place.draw, self._rows, legacy)
    assert len(examples) == self._rows, "a batch begins only where a full one follows"
    return examples, self._or_next(place.epoch, draw, ends)

  def skip(self, place: BatchPlace, steps: int) -> BatchPlace:
    """Returns the place so many batches later; in a time that grows with the steps."""
    while steps:
      ends = self._iteration(place.epoch)[1]
      taken, draw, _ = _follow(ends, int(ends[place.draw]) + self._rows, self._rows, steps)
      place = self._or_next(place.epoch, draw, ends)
      steps = steps - taken
    return place

  def steps_of(self, epochs: int) -> int:
    """Counts the full batches of the first `epochs` epochs.

    Raises:
      ValueError: if these are not whole iterations.
    """
    if epochs % self._epochs:
      raise ValueError(f"epochs={epochs} is not a multiple of epochs_per_iteration={self._epochs}, as the "
                       "order of the reference program needs")
    ends = (self._iteration(i)[1] for i in range(epochs // self._epochs))
    return sum(_follow(found, self._rows, self._rows, ENDLESS)[0] for found in ends)

  def _or_next(self, iteration: int, draw: int, ends: np.ndarray) -> BatchPlace:
    fits = int(ends[draw]) + self._rows <= int(ends[-1])
    return BatchPlace(iteration, draw) if fits else BatchPlace(iteration + 1, 0)

  def _iteration(self, iteration: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the puzzles of an iteration's draws and where their examples end, from 0."""
    if iteration not in self._kept:
      if len(self._kept) > 1:
        del self._kept[next(iter(self._kept))]
      # The reference counts its iterations from 1 before it seeds.
      puzzles = original_draws(self._groups, self._seed + 1 + iteration, self._epochs)
      self._kept[iteration] = puzzles, _ends(self._sizes[puzzles])
    return self._kept[iteration]


def original_draws(group_starts: np.ndarray, seed: int, epochs: int) -> np.ndarray:
  """Draws the puzzles of one iteration in the reference program's order.

  Args:
    group_starts: [groups + 1] first puzzle of each group, and the number of puzzles.
    seed: seed of the run plus the iteration, which counts from 1.
    epochs: epochs of the iteration.

  Returns:
    The puzzles [epochs * groups], one of every group in each epoch.
  """
  philox = np.random.Generator(np.random.Philox(seed=seed))
  # All orders of the iteration first, then all puzzles: the stream of the reference, in which they follow one
  # another like this. One call of `integers` gives the numbers of a call per draw.
  order = np.concatenate([philox.permutation(len(group_starts) - 1) for _ in range(epochs)])
  return philox.integers(group_starts[order], group_starts[order + 1])


def original_batch(puzzle_starts: np.ndarray, puzzles: np.ndarray, start: int, batch_rows: int,
                   legacy: np.random.RandomState) -> tuple[np.ndarray, int]:
  """Packs one batch in the reference program's order.

  Args:
    puzzle_starts: [puzzles + 1] first example of each puzzle, and the number of examples.
    puzzles: the drawn puzzles.
    start: the draw that the batch begins with.
    batch_rows: examples of a full batch.
    legacy: gives the order inside each puzzle.

  Returns:
    The examples, fewer than batch_rows where the draws end, and the draw that the next batch begins with.
  """
  parts = []
  left = batch_rows
  while left and start < len(puzzles):
    first, end = puzzle_starts[puzzles[start]:puzzles[start] + 2]
    parts.append(first + legacy.permutation(int(end - first))[:left])
    left = left - len(parts[-1])
    start = start + 1
  return np.concatenate(parts), start


def original_steps(train: PuzzleSet, *, batch_rows: int, epochs: int) -> int:
  """Counts the steps that the reference program plans: by the mean size of stored puzzles.

  It is off where groups with many puzzles have larger or smaller ones than others: draws are uniform over
  groups, the mean is not.
  """
  # For ARC-AGI-2 with a thousand augmentations, 100k epochs and batches of 768 it plans 722,098 steps, and
  # the loader gives 723,914: in the rest the reference's weights stand still while their average goes on.
  return epochs * train.n_groups * train.n_examples // (train.n_puzzles * batch_rows)


def make(kind: str, train: PuzzleSet, *, batch_rows: int, seed: int,
         epochs_per_iteration: int | None = None) -> PuzzleSampler:
  """Makes the sampler of that name, "counter" or "original"; only the latter takes epochs_per_iteration.

  Raises:
    ValueError: for an unknown kind, or epochs_per_iteration missing or not taken; see the classes too.
  """
  if kind not in ("counter", "original"):
    raise ValueError(f"sampler={kind!r} is unknown; there are 'counter' and 'original'")
  if (kind == "original") != (epochs_per_iteration is not None):
    needs = "needs" if kind == "original" else "does not take"
    raise ValueError(f"sampler={kind!r} {needs} epochs_per_iteration, got {epochs_per_iteration}")
  fields: dict[str, Any] = dict(batch_rows=batch_rows, seed=seed)
  if epochs_per_iteration is None:
    return CounterSampler(train, **fields)
  return OriginalSampler(train, epochs_per_iteration=epochs_per_iteration, **fields)


def _starts(train: PuzzleSet, batch_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Checks what both samplers need, and returns the starts of groups and of puzzles."""
  if batch_rows < 1:
    raise ValueError(f"batch_rows={batch_rows} must be at least 1")
  if not 0 <= seed < 2**64:
    raise ValueError(f"seed={seed} must be at least 0 and below 2**64")
  found = [np.asarray(starts, np.int64) for starts in (train.group_starts, train.puzzle_starts)]
  for name, part, starts in zip(("group", "puzzle"), ("puzzle", "example"), found):
    empty = np.flatnonzero(np.diff(starts) < 1)
    if len(starts) < 2 or len(empty):
      which = f"{name} {empty[0]} has none" if len(empty) else f"there is no {name}"
      raise ValueError(f"every {name} to train on needs one {part} or more, but {which}; leave it out")
  return found[0], found[1]


def _ends(sizes: np.ndarray) -> np.ndarray:
  """Returns where each of the sizes ends, with the 0 at which the first begins: [n + 1]."""
  return np.concatenate([[0], np.cumsum(sizes)])


def _follow(ends: np.ndarray, target: int, batch_rows: int, limit: int) -> tuple[int, int, int]:
  """Goes from batch to batch through draws.

  Args:
    ends: [draws + 1] where the examples of each draw end.
    target: where the examples of the first batch end.
    batch_rows: examples of a batch.
    limit: batches at most.

  Returns:
    How many batches end within the draws, the draw after the last of them, and where the next one ends.
  """
  last = int(ends[-1])
  taken = 0
  draw = 0
  while target <= last and taken < limit:
    # The first draw that ends at the target or behind it is the last of the batch;
    # what it has beyond is dropped.
    draw = int(ends.searchsorted(target))
    taken = taken + 1
    target = int(ends[draw]) + batch_rows
  return taken, draw, target
