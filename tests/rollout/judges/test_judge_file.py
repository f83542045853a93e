"""Judging a file: scores, rejected lines, unused columns, calibration, and a run that was broken off."""
import json
import subprocess
import sys

import pytest

from atlas_jax import config as configs
from atlas_jax.command import read_config
from atlas_jax.rollout.judges import judge_file
from tests import program
from tests.rollout.judges.scripts import reply

ROWS = [{"prompt": "6*7?", "response": "42", "ground_truth": "42", "level": 3},
        {"prompt": "6*7?", "response": "41", "ground_truth": 42, "guidance": "Multiply."},
        {"prompt": "why?", "response": "because", "metadata": {"a": [1, None]}}]
BAD = ["not json", "[1]", '{"prompt": "x"}', '{"prompt": 3, "response": "y"}',
       '{"prompt": "a", "prompt": "b"}']


def file_of(folder, *lines):
  """Writes the rows and other lines."""
  path = folder / "answers.jsonl"
  path.write_text("\n".join([*map(json.dumps, ROWS), "", *lines]) + "\n")
  return path


def rim_of(**fields):
  """config.rim of configs/rim.py:scripted."""
  return configs.resolve(read_config(f"{program.ROOT}/configs/rim.py:scripted", {
    f"rim.{name.replace('__', '.')}": str(value) for name, value in fields.items()})).rim


def read(path):
  """The rows of a file of JSON lines."""
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_are_scored_and_others_rejected_by_line(tmp_path):
  summary = judge_file.run(rim_of(), file_of(tmp_path, *BAD))
  written = read(tmp_path / "answers.judged.jsonl")
  assert [(row["line"], row["score"], row["right"]) for row in written] == [(1, 1.0, True), (2, 0.0, False),
                                                                            (3, None, None)]
  assert written[0]["reward"]["judges"][0]["identifier"] == "accuracy" and written[2]["no_verdict"]
  rejects = read(tmp_path / "answers.judged.rejects.jsonl")
  assert [row["line"] for row in rejects] == [5, 6, 7, 8, 9] and all(row["reason"] for row in rejects)
  assert summary["rows"] == 3 and summary["rejected"] == 5 and summary["no_verdict"] == 1
  assert summary["unused_columns"] == {"level": 1} and summary["judges"]["accuracy"]["mean"] == 0.5
  assert summary["calibration"] == {"count": 2, "agreement": 1.0, "brier": 0.0, "auc": 1.0, "mean_right": 1.0,
                                    "mean_wrong": 0.0}
  again = judge_file.run(rim_of(), file_of(tmp_path))
  assert again["rejects"] is None and not (tmp_path / "answers.judged.rejects.jsonl").exists()


def test_a_run_that_was_broken_off_asks_for_what_is_missing(server, tmp_path):
  whole = json.dumps(reply(0.5, principles=[], flags=[]))
  server.use(lambda number, body: whole)
  rim = rim_of(backend="endpoint", endpoint__url=server.url, models__small_model="m", temperatures="0.5",
               canary__on=False)
  first = judge_file.run(rim, file_of(tmp_path), tmp_path / "a.jsonl")
  assert len(server.asked) == first["calls"] == 3 and first["tokens"] == 30
  again = judge_file.run(rim, file_of(tmp_path, '{"prompt": "new", "response": "x"}'), tmp_path / "a.jsonl")
  assert len(server.asked) == 4 and (again["calls"], again["cached"]) == (4, 3)


def test_the_data_are_not_written_over(tmp_path):
  data = file_of(tmp_path)
  with pytest.raises(ValueError, match="--out"):
    judge_file.run(rim_of(), data, data)


def script(*flags):
  """The script in a process of its own."""
  return subprocess.run([sys.executable, "scripts/judge.py", *map(str, flags)], capture_output=True,
                        text=True, cwd=program.ROOT)


def test_the_script_prints_a_summary_and_ends_with_one_for_bad_input(tmp_path):
  data = file_of(tmp_path)
  done = script("--config=configs/rim.py:scripted", f"--data={data}", "--config.rim.temperatures=0.5")
  assert done.returncode == 0, done.stderr
  # A judgement for each row, the arbiter's where it has none, and no canary among them.
  assert json.loads(done.stdout)["calls"] == 4
  done = script("--config=configs/rim.py:scripted", f"--data={file_of(tmp_path, *BAD)}")
  assert done.returncode == 1 and "5 of 8 lines were rejected" in done.stderr
  done = script("--config=configs/rim.py:scripted", f"--data={data}", "--config.optim.lr=1")
  assert done.returncode == 1 and "config.optim.lr" in done.stderr and "Traceback" not in done.stderr
