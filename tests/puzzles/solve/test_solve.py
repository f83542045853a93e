"""One ARC task from its file: tuned to and answered, or refused in one line before anything is half done."""

import json

import numpy as np
import pytest

from atlas_jax import config as configs
from atlas_jax import modes
from atlas_jax.puzzles import solve
from atlas_jax.puzzles.arc import voting
from configs import memory_40m
from tests import program, runs
from tests.program import refused

# A canvas of 3 x 3 and a network of a few thousand numbers.
TINY = {
  "puzzles.name": "files", "puzzles.canvas": 3, "puzzles.n_augmentations": 2, "puzzles.max_tasks": "None",
  "trm.width": 16, "trm.row_width": 16, "trm.n_prefix": 1, "trm.depth": 1, "trm.n_outer": 2, "trm.n_inner": 1,
  "supervision.n_supervision": 2, "data.batch_rows": 8, "eval.batch_rows": 8, "puzzle_eval.pictures": 0,
  "optim.steps": 3, "optim.lr": 5e-3, "table.lr": 5e-2, "monitor.tensorboard": False,
  "monitor.report": False, "data.threads": 0,
}  # fmt: skip
OUTPUT = [[7, 7, 7]] * 3
STEPS = 40  # Enough to learn one output for each of three augmentations.


def pairs(draw, count):
  """Inputs of random colours, all with the same output."""
  return [{"input": draw.integers(1, 10, size=(3, 3)).tolist(), "output": OUTPUT} for _ in range(count)]


def write_tasks(folder, seed=0):
  """Writes two training tasks and one evaluation task as the repositories have them."""
  draw = np.random.default_rng(seed)
  for half, ids in (("training", ("aaaa", "bbbb")), ("evaluation", ("cccc",))):
    (folder / "data" / half).mkdir(parents=True)
    for task in ids:
      content = {"train": pairs(draw, 3), "test": pairs(draw, 1)}
      (folder / "data" / half / f"{task}.json").write_text(json.dumps(content))
  return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  """A folder of tasks to train on."""
  return write_tasks(tmp_path_factory.mktemp("arc") / "tasks")


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
  """The workdir of a run of three updates on these tasks."""
  workdir = tmp_path_factory.mktemp("runs") / "arc"
  flags = [f"--config.{name}={value}" for name, value in {**TINY, "puzzles.path": corpus}.items()]
  done = program.run("--config=configs/trm_arc1.py:smoke", f"--workdir={workdir}", *flags)
  assert done.code == 0, done.err
  return workdir


@pytest.fixture(scope="module")
def content():
  """A task that the run does not know; its test pairs have outputs."""
  draw = np.random.default_rng(5)
  return {"train": pairs(draw, 3), "test": pairs(draw, 2)}


def write(folder, content, name="dddd"):
  """Writes a task, or any text, as a file."""
  file = folder / f"{name}.json"
  file.write_text(content if isinstance(content, str) else json.dumps(content))
  return file


def asked(workdir, file, *flags):
  """Runs the program in mode solve."""
  return program.run("--mode=solve", f"--workdir={workdir}", f"--task={file}", *flags)


def report_of(done):
  """Reads what the program printed."""
  assert done.code == 0, done.err
  return json.loads(done.out)


@pytest.fixture(scope="module")
def solved(trained, content, tmp_path_factory):
  """What the program prints and writes when it has tuned to the task, and what it prints besides."""
  folder = tmp_path_factory.mktemp("solved")
  done = asked(trained, write(folder, content), f"--steps={STEPS}", f"--out={folder / 'out.json'}")
  return report_of(done), json.loads((folder / "out.json").read_text()), done.err


def grids_of(report):
  return [[attempt["grid"] for attempt in test["attempts"]] for test in report["tests"]]


def test_a_task_is_solved_by_tuning_to_its_demonstrations(solved):
  report, _, said = solved
  assert [test["solved"] for test in report["tests"]] == [True, True]
  assert [test["place"] for test in report["tests"]] == [1, 1]
  assert "dddd is new to the run" in said and f"tuning to dddd for {STEPS} updates" in said


