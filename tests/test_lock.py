"""The lock of a run directory: one owner, dead owners, owners elsewhere, many starts at once."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from atlas_jax import lock
from atlas_jax.lock import Lock, LockError
from atlas_jax.workdir import OWNER

HOLD = """
import sys, time
from atlas_jax import lock
with lock.held(sys.argv[1]):
  print("HELD", flush=True)
  time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
  """A process that owns tmp_path."""
  process = subprocess.Popen(
    [sys.executable, "-c", HOLD, str(tmp_path)],
    stdout=subprocess.PIPE,
    text=True,
    cwd=pathlib.Path(__file__).parents[1],
  )
  assert process.stdout.readline() == "HELD\n"
  yield process
  process.kill()
  process.wait()


def elsewhere(folder, *, silent_s):
  """Leaves the lock of a process on another machine, silent for so long."""
  fields = {"pid": 7, "host": "node7", "sees": "node7", "process": "1", "token": "t", "since": "2026-01-01"}
  (folder / OWNER).write_text(json.dumps(fields))
  before = time.time() - silent_s
  os.utime(folder / OWNER, (before, before))


def test_a_second_owner_is_refused_and_changes_nothing(holder, tmp_path):
  before = {path: path.read_bytes() for path in tmp_path.iterdir()}
  with pytest.raises(LockError, match=f"in use by process {holder.pid} on .*choose another --workdir"):
    Lock(tmp_path).acquire()
  assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_stopped_owner_is_not_a_dead_one(holder, tmp_path):
  holder.send_signal(signal.SIGSTOP)
  with pytest.raises(LockError):
    Lock(tmp_path).acquire()


def test_a_dead_owner_on_this_machine_is_followed_at_once(holder, tmp_path, caplog):
  holder.kill()
  holder.wait()
  with lock.held(tmp_path):
    assert "which has ended; this process takes the run over" in caplog.text
  assert not list(tmp_path.iterdir())


def test_a_later_process_of_the_same_number_is_not_the_owner(tmp_path, caplog):
  first = Lock(tmp_path)
  first._me |= {"process": "0"}  # Started before this one.
  first.acquire()
  Lock(tmp_path).acquire()
  assert "takes the run over" in caplog.text
  with pytest.raises(LockError, match="taken over by process .* writes nothing more"):
    first.check()


def test_of_an_owner_elsewhere_the_heartbeat_tells(tmp_path, caplog):
  elsewhere(tmp_path, silent_s=40)
  mine = Lock(tmp_path)
  mine.acquire()
  assert "of process 7 on node7 since 2026-01-01, silent for 40 s" in caplog.text
  mine.release()


def test_an_owner_elsewhere_that_shows_life_is_left_alone(tmp_path):
  elsewhere(tmp_path, silent_s=0.5)
  alive = Lock(tmp_path, beat_s=0.1, silent_s=5)
  alive._me |= json.loads((tmp_path / OWNER).read_text())
  alive._beat_s = 0.05
  import threading

  threading.Thread(target=alive._beat, daemon=True).start()
  with pytest.raises(LockError, match="process 7 on node7"):
    Lock(tmp_path, beat_s=0.2, silent_s=5).acquire()
  alive._end.set()


@pytest.mark.parametrize("text", ["", "{", "[]", "nonsense", "[" * 100_000])
def test_a_damaged_lock_holds_until_it_is_silent(tmp_path, text):
  (tmp_path / OWNER).write_text(text)
  mine = Lock(tmp_path, beat_s=0.1, silent_s=0.3)
  began = time.monotonic()
  mine.acquire()
  assert time.monotonic() - began >= 0.2
  mine.check()
  mine.release()


def test_a_lock_inside_a_lock_is_the_same(tmp_path):
  with lock.held(tmp_path) as outer:
    with lock.held(tmp_path) as inner:
      assert inner is outer
    outer.check()
  assert not (tmp_path / OWNER).exists()


RACE = """
import sys, time
from atlas_jax import lock
workdir, at = sys.argv[1], float(sys.argv[2])
time.sleep(max(0.0, at - time.time()))
try:
  with lock.held(workdir) as mine:
    with open(workdir + "/inside", "x"):
      time.sleep(0.2)
      mine.check()
    import os
    os.unlink(workdir + "/inside")
  print("OWNED")
except lock.LockError:
  print("REFUSED")
"""


@pytest.mark.parametrize("dead", [False, True], ids=["free", "dead owner"])
def test_of_many_starts_within_a_second_one_at_a_time_owns(tmp_path, dead):
  if dead:
    elsewhere(tmp_path, silent_s=1000)
  at = str(time.time() + 2.5)
  started = [
    subprocess.Popen(
      [sys.executable, "-c", RACE, str(tmp_path), at],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      cwd=pathlib.Path(__file__).parents[1],
    )
    for _ in range(6)
  ]
  ends = [process.communicate() for process in started]
  words = [out.strip() for out, _ in ends]
  assert words.count("OWNED") >= 1 and set(words) <= {"OWNED", "REFUSED"}, ends
  assert not list(tmp_path.iterdir())
