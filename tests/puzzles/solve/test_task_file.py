"""A competition from its files: what is to be solved is trained on with others; a file of tasks is solved."""

import json

import numpy as np
import pytest

from atlas_jax import modes
from atlas_jax.puzzles import arc, solve
from atlas_jax.puzzles.arc import challenges
from atlas_jax.puzzles.solve import task_file
from tests import program
from tests.program import refused
from tests.puzzles.solve.test_solve import OUTPUT, TINY, pairs, report_of

WIDE = [[1] * 4] * 4  # Larger than the run's canvas.


def hidden(task):
  """A task without the outputs of its test pairs."""
  return {"train": task["train"], "test": [{"input": pair["input"]} for pair in task["test"]]}


@pytest.fixture(scope="module")
def tasks():
  """Seven tasks by id, with outputs."""
  draw = np.random.default_rng(2)
  return {f"task{i}": {"train": pairs(draw, 3), "test": pairs(draw, 1 + i % 2)} for i in range(7)}


@pytest.fixture(scope="module")
def folder(tasks, tmp_path_factory):
  """Kaggle's files: five training tasks, and three to be solved, of which one is a training task."""
  folder = tmp_path_factory.mktemp("competition")
  trained, asked = (dict(list(tasks.items())[cut]) for cut in (slice(0, 5), slice(4, 7)))
  files = {
    "training_challenges": {name: hidden(task) for name, task in trained.items()},
    "training_solutions": {name: [pair["output"] for pair in task["test"]] for name, task in trained.items()},
    "test_challenges": {name: hidden(task) for name, task in asked.items()},
  }  # fmt: skip
  for name, content in files.items():
    (folder / f"arc-agi_{name}.json").write_text("\ufeff" + json.dumps(content), encoding="utf-8")
  return folder


@pytest.fixture(scope="module")
def trained(folder):
  """The workdir of a run on them, and what was said."""
  fields = {**TINY, "puzzles.name": "files", "puzzles.path": folder / "arc-agi_training_challenges.json",
            "puzzles.test_path": folder / "arc-agi_test_challenges.json"}  # fmt: skip
  flags = [f"--config.{name}={value}" for name, value in fields.items()]
  done = program.run("--config=configs/trm_arc1.py:smoke", f"--workdir={folder / 'run'}", *flags)
  assert done.code == 0, done.err
  return folder / "run", done.err


def is_valid(entry, n_inputs):
  """Whether attempts are as graders read them."""
  grids = [grid for pair in entry for grid in pair.values()]
  return (len(entry) == n_inputs and all(list(pair) == ["attempt_1", "attempt_2"] for pair in entry)
          and all(grid and all(row and len(row) == len(grid[0]) for row in grid) for grid in grids))


def test_a_run_on_a_competition_s_files_leaves_a_submission_for_all_that_is_asked(trained, tasks):
  workdir, said = trained
  assert "1 of 5 tasks of training are among those to be solved, and not trained on beyond" in said
  submission = json.loads((workdir / "evals/step_00000003/submission.json").read_text())
  assert sorted(submission) == ["task4", "task5", "task6"]
  assert all(is_valid(entry, len(tasks[name]["test"])) for name, entry in submission.items())


def test_what_is_asked_is_trained_on_by_its_demonstrations_alone(folder):
  subsets, test_sets = challenges.read(str(folder / "arc-agi_training_challenges.json"),
                                       str(folder / "arc-agi_test_challenges.json"))  # fmt: skip
  assert list(subsets) == ["training", "test"] and test_sets == ("test",)
  assert [task.id for task in subsets["training"]] == ["task0", "task1", "task2", "task3"]
  raw = json.loads((folder / "arc-agi_training_challenges.json").read_text("utf-8-sig"))
  renamed = hidden(raw["task1"])
  (folder / "other").mkdir()
  (folder / "other" / "arc-agi_test_challenges.json").write_text(json.dumps({"elsewhere": renamed}))
  both = ",".join(2 * [str(folder / "arc-agi_training_challenges.json")])
  subsets, _ = challenges.read(both, str(folder / "other"))
  assert list(subsets) == ["training", "training_2", "test"]
  assert all("task1" not in [task.id for task in subsets[name]] for name in ("training", "training_2"))
  with pytest.raises(ValueError, match="path=None and test_path=None: give path"):
    challenges.read(None, None)


