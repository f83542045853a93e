"""A pipeline from traces to a checkpoint: stopped, gone on with, run again, damaged, and asked otherwise."""

import contextlib
import io
import json
import os
import shutil
import signal
import threading
import time

import jax
import numpy as np
import pytest

from atlas_jax import lock, modes
from atlas_jax.files.damage import Damaged
from atlas_jax.language import runs
from atlas_jax.language.initial_model import load_initial_model
from atlas_jax.pipeline import checkpoint, ingest, places, plan, stages
from scripts import run_offline_pipeline as script
from tests import helpers
from tests.pipeline import sums
from tests.program import ROOT

SMALL = ["optim.steps=4", "train.eval_every_steps=None", "checkpoint.every_steps=2", "eval.max_problems=None",
         "monitor.tensorboard=False", "monitor.report=False", "eval.batch_rows=8", "data.batch_rows=16",
         "data.group_size=8"]  # fmt: skip


def command(traces, output, *flags):
  overrides = [word for one in SMALL for word in ("--override", one)]
  return [f"--export-path={traces}", f"--output-dir={output}", "--config=configs/teacher_rcl.py:cpu",
          "--eval-ratio=0.2", *overrides, *flags]  # fmt: skip


def run(*words):
  with helpers.quick_compilation():
    return script.main(list(words))


def stop_at(metrics):
  """Sends this process SIGTERM once a training has written a row."""
  def send():
    deadline = time.monotonic() + 200
    while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < deadline:
      time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGTERM)

  thread = threading.Thread(target=send, daemon=True)
  thread.start()
  return thread


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """A pipeline that was stopped in its training, and went on: its command, its output, what it printed."""
  folder = tmp_path_factory.mktemp("pipeline")
  traces = sums.write(folder / "traces.jsonl")
  words = command(traces, folder / "out")
  before = os.getcwd()
  os.chdir(ROOT)
  try:
    thread = stop_at(folder / "out/train/metrics.jsonl")
    assert run(*words) == 75
    thread.join()
    assert not (folder / "out" / places.CHECKPOINT).exists()
    traces.unlink()  # What was let in is kept: the rest of the pipeline needs the file no more.
    traces.touch()
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
      assert run(*words) == 0
  finally:
    os.chdir(before)
  return words, folder / "out", json.loads(out.getvalue())


@pytest.fixture
def copied(made, tmp_path, monkeypatch):
  """A copy of the output, with the command that names it."""
  words, output, _ = made
  monkeypatch.chdir(ROOT)
  # The output itself is changed, since its path is in the settings of its trainings, and put back.
  kept = tmp_path / "kept"
  shutil.copytree(output, kept)
  yield words, output
  shutil.rmtree(output)
  shutil.copytree(kept, output)


def test_what_was_let_in_and_left_out_is_told(made):
  _, output, printed = made
  found = json.loads((output / places.INGEST).read_text())
  assert (printed["let_in"], printed["sessions"]) == (40, 43)
  left = {name: one["sessions"] for name, one in found["left_out"].items()}
  assert left == {"review_status": 2, "status": 1}
  assert found["rejected_lines"] == 1 and found["with_ground_truth"] == 40
  reject, = [json.loads(line) for line in (output / places.REJECTS).read_text().splitlines()]
  assert reject["line"] == 44 and reject["kind"] == "json"


def test_before_and_after_are_measured_on_the_same_questions(made):
  _, output, printed = made
  found = json.loads((output / places.EVAL).read_text())
  before, after = (found["evaluations"][name]["metrics"] for name in ("before", "after"))
  # The student alone is the same both times, since questions and seeds are.
  assert before["teaching_baseline_accuracy"] == after["teaching_baseline_accuracy"]
  assert before["teaching_graded_count"] == after["teaching_graded_count"] >= 4
  assert found["change"]["teaching_accuracy"] == pytest.approx(
    after["teaching_accuracy"] - before["teaching_accuracy"])  # fmt: skip
  assert printed["change"] == found["change"] and printed["held_out"]
  assert any("demonstration" in one for one in found["warnings"])
  text = (output / places.EVAL_TEXT).read_text()
  assert "40 of 43 sessions let in" in text and "| NDR, fraction not made worse |" in text
  assert (output / places.EVAL_PICTURE).read_bytes().startswith(b"\x89PNG")
  used = json.loads((output / places.CONFIG_USED).read_text())
  assert used["trainings"][0]["settings"]["optim"]["steps"] == 4


def test_the_manifest_accounts_for_every_file(made):
  _, output, printed = made
  folder = output / places.CHECKPOINT
  manifest = checkpoint.check(folder)
  assert {"config.json", "model.safetensors", "tokenizer/atlas_tokenizer.json", "trainer_state.json"} <= {
    *manifest["files"]}  # fmt: skip
  assert manifest["role"] == "teacher" and manifest["step"] == 4
  assert manifest["protocol"]["protocol"].startswith("atlas_jax.teaching/")
  assert manifest["data"]["records"] == 40 and manifest["data"]["review_status"] == {"approved": 40}
  assert manifest["longest"]["completion_tokens"] == 3
  assert manifest["parent"] == {"model": None, "version": None, "why": "drawn from the seed"}
  assert printed["version"] == checkpoint.version(folder)
  state = json.loads((folder / places.TRAINER_STATE).read_text())
  assert state["global_step"] == state["max_steps"] == 4 and state["log_history"]