def test_the_report_says_what_was_done_and_how_sure_the_answers_are(solved):
  report, _, _ = solved
  assert report["task"] == "dddd" and report["checkpoint_step"] == 3 and report["augmentations"] == 3
  assert report["steps"] == STEPS and 0 <= report["train_exact_accuracy"] <= 1 and report["loss_nats"] > 0
  assert min(report[name] for name in ("seconds", "compile_seconds", "answer_seconds")) > 0
  for test in report["tests"]:
    assert test["attempts"][0]["grid"] == OUTPUT
    for attempt in test["attempts"]:
      assert attempt["vote_share"] == attempt["votes"] / 3 and 0 < attempt["confidence"] < 1


def test_the_file_for_graders_has_as_many_attempts_as_asked_for(solved):
  _, written, _ = solved
  assert list(written) == ["dddd"]
  assert [sorted(test) for test in written["dddd"]] == [["attempt_1", "attempt_2"]] * 2
  assert all(test["attempt_1"] == OUTPUT for test in written["dddd"])


def test_known_outputs_change_no_answer(trained, content, solved, tmp_path):
  hidden = {**content, "test": [{"input": pair["input"]} for pair in content["test"]]}
  report = report_of(asked(trained, write(tmp_path, hidden), f"--steps={STEPS}"))
  assert not any("solved" in test or "place" in test for test in report["tests"])
  assert [test["attempts"] for test in report["tests"]] == [test["attempts"] for test in solved[0]["tests"]]


def test_one_device_solves_what_eight_do(trained, content, solved, tmp_path):
  config = modes.config_of_run(str(trained), {})
  task = solve.read_task(config, trained, str(write(tmp_path, content)))
  with program.helpers.quick_compilation():
    found = solve.run(config, trained, solve.SolveOptions(task, steps=STEPS), runs.one_device())
  assert found.report["loss_nats"] == pytest.approx(solved[0]["loss_nats"], rel=0.05)
  assert found.submission["dddd"][0]["attempt_1"] == solved[1]["dddd"][0]["attempt_1"]


def test_a_time_however_short_is_used(trained, content, tmp_path):
  report = report_of(asked(trained, write(tmp_path, content), "--seconds=0.001", "--attempts=1"))
  assert report["steps"] >= 1 and all(len(test["attempts"]) == 1 for test in report["tests"])


def test_the_runs_own_rows_answer_as_in_its_evaluation(trained, corpus):
  file = corpus / "data/evaluation/cccc.json"
  report = report_of(asked(trained, file, "--rows=run", "--seconds=0"))
  submission = json.loads((trained / "evals/step_00000003/submission.json").read_text())
  assert report["steps"] == 0 and report["loss_nats"] is None
  attempts = list(submission["cccc"][0].values())
  assert grids_of(report)[0] == attempts[: len(grids_of(report)[0])]


def test_a_task_of_the_run_is_said_to_be_known(trained, corpus):
  lines = {"evaluation/cccc": "cccc is known to the run, held out", "training/aaaa": "and its test pairs too"}
  for file, words in lines.items():
    done = asked(trained, corpus / f"data/{file}.json", "--steps=0", "--rows=zero", "--augmentations=0")
    assert report_of(done)["augmentations"] == 1 and words in done.err


def test_the_data_of_the_run_are_not_needed_for_a_new_task(trained, content, tmp_path):
  done = asked(trained, write(tmp_path, content), "--steps=0", f"--config.puzzles.path={tmp_path / 'gone'}")
  assert len(report_of(done)["tests"]) == 2 and "is not known here" in done.err


