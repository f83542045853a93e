"""The program `atlas`: commands, exit codes, and starts that were cut off."""
import json
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from atlas_jax.data.traces.review import decide
from atlas_jax.data.traces.store import open_store
from atlas_jax.runtime import cli
from atlas_jax.runtime.worlds import arithmetic
from tests.runtime.worlds import sums
from tests.runtime.worlds.sums import words, write_tasks

ROOT = pathlib.Path(__file__).parents[2]
SLOW = """
import time
from atlas_jax.runtime.worlds import arithmetic
def answer(messages):
  time.sleep(0.1)
  return arithmetic.student(messages)
"""


def rows_of(text):
  return [json.loads(line) for line in text.splitlines()]


def test_a_task_file_gives_a_line_per_task_and_goes_on_by_key(tmp_path, capsys):
  given = words(tmp_path, "run", f"--tasks={write_tasks(tmp_path, 12)}", "--concurrency=4", "--json")
  assert cli.main(given) == 0
  first = rows_of(capsys.readouterr().out)
  assert {"session_id", "answer", "verified", "lane", "status", "reward", "tokens"} <= set(first[0])
  assert len({one["session_id"] for one in first}) == 12 and not any(one["resumed"] for one in first)
  assert cli.main(given) == 0
  again = rows_of(capsys.readouterr().out)
  assert all(one["resumed"] for one in again)
  key = lambda one: (one["session_id"], one["answer"], one["reward"])
  assert sorted(map(key, again)) == sorted(map(key, first))
  assert cli.main([*given, "--run=more"]) == 0 and not rows_of(capsys.readouterr().out)[0]["resumed"]
  assert cli.main(words(tmp_path, "stats", "--json")) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["all"]["sessions"] == 24 and found["by_lane"]["paired"]["graded"] == 24


@pytest.mark.parametrize(("given", "more", "code", "said"), [
  (("run", "--task=1+1="), {}, 0, ""),
  (("run", "--task=1+1=", "--require-verified"), {}, 6, ""),
  (("run", "--task=1+1="), {"agent.options.function": "tests.runtime.worlds.sums:broken"}, 1, ""),
  (("run",), {}, 2, "one of the arguments --task --tasks is required"),
  (("run", "--task=a", "--tsk=b"), {}, 2, "unknown argument '--tsk=b'"),
  (("run", "--task=a"), {"pool.sessions": "0"}, 3, "config.pool.sessions=0"),
  (("run", "--tasks=nowhere.jsonl"), {}, 3, "there is no such file"),
  (("run", "--task=a"), {"store.url": "sqlite:////proc/nowhere/a.db"}, 4, "atlas: "),
  (("run", "--task=a"), {"agent.kind": "openai"}, 3, "config.agent.function is no field"),
  (("stats",), {}, 4, "atlas: "),
  (("rollback",), {"store.url": "sqlite:////proc/nowhere/a.db"}, 4, "atlas: "),
  (("deploy", "nowhere"), {}, 1, "has no manifest.json"),
  (("loop", "--rounds=1"), {}, 3, "config.loop.tasks=None"),
  (("config", "validate"), {"routing.lane": "x"}, 3, "must be one of auto"),
  (("config", "validate"), {}, 0, ""),
  (("doctor",), {}, 0, ""),
  (("doctor",), {"grader": "nothing"}, 1, ""),
])
def test_exit_codes_and_what_is_said(tmp_path, capsys, given, more, code, said):
  assert cli.main(words(tmp_path, *given, **more)) == code
  assert said in capsys.readouterr().err


def test_an_agent_that_is_not_reached_ends_with_five(tmp_path, capsys):
  config = tmp_path / "config.py"
  config.write_text("from atlas_jax.runtime import settings\ndef get_config(arg=None):\n"
                    "  config = settings.default()\n"
                    "  config.agent.update(kind='openai', options={'url': "
                    "'http://127.0.0.1:9/v1', 'model': 'm'})\n"
                    "  return config\n")
  given = [f"--config.{name}={value}" for name, value in sums.fields(tmp_path).items()]
  assert cli.main(["run", "--task=a", f"--config={config}", *given]) == 5
  assert "is not reached" in capsys.readouterr().err


def test_a_dry_run_names_what_would_be_imported_and_makes_nothing(tmp_path, capsys):
  assert cli.main(words(tmp_path, "run", "--task=a", "--dry-run", grader="mine.py:score")) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["imports"].pop() == {"field": "grader", "action": "imports", "name": "mine.py:score"}
  assert {one["name"] for one in found["imports"]} == {"atlas_jax.runtime.worlds.arithmetic:student",
                                                       "atlas_jax.runtime.worlds.arithmetic:first_teacher"}
  assert not (tmp_path / "atlas.db").exists()


