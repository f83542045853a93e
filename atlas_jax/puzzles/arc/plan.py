"""Augmentations and shifts of a set of ARC tasks: all random choices of a build, as the reference draws them.

The reference draws from one stream: for each subset an order of its tasks, for each task augmentations until
enough differ, and at last, for each training puzzle, the example that stays where it is and the shifts of the
others. Two augmentations of a task are the same if they give the same pairs in any order. The reference
compares SHA-256 of all grids; here a hash that is linear in the colours gives a thousand at a time by a small
matrix product.

Source: Jolicoeur-Martineau 2025, arXiv:2510.04871, and its program, whose draws these are.
"""
import fcntl
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from atlas_jax.files import arrays, write
from atlas_jax.files.damage import Damaged
from atlas_jax.puzzles import arc, grids
from atlas_jax.puzzles.arc.legacy_random import LegacyRandom, mask_of

FORMAT = 2
CACHE_FROM = 100_000  # Puzzles asked for; fewer are drawn in a second or two.
TRIALS = 5  # Draws per augmentation asked for, after which a task has as many as were found.


class BuildPlan(NamedTuple):
  """The random choices of a build.

  Attributes:
    order: [groups] int32, which task each group is, counted through all subsets.
    group_starts: [groups + 1] int64, first puzzle of each group, and the number of puzzles.
    kinds: [puzzles] uint8, transforms; a group's first puzzle is the task as it stands.
    permutations: [puzzles, 10] uint8, colours.
    shifts: [training examples, 2] uint8, row and column of the top left cell.
  """

  order: np.ndarray
  group_starts: np.ndarray
  kinds: np.ndarray
  permutations: np.ndarray
  shifts: np.ndarray