GRID = [[1, 2], [3, 4]]
GOOD = {"train": [{"input": GRID, "output": GRID}], "test": [{"input": GRID}]}
WRONG_FILES = [
  ("{", "not JSON"),
  ("[]", "is not of the form"),
  ({"train": GOOD["train"]}, "it has the keys 'train'"),
  ({**GOOD, "train": []}, "'train' must be a list of at least one pair"),
  ({**GOOD, "test": []}, "'test' must be a list of at least one pair"),
  ({**GOOD, "train": [{"input": GRID}]}, "train pair 0 is not of the form"),
  ({**GOOD, "test": [{"input": [[1, 2], [3]]}]}, "input has rows of 1 and of 2 cells; all must be equally"),
  ({**GOOD, "test": [{"input": [[1, 10]]}]}, "has the cell 10; cells must be integers of 0 to 9"),
  ({**GOOD, "test": [{"input": [[1, -1]]}]}, "has the cell -1"),
  ({**GOOD, "test": [{"input": [[1, 1.5]]}]}, "has the cell 1.5"),
  ({**GOOD, "test": [{"input": [[0] * 31]}]}, "is 1 x 31, at most 30 x 30 is allowed"),
  ({**GOOD, "test": [{"input": [[0] * 4]}]}, "a grid with a side of 4 cells, and the run in "),
  ({**GOOD, "test": [{"input": GRID, "output": [[0] * 4]}]}, "reads grids of up to 3 x 3; take a run with"),
]  # fmt: skip


@pytest.mark.parametrize("content, words", WRONG_FILES)
def test_a_file_that_is_no_task_for_the_run_is_refused(trained, tmp_path, content, words):
  line = refused(asked(trained, write(tmp_path, content, "eeee"), f"--out={tmp_path / 'out.json'}"))
  assert words in line and "eeee" in line
  assert [path.name for path in tmp_path.iterdir()] == ["eeee.json"]


WRONG_FLAGS = [
  ("--mode=solve", "--task is missing: the file of the ARC task to solve"),
  ("--mode=solve --task=nowhere.json", "nowhere.json cannot be read (No such file or directory)"),
  ("--mode=solve --task=GOOD --steps=3 --seconds=2", "--steps=3 and --seconds=2 exclude each other"),
  ("--mode=solve --task=GOOD --seconds=-1", "--seconds=-1: must be a non-negative number"),
  ("--mode=solve --task=GOOD --seconds=soon", "--seconds=soon: must be a non-negative number"),
  ("--mode=solve --task=GOOD --seconds=nan", "--seconds=nan must be a number of seconds"),
  ("--mode=solve --task=GOOD --out=/proc/out.json", "--out=/proc/out.json cannot be written"),
  ("--mode=solve --task=GOOD --attempts=0", "--attempts=0: must be a positive integer"),
  ("--mode=solve --task=GOOD --augmentations=-1", "--augmentations=-1: must be a non-negative integer"),
  ("--mode=solve --task=GOOD --rows=all", "--rows=all: value should be one of <mean|zero|run>"),
  ("--mode=solve --task=GOOD --lr=0", "--lr=0 must be above 0"),
  ("--mode=solve --task=GOOD --table_lr=nan", "--table_lr=nan must be above 0"),
  ("--mode=solve --task=GOOD --batch_rows=12", "--batch_rows=12 does not divide over the 8 devices"),
  ("--mode=solve --task=GOOD --out=nowhere/out.json", "is in nowhere, which is no folder"),
  ("--mode=solve --task=GOOD --out=.", "--out=. is a folder"),
  ("--mode=solve --task=GOOD --config.optim.lr=1", "belongs to the run in"),
  ("--mode=solve --task=GOOD --config=configs/trm_arc1.py", "takes the config of the run in --workdir"),
  ("--mode=solve --task=GOOD --prompt=x", "--prompt is for --mode=generate, this is --mode=solve"),
  ("--mode=solve --task=GOOD --rows=run", "the task 'good' is not in the table of the run in"),
  ("--mode=eval --task=GOOD", "--task is for --mode=solve, this is --mode=eval"),
  ("--config=configs/trm_arc1.py:smoke --steps=3", "--steps is for --mode=solve, this is --mode=train; the "
   "steps of training is --config.optim.steps"),
]  # fmt: skip


