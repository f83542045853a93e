"""ARC tasks as sets of puzzles: kept as grids and a list of augmentations, encoded when a batch asks for it.

A group is a task, a puzzle one augmentation of it, an example one pair. All pairs of a task are trained on,
but of the test subset only the demonstrations: its test pairs are the test split. A puzzle has the same id in
both splits. A thousand augmentations of ARC-AGI-1 take some 30 MB so; `write_original` writes the files that
the reference has of them, 6 GB, to the bit.

Source: Jolicoeur-Martineau 2025, arXiv:2510.04871, and its program; encoding on the fly is ours.
"""
import dataclasses
import functools
import itertools
import json
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, overload

import numpy as np
from absl import logging

from atlas_jax.files import arrays, inventory
from atlas_jax.files import write as write_file
from atlas_jax.puzzles import arc, grids
from atlas_jax.puzzles.arc import leaks as arc_leaks
from atlas_jax.puzzles.arc import plan as arc_plan
from atlas_jax.puzzles.arc import tasks as arc_tasks
from atlas_jax.puzzles.puzzle_set import BLANK_ID, PuzzleSet

BLANK_NAME = "<blank>"
CHUNK = 2048  # Examples encoded at once when files are written.
UNKNOWN = np.zeros((0, 0), np.uint8)  # In place of an unknown output; its tokens are 0, which is not scored.


class Built(NamedTuple):
  """The outcome of a build.

  Attributes:
    train, test: the two splits.
    test_puzzles: {task id: task as in its file} for the test split; an unknown output has no key.
    names: name of the augmentation that each id stands for.
    leaks: test tasks whose answers are trained on.
  """

  train: PuzzleSet
  test: PuzzleSet
  test_puzzles: dict[str, dict]
  names: Sequence[str]
  leaks: list[arc_leaks.Leak]


# The reference has them as a list, identifiers.json: tens of megabytes of text.
class Names(Sequence[str]):
  """Names of all augmentations by id, made when asked for: there may be a million."""

  def __init__(self, task_ids: Sequence[str], plan: arc_plan.BuildPlan):
    self._task_ids = task_ids
    self._plan = plan

  def __len__(self) -> int:
    return len(self._plan.kinds) + 1

  @overload
  def __getitem__(self, index: int) -> str: ...
  @overload
  def __getitem__(self, index: slice) -> list[str]: ...
  def __getitem__(self, index):
    if isinstance(index, slice):
      return [self[each] for each in range(*index.indices(len(self)))]
    # Indexing a range checks bounds and resolves negative indices. Id 0 is the
    # blank one, so row k has id k + 1.
    row = range(len(self))[index] - 1
    if row < 0:
      return BLANK_NAME
    group = int(np.searchsorted(self._plan.group_starts, row, side="right")) - 1
    if row == self._plan.group_starts[group]:
      return self._task_ids[group]
    return grids.augmentation_name(self._task_ids[group], self._plan.kinds[row], self._plan.permutations[row])

  def __iter__(self) -> Iterator[str]:
    yield BLANK_NAME
    starts = self._plan.group_starts.tolist()
    kinds = self._plan.kinds
    permutations = self._plan.permutations
    for task_id, start, end in zip(self._task_ids, starts, starts[1:]):
      yield task_id
      # All digits of a task in one decode, since there may be a million names.
      digits = (permutations[start:end] + ord("0")).tobytes().decode()
      for row, kind in enumerate(kinds[start + 1:end].tolist(), 1):
        yield f"{task_id}{grids.SEPARATOR}t{kind}{grids.SEPARATOR}{digits[10 * row:10 * row + 10]}"