def load(subsets: arc.Subsets, test_sets: Sequence[str], n_augmentations: int, seed: int, *,
         cache_dir: str | None, canvas: int = grids.SIDE) -> BuildPlan:
  """Returns the plan of a build, from the cache if it is there.

  Args:
    subsets: the tasks.
    test_sets: names of the subsets whose test pairs are not trained on.
    n_augmentations: how many each task is to have besides itself.
    seed: of the random stream.
    cache_dir: where plans are kept; None keeps large ones in the user's cache folder and small ones nowhere.
    canvas: side of the square that grids are shifted on; none may be longer.

  Raises:
    ValueError: if a file of the cache is damaged.
  """
  n_asked = n_augmentations * sum(map(len, subsets.values()))
  if cache_dir is None and n_asked < CACHE_FROM:
    return draw(subsets, test_sets, n_augmentations, seed, canvas)
  key = [FORMAT, arc.fingerprint(subsets), list(test_sets), n_augmentations, seed, canvas]
  file = cache_file(n_augmentations, key, cache_dir)
  file.parent.mkdir(parents=True, exist_ok=True)
  with open(f"{file}.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)  # Processes of one machine draw once; others at worst draw the same.
    if not file.exists():
      logging.info("drawing %d augmentations a task into %s", n_augmentations, file)
      _save(draw(subsets, test_sets, n_augmentations, seed, canvas), file)
  return _open(file)


def cache_file(n_augmentations: int, key: list, cache_dir: str | None) -> pathlib.Path:
  """Returns the file that holds, or will hold, a plan; `key` is all that the plan follows from."""
  home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  name = f"arc-{n_augmentations}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]}.npz"
  return pathlib.Path(cache_dir or f"{home}/atlas_jax/puzzles").expanduser() / name


def draw(subsets: arc.Subsets, test_sets: Sequence[str], n_augmentations: int, seed: int,
         canvas: int = grids.SIDE) -> BuildPlan:
  """Draws a plan; arguments as of `load`."""
  random = LegacyRandom(seed)
  first = 0
  order: list[int] = []
  kinds = []
  permutations = []
  sizes = []
  for tasks in subsets.values():
    # The reference shuffles a subset and augments its tasks before it comes to the next one: the draws of a
    # task depend on all tasks before it, and none can be drawn apart.
    for index in random.shuffled(len(tasks)):
      drawn = _augmentations(arc.pairs_of(tasks[index]), n_augmentations, random)
      order.append(first + index)
      kinds.append(drawn[0])
      permutations.append(drawn[1])
      sizes.append(len(drawn[0]))
    first += len(tasks)
  # Shifts follow after all augmentations, group by group. The reference then draws for the test split as
  # well, where it shifts nothing; nothing follows from that stream, so it is left out here.
  shifts = bytearray()
  each = [(task, name in test_sets) for name, tasks in subsets.items() for task in tasks]
  for index, group_kinds in zip(order, kinds):
    task, is_test = each[index]
    _add_shifts(shifts, task.train if is_test else arc.labelled_pairs(task), group_kinds, random, canvas)
  return BuildPlan(np.array(order, np.int32), np.cumsum([0, *sizes]), np.concatenate(kinds),
                   np.concatenate(permutations), np.frombuffer(bytes(shifts), np.uint8).reshape(-1, 2))


def chosen(task: arc.Task, kinds: np.ndarray, permutations: np.ndarray, seed: int,
           canvas: int = grids.SIDE) -> BuildPlan:
  """Returns a plan of one test task whose augmentations are known, the task itself first.

  Draws the shifts.
  """
  shifts = bytearray()
  _add_shifts(shifts, task.train, kinds, LegacyRandom(seed), canvas)
  return BuildPlan(np.zeros(1, np.int32), np.array([0, len(kinds)]), kinds, permutations,
                   np.frombuffer(bytes(shifts), np.uint8).reshape(-1, 2))


def _augmentations(pairs, count: int, random: LegacyRandom) -> tuple[np.ndarray, np.ndarray]:
  """Returns (transforms, permutations) of a task's puzzles, the task itself first."""
  found_kinds = [np.zeros(1, np.uint8)]
  found_permutations = [np.arange(10, dtype=np.uint8)[None]]
  hashing = _Hash(pairs)
  # The task itself counts as seen: an augmentation that equals it is dropped.
  seen = set(hashing(found_kinds[0], found_permutations[0]))
  n_found = 0
  n_tried = 0
  while n_found < count and n_tried < TRIALS * count:
    # Drawn ahead in one go, but only those up to the last one needed are taken from the stream.
    ahead = min(TRIALS * count - n_tried, max(count - n_found, 256))
    kinds, permutations, ends = random.augmentations(ahead)
    # A trial whose puzzle is known is lost and counts among the trials: a task with
    # much symmetry ends with fewer.
    rows = []
    n_taken = len(kinds)
    for row, key in enumerate(hashing(kinds, permutations)):
      if key not in seen:
        seen.add(key)
        rows.append(row)
        if n_found + len(rows) == count:
          n_taken = row + 1
          break
    random.skip(int(ends[n_taken - 1]))
    n_tried = n_tried + n_taken
    n_found = n_found + len(rows)
    found_kinds.append(kinds[rows])
    found_permutations.append(permutations[rows])
  return np.concatenate(found_kinds), np.concatenate(found_permutations)


class _Hash:
  """Hashes of a task's augmentations, equal for equal sets of pairs.

  A pair's hash is the sum, over the cells of its augmented grids, of the colour times a random 64-bit number
  of the place, plus one for the shape. It is linear in the colours, so each transform needs only sums per
  colour. A puzzle's hash is the sum of its pairs' hashes after mixing, whatever their order. Two independent
  words are kept: puzzles that differ agree with a chance of about 2^-120, so equal hashes stand for equal
  puzzles as equal SHA-256 do. An unknown output adds nothing.
  """

  def __init__(self, pairs):
    self._sums = np.zeros((8, grids.COLOURS, len(pairs), 2), np.uint64)
    self._shapes = np.zeros((8, len(pairs), 2), np.uint64)
    colours = np.arange(grids.COLOURS, dtype=np.uint8)
    for number, pair in enumerate(pairs):
      for side, grid in ((side, grid) for side, grid in enumerate(pair) if grid is not None):
        places, shapes = _weights(side, *grid.shape)
        # [cells, colours]: the sum of the weights of the cells of each colour. A permutation of colours only
        # reweighs these ten sums, so a grid is read once for any number of augmentations.
        of_colour = (grid.reshape(-1, 1) == colours).astype(np.uint64)
        sums = (places @ of_colour).reshape(8, 2, grids.COLOURS)
        self._sums[:, :, number] += sums.transpose(0, 2, 1)
        self._shapes[:, number] += shapes

  def __call__(self, kinds, permutations) -> list[bytes]:
    """Returns a hash for each (transform, permutation)."""
    n_pairs = self._shapes.shape[1]
    hashes = np.zeros((len(kinds), n_pairs, 2), np.uint64)
    wide = permutations.astype(np.uint64)
    for kind in range(8):
      rows = np.flatnonzero(kinds == kind)
      # In 64-bit arithmetic that wraps around: a hash modulo 2**64.
      sums = wide[rows] @ self._sums[kind].reshape(grids.COLOURS, -1)
      hashes[rows] = sums.reshape(-1, n_pairs, 2) + self._shapes[kind]
    # Mixed before they are added, or two pairs could exchange parts and leave the sum as it was.
    return [key.tobytes() for key in _mix(hashes).sum(axis=1)]


@functools.cache
def _noise() -> tuple[np.ndarray, np.ndarray]:
  """Returns random bits of places, [2 sides, 30, 30, 2 words], and of shapes, [2 sides, 31, 31, 2 words]."""
  # 2 * 30 * 30 * 2 numbers, then 2 * 31 * 31 * 2. Constants: no build depends on them, as long as no
  # two puzzles that differ agree.
  raw = np.random.Philox(key=0).random_raw
  return raw(3600).reshape(2, 30, 30, 2), raw(3844).reshape(2, 31, 31, 2)


@functools.cache
def _weights(side: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns what cells of a grid add under each transform, [8 * 2, cells], and its shape, [8, 2]."""
  places, shapes = _noise()
  cells = []
  of_shape = []
  for kind in range(8):
    tall, wide = (width, height) if grids.SWAPS[kind] else (height, width)
    of_shape.append(shapes[side, tall, wide])
    for word in range(2):
      # The weights are turned back in place of turning the grid: cell c of the grid gets the weight of the
      # place where the transform puts it.
      cells.append(grids.transform(places[side, :tall, :wide, word], grids.INVERSE[kind]).reshape(-1))
  return np.stack(cells), np.stack(of_shape)


def _mix(words: np.ndarray) -> np.ndarray:
  """Scrambles 64-bit words. Source: Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195 (SplitMix64)."""
  words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return words ^ (words >> np.uint64(31))


def _add_shifts(out: bytearray, pairs, kinds: np.ndarray, random: LegacyRandom, canvas: int) -> None:
  """Appends (row, column) for each example of each puzzle of a group: 0, 0 for one, drawn for the others."""
  count = len(pairs)
  last = len(pairs) - 1
  upright = []
  turned = []
  # Rooms for upright and for turned grids, with the masks of their draws, are the
  # same for all puzzles of a task.
  for left, right in pairs:
    rooms = [canvas - max(sides) for sides in zip(left.shape, right.shape)]
    (rows, row_mask), (columns, column_mask) = ((room, mask_of(room)) for room in rooms)
    upright.append((rows, row_mask, columns, column_mask))
    turned.append((columns, column_mask, rows, row_mask))
  # A word is kept with a chance of at least one half: these are enough, and too few were an IndexError.
  words = random.words(4 * 2 * count * len(kinds) + 400).tolist()
  at = 0
  mask = mask_of(last)
  # Plain integers and no calls inside: it runs for every training example of the set, 3.6 million for
  # ARC-AGI-1, and each word decides where the next draw begins, so the draws cannot be made side by side.
  for is_turned in grids.SWAPS[kinds].tolist():
    kept = words[at] & mask
    at += mask > 0
    while kept > last:
      kept = words[at] & mask
      at += 1
    for example, (rows, row_mask, columns, column_mask) in enumerate(turned if is_turned else upright):
      row = column = 0
      if example != kept:
        if row_mask:
          row = words[at] & row_mask
          at += 1
          while row > rows:
            row = words[at] & row_mask
            at += 1
        if column_mask:
          column = words[at] & column_mask
          at += 1
          while column > columns:
            column = words[at] & column_mask
            at += 1
      out.append(row)
      out.append(column)
  random.skip(at)


def _save(plan: BuildPlan, file: pathlib.Path) -> None:
  with write.opened(file) as out:  # Plans have hundreds of megabytes: no second copy in memory.
    np.savez(out, **plan._asdict())


def _open(file: pathlib.Path) -> BuildPlan:
  try:
    plan = BuildPlan(**arrays.read_npz(file))
    if not len(plan.kinds) == len(plan.permutations) == plan.group_starts[-1]:
      raise ValueError(f"it has {len(plan.kinds)} transforms of {plan.group_starts[-1]} puzzles")
  except (OSError, TypeError, ValueError, IndexError) as error:
    why = error.why if isinstance(error, Damaged) else error
    raise ValueError(f"the plan {file} is damaged ({why}); delete it, it is then made again") from error
  return plan