@pytest.mark.parametrize("flags, words", WRONG_FLAGS)
def test_a_wrong_command_is_refused(trained, tmp_path, flags, words):
  file = write(tmp_path, GOOD, "good")
  assert words in refused(program.run(f"--workdir={trained}", *flags.replace("GOOD", str(file)).split()))


def test_a_workdir_without_a_run_of_arc_is_refused(tmp_path):
  file = write(tmp_path, GOOD)
  assert "holds no run" in refused(asked(tmp_path / "none", file))
  texts = configs.resolve(memory_40m.get_config("smoke,pretrain"))
  boards = runs.puzzle_config(tmp_path / "cache")
  for config, words in ((texts, "config.recipe='memory_lm'"), (boards, "config.puzzles.name='sudoku'")):
    configs.save(config, tmp_path / "run")
    write(tmp_path / "run", {"n_ids": 1, "kind": "sudoku"}, "puzzles")
    assert f"holds a run of {words}" in refused(asked(tmp_path / "run", file))


def test_a_damaged_record_of_the_runs_puzzles_is_refused(trained, tmp_path):
  configs.save(modes.config_of_run(str(trained), {}), tmp_path / "run")
  file = write(tmp_path, GOOD)
  assert "puzzles.json is missing" in refused(asked(tmp_path / "run", file))
  for text in ("{", "[]"):
    write(tmp_path / "run", text, "puzzles")
    told = refused(asked(tmp_path / "run", file))
    assert "puzzles.json" in told and "it is damaged: restore it" in told


def test_other_data_than_the_runs_are_refused_where_its_rows_are_used(trained, corpus, tmp_path):
  others = write_tasks(tmp_path / "others", seed=1)
  flag = f"--config.puzzles.path={others}"
  file = corpus / "data/evaluation/cccc.json"
  evaluated = program.run("--mode=eval", f"--workdir={trained}", flag)
  for done in (evaluated, asked(trained, file, flag, "--rows=run")):
    assert "the run was trained on other puzzles: train=" in refused(done)


def test_training_on_other_data_is_refused_and_leaves_the_run_as_it_was(trained, tmp_path):
  others = write_tasks(tmp_path / "others", seed=1)
  before = (trained / "config.json").read_bytes()
  flags = [f"--config.{name}={value}" for name, value in {**TINY, "puzzles.path": others}.items()]
  done = program.run("--config=configs/trm_arc1.py:smoke", f"--workdir={trained}", *flags)
  assert "the run was trained on other puzzles: train=" in refused(done)
  assert (trained / "config.json").read_bytes() == before


def test_an_evaluation_with_other_settings_leaves_the_runs_files_as_they_were(trained):
  folder = trained / "evals/step_00000003"
  before = {path.name: path.read_bytes() for path in folder.iterdir()}
  assert {"submission.json", "votes.json.gz"} <= before.keys()
  for flag in ("--config.puzzle_eval.max_examples=2", "--config.puzzle_eval.vote=noisy_or"):
    done = program.run("--mode=eval", f"--workdir={trained}", flag)
    assert done.code == 0 and "ARC/pass@2" in done.out, done.err
  assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_rows_of_a_task_with_other_demonstrations_are_refused(trained, content, tmp_path):
  line = refused(asked(trained, write(tmp_path, content, "cccc"), "--rows=run"))
  assert "knows 'cccc' with other demonstrations" in line


def test_an_answer_without_cells_is_no_attempt():
  votes = voting.Votes()
  for grid, times in (([], 3), ([[2]], 2), ([[3]], 1)):
    for _ in range(times):
      votes.add("x", [[1]], grid, 0.5)
  found = solve._test(votes, "x", 2, "count", np.array([[1]]), np.array([[3]]))
  assert [attempt["grid"] for attempt in found["attempts"]] == [[[2]], [[3]]]
  assert found["attempts"][0]["vote_share"] == 1 / 3
  assert (found["solved"], found["place"]) == (True, 3)