@dataclasses.dataclass(frozen=True)
class _SplitEncoder:
  """Encodes examples of one split; see `PuzzleSet.read`.

  Attributes:
    pairs: grids, input and output of a pair next to each other.
    group_starts, puzzle_starts: see `PuzzleSet`.
    first_pairs: [groups] pair of the first example of each of the group's puzzles.
    rows: [puzzles] place of each puzzle in the plan.
    plan: the augmentations.
    is_shifted: whether examples are shifted; those of the test split are not.
    canvas: side of the square that grids lie on.
  """

  pairs: grids.GridStore
  group_starts: np.ndarray
  puzzle_starts: np.ndarray
  first_pairs: np.ndarray
  rows: np.ndarray
  plan: arc_plan.BuildPlan
  is_shifted: bool
  canvas: int

  def __call__(self, examples, draw: np.random.Generator | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns inputs and labels [n, seq_len] uint8: with the plan's shifts, or with new ones of `draw`."""
    examples = np.asarray(examples, np.int64)
    if examples.size and not 0 <= examples.min() <= examples.max() < self.puzzle_starts[-1]:
      raise IndexError(f"examples {examples.min()} to {examples.max()} are asked for, there are "
                       f"{self.puzzle_starts[-1]}")
    puzzles = np.searchsorted(self.puzzle_starts, examples, side="right") - 1
    groups = np.searchsorted(self.group_starts, puzzles, side="right") - 1
    # Every puzzle of a group has the same pairs, so an example is its place in the puzzle counted from the
    # group's first pair. Input and output of pair p are grids 2p and 2p + 1 of the store.
    inputs = 2 * (self.first_pairs[groups] + examples - self.puzzle_starts[puzzles])
    kinds = self.plan.kinds[self.rows[puzzles]]
    permutations = self.plan.permutations[self.rows[puzzles]]
    if not self.is_shifted:
      shifts = np.zeros((len(examples), 2), np.int32)
    elif draw is None:
      shifts = self.plan.shifts[examples]
    else:
      counts = self.puzzle_starts[puzzles + 1] - self.puzzle_starts[puzzles]
      shifts = self._fresh_shifts(inputs, kinds, counts, draw)
    # Input and output of a pair share transform, colours and shift: one call encodes both halves.
    kinds, permutations, shifts = (np.concatenate([each, each]) for each in (kinds, permutations, shifts))
    both = np.concatenate([inputs, inputs + 1])
    tokens = grids.encode_many(self.pairs, both, kinds, permutations, shifts, self.canvas)
    return tokens[:len(examples)], tokens[len(examples):]

  def _fresh_shifts(self, inputs, kinds, counts, draw) -> np.ndarray:
    """Draws shifts as often zero as the plan's: for one of the `counts` examples of a puzzle."""
    sides = [np.maximum(left, right) for left, right in zip(grids.shapes(self.pairs, inputs, kinds),
                                                            grids.shapes(self.pairs, inputs + 1, kinds))]
    # The shift is one for both grids, so the larger of the two decides in each direction.
    rooms = self.canvas + 1 - np.stack(sides, axis=1)
    chance = draw.random((len(inputs), 3))
    # In the frozen form one example of each puzzle stays where it is. Drawn example by example, each stays
    # with the same chance, and the rest of the batch need not be known.
    moves = (chance[:, 2] >= 1 / counts)[:, None]
    return np.where(moves, np.floor(chance[:, :2] * rooms), 0).astype(np.int32)


def load(name: str, path: str | None = None, concept: str | None = None, *, test_set: str | None = None,
         n_augmentations: int = 1000, seed: int = 42, only: Iterable[str] | None = None,
         task_ids: Iterable[str] | None = None, max_tasks: int | None = None, canvas: int = grids.SIDE,
         cache_dir: str | None = None) -> Built:
  """Reads tasks, chooses among them, and builds; see `arc.read`, `arc.select` and `build`.

  Args:
    name, path, concept: see `arc.read`.
    test_set: the subset whose test pairs are the test split; None takes the evaluation subset, or the last
      one if there is none.
    n_augmentations, seed, cache_dir: see `build`.
    only, task_ids, max_tasks, canvas: see `arc.select`.

  Raises:
    ImportError, ValueError: see there.
  """
  subsets = arc.select(arc.read(name, path, concept), only=only, task_ids=task_ids, max_tasks=max_tasks,
                       canvas=canvas)
  test_set = held_out(subsets) if test_set is None else test_set
  return build(subsets, test_set, n_augmentations=n_augmentations, seed=seed, canvas=canvas,
               cache_dir=cache_dir)


def held_out(subsets: Iterable[str]) -> str:
  """Names the subset whose test pairs are not trained on: the evaluation's, or the last if there is none."""
  names = list(subsets)
  found = next((name for name in names if name.startswith("evaluation")), None)
  if found is None:
    logging.warning("no subset of %s is called evaluation: the test pairs of %r are held out, and its "
                    "demonstrations trained on", ", ".join(names), names[-1])
  others = [name for name in names if found and name != found and name.startswith(("evaluation", "test"))]
  if others:
    logging.warning("%r alone is held out: the known test pairs of %s are trained on; give their files apart "
                    "to have them held out as well", found, " and of ".join(map(repr, others)))
  return found or names[-1]


def build(subsets: arc.Subsets, test_set: str | Sequence[str], *, n_augmentations: int = 1000, seed: int = 42,
          canvas: int = grids.SIDE, cache_dir: str | None = None) -> Built:
  """Builds the two splits, equal to the reference's files example by example.

  Pairs with unknown outputs are the exception: they are not trained on, and have no label in the test split.
  Test tasks whose answers are trained on are warned of, see `arc_leaks`.

  Args:
    subsets: tasks by subset, see `arc.read`.
    test_set: name, or names, of the subsets whose test pairs are not trained on.
    n_augmentations: how many a task gets besides itself; fewer if it has not so many that differ.
    seed: decides all that is random.
    canvas: side of the square that grids lie on; 30 is the reference's, less is for studies of small grids.
    cache_dir: where augmentations are kept, see `arc_plan.load`.

  Raises:
    ValueError: if a test set is not there, an id is there twice, or a grid does not fit the canvas.
  """
  test_sets = (test_set,) if isinstance(test_set, str) else tuple(test_set)
  filled = [name for name, tasks in subsets.items() if tasks]
  if not test_sets or set(test_sets) - set(filled):
    raise ValueError(f"test_set={test_set!r} must be among the subsets with tasks: {', '.join(filled)}")
  if n_augmentations < 0:
    raise ValueError(f"n_augmentations={n_augmentations} must be 0 or more")
  _check_tasks(subsets, canvas)
  plan = arc_plan.load(subsets, test_sets, n_augmentations, seed, cache_dir=cache_dir, canvas=canvas)
  identity = dict(n_augmentations=n_augmentations, seed=seed)
  return _of_plan(subsets, test_sets, plan, canvas, identity)


def _of_plan(subsets: arc.Subsets, test_sets: tuple[str, ...], plan: arc_plan.BuildPlan, canvas: int,
             identity: dict) -> Built:
  """Makes the splits of a plan; `identity` says where its augmentations come from."""
  each = [(task, name in test_sets) for name, tasks in subsets.items() for task in tasks]
  # `plan.order` is the reference's: shuffled within each subset.
  groups = [each[index] for index in plan.order]
  # A test task has its demonstrations in front, which are the train split, and its questions behind them, the
  # test split: `first + n_trained` below points at those.
  pairs = [[*task.train, *task.test] if is_test else arc.labelled_pairs(task)
           for task, is_test in groups]  # Those of each split next to each other.
  stored = grids.store([UNKNOWN if grid is None else grid
                        for group in pairs for pair in group for grid in pair])
  names = Names([task.id for task, _ in groups], plan)
  identity = dict(name="arc", tasks=arc.fingerprint(subsets), subsets=list(subsets),
                  test_sets=list(test_sets), canvas=canvas, **identity)
  if unknown := arc_tasks.count_unknown(task for task, _ in groups):
    identity["unknown_outputs"] = unknown
  n_trained = [len(task.train) if is_test else len(found) for (task, is_test), found in zip(groups, pairs)]
  split = functools.partial(_split, plan, stored, names, identity, canvas)
  first = np.cumsum([0, *map(len, pairs[:-1])])
  tested = np.flatnonzero([is_test for _, is_test in groups])
  n_tested = np.array([len(task.test) for task, _ in groups])
  train = split("train", np.arange(len(groups)), first, np.array(n_trained))
  test = split("test", tested, first + n_trained, n_tested)
  tests = [groups[group][0] for group in tested]
  # Of a test task the demonstrations alone are trained on.
  leaks = arc_leaks.find([task._replace(test=()) if is_test else task for task, is_test in groups], tests)
  arc_leaks.warn(leaks, len(tests))
  return Built(train, test, {task.id: arc.to_json(task) for task in tests}, names, leaks)


def build_task(task: arc.Task, n_augmentations: int, seed: int, canvas: int = grids.SIDE) -> Built:
  """Builds the sets with which one task is solved: all demonstrations to train on, all test inputs to answer.

  Outputs of test pairs may be unknown; such a pair has no label.
  """
  return build({"task": [task]}, "task", n_augmentations=n_augmentations, seed=seed, canvas=canvas)


def build_named(task: arc.Task, names: Sequence[str], seed: int, canvas: int = grids.SIDE) -> Built:
  """Builds the sets with which one task is solved, with these augmentations; the shifts alone are drawn.

  Args:
    task: see `build_task`.
    names: of the augmentations, see `grids.augmentation_name`; the first is the task as it stands.
    seed: of the shifts.
    canvas: see `build`.

  Raises:
    ValueError: if a name is not an augmentation's, or a grid does not fit the canvas.
  """
  subsets = {"task": [task]}
  _check_tasks(subsets, canvas)
  _, kinds, permutations = zip(*map(grids.parse_name, names))
  plan = arc_plan.chosen(task, np.array(kinds, np.uint8), np.stack(permutations), seed, canvas)
  return _of_plan(subsets, ("task",), plan, canvas, dict(names=list(names), seed=seed))


def write_original(built: Built, folder: str) -> None:
  """Writes a build as the reference does: train/, test/, identifiers.json, test_puzzles.json.

  Where an output is unknown, the labels are 0 and test_puzzles.json has no "output"; the reference would
  write one black cell and score it.

  Args:
    built: from `build`; only the splits' order of examples and the frozen shifts are used.
    folder: is made, or is empty. It is filled only when everything is written.

  Raises:
    ValueError: if the folder has something in it.
  """
  target = pathlib.Path(folder).expanduser()
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise ValueError(f"{target} is not empty; name a new folder")
  target.parent.mkdir(parents=True, exist_ok=True)
  # Beside the target: a rename is one step only within a file system.
  scratch = pathlib.Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
  try:
    for name, split in (("train", built.train), ("test", built.test)):
      _write_split(split, scratch / name)
    write_file.whole(scratch / "identifiers.json", json.dumps(list(built.names)))
    write_file.whole(scratch / "test_puzzles.json", json.dumps(built.test_puzzles))
    scratch.chmod(0o755)  # Scratch folders are closed to others.
    if target.exists():
      target.rmdir()  # It is empty.
    write_file.folder(scratch, target)
  finally:
    shutil.rmtree(scratch, ignore_errors=True)


def _check_tasks(subsets: arc.Subsets, canvas: int) -> None:
  """Refuses tasks in two subsets, as test pairs might be trained on, and those that do not fit."""
  # A name of a puzzle has no subset in it, so ids must differ across subsets as well.
  ids = {name: [task.id for task in tasks] for name, tasks in subsets.items()}
  for before, name in itertools.combinations(ids, 2):
    if common := arc.overlap(ids[before], ids[name]):
      count = f"{len(common)} tasks are" if len(common) > 1 else "a task is"
      raise ValueError(f"{count} in the subset {before!r} and in {name!r}, such as {common[0]!r}: what one "
                       "asks, the other may answer; leave one of the subsets out (--only of "
                       "scripts/prepare_arc.py), or give other files")
  for name, tasks in subsets.items():
    if len(set(ids[name])) < len(tasks):
      raise ValueError(f"the subset {name!r} has a task twice; ids must differ")
    for task in tasks:
      if arc.side_of(task) > canvas:
        raise ValueError(f"the task {task.id!r} has a grid with a side of {arc.side_of(task)} cells, which "
                         f"does not fit canvas={canvas}; leave the task out or take a larger canvas")


def _split(plan, stored, names, identity, canvas, split, groups, first_pairs, n_examples) -> PuzzleSet:
  """Makes a split of the chosen groups, each puzzle of which has the group's number of examples."""
  starts = plan.group_starts
  # The test split has every augmentation of its tasks too, with the same ids: they are what votes.
  n_puzzles = np.diff(starts)[groups]
  rows = np.concatenate([np.arange(starts[group], starts[group + 1]) for group in groups])
  group_starts = np.cumsum([0, *n_puzzles])
  puzzle_starts = np.concatenate([[0], np.cumsum(np.repeat(n_examples[groups], n_puzzles))])
  read = _SplitEncoder(stored, group_starts, puzzle_starts, first_pairs[groups], rows, plan,
                       is_shifted=split == "train", canvas=canvas)
  return PuzzleSet(
      # Ids count from 1 through all puzzles of the train split, in which every puzzle of the test split
      # stands: the reference's numbering, so its checkpoints' rows fit.
      group_starts=group_starts, puzzle_starts=puzzle_starts, puzzle_ids=(rows + 1).astype(np.int32),
      seq_len=canvas * canvas, vocab_size=grids.VOCAB_SIZE, n_ids=len(names),
      identity=identity | {"split": split}, read=read, names=names,
      group_names=tuple(names[int(starts[group]) + 1] for group in groups))


def _write_split(split: PuzzleSet, folder: pathlib.Path) -> None:
  folder.mkdir()
  for name, array in (("puzzle_identifiers", split.puzzle_ids), ("puzzle_indices", split.puzzle_starts),
                      ("group_indices", split.group_starts)):
    write_file.whole(folder / f"all__{name}.npy", arrays.npy_bytes(array.astype(np.int32)))
  # np.save needs the whole array at once, 3.3 GB of inputs for ARC-AGI-1; header first, rows can be streamed.
  header = dict(descr="|u1", fortran_order=False, shape=(split.n_examples, split.seq_len))
  with open(folder / "all__inputs.npy", "wb") as inputs, open(folder / "all__labels.npy", "wb") as labels:
    for file in (inputs, labels):
      np.lib.format.write_array_header_1_0(file, header)
    for start in range(0, split.n_examples, CHUNK):
      examples = np.arange(start, min(start + CHUNK, split.n_examples))
      for file, tokens in zip((inputs, labels), split.read(examples, None)):
        file.write(tokens.tobytes())
  fields = dict(
      pad_id=grids.PAD, ignore_label_id=0, blank_identifier_id=BLANK_ID, vocab_size=split.vocab_size,
      seq_len=split.seq_len, num_puzzle_identifiers=split.n_ids, total_groups=split.n_groups,
      # The reference plans its steps by this mean, see `sampler.original_steps`.
      mean_puzzle_examples=split.n_examples / split.n_puzzles, total_puzzles=split.n_puzzles, sets=["all"])
  write_file.whole(folder / "dataset.json", json.dumps(fields))
  inventory.seal(folder)
