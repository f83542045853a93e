"""ARC sets that are read back from the reference's files: which outputs they lack, and what leaks in them.

Where an output is unknown, `build.write_original` writes labels of 0 and no "output". The reference
writes one black cell, in labels and in test_puzzles.json, for all tasks of a subset whose solutions are
missing. Few real outputs are one black cell (239be575 has some, and all its others are one cell too): of
several test tasks one such is taken as an output, and more as missing; of training tasks it is missing where
no other output of the task is one cell, or where more than half of them have it.
"""
import dataclasses
from typing import NamedTuple

import numpy as np
from absl import logging

from atlas_jax.puzzles import files, grids
from atlas_jax.puzzles.arc import leaks as arc_leaks
from atlas_jax.puzzles.arc import tasks as arc_tasks
from atlas_jax.puzzles.arc.tasks import Task
from atlas_jax.puzzles.puzzle_set import PuzzleSet


class Checked(NamedTuple):
  """A built set that can be trained on and scored; test tasks whose answers are trained on."""

  found: files.Files
  leaks: list[arc_leaks.Leak]


def check(found: files.Files, path: str) -> Checked:
  """Checks names and tasks of a set, and takes unknown outputs out of training, labels and scores.

  Args:
    found: what `files.load` gives; it must have names and test tasks.
    path: where it is, for messages.

  Raises:
    ValueError: if a task or a name is none, or examples do not fit the tasks.
  """
  for name in found.train.names[1:]:
    grids.parse_name(name)
  where = f"{path}/test_puzzles.json"
  tasks = [arc_tasks.task_of(name, raw, where) for name, raw in found.test_puzzles.items()]
  # The reference fills a missing solutions file with black cells for all tasks of the subset, so real ones
  # come alone and stand-ins together.
  stand_ins = [task for task in tasks if all(_is_black_cell(right) for _, right in task.test)]
  if len(stand_ins) > 1 or len(stand_ins) == len(tasks):
    logging.warning("%s: the outputs of %d of %d tasks are one black cell, which the original writes where "
                    "solutions are missing; they are taken as unknown", where, len(stand_ins), len(tasks))
    ids = {task.id for task in stand_ins}
    tasks = [_hidden(task) if task.id in ids else task for task in tasks]
  trained, unlabelled = _trained(found.train, {task.id for task in tasks})
  if unlabelled:
    logging.warning("%s: %d pairs of %d training tasks have no output, or one black cell in its place; they "
                    "are not trained on", path, sum(map(len, unlabelled.values())), len(unlabelled))
  if unknown := arc_tasks.count_unknown(tasks):
    logging.warning("%s: the outputs of %d of %d test pairs are unknown; these are not scored", path, unknown,
                    sum(len(task.test) for task in tasks))
  leaks = arc_leaks.find(trained, tasks)
  arc_leaks.warn(leaks, len(tasks))
  train = _without(found.train, unlabelled)
  test = _unlabelled(found.test, tasks, path)
  return Checked(files.Files(train, test, {task.id: arc_tasks.to_json(task) for task in tasks}), leaks)


def _is_black_cell(grid: np.ndarray | None) -> bool:
  return grid is not None and grid.shape == (1, 1) and not grid.any()


def _hidden(task: Task) -> Task:
  return task._replace(test=tuple((left, None) for left, _ in task.test))


def _trained(train: PuzzleSet, tests: set[str]) -> tuple[list[Task], dict[int, list[int]]]:
  """Returns the tasks that are trained on, and of each group the places of pairs that have no output."""
  # One puzzle of each group has all that is needed, since its augmentation can be undone: a
  # thousandth of the file is read.
  firsts = train.group_starts[:-1][np.diff(train.group_starts) > 0]
  examples = [np.arange(*train.puzzle_starts[[puzzle, puzzle + 1]]) for puzzle in firsts]
  inputs, labels = train.read(np.concatenate(examples))
  tasks = []
  missing = {}
  black = {}
  single = set()
  at = 0
  for group, (puzzle, places) in enumerate(zip(firsts, map(len, examples))):
    name, kind, permutation = grids.parse_name(train.names[train.puzzle_ids[puzzle]])
    pairs = []
    for place in range(places):
      # Not `crop`: training examples are shifted, so the grid does not begin at the top left.
      left = grids.find(inputs[at + place])
      right = grids.find(labels[at + place])
      if not labels[at + place].any():
        missing.setdefault(group, []).append(place)
      elif left is not None and right is not None:
        pairs.append((grids.undo(left, kind, permutation), grids.undo(right, kind, permutation)))
        # Of tasks to be solved only demonstrations stand here, whose outputs are never missing.
        if name not in tests and _is_black_cell(right):
          black.setdefault(group, []).append(place)
        elif right.shape == (1, 1):
          single.add(group)
    at += places
    tasks.append(Task(name, tuple(pairs), ()))
  n_others = sum(task.id not in tests for task in tasks)
  # Either more than half of the tasks have such a cell, as where all solutions are missing; or a task is odd
  # within itself: its other outputs are all larger.
  most = len(black) > 1 and 2 * len(black) > n_others
  missing |= {group: sorted({*missing.get(group, ()), *places}) for group, places in black.items()
              if most or group not in single and len(places) < len(tasks[group].train)}
  return tasks, missing


def _without(split: PuzzleSet, places: dict[int, list[int]]) -> PuzzleSet:
  """Leaves out the examples at these places in every puzzle of a group."""
  if not places:
    return split
  kept = np.ones(split.n_examples, bool)
  for group, left_out in places.items():
    starts = split.puzzle_starts[slice(*split.group_starts[[group, group + 1]])]
    # In each of the group's puzzles: an augmentation moves colours and cells, never the order of pairs.
    kept[np.add.outer(starts, left_out)] = False
  index = np.flatnonzero(kept)
  return dataclasses.replace(
      # How many are kept before each old start is the new start; `read` then maps new numbers to old ones.
      split, puzzle_starts=np.concatenate([[0], np.cumsum(kept)])[split.puzzle_starts],
      identity=split.identity | {"left_out": int(split.n_examples - len(index))},
      read=lambda examples, draw=None: split.read(index[examples], draw))


def _unlabelled(test: PuzzleSet, tasks: list[Task], path: str) -> PuzzleSet:
  """Takes the labels from the examples of test pairs whose outputs are unknown."""
  unknown = {task.id: [right is None for _, right in task.test] for task in tasks
             if arc_tasks.count_unknown([task])}
  if not unknown:
    return test
  hides = np.zeros(test.n_examples, bool)
  for puzzle, row in enumerate(test.puzzle_ids):
    start = test.puzzle_starts[puzzle]
    end = test.puzzle_starts[puzzle + 1]
    hidden = unknown.get(test.names[row].split(grids.SEPARATOR)[0])
    if hidden is not None and len(hidden) != end - start:
      raise ValueError(f"{path}: the task of {test.names[row]!r} has {len(hidden)} test pairs in "
                       f"test_puzzles.json and {end - start} in test/; build the data set again")
    if hidden is not None:
      hides[start:end] = hidden

  def read(examples, draw=None):
    inputs, labels = test.read(examples, draw)
    # 0 is "not scored" in a set, as `source._encode` reads labels.
    return inputs, np.where(hides[np.asarray(examples)][:, None], 0, labels)

  return dataclasses.replace(test, read=read)
