"""`atlas eval`: samples are sessions, a start goes on from its results file, and wrong inputs are named."""
import json
import sqlite3

import pytest

from atlas_jax.runtime import cli
from tests.runtime.worlds.sums import words, write_tasks

# Fails as long as a file is not there.
UNSURE = """
import pathlib
from atlas_jax.runtime.worlds import arithmetic
def answer(messages):
  if not pathlib.Path(__file__).with_name("up").exists():
    raise RuntimeError("down")
  return arithmetic.student(messages)
"""


def evaluated(tmp_path, capsys, *flags, out="results.jsonl", **more):
  given = words(tmp_path, "eval", f"--tasks={write_tasks(tmp_path, 4)}", f"--out={tmp_path}/{out}", *flags,
                **more)
  code = cli.main(given)
  return code, capsys.readouterr()


def sessions(tmp_path):
  return sqlite3.connect(tmp_path / "atlas.db").execute("SELECT count(*) FROM sessions").fetchone()[0]


def test_samples_are_sessions_and_a_start_goes_on_from_the_results(tmp_path, capsys):
  code, said = evaluated(tmp_path, capsys, "--samples=2", "--json")
  found = json.loads(said.out)
  assert code == 0 and (found["samples"], found["scored"], found["reused"]) == (8, 8, 0)
  assert 0 < found["mean"] < 1 and found["pass_at"]["2"]["tasks"] == 4 and sessions(tmp_path) == 8
  file = tmp_path / "results.jsonl"
  lines = file.read_text().splitlines(keepends=True)
  assert len(lines) == 9 and json.loads(lines[0])["evaluation"]["about"]["teacher"].startswith("config-")
  # As after a kill behind the end of sessions: they are read from the store, and not run again.
  file.write_text("".join(lines[:6]))
  code, said = evaluated(tmp_path, capsys, "--samples=2", "--json")
  again = json.loads(said.out)
  assert again["reused"] == 5 and again["mean"] == found["mean"] and sessions(tmp_path) == 8
  code, said = evaluated(tmp_path, capsys, "--samples=3")
  assert code == 0 and "4 tasks, 12 samples, 8 of them from before" in said.out and sessions(tmp_path) == 12
  code, said = evaluated(tmp_path, capsys, "--lane=auto")
  assert code == 3 and "has an evaluation of" in said.err
  code, _ = evaluated(tmp_path, capsys, out="other.jsonl")
  assert code == 0 and sessions(tmp_path) == 16  # An evaluation of its own.


def test_errors_end_with_one_and_are_asked_again_where_that_is_asked_for(tmp_path, capsys):
  (tmp_path / "unsure.py").write_text(UNSURE)
  more = {"agent.options.function": f"{tmp_path}/unsure.py:answer", "agent.options.version": "one"}
  code, said = evaluated(tmp_path, capsys, "--json", **more)
  found = json.loads(said.out)
  assert code == 1 and found["errors"] == 4 and found["mean"] is None
  without = {"agent.options.function": f"{tmp_path}/other.py:answer"}
  (tmp_path / "other.py").write_text(UNSURE + "# Other code.\n")
  assert evaluated(tmp_path, capsys, **without)[0] == 3  # Results of another agent are not gone on with.
  assert found["error_kinds"] == {"failed": 4}
  (tmp_path / "up").touch()
  assert evaluated(tmp_path, capsys, **more)[0] == 1
  code, said = evaluated(tmp_path, capsys, "--retry-errors", "--json", **more)
  found = json.loads(said.out)
  assert code == 0 and found["scored"] == 4 and found["reused"] == 0


@pytest.mark.parametrize(("flags", "more", "code", "said"), [
  (("--samples=0",), {}, 3, "--samples=0 must be at least 1"),
  (("--concurrency=0",), {}, 3, "--concurrency=0 must be at least 1"),
  (("--samples=x",), {}, 2, "invalid int value"),
  ((), {"grader": "None"}, 3, "nothing scores answers"),
  ((), {"eval.right_from": "2"}, 3, "config.eval.right_from=2"),
  ((), {"store.url": "sqlite:////proc/nowhere/a.db"}, 4, "atlas: "),
  (("--out=/proc/nowhere/r.jsonl",), {}, 1, "atlas: ")])
def test_wrong_inputs_are_named(tmp_path, capsys, flags, more, code, said):
  found, told = evaluated(tmp_path, capsys, *flags, **more)
  assert found == code and said in told.err


def test_tasks_with_metadata_and_files_of_something_else_are_refused(tmp_path, capsys):
  tasks = tmp_path / "mine.jsonl"
  tasks.write_text('{"task": "1+1=", "ground_truth": "2", "metadata": {"a": 1}}\n')
  assert cli.main(words(tmp_path, "eval", f"--tasks={tasks}", f"--out={tmp_path}/r")) == 3
  assert "a task has metadata" in capsys.readouterr().err
  assert cli.main(words(tmp_path, "eval", f"--tasks={tasks}")) == 2
  (tmp_path / "results.jsonl").write_text('{"task": "x"}\n')
  code, said = evaluated(tmp_path, capsys)
  assert code == 3 and "has no evaluation" in said.err
