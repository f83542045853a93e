"""Runs of the program that are stopped, killed or started twice: exit codes, owners, the account of time."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from atlas_jax import lock
from atlas_jax.monitor.ledger import KINDS
from atlas_jax.parallel import signals
from tests import program


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
  """A folder of texts to train on."""
  return program.write_texts(tmp_path_factory.mktemp("corpus") / "texts")


def test_a_stopped_run_may_count_as_done_and_its_times_sum_to_the_wall_clock(texts, tmp_path):
  flags = [*program.tiny(texts), f"--workdir={tmp_path}/run"]
  began_s = time.time()
  first = program.spawn_main(*flags, "--stopped_ok", ATLAS_TEST_STOP="3:SIGTERM:0")
  assert first.code == 0 and "stopped at step 4" in first.err
  time.sleep(1)
  second = program.spawn_main(*flags)
  assert second.code == 0, second.err
  summary = json.loads((tmp_path / "run" / "summary.json").read_text())
  times = {kind: summary[f"time_{kind}_s"] for kind in KINDS}
  assert times["lost"] == 0 and times["stopped"] > 1 and times["compile"] > 0 and times["step"] > 0
  account = json.loads((tmp_path / "run" / "time.json").read_text())
  whole_s = account["wall_s"] - began_s
  assert sum(account["totals"].values()) == pytest.approx(whole_s, rel=0.01, abs=0.5)
  assert sum(times.values()) <= whole_s


def killed_at(texts, workdir, batch):
  flags = [*program.tiny(texts, checkpoint__every_steps=2), f"--workdir={workdir}"]
  return flags, program.spawn_main(*flags, ATLAS_TEST_STOP=f"{batch}:SIGKILL:0")


def test_what_was_worked_since_the_checkpoint_before_a_kill_is_lost_time(texts, tmp_path):
  flags, killed = killed_at(texts, tmp_path / "run", 6)
  assert killed.code == -9 and (tmp_path / "run" / "owner.json").exists()
  done = program.run(*flags)
  assert done.code == 0 and "which has ended; this process takes the run over" in done.err
  assert not (tmp_path / "run" / "owner.json").exists()
  summary = json.loads((tmp_path / "run" / "summary.json").read_text())
  assert summary["time_stopped_s"] > 0 and sum(summary[f"time_{kind}_s"] for kind in KINDS) > 0


def test_a_second_start_is_refused_and_harms_nothing(texts, tmp_path):
  flags = [*program.tiny(texts, checkpoint__every_steps=2), f"--workdir={tmp_path}/run"]
  (tmp_path / "run").mkdir()
  with lock.held(tmp_path / "run"):
    (tmp_path / "run" / "metrics.jsonl").write_text("mine")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    refused = program.spawn_main(*flags)
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
  assert "is in use by process" in program.refused(refused) and "nothing was changed" in refused.err


def test_a_notice_of_a_scheduler_stops_the_loop_and_is_no_second_signal():
  with signals.StopSignals(os._exit) as stop, stop.deferred():
    for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
      os.kill(os.getpid(), number)
    assert stop.name == "SIGUSR1"
    with pytest.raises(signals.Stopped, match="SIGUSR1"):
      os.kill(os.getpid(), signal.SIGINT)
      time.sleep(1)
  with pytest.raises(signals.Stopped, match="SIGUSR1"), signals.StopSignals(os._exit):
    os.kill(os.getpid(), signal.SIGUSR1)  # Before the loop there is nothing to save.
    time.sleep(1)


SLOW = """
import os, sys, time
from atlas_jax.parallel import signals
if sys.argv[1] == "busy":  # The main thread does not see signals.
  import hashlib
  wait = lambda: hashlib.pbkdf2_hmac("sha256", b"", b"", 40_000_000)
else:
  wait = lambda: time.sleep(20)
with signals.StopSignals(os._exit) as stop:
  try:
    print("READY", flush=True)
    wait()
  except signals.Stopped as error:
    print("STOPPED", error, flush=True)
    sys.exit(75)
"""


@pytest.mark.parametrize(("how", "count"), [("idle", 1), ("busy", 2)])
def test_signals_before_the_loop_end_the_program_also_while_it_is_busy(how, count):
  process = subprocess.Popen(
    [sys.executable, "-c", SLOW, how],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=program.ROOT,
  )
  assert process.stdout.readline() == "READY\n"
  time.sleep(0.5)
  began = time.monotonic()
  for _ in range(count):
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
  out, err = process.communicate(timeout=30)
  assert process.returncode == 75 and time.monotonic() - began < 10
  assert ("ended by a second signal" in err) if how == "busy" else out == "STOPPED SIGINT\n", (out, err)
