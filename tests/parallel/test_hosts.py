"""Processes, batches and the stop flag; two processes with one checkpoint are in test_checkpoint.py."""
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.parallel import hosts
from atlas_jax.parallel import mesh as meshes


def test_no_flags_mean_one_process():
  hosts.start()
  assert hosts.is_main()


@pytest.mark.parametrize(("flags", "words"), [
    (dict(coordinator="localhost:1", num_processes=2), "--process_id is missing"),
    (dict(coordinator="localhost:1", num_processes=2, process_id=2), "--process_id=2 must lie in 0..1")])
def test_wrong_flags_are_named(flags, words):
  with pytest.raises(ValueError, match=words):
    hosts.start(**flags)


def test_what_process_0_knows_is_told_to_the_others_as_json(monkeypatch):
  told = {"rows": [["a\u00e9", None, 1.5]], "n": []}
  assert hosts.json_of_main(told) == told
  # As the processes of a run of two see it: the broadcast gives what process 0 hands over, in the same shape.
  sent = []
  monkeypatch.setattr(hosts.jax, "process_count", lambda: 2)
  monkeypatch.setattr(hosts, "of_main", lambda array: sent.append(array) or array)
  monkeypatch.setattr(hosts, "is_main", lambda: True)
  assert hosts.json_of_main(told) == told
  first = iter(sent)
  monkeypatch.setattr(hosts, "is_main", lambda: False)

  def received(array):
    known = next(first)
    assert np.shape(array) == np.shape(known) or np.ndim(array) == 0
    return known

  monkeypatch.setattr(hosts, "of_main", received)
  assert hosts.json_of_main([]) == told


def test_a_local_batch_becomes_the_global_one():
  mesh = meshes.make(data=4, fsdp=2)
  local = {"tokens_BT": np.arange(80, dtype=np.int32).reshape(16, 5), "weight_B": np.ones(16, np.float32)}
  batch = hosts.global_batch(mesh, local)
  np.testing.assert_array_equal(batch["tokens_BT"], local["tokens_BT"])
  assert batch["tokens_BT"].sharding.shard_shape((16, 5)) == (2, 5)


def test_rows_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match="config.data.batch_rows=6"):
    hosts.global_batch(meshes.make(), {"tokens_BT": np.zeros((6, 2), np.int32)})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_raises_the_flag_and_leaves_handlers_as_they_were(number):
  before = signal.getsignal(number)
  add_up = jax.jit(jnp.sum)
  with hosts.StopFlag(meshes.make(fsdp=2, tensor=2)) as stop:
    assert not stop.requested
    assert not stop.agreed(add_up(stop.array()))
    os.kill(os.getpid(), number)
    assert stop.requested
    assert stop.signal_name == number.name
    assert stop.agreed(add_up(stop.array()))
    assert signal.getsignal(number) == before  # A second signal has its usual effect.
  assert signal.getsignal(number) == before


def test_an_error_of_a_run_of_one_process_is_no_lost_peer():
  assert not hosts.lost_peer(ValueError("Gloo all-reduce failed: Connection reset by peer"))


WORKER = """
import sys
import jax, jax.numpy as jnp, numpy as np
from atlas_jax.parallel import hosts, mesh as meshes
hosts.start(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
add_up = jax.jit(jnp.sum)
rows = hosts.global_batch(meshes.make(), np.ones(2, np.float32))
assert not hosts.lost_peer(ValueError("config.optim.lr=0 must be above 0"))
try:
  for step in range(10**6):
    add_up(rows).block_until_ready()
    if step == 10:
      print("READY", flush=True)
except Exception as error:
  try:
    raise RuntimeError("saving failed") from error
  except RuntimeError as outer:
    print("LOST", hosts.lost_peer(outer))
  hosts.leave(3)
"""


def test_a_killed_process_ends_the_other_soon_and_clearly():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  env = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
  workers = [subprocess.Popen(
      [sys.executable, "-c", WORKER, str(port), str(rank)], env=env, cwd=Path(__file__).parents[2],
      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for rank in (0, 1)]
  try:
    for worker in workers:
      while "READY" not in (line := worker.stdout.readline()):
        assert line, "a worker ended before it was ready"
    workers[1].kill()
    start = time.monotonic()
    text = workers[0].communicate(timeout=60)[0]
  finally:
    for worker in workers:
      worker.kill()
      worker.wait()
  assert "LOST True" in text
  assert workers[0].returncode == 3
  assert time.monotonic() - start < 20  # Without `leave` it would hang for the heartbeat, then abort.
