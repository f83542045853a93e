"""Two processes on one machine are one run: one batch, one checkpoint, one end."""

import time

import numpy as np
import pytest

from atlas_jax.checkpoint import Checkpoints
from tests import program


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
  """A folder of texts to train on."""
  return program.write_texts(tmp_path_factory.mktemp("corpus") / "texts")


@pytest.fixture(scope="module")
def alone(texts, tmp_path_factory):
  """The losses of a run of one process."""
  workdir = tmp_path_factory.mktemp("runs") / "alone"
  done = program.run(*program.tiny(texts), f"--workdir={workdir}")
  assert done.code == 0, done.err
  return program.losses(workdir)


def launch(texts, workdir, stop: str, **fields) -> program.Done:
  """Starts two processes of one device each, one of which gets a signal before a certain batch."""
  flags = [*program.tiny(texts, **fields), f"--workdir={workdir}"]
  variables = {"JAX_NUM_CPU_DEVICES": "1", "ATLAS_TEST_STOP": stop}
  return program.spawn("bash", "scripts/launch_local.sh", "2", *flags, **variables)


@pytest.mark.timeout(900)
def test_two_processes_are_one_run_of_which_a_death_leaves_a_checkpoint(texts, alone, tmp_path):
  workdir = tmp_path / "run"
  killed = launch(texts, workdir, "5:SIGKILL:1")
  ended_after_s = time.time() - (workdir / "metrics.jsonl").stat().st_mtime
  assert killed.code == 1 and killed.out == "", killed.err
  assert "process 1 of 2 was ended by SIGKILL" in killed.err and "The same command resumes" in killed.err
  assert "Traceback" not in killed.err
  assert ended_after_s < 30  # Some seconds; without care it would be minutes, until a collective gives up.
  together = program.losses(workdir)
  assert list(together)[:4] == [1, 2, 3, 4]

  good = Checkpoints(workdir, read_only=True).newest_good()
  assert good in (workdir / "checkpoints/2", workdir / "checkpoints/4")
  parts = {path.name for path in (good / "state").glob("ocdbt.process_*")}
  assert parts == {"ocdbt.process_0", "ocdbt.process_1"}

  resumed = program.run(*program.tiny(texts), f"--workdir={workdir}")
  assert resumed.code == 0 and f"resumed from step {good.name} in" in resumed.err, resumed.err
  afterwards = program.losses(workdir)
  assert list(afterwards) == list(alone) == [1, 2, 3, 4, 5, 6]
  for losses in (together, afterwards):
    np.testing.assert_allclose([losses[step] for step in losses], [alone[step] for step in losses], atol=1e-5)


@pytest.mark.timeout(900)
def test_a_signal_that_one_process_gets_stops_both_at_one_step(texts, tmp_path):
  workdir = tmp_path / "run"
  done = launch(texts, workdir, "3:SIGTERM:1", model__memory_mix="none")
  assert done.code == 75 and done.out == "", done.err
  assert f"stopped at step 4, saved in {workdir}/checkpoints; the same command goes on from there" in done.err
  assert Checkpoints(workdir, read_only=True).newest_good() == workdir / "checkpoints/4"