def test_a_next_loop_starts_from_the_checkpoint_and_names_it(made, tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  words, output, printed = made
  folder = output / places.CHECKPOINT
  asked = script.settings_of(script.parse([*command(sums.write(tmp_path / "a.jsonl"), tmp_path / "next"),
                                           f"--model-config={folder}"]))  # fmt: skip
  resolved = plan.resolve(asked)
  assert checkpoint.parent_of(resolved) == {"model": places.CHECKPOINT, "version": printed["version"]}
  start = load_initial_model(resolved.training.config)
  read, _ = start.read(None, True)
  config = modes.config_of_run(str(output / "train"), {})
  trained = runs.open_tuned(config, output / "train", runs.mesh_here(config)).params
  for one, other in zip(jax.tree.leaves(read), jax.tree.leaves(trained), strict=True):
    np.testing.assert_array_equal(one, other)


DAMAGES = [
  (lambda folder: (folder / "config.json").write_text("{}"), "config.json: has other contents"),
  (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors: is missing"),
  (lambda folder: (folder / "chat_template.jinja").write_text("x"), "is not one of the files"),
]


@pytest.mark.parametrize("damage, said", DAMAGES)
def test_a_checkpoint_that_was_changed_is_refused(made, tmp_path, damage, said):
  folder = shutil.copytree(made[1] / places.CHECKPOINT, tmp_path / "copy")
  damage(folder)
  with pytest.raises(Damaged, match=said.replace("(", r"\(")):
    checkpoint.check(folder)


def test_a_second_start_does_nothing_again(copied, monkeypatch, capsys):
  words, output = copied
  monkeypatch.setattr(stages.modes, "run_train", None)  # Called, it would fail.
  monkeypatch.setattr(stages.ingest, "run", None)
  assert run(*words) == 0
  assert json.loads(capsys.readouterr().out)["version"] == checkpoint.version(output / places.CHECKPOINT)


def test_a_stage_whose_output_is_gone_is_done_again(copied, monkeypatch, capsys):
  words, output = copied
  monkeypatch.setattr(stages.modes, "run_train", None)
  shutil.rmtree(output / places.CHECKPOINT)
  assert run(*words) == 0
  assert checkpoint.check(output / places.CHECKPOINT)["step"] == 4


def test_a_kill_within_a_stage_loses_nothing(copied, monkeypatch):
  words, output = copied
  monkeypatch.setattr(stages.modes, "run_train", None)
  shutil.rmtree(output / places.CHECKPOINT)
  (output / places.STAGES / "checkpoint.json").unlink()
  write = checkpoint.write.folder

  def killed(part, target):
    raise KeyboardInterrupt

  monkeypatch.setattr(checkpoint.write, "folder", killed)
  assert run(*words) == 130
  assert not (output / places.CHECKPOINT).exists()
  monkeypatch.setattr(checkpoint.write, "folder", write)
  assert run(*words) == 0
  assert checkpoint.check(output / places.CHECKPOINT)


def test_other_settings_in_the_same_folder_are_refused(made, monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  assert run(*made[0], "--override", "optim.lr=0.5") == 1
  line = capsys.readouterr().err.strip().splitlines()[-1]
  assert "the stage before was done with other settings or data (overrides)" in line
  assert "choose another --output-dir" in line
  assert run(*made[0], "--max-samples=3") == 1
  assert "the stage ingest was done with other settings or data (max_samples)" in capsys.readouterr().err


def test_two_pipelines_do_not_share_a_folder(made, monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  other = lock.Lock(made[1])
  other.acquire()
  try:
    assert run(*made[0]) == 1
  finally:
    other.release()
  assert str(made[1]) in capsys.readouterr().err.strip().splitlines()[-1]


def test_too_few_sessions_are_an_error_or_a_flag(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  traces = sums.write(tmp_path / "one.jsonl", 1)
  words = [f"--export-path={traces}", "--config=configs/teacher_rcl.py", "--model-config=tests",
           "--override", "traces.max_reject_frac=1.0"]  # fmt: skip
  assert run(*words, f"--output-dir={tmp_path}/few") == 1
  line = capsys.readouterr().err.strip().splitlines()[-1]
  assert "1 of 4 sessions let in, with 1 question, 1 with a right answer" in line
  assert "2 review_status (review has not let it pass)" in line
  assert "give --allow-few (or --eval-ratio=0)" in line
  traces.write_text(json.dumps(sums.session(1, review="pending")) + "\n")
  assert run(*words, f"--output-dir={tmp_path}/none") == 1
  line = capsys.readouterr().err.strip().splitlines()[-1]
  assert "0 of 1 session let in" in line and "arc-atlas review approve ID" in line


def test_too_few_sessions_of_a_demonstration_are_trained_on_and_said(tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  asked = plan.PipelineSettings("tests/fixtures/arc_atlas/export_all.jsonl", None, str(tmp_path / "out"),
                                "configs/teacher_rcl.py:cpu")  # fmt: skip
  resolved = plan.resolve(asked)
  resolved.output.mkdir()
  data = ingest.run(resolved)
  assert (data["let_in"], data["sessions"], data["questions"]) == (1, 4, 1)
  fitted = stages._fitted(resolved, data)
  assert fitted.training.config.data.held_out_frac == 0
  assert fitted.training.config.optim.steps == plan.FEW_STEPS
  assert plan.resolve(asked._replace(eval_ratio=0.0)).training.config.data.held_out_frac == 0
