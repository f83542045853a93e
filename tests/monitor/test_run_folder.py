"""Run directories as pictures and the dashboard read them."""

import json
import os

import numpy as np
import pytest

from atlas_jax import lock
from atlas_jax.monitor import ledger, run_folder
from atlas_jax.monitor.run_folder import RunFolder


def rows(folder, *written):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))


def test_runs_are_found_below_a_folder_and_not_within_one_another(tmp_path):
  rows(tmp_path / "a")
  rows(tmp_path / "study" / "b")
  (tmp_path / "study" / "c").mkdir()
  (tmp_path / "study" / "c" / "config.json").write_text("{}")
  rows(tmp_path / "a" / "inside")
  rows(tmp_path / "one" / "two" / "three" / "four")
  rows(tmp_path / ".hidden")
  assert [path.relative_to(tmp_path).as_posix() for path in run_folder.find(tmp_path)] == ["a", "study/b",
                                                                                           "study/c"]
  assert run_folder.find(tmp_path / "a") == [tmp_path / "a"]
  assert run_folder.find(tmp_path / "nowhere") == []


def test_the_state_is_told_by_the_files(tmp_path):
  run = RunFolder(tmp_path / "run")
  assert run.state().kind == "waiting"
  rows(run.path, {"step": 1, "a": 1.0})
  run.look()
  assert run.state().kind == "stopped"
  (run.path / "owner.json").write_text("{}")
  beat = (run.path / "owner.json").stat().st_mtime
  assert run.state(beat + 10).kind == "running"
  assert run.state(beat + 90) == ("silent", "no sign of life for 1m 30s")
  (run.path / "summary.json").write_text('{"params": 3}')
  assert run.state().kind == "finished" and run.summary == {"params": 3}


def test_what_is_said_of_other_modules_is_true():
  assert run_folder.KINDS == ledger.KINDS and run_folder.SILENT_S == lock.SILENT_S


def test_a_torn_or_foreign_config_is_no_config_until_it_changes(tmp_path):
  rows(tmp_path, {"step": 1})
  run = RunFolder(tmp_path)
  assert run.config == {} and run.setting("optim.steps", 7) == 7
  (tmp_path / "config.json").write_text('{"optim": {"ste')
  assert run.config == {}
  (tmp_path / "config.json").write_text('{"optim": {"steps": 50}}')
  os.utime(tmp_path / "config.json", (1, 1))
  assert run.total_steps == 50 and run.setting("optim.lr") is None and run.setting("optim.steps.more") is None


def test_steps_become_tokens_and_hours(tmp_path):
  rows(tmp_path, {"step": 10, "train/tokens_seen": 100, "perf/time_step_s": 1_800.0,
                  "perf/time_start_s": 1_800.0},
       {"step": 15, "val/loss_nats": 2.0},
       {"step": 20, "train/tokens_seen": 300, "perf/time_step_s": 5_400.0, "perf/time_start_s": 1_800.0})
  run = RunFolder(tmp_path)
  run.look()
  step = np.array([10.0, 15.0, 20.0])
  np.testing.assert_array_equal(run.x(step, "step"), step)
  np.testing.assert_array_equal(run.x(step, "tokens"), [100, 200, 300])
  np.testing.assert_array_equal(run.x(step, "hours"), [1.0, 1.5, 2.0])
  assert run.unit == "tokens" and run.ledger() == {"start": 1_800.0, "step": 5_400.0}
  (tmp_path / "config.json").write_text('{"optim": {"steps": 40}}')
  assert run.left_s() == pytest.approx(2 * 3_600)


def test_a_run_without_tokens_or_times_has_no_such_axis(tmp_path):
  rows(tmp_path, {"step": 1, "a": 1.0})
  run = RunFolder(tmp_path)
  run.look()
  assert np.isnan(run.x(np.array([1.0]), "tokens")).all() and np.isnan(run.x(np.array([1.0]), "hours")).all()
  assert run.left_s() is None and run.ledger() == {}


def test_completions_and_pictures_are_found(tmp_path):
  (tmp_path / "completions").mkdir()
  (tmp_path / "completions" / "00000000.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
  for name in ("step_00000006/puzzles.png", "step_00000006/rows.json", "step_00000012/puzzles.png",
               "other/x.png"):
    (tmp_path / "evals" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "evals" / name).touch()
  run = RunFolder(tmp_path)
  (file,) = run.completion_files()
  assert [row["step"] for row in run.completions(file)] == [1, 2]
  assert {step: [file.name for file in files] for step, files in run.pictures().items()} == {
    6: ["puzzles.png"], 12: ["puzzles.png"]}


@pytest.mark.parametrize(("seconds", "words"), [
  (5, "5s"), (65, "1m 05s"), (3_900, "1h 05m"), (90_000, "1d 01h")])
def test_durations_have_two_units(seconds, words):
  assert run_folder.duration(seconds) == words