@pytest.fixture(scope="module")
def asked(folder, tasks):
  """A file of five tasks, of which three cannot be solved."""
  train = tasks["task0"]["train"]
  content = {
    "good": tasks["task5"], "ragged": {"train": train, "test": [{"input": [[1, 2], [3]]}] * 2},
    "wide": {"train": train, "test": [{"input": WIDE}]}, "empty": 7, "also": hidden(tasks["task6"]),
  }  # fmt: skip
  file = folder / "asked_challenges.json"
  file.write_text(json.dumps(content))
  (folder / "asked_solutions.json").write_text(json.dumps({"also": [OUTPUT] * len(tasks["task6"]["test"])}))
  return file


def run(workdir, file, out, *flags):
  """Solves a file with two updates a task."""
  given = f"--workdir={workdir}", f"--task={file}", f"--out={out}", "--steps=2"
  return program.run("--mode=solve", *given, *flags)


@pytest.fixture(scope="module")
def solved(trained, asked, folder):
  """What the program prints, what it says, and where it wrote."""
  done = run(trained[0], asked, folder / "submission.json")
  assert done.code == 0, done.err
  return [json.loads(line) for line in done.out.splitlines()], done.err, folder / "submission.json"


def test_one_submission_has_every_id_and_faulty_tasks_are_named(solved):
  lines, said, out = solved
  submission = json.loads(out.read_text())
  assert list(submission) == ["good", "ragged", "wide", "empty", "also"]
  assert [is_valid(submission[name], count) for name, count in
          (("good", 2), ("ragged", 2), ("wide", 1), ("empty", 1), ("also", 1))] == [True] * 5  # fmt: skip
  assert submission["wide"][0] == {"attempt_1": WIDE, "attempt_2": WIDE}
  assert submission["ragged"][0]["attempt_1"] == [[0]] == submission["empty"][0]["attempt_2"]
  summary = lines[-1]
  assert (summary["tasks"], summary["answered"]) == (5, 2)
  assert list(summary["not_answered"]) == ["ragged", "wide", "empty"]
  assert all(f"task {name} cannot be solved: " in said for name in summary["not_answered"])
  assert "reads grids of up to 3 x 3" in summary["not_answered"]["wide"]


def test_every_answered_task_has_a_report_and_known_outputs_are_counted(solved):
  lines, _, out = solved
  assert [line["task"] for line in lines[:-1]] == ["good", "also"]
  assert all(line["steps"] == 2 and line["checkpoint_step"] == 3 for line in lines[:-1])
  tests = [test for line in lines[:-1] for test in line["tests"]]
  assert lines[-1]["known_outputs"] == len(tests) == 3
  assert lines[-1]["solved_outputs"] == sum(test["solved"] for test in tests)
  attempts = json.loads(out.read_text())["good"][0]
  assert attempts["attempt_1"] == lines[0]["tests"][0]["attempts"][0]["grid"]


def test_only_what_was_not_finished_is_solved_again(solved, trained, asked, folder):
  before, kept = json.loads(solved[2].read_text()), folder / f"submission.json{task_file.FINISHED}"
  first, second = kept.read_text().splitlines()
  torn = f"{first}\n{second[: len(second) // 2]}".encode()
  kept.write_bytes(torn + b"\0\xff")  # The second was being written when the machine stopped.
  done = run(trained[0], asked, solved[2])
  lines = [json.loads(line) for line in done.out.splitlines()]
  assert [line.get("task") for line in lines] == ["also", None]
  assert "1 of 5 tasks are finished" in done.err and f"{kept}:2 is not whole" in done.err
  assert lines[-1]["answered"] == 2 and json.loads(solved[2].read_text()) == before
  again = run(trained[0], asked, solved[2])
  assert len(again.out.splitlines()) == 1 and "2 of 5 tasks are finished" in again.err


