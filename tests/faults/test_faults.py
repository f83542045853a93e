"""The faults in their short form; `scripts/faults.sh` is the long one."""

import json

import pytest

from tests.faults import kills, starts


@pytest.mark.slow
def test_a_killed_run_ends_as_if_it_never_was(tmp_path, capsys):
  assert kills.main(["--count=2", "--jobs=memory_lm", f"--workdir={tmp_path}/kills"]) == 0
  assert json.loads(capsys.readouterr().out)["kills"] == 2


@pytest.mark.slow
def test_of_starts_within_a_second_one_runs_and_none_harms_it(tmp_path, capsys):
  assert starts.main(["--count=1", "--starts=3", f"--workdir={tmp_path}/starts"]) == 0
  assert json.loads(capsys.readouterr().out)["rounds"] == 1


def test_rows_that_differ_are_told(tmp_path):
  rows = [{"step": 1, "train/loss_nats": 2.0, "perf/step_s": 1.0}, {"step": 2, "train/loss_nats": 1.0}]
  write = lambda rows: (tmp_path / "metrics.jsonl").write_text(
    "".join(json.dumps(row) + "\n" for row in rows)
  )
  write(rows)
  whole = kills.rows_of(tmp_path)
  assert kills.differences(tmp_path, whole) == []
  write([rows[0], {**rows[1], "train/loss_nats": 1.5}])
  assert "step 2: train/loss_nats is 1.5, not 1.0" in kills.differences(tmp_path, whole)[0]
  write([rows[0], rows[0], rows[1]])
  assert "has rows of steps [1, 1, 2], not [1, 2]" in kills.differences(tmp_path, whole)[0]
