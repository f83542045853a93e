"""ARC tasks one by one: their form in files, checked, and what they are known by.

A task's file is {"train": [{"input": rows, "output": rows}, ...], "test": [...]}; the reference's builds
depend on whether it names "test" before "train". An output of a test pair may be unknown; it is then None
here, and no key in a file.

Source: Chollet 2019, arXiv:1911.01547.
"""
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from atlas_jax.files import json_file
from atlas_jax.puzzles import grids

TRAIN_FIRST = "train_first"
TEST_FIRST = "test_first"
Pair = tuple[np.ndarray, np.ndarray | None]


class Task(NamedTuple):
  """One task of the corpus.

  Attributes:
    id: its name.
    train: demonstrations, (input, output) grids of uint8.
    test: the questions; an output is None where it is unknown.
    order: "test_first" if its file has the test pairs before the demonstrations, else "train_first".
  """

  id: str
  train: tuple[tuple[np.ndarray, np.ndarray], ...]
  test: tuple[Pair, ...]
  order: str = TRAIN_FIRST


Subsets = Mapping[str, list[Task]]


def read_task(file: str) -> Task:
  """Reads a file of one task, {"train": [...], "test": [...]}; its name without the ending is the id.

  Raises:
    ValueError: if it is not a task; outputs of test pairs may be missing.
  """
  path = pathlib.Path(file).expanduser()
  return task_of(path.stem, load_json(path), str(path))


def task_of(task_id: str, raw: Any, where: str, order: str | None = None) -> Task:
  """Checks a task in its JSON form and returns it as grids.

  Args:
    task_id: its name.
    raw: {"train": [{"input": rows, "output": rows}, ...], "test": [...]}.
    where: the file, for messages.
    order: see `Task`; None takes the order of the two keys.

  Raises:
    ValueError: naming the place of what is wrong.
  """
  place = f"{where}: task {task_id!r}"
  if not isinstance(raw, dict) or not {"train", "test"} <= raw.keys():
    found = f"the keys {', '.join(map(repr, raw))}" if isinstance(raw, dict) else f"a {type(raw).__name__}"
    raise ValueError(f'{place} is not of the form {{"train": [...], "test": [...]}}, it has {found}')
  if not task_id or grids.SEPARATOR in task_id:
    raise ValueError(f"{place}: an id is not empty and has no {grids.SEPARATOR}; rename the task")
  pairs: dict[str, list] = {}
  for part in ("train", "test"):
    if not isinstance(raw[part], list) or not raw[part]:
      raise ValueError(f"{place}: {part!r} must be a list of at least one pair, got {str(raw[part])[:60]}")
    pairs[part] = [_pair(pair, f"{place}, {part} pair {number}", part == "test")
                   for number, pair in enumerate(raw[part])]
  if order is None:
    # A dict keeps the order of the file. The reference goes through a task's keys as they come, so it decides
    # the order of examples, and with it which one stays unshifted.
    order = next(TRAIN_FIRST if key == "train" else TEST_FIRST for key in raw if key in ("train", "test"))
  return Task(task_id, tuple(pairs["train"]), tuple(pairs["test"]), order)


def to_json(task: Task) -> dict[str, list]:
  """Returns a task as its file has it, in lists of integers; an unknown output has no key."""
  parts = {part: [{side: grid.tolist() for side, grid in zip(("input", "output"), pair) if grid is not None}
                  for pair in pairs] for part, pairs in (("train", task.train), ("test", task.test))}
  return parts if task.order == TRAIN_FIRST else {"test": parts["test"], "train": parts["train"]}


def pairs_of(task: Task) -> list[Pair]:
  """Returns all pairs in the order of the task's file; an unknown output is None."""
  return [*task.test, *task.train] if task.order == TEST_FIRST else [*task.train, *task.test]


def labelled_pairs(task: Task) -> list[tuple[np.ndarray, np.ndarray]]:
  """Returns the pairs whose output is known, in the order of the task's file: all that can be trained on."""
  return [(left, right) for left, right in pairs_of(task) if right is not None]


def count_unknown(tasks: Iterable[Task]) -> int:
  """Counts the test pairs whose output is unknown."""
  return sum(right is None for task in tasks for _, right in task.test)


def side_of(task: Task) -> int:
  """Returns the longest side of a task's grids."""
  return max(max(grid.shape) for pair in pairs_of(task) for grid in pair if grid is not None)


def pair_digest(pair: Pair) -> str:
  """Returns a digest of an input and its output; an unknown output equals no grid."""
  left, right = pair
  return f"{grids.grid_digest(left)}|{'unknown' if right is None else grids.grid_digest(right)}"