def test_answers_to_other_evaluations_and_other_weights_are_found_anew(trained, tasks, tmp_path):
  """Outputs that come to be known later are counted, and faulty ones cost no task its answer."""
  file, out = tmp_path / "x_challenges.json", tmp_path / "out.json"
  file.write_text(json.dumps({"a": hidden(tasks["task5"]), "b": hidden(tasks["task6"])}))
  beside, summary = tmp_path / "x_solutions.json", lambda done: json.loads(done.out.splitlines()[-1])
  first = run(trained[0], file, out, "--augmentations=0")
  assert (summary(first)["answered"], summary(first)["known_outputs"]) == (2, 0)
  attempts = [pair["attempt_1"] for pair in json.loads(out.read_text())["a"]]
  beside.write_text(json.dumps({"a": [attempts[0], None], "b": [[[1, 2], [3]]]}))
  again = run(trained[0], file, out, "--augmentations=0")
  assert "2 of 2 tasks are finished" in again.err
  assert (summary(again)["known_outputs"], summary(again)["solved_outputs"]) == (1, 1)
  assert "task 'b', solution has rows of 1 and of 2 cells; all must be equally long; it is not" in again.err
  beside.write_text(json.dumps({"b": [OUTPUT] * 9}))
  other = run(trained[0], file, out, "--augmentations=0", "--config.puzzle_eval.vote=noisy_or")
  assert "are finished" not in other.err and summary(other)["answered"] == 2
  assert "task 'b', solution must be a list of 1 outputs" in other.err
  files = trained[0] / "checkpoints" / "3" / "files.json"
  before = files.read_text()
  files.write_text(before + " ")  # As those of a run that was made anew.
  anew = run(trained[0], file, out, "--augmentations=0")
  files.write_text(before)
  assert "are finished" not in anew.err and summary(anew)["answered"] == 2


def test_answers_of_other_settings_checkpoints_and_tasks_are_not_taken(tasks, tmp_path):
  task, other = (arc.task_of("a", tasks[name], "file") for name in ("task0", "task1"))
  answers = solve.SolveResult({"tests": []}, {"a": [{"attempt_1": [[1]]}]})
  item = lambda task: task_file.Item("a", task, "", [])
  finished = lambda settings: task_file._Finished(tmp_path / "kept", settings)
  take = lambda settings, task: finished(settings).take([item(task)], {"a": []})
  finished(["run", 3, 2]).add(task, answers)
  assert take(["run", 3, 2], task) == {"a": {"tests": []}}
  assert not any((take(["run", 4, 2], task), take(["run", 3, 5], task), take(["run", 3, 2], other)))


def test_a_task_that_fails_costs_the_others_nothing(trained, tasks, tmp_path):
  """Rows of the run exist for one of two tasks; where none is answered, attempts are there all the same."""
  file = tmp_path / "two.json"
  file.write_text(json.dumps({"new": tasks["task0"], "task1": tasks["task1"]}))
  done = run(trained[0], file, tmp_path / "out.json", "--rows=run", "--augmentations=0")
  assert done.code == 0, done.err
  summary = json.loads(done.out.splitlines()[-1])
  assert summary["answered"] == 1
  assert "--rows=run: the task 'new' is not in the table" in summary["not_answered"]["new"]
  assert is_valid(json.loads((tmp_path / "out.json").read_text())["new"], 1)
  file.write_text(json.dumps({"new": tasks["task0"]}))
  line = refused(run(trained[0], file, tmp_path / "none.json", "--rows=run"))
  assert "none of 1 tasks was answered: --rows=run" in line
  assert list(json.loads((tmp_path / "none.json").read_text())) == ["new"]


def test_a_set_to_be_solved_belongs_to_files_of_one_s_own(folder):
  flags = ["--config=configs/trm_arc1.py:smoke", f"--workdir={folder / 'none'}"]
  line = refused(program.run(*flags, "--config.puzzles.test_path=x"))
  assert "config.puzzles.test_path='x' is read with config.puzzles.name='files', and this is 'arc1'" in line


def test_wrong_files_and_flags_are_refused_before_anything_is_written(trained, asked, tasks, tmp_path):
  flags = ["--mode=solve", f"--workdir={trained[0]}"]
  line = refused(program.run(*flags, f"--task={asked}"))
  assert "holds 5 tasks, and --out is missing" in line
  bad = tmp_path / "bad.json"
  for content, words in (({"a": 1, "b": {}}, "none of 2 tasks can be solved"), ({}, "is not of the form")):
    bad.write_text(json.dumps(content))
    assert words in refused(run(trained[0], bad, tmp_path / "out.json"))
  assert [path.name for path in tmp_path.iterdir()] == ["bad.json"]
  single = tmp_path / "single.json"
  single.write_text("\ufeff" + json.dumps(tasks["task5"]), encoding="utf-8")
  config = modes.config_of_run(str(trained[0]), {})
  assert task_file.read(config, trained[0], str(single)).id == "single"
  done = program.run(*flags, f"--task={single}", "--steps=0", "--augmentations=0")
  assert report_of(done)["task"] == "single"
