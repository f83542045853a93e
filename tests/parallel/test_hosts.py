"""Processes, batches and the stop flag; runs of two processes are in tests/test_checkpoint.py."""
import os
import signal

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


def test_a_local_batch_becomes_the_global_one():
  mesh = meshes.make(data=4, fsdp=2)
  local = {"tokens_BT": np.arange(80, dtype=np.int32).reshape(16, 5), "weight_B": np.ones(16, np.float32)}
  batch = hosts.global_batch(mesh, local)
  np.testing.assert_array_equal(batch["tokens_BT"], local["tokens_BT"])
  assert batch["tokens_BT"].sharding.shard_shape((16, 5)) == (2, 5)


def test_rows_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match="config.data.batch_rows=6"):
    hosts.global_batch(meshes.make(), {"tokens_BT": np.zeros((6, 2), np.int32)})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
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