def content(task: Task) -> str:
  """Returns a digest of a task's pairs, which ignores its id, their order, and which of them are tests."""
  return hashlib.sha256("|".join(sorted(map(pair_digest, pairs_of(task)))).encode()).hexdigest()


def ids_digest(ids: Iterable[str]) -> str:
  """Returns a short digest of the ids of tasks, in any order."""
  return hashlib.sha256(" ".join(sorted(ids)).encode()).hexdigest()[:16]


def questions_digest(tasks: Iterable[Task]) -> str:
  """Returns a short digest of what is never hidden, ids, demonstrations and test inputs.

  Tasks in any order.
  """
  digest = hashlib.sha256()
  for task in sorted(tasks, key=lambda task: task.id):
    digest.update(json.dumps([task.id, len(task.train), len(task.test)]).encode())
    for grid in itertools.chain(*task.train, (left for left, _ in task.test)):
      digest.update(bytes(grid.shape) + grid.tobytes())
  return digest.hexdigest()[:16]


def outputs_digest(tasks: Iterable[Task]) -> str:
  """Returns a short digest of the outputs of test pairs; tasks in any order."""
  digest = hashlib.sha256()
  for task in sorted(tasks, key=lambda task: task.id):
    for _, grid in task.test:
      digest.update(b"-" if grid is None else bytes(grid.shape) + grid.tobytes())
  return digest.hexdigest()[:16]


def fingerprint(subsets: Subsets) -> str:
  """Returns a digest of all that a set of tasks is: names, ids, orders, grids."""
  digest = hashlib.sha256()
  for name, tasks in subsets.items():
    for task in tasks:
      # The order of tasks and keys counts here: it decides the random stream, so it is part
      # of what a build follows from.
      digest.update(json.dumps([name, task.id, task.order, len(task.train)]).encode())
      for grid in itertools.chain(*task.train, *task.test):
        # Not to be taken for a grid: that begins with its height, at most 30, and "-" is byte 45.
        digest.update(b"-" if grid is None else bytes(grid.shape) + grid.tobytes())
  return digest.hexdigest()


def _pair(raw: Any, place: str, is_test: bool) -> Pair:
  if not isinstance(raw, dict) or "input" not in raw or not (is_test or "output" in raw):
    raise ValueError(f'{place} is not of the form {{"input": rows, "output": rows}}, got {str(raw)[:60]}')
  output = raw["output"] if "output" in raw else None
  # null and a missing key both mean unknown, but only in test pairs: a
  # demonstration without output is an error.
  return (grid_of(raw["input"], f"{place}, input"),
          None if output is None and is_test else grid_of(output, f"{place}, output"))


def grid_of(rows: Any, place: str) -> np.ndarray:
  """Returns a grid, or says what is wrong with it."""
  if not isinstance(rows, list) or not rows or not all(isinstance(row, list) and row for row in rows):
    raise ValueError(f"{place} must be a list of rows that are not empty, got {str(rows)[:60]}")
  widths = sorted({len(row) for row in rows})
  if len(widths) > 1:
    raise ValueError(f"{place} has rows of {widths[0]} and of {widths[-1]} cells; all must be equally long")
  if len(rows) > grids.SIDE or widths[0] > grids.SIDE:
    raise ValueError(f"{place} is {len(rows)} x {widths[0]}, at most {grids.SIDE} x {grids.SIDE} is allowed")
  # The very type: true is an int to isinstance, and 3.0 is no cell.
  wrong = [cell for row in rows for cell in row if type(cell) is not int or not 0 <= cell < grids.COLOURS]
  if wrong:
    raise ValueError(f"{place} has the cell {wrong[0]!r}; cells must be integers of 0 to {grids.COLOURS - 1}")
  grid = np.array(rows, np.uint8)
  # A task stands in several sets at once: a grid that is written to would change all of them.
  grid.setflags(write=False)
  return grid


def load_json(path: pathlib.Path) -> Any:
  """Reads JSON in which no object has a key twice."""
  try:
    return json_file.read(path, object, remedy="name a file of ARC tasks")
  except OSError as error:
    raise ValueError(f"{path} cannot be read ({error.strerror}); name a file of ARC tasks") from error


def load_tasks(path: pathlib.Path) -> dict[str, Any]:
  """Reads a file of {id: task}."""
  raw = load_json(path)
  if not isinstance(raw, dict) or not raw:
    raise ValueError(f"{path} must hold an object of tasks by id, got {str(raw)[:60]}")
  return raw
