"""Rounds of the loop, killed in every stage: the same command goes on, and nothing is done twice."""
import json
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys

import pytest

from atlas_jax.data.traces.review import decide
from atlas_jax.data.traces.store import open_store
from atlas_jax.runtime import cli, loop
from atlas_jax.runtime.worlds import arithmetic
from tests.rollout.chat_server import Answer
from tests.runtime.worlds import sums

ROOT = pathlib.Path(__file__).parents[2]
# Kills its own process where a stage has done its work and not told so, or after some of its sessions.
KILLED = """
import os, signal, sys
from atlas_jax.runtime import cli, cli_run, loop
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
stage, words = sys.argv[1], sys.argv[2:]
json_written, once, count = loop.write.json, cli_run.once, 0
def written(file, content, **more):
  kill() if content.get("stage") == stage else json_written(file, content, **more)
async def counted(assembly, spec):
  global count
  count += 1
  if stage == "sessions" and count > 12:
    kill()
  return await once(assembly, spec)
loop.write.json, cli_run.once = written, counted
sys.exit(cli.main(words))
"""
# A trainer of one's own: it leaves a checkpoint, and a line each time that it is called.
TRAINER = """
import pathlib, sys
from tests.runtime.checkpoints import write_checkpoint
given = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:])
lines = pathlib.Path(given["export-path"]).read_text().splitlines()
out = pathlib.Path(given["output-dir"])
if not (out / "rl_checkpoint/manifest.json").exists():
  write_checkpoint(out, weights=str(len(lines)).encode())
"""


def write_tasks(folder, name, count, seed):
  file = folder / name
  file.write_text("".join(f"{json.dumps(one)}\n" for one in arithmetic.tasks(count, seed)))
  return str(file)


def test_a_loop_that_is_killed_in_each_stage_goes_on(tmp_path, server):
  server.use(lambda number, body: Answer({"choices": [{"text": "c"}]}))
  (tmp_path / "trainer.py").write_text(TRAINER)
  fields = sums.fields(tmp_path, **{
    "loop.tasks": write_tasks(tmp_path, "tasks.jsonl", 24, 1), "loop.url": server.url, "loop.train": "",
    "loop.held_out": write_tasks(tmp_path, "held_out.jsonl", 44, 2),
    "loop.trainer": f"{sys.executable} {tmp_path}/trainer.py"})
  words = ["loop", "--rounds=1", f"--config={sums.CONFIG}", *(f"--config.{name}={value}" for name, value in
                                                              fields.items())]
  # The trainer of the tests imports what lies beside them.
  how = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 120,
         "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
  for stage in ("before", "sessions", *loop.STAGES):
    killed = subprocess.run([sys.executable, "-c", KILLED, stage, *words], **how)
    assert killed.returncode == -signal.SIGKILL, (stage, killed.stderr)
  done = subprocess.run([sys.executable, "-m", "atlas_jax.runtime.cli", *words], **how)
  assert done.returncode == 0, done.stderr
  before, after = map(json.loads, done.stdout.splitlines())
  assert before["accuracy"] < 0.5 and after["accuracy"] == 1.0 and after["sessions"] == 44
  store = sqlite3.connect(tmp_path / "atlas.db")
  counts = dict(store.execute("SELECT status, count(*) FROM sessions GROUP BY status"))
  shadows = store.execute("SELECT count(*) FROM session_keys WHERE session_key LIKE '%~before'").fetchone()[0]
  assert counts["succeeded"] - shadows == 44 + 24 + 44 and "running" not in counts
  assert [row[0] for row in store.execute("SELECT state FROM deployments")] == ["active"]


LEARNER = """
import json, pathlib
ASKED = pathlib.Path(__file__).with_name("asked")
def learn(messages):
  with ASKED.open("a") as out:
    out.write("x")
  lesson = {"audience": "student", "cue": {"kind": "keyword", "pattern": "+"}, "action": ASKED.read_text()}
  return json.dumps({"lessons": [lesson]})
"""


def test_a_round_learns_from_sessions_that_a_person_approved_and_once(tmp_path, capsys):
  (tmp_path / "learner.py").write_text(LEARNER)
  fields = {
    "loop.tasks": write_tasks(tmp_path, "tasks.jsonl", 3, 1), "grader": "None", "loop.review": "none",
    "loop.held_out": write_tasks(tmp_path, "held_out.jsonl", 1, 2), "loop.learn": "True",
    "lessons.on": "True", "learner.kind": "function", "learner.function": f"{tmp_path}/learner.py:learn"}
  words = sums.words(tmp_path, "loop", "--rounds=1", **fields)
  assert cli.main(words) == 1 and "no session is approved" in capsys.readouterr().err
  place = tmp_path / "loop/round_1"
  ids = json.loads((place / "run.json").read_text())["found"]["ids"]
  assert len(ids) == 3 and not (place / "learn.json").exists()
  with open_store(f"sqlite:///{tmp_path}/atlas.db", writable=True) as store:
    for number in ids[:2]:
      decide(store, number, "approved", who="ada")
  settings = sums.load(tmp_path, **fields)
  for asked in ("xx", "xx"):  # As after a kill before the record: who gave a lesson is not asked again.
    found = loop.learnt(settings, place)
    assert (tmp_path / "asked").read_text() == asked and found["skipped"]["it is not approved"] == 1
  assert loop.done(place, "learn", lambda: loop.learnt(settings, place), settings)["sessions"] == 0
  assert loop.learnt(sums.load(tmp_path), place) == {"on": False}


def test_sessions_of_held_out_tasks_are_neither_reviewed_nor_exported(tmp_path):
  settings = sums.load(tmp_path, **{"loop.tasks": write_tasks(tmp_path, "tasks.jsonl", 3, 1),
                                    "loop.held_out": write_tasks(tmp_path, "held_out.jsonl", 4, 2)})
  assert loop.evaluated(settings, "before")["sessions"] == 4
  with pytest.raises(loop.StageFailed, match="no session is approved"):
    loop.exported(settings, tmp_path)
  assert loop.ran(settings, "loop-1")["sessions"] == 3 and loop.reviewed(settings) == {"approved": 3}
  with open_store(f"sqlite:///{tmp_path}/atlas.db", writable=True) as store:
    for number in range(1, 5):  # Not even where a person approves them all.
      decide(store, number, "approved", who="ada")
  assert loop.exported(settings, tmp_path) == {"sessions": 3}
  tasks = {json.loads(line)["task"] for line in (tmp_path / loop.TRACES).read_text().splitlines()}
  assert tasks == {one["task"] for one in arithmetic.tasks(3, 1)}


def test_learning_needs_a_memory_of_lessons(tmp_path, capsys):
  assert cli.main(sums.words(tmp_path, "loop", "--rounds=1", **{"loop.learn": "True"})) == 3
  assert "config.loop.learn=True and config.lessons.on=False" in capsys.readouterr().err
