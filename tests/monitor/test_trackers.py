"""Trackers get the rows of a run, keep its name when it goes on, and neither stop it nor slow it down."""
import glob
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from atlas_jax import train
from atlas_jax.monitor import trackers
from atlas_jax.monitor.writer import MetricsWriter
from tests import program, runs
from tests.helpers import quick_compilation


def settings(names, **changes):
  return runs.toy_config(monitor__trackers=names, **changes)


class Listed:
  """A tracker that keeps what it is given, or fails."""

  def __init__(self, fault=None):
    self.rows, self.finished, self.fault = [], False, fault

  def open(self):
    if self.fault == "open":
      raise OSError("no route to host")
    return self.log, self.finish

  def log(self, step, row):
    if self.fault == step:
      raise ConnectionError("broken pipe")
    self.rows.append((step, row))

  def finish(self):
    self.finished = True


def test_a_tracker_gets_every_row_in_turn(tmp_path):
  listed = Listed()
  tracker = trackers.Tracker("listed", listed.open)
  with MetricsWriter(tmp_path, tensorboard=False, trackers=[tracker]) as writer:
    writer.write(1, {"loss": 2.0})
    writer.write(2, {"loss": float("nan"), "count": 3})
    writer.write(2, {"val": 1.0})
  assert listed.finished and [step for step, _ in listed.rows] == [1, 2, 2]
  assert listed.rows[0][1] == {"loss": 2.0} and listed.rows[2][1] == {"val": 1.0}
  assert listed.rows[1][1]["count"] == 3 and listed.rows[1][1]["loss"] != listed.rows[1][1]["loss"]  # NaN.


@pytest.mark.parametrize("fault, error", [("open", "OSError: no route"), (2, "ConnectionError: broken pipe")])
def test_a_tracker_that_fails_is_said_once_and_left_out(fault, error, tmp_path, caplog):
  tracker = trackers.Tracker("listed", Listed(fault).open)
  with MetricsWriter(tmp_path, tensorboard=False, trackers=[tracker]) as writer:
    for step in range(1, 6):
      writer.write(step, {"loss": 1.0})
      tracker._thread.join(0.05)
  assert len([line for line in caplog.messages if error in line]) == 1 == len(caplog.messages)
  assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5


def test_a_tracker_that_hangs_holds_up_nothing(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(trackers, "QUEUED", 3)
  monkeypatch.setattr(trackers, "CLOSE_S", 0.05)
  free = threading.Event()
  tracker = trackers.Tracker("slow", lambda: (lambda step, row: free.wait(20), lambda: None))
  began = time.monotonic()
  for step in range(100):
    tracker.write(step, {"loss": 1.0})
  tracker.close()
  assert time.monotonic() - began < 10
  free.set()
  assert len(caplog.messages) == 1 and "3 rows wait for it" in caplog.messages[0]
  late = trackers.Tracker("late", lambda: (lambda step, row: time.sleep(5), lambda: None))
  late.write(1, {})
  late.close()
  assert "has not taken all rows" in caplog.messages[-1]


def test_a_missing_package_is_refused_at_start_in_a_line(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "trackio", None)  # As if it were not installed.
  monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ModuleNotFoundError, match=r"trackers names 'trackio'.*atlas_jax\[trackers\]"):
    trackers.check(settings("trackio").monitor)
  line = program.refused(program.run(*program.tiny(program.write_texts(tmp_path / "texts"),
                                                   monitor__trackers="wandb"), f"--workdir={tmp_path}/run"))
  assert "pip install 'atlas_jax[trackers]'" in line
  assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_other_names_are_refused():
  with pytest.raises(ValueError, match="wandb, trackio"):
    settings("mlflow")


def test_a_run_keeps_its_name(tmp_path):
  name = trackers.run_name(tmp_path)
  assert name.startswith(f"{tmp_path.name}-") and trackers.run_name(tmp_path) == name


SCRIPT = """
import sys
from atlas_jax.monitor import trackers
from atlas_jax.monitor.watch import open_writer
from tests import runs
config = runs.toy_config(monitor__trackers=sys.argv[2])
trackers.check(config.monitor)
first, last = map(int, sys.argv[3:])
with open_writer(config, sys.argv[1], resume_step=first - 1) as writer:
  for step in range(first, last + 1):
    writer.write(step, {"train/loss_nats": 1 / step})
"""

READ = """
import json, sys
from trackio.sqlite_storage import SQLiteStorage
print(json.dumps([SQLiteStorage.get_runs("atlas_jax"), SQLiteStorage.get_logs("atlas_jax", sys.argv[1])]))
"""


def write_rows(workdir, name, first, last, **environment):
  env = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true", **environment}
  done = subprocess.run([sys.executable, "-c", SCRIPT, str(workdir), name, str(first), str(last)],
                        cwd=program.ROOT, env=env, capture_output=True, text=True, timeout=240)
  assert done.returncode == 0 and "takes no more metrics" not in done.stderr, done.stderr
  return done


@pytest.mark.slow
def test_trackio_has_a_run_and_its_going_on_as_one(tmp_path):
  pytest.importorskip("trackio")
  home = str(tmp_path / "trackio")
  write_rows(tmp_path / "run", "trackio", 1, 3, TRACKIO_DIR=home)
  write_rows(tmp_path / "run", "trackio", 4, 5, TRACKIO_DIR=home)
  name = json.loads((tmp_path / "run" / "trackers.json").read_text())["run"]
  found = subprocess.run([sys.executable, "-c", READ, name], env={**os.environ, "TRACKIO_DIR": home},
                         capture_output=True, text=True, timeout=120)
  names, rows = json.loads(found.stdout.splitlines()[-1])
  assert names == [name] and [row["step"] for row in rows] == [1, 2, 3, 4, 5]
  assert rows[4]["train/loss_nats"] == pytest.approx(0.2)


@pytest.mark.slow
def test_wandb_offline_keeps_the_id_of_a_run(tmp_path):
  pytest.importorskip("wandb")
  for first, last in ((1, 3), (4, 5)):
    write_rows(tmp_path / "run", "wandb", first, last)
  name = json.loads((tmp_path / "run" / "trackers.json").read_text())["run"]
  files = sorted(glob.glob(str(tmp_path / "run" / "wandb" / "offline-run-*" / "*.wandb")))
  assert len(files) == 2 and all(file.endswith(f"run-{name}.wandb") for file in files)
  assert all(b"train/loss_nats" in open(file, "rb").read() for file in files)


def test_a_run_whose_tracker_cannot_open_is_trained_to_its_end(tmp_path, monkeypatch, caplog):
  def broken(*arguments):
    raise OSError("network is unreachable")

  monkeypatch.setattr(trackers, "open_trackio", broken)
  with quick_compilation():
    config = settings("trackio")
    summary = train.run(config, runs.toy_recipe(config), runs.one_device(), tmp_path)
  assert summary["steps"] == 6 and len(runs.rows_of(tmp_path)) >= 1
  assert len([line for line in caplog.messages if "network is unreachable" in line]) == 1
