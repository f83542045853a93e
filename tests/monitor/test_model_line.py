"""The line on what a run trains."""

import json
import subprocess

from atlas_jax.monitor import model_line


def config(**model):
  return {"recipe": "episodic", "seed": 3,
          "model": {"kind": "lm", "memory_mix": "gate", "memory": {"rule": "delta"},
                                                     **model}}


def test_the_line_has_what_is_known():
  summary = {"params": 40_131_875, "commit": "abc123+"}
  assert model_line.words(config(), summary) == (
    "episodic  ·  40.13M parameters  ·  delta memory, gate  ·  seed 3  ·  commit abc123+")
  assert model_line.words(config(memory_mix="none"), {}) == "episodic  ·  no memory  ·  seed 3"
  assert model_line.words(config(kind="decoder"), {}) == "episodic  ·  seed 3"
  assert model_line.words({**config(), "recipe": "trm"}, {}) == "trm  ·  seed 3"


def test_a_run_without_readable_files_has_an_empty_line(tmp_path):
  assert model_line.of_run(tmp_path) == ""
  (tmp_path / "config.json").write_text('{"rec')
  assert model_line.of_run(tmp_path) == ""
  (tmp_path / "config.json").write_text(json.dumps(config()))
  (tmp_path / "summary.json").write_text('{"params": 10}')
  assert "10 parameters" in model_line.of_run(tmp_path)
  assert "20 parameters" in model_line.of_run(tmp_path, {"params": 20})


def test_the_commit_is_that_of_the_code_and_marks_changes(tmp_path):
  assert model_line.commit(tmp_path) is None

  def git(*arguments):
    command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

  git("init", "-q")
  (tmp_path / "file").write_text("one")
  git("add", ".")
  git("commit", "-qm", "first")
  assert git("rev-parse", "HEAD").startswith(model_line.commit(tmp_path))
  (tmp_path / "file").write_text("two")
  assert model_line.commit(tmp_path).endswith("+")