def started(tmp_path, tasks, **popen):
  (tmp_path / "slow.py").write_text(SLOW)
  given = words(tmp_path, "run", f"--tasks={tasks}", "--concurrency=4", "--json",
                **{"agent.options.function": f"{tmp_path}/slow.py:answer",
                   "agent.options.idempotent": "False"})
  command = [sys.executable, "-m", "atlas_jax.runtime.cli", *given]
  return given, subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                 text=True, **popen)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_start_that_was_cut_off_goes_on_and_loses_and_doubles_nothing(tmp_path, capsys, number):
  tasks = write_tasks(tmp_path, 24)
  given, process = started(tmp_path, tasks)
  first = [json.loads(process.stdout.readline()) for _ in range(6)]
  process.send_signal(number)
  rest, errors = process.communicate(timeout=30)
  first += rows_of(rest)
  assert process.returncode == (130 if number is signal.SIGINT else -number) and "Traceback" not in errors
  assert 6 <= len(first) < 24
  assert cli.main(given) == 0
  found = rows_of(capsys.readouterr().out)
  assert sorted(one["task"] for one in found) == sorted(one["task"] for one in arithmetic.tasks(24))
  ids = {one["task"]: one["session_id"] for one in found}
  assert all(ids[one["task"]] == one["session_id"] for one in first)  # None is done twice.
  statuses = [row[0] for row in sqlite3.connect(tmp_path / "atlas.db").execute("SELECT status FROM sessions")]
  assert statuses.count("succeeded") == 24 and "running" not in statuses


def test_a_reader_that_goes_ends_a_run_quietly(tmp_path):
  _, process = started(tmp_path, write_tasks(tmp_path, 24))
  process.stdout.readline()
  process.stdout.close()
  deadline = time.monotonic() + 30
  while process.poll() is None and time.monotonic() < deadline:
    time.sleep(0.05)
  said = process.stderr.read()
  assert process.returncode == 130 and "Traceback" not in said and "BrokenPipe" not in said, said


def test_forgetting_a_session_takes_it_out_of_the_store(tmp_path, capsys):
  assert cli.main(words(tmp_path, "run", "--task=1+1=", "--json")) == 0
  [row] = rows_of(capsys.readouterr().out)
  assert cli.main(words(tmp_path, "forget", f"--session={row['session_key']}")) == 0
  assert cli.main(words(tmp_path, "forget", f"--session={row['session_key']}")) == 1
  assert "0 sessions" in capsys.readouterr().out
  assert os.path.exists(tmp_path / "atlas.db")


def test_the_agent_of_a_folder_is_found_written_and_watched(tmp_path, capsys):
  (tmp_path / "mine.py").write_text("def create_agent():\n  return lambda task: task\n\n\ndef answer(task):\n"
                                    "  return task\n")
  flag = f"--path={tmp_path}"
  assert cli.main(["env", "list", flag]) == 0 and "mine.py:" in capsys.readouterr().out
  assert cli.main(["env", "init", flag]) == 0 and (tmp_path / ".atlas/config.py").is_file()
  assert cli.main(["env", "verify", flag]) == 0
  (tmp_path / "mine.py").write_text("def create_agent():\n  return None\n")
  assert cli.main(["env", "verify", flag]) == 1 and "mine.py" in capsys.readouterr().out


def test_lessons_are_taken_from_sessions_that_were_approved(tmp_path, capsys):
  lesson = {"audience": "student", "cue": {"kind": "keyword", "pattern": "+"}, "action": "Carry."}
  reply = json.dumps(json.dumps({"lessons": [lesson]}))
  (tmp_path / "learner.py").write_text(f"def learn(messages):\n  return {reply}\n")
  assert cli.main(words(tmp_path, "run", "--task=12+34=", "--json")) == 0
  number = json.loads(capsys.readouterr().out)["session_id"]
  assert cli.main(words(tmp_path, "learn", str(number))) == 3
  assert "lessons.on=False" in capsys.readouterr().err
  on = ("--config.lessons.on=True", "--config.learner.kind=function",
        f"--config.learner.function={tmp_path}/learner.py:learn")
  assert cli.main(words(tmp_path, "learn", str(number), *on)) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["sessions"] == 0 and str(number) in found["skipped"]  # It waits for a reviewer.
  with open_store(f"sqlite:///{tmp_path}/atlas.db", writable=True) as store:
    decide(store, number, "approved", who="ada")
  assert cli.main(words(tmp_path, "learn", str(number), *on)) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["sessions"] == 1 and not found["skipped"] and not found["refused"] and not found["problems"]
  assert [len(added) for added in found["added"].values()] == [1]
