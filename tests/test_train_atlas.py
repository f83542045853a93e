"""The script that trains on ranked responses by a file of settings: what it reads, leaves and refuses."""

import contextlib
import json
import os
import signal
import threading
import time

import pytest

from scripts import train_atlas
from tests import helpers
from tests.tuning import write_rows

QUIET = ["--config.monitor.tensorboard=False", "--config.monitor.report=False",
         "--config.eval.sample_tokens=0", "--config.eval.batch_rows=8"]  # fmt: skip
ROWS = [{"prompt": f"{n}+1=", "responses": [{"text": str(n + 1), "rank": 1}, {"text": "no", "rank": 2}]}
        for n in range(24)]  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A folder to work in, with data where they are looked for."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / "data").mkdir()
  write_rows(tmp_path / "data/grpo_training.json", ROWS[:16])
  write_rows(tmp_path / "data/validation.json", ROWS[16:])
  return tmp_path


def settings(folder, **changes):
  given = {"model_size": "smoke", "learning_rate": 1e-3, "batch_size": 8, "epochs": 2,
           "grpo_preference_weight": 0.25, **changes}  # fmt: skip
  (folder / "train_config.json").write_text(json.dumps(given))
  return ["--config", "train_config.json", *QUIET]


@contextlib.contextmanager
def stopping(metrics):
  """Sends this process SIGTERM once a run has written metrics."""
  def stop():
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < deadline:
      time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGTERM)

  thread = threading.Thread(target=stop, daemon=True)
  thread.start()
  yield
  thread.join()


def test_it_stops_goes_on_and_leaves_a_model_with_its_log(folder, capfd):
  command = settings(folder, epochs=20)
  workdir = folder / "runs/atlas_smoke"
  with helpers.quick_compilation():
    with stopping(workdir / "metrics.jsonl"):
      assert train_atlas.main(command) == 75
    assert not (folder / "models").exists()
    assert train_atlas.main(command) == 0
  made = folder / "models/atlas_smoke"
  assert {file.name for file in made.iterdir()} >= {
    "model.safetensors", "config.json", "vocabulary.json", "training_stats.json"}  # fmt: skip
  assert not list(made.glob("*.pkl"))
  stats = json.loads((made / "training_stats.json").read_text())
  assert (stats["learning_rate"], stats["batch_size"], stats["epochs"]) == (1e-3, 8, 20)
  assert stats["grpo_preference_weight"] == 0.25 and stats["steps"] == 40
  assert stats["data"]["train"]["prompts"] == 16 and stats["data"]["held_out"]["prompts"] == 8
  log = (folder / "logs/training.log").read_text()
  assert "stopped" in log and "resum" in log and "orbax" not in log and len(log.splitlines()) > 4
  # Again: nothing is left to do, and nothing is changed.
  assert train_atlas.main(command) == 0
  # Another run does not write over it.
  assert train_atlas.main(settings(folder, epochs=20, workdir="runs/other")) == 1
  assert "models/atlas_smoke is there already, and is not of this run" in capfd.readouterr().err


WRONG = [
  ({"learning_rat": 1}, "there is no key 'learning_rat'; did you mean 'learning_rate'?"),
  ({"weight_decay": 0.1}, "there is no key 'weight_decay'; known are batch_size"),
  ({"weight_decay": 0.1}, "--config.optim.weight_decay=VALUE"),
  ({"epochs": 1.5}, "epochs=1.5 must be a whole number"),
  ({"batch_size": True}, "batch_size=True must be a whole number"),
  ({"learning_rate": "5e-6"}, "learning_rate='5e-6' must be a number"),
  ({"model_size": "7B"}, "model_size='7B' must be one of 1.1B, cpu, smoke"),
]


@pytest.mark.parametrize("given, said", WRONG)
def test_a_key_or_a_value_that_cannot_be_is_refused(folder, capsys, given, said):
  assert train_atlas.main(settings(folder, **given)) == 1
  err = capsys.readouterr().err
  assert err.startswith("train_atlas: train_config.json: ") and said in err and len(err.splitlines()) == 1
  assert not (folder / "runs").exists()


def test_a_missing_file_and_unknown_flags_are_refused(folder, capsys):
  assert train_atlas.main(["--config", "none.json"]) == 1
  assert "there is no such file; write one, such as" in capsys.readouterr().err
  with pytest.raises(SystemExit):
    train_atlas.main([*settings(folder), "--epochs=3"])
  assert "unknown argument '--epochs=3'" in capsys.readouterr().err


def test_the_published_settings_are_those_of_the_guide():
  guide = {"model_size": "1.1B", "learning_rate": 5e-06, "batch_size": 4, "epochs": 10,
           "grpo_preference_weight": 0.5}  # fmt: skip
  command = train_atlas.command_of({**guide, "workdir": "w"}, [])
  assert command[1].endswith("configs/atlas_ranked.py") and command[2] == "--workdir=w"
  assert set(command[3:]) == {
    "--config.optim.lr=5e-06", "--config.data.batch_rows=4", "--config.data.epochs=10",
    "--config.ranked.pair_weight=0.5", "--config.ranked.folder=atlas_1.1B", "--config.optim.steps=None",
  }  # fmt: skip
