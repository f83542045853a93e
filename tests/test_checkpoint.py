"""Checkpoints: round trips over meshes and processes, what is kept, what is refused."""
import json
import math
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from atlas_jax import tree
from atlas_jax.checkpoint import CheckpointError, Checkpoints
from atlas_jax.models import placement
from atlas_jax.parallel import mesh as meshes

WIDTH, FF = 64, 96


class State(NamedTuple):
  step: Any
  params: Any
  opt_state: Any
  carry: Any
  ema: Any
  rng: Any


def make_state(seed=0, width=WIDTH, ema=True):
  key = jax.random.key(seed)
  params = {"blocks": {"mlp": {"up": {"kernel": jax.random.normal(key, (2, width, FF))}}},
            "final_norm": {"scale": jnp.ones(width)}}
  return State(
      step=jnp.asarray(seed, jnp.int32), params=params, opt_state=optax.adam(1e-3).init(params),
      carry={"fast": jnp.arange(48.0).reshape(8, 6).astype(jnp.bfloat16)}, ema=params if ema else None,
      rng=jax.random.fold_in(key, 1))


def make_mesh(n_devices=None, **sizes):
  return meshes.make(**sizes, devices=jax.devices()[:n_devices])


def placed(state, **mesh):
  shardings = placement.shardings(make_mesh(**mesh), state)
  return jax.jit(lambda value: value, out_shardings=shardings)(state)


def abstract(state, **mesh):
  return placement.abstract(make_mesh(**mesh), state)


def assert_same(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  for (name, left), (_, right) in zip(tree.named_leaves(one), tree.named_leaves(other)):
    assert left.dtype == right.dtype, name
    if jnp.issubdtype(left.dtype, jax.dtypes.prng_key):
      left, right = jax.random.key_data(left), jax.random.key_data(right)
    np.testing.assert_array_equal(left, right, err_msg=name)


def saved(workdir, steps=(1, 2), **policy):
  checkpoints = Checkpoints(workdir, **{"keep_last": 9, **policy})
  for step in steps:
    checkpoints.save(step, make_state(step), {"source": {"step": step}})
  checkpoints.wait()
  return checkpoints


@pytest.mark.parametrize("mesh", [
    dict(), dict(data=2, fsdp=2, tensor=2), dict(n_devices=1)], ids=["same", "cube", "one"])
def test_a_state_comes_back_bit_for_bit_on_any_mesh(tmp_path, mesh):
  state = make_state(3)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(3, placed(state), {"source": {"step": 3}})
  again, meta = checkpoints.restore(abstract(state, **mesh))
  assert_same(again, state)
  assert meta == {"source": {"step": 3}}
  wanted = placement.shardings(make_mesh(**mesh), state)
  assert jax.tree.map(lambda leaf: leaf.sharding, again) == wanted
  jax.random.normal(again.rng, (2,))  # Still a key, not its words.


def test_donating_the_state_while_it_is_saved_changes_nothing(tmp_path):
  first = make_state(1, width=2048)
  expected = jax.tree.map(np.asarray, first.params)
  advance = jax.jit(lambda params: jax.tree.map(lambda leaf: leaf * -3.0, params), donate_argnums=0)
  checkpoints = Checkpoints(tmp_path)
  state = placed(first)
  checkpoints.save(1, state, {})
  params = state.params
  for _ in range(5):
    params = advance(params)
  again, _ = checkpoints.restore_params(abstract(first.params))
  assert_same(again, expected)


def test_parameters_alone_are_read_from_either_field(tmp_path):
  state = make_state(1)
  state = state._replace(ema=jax.tree.map(lambda leaf: leaf + 1, state.params))
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, state, {"who": "me"})
  checkpoints.close()
  reader = Checkpoints(tmp_path, read_only=True)
  params, meta = reader.restore_params(abstract(state.params))
  ema, _ = reader.restore_params(abstract(state.params), field="ema")
  assert_same(params, state.params)
  assert_same(ema, state.ema)
  assert meta == reader.read_meta() == {"who": "me"}
  with pytest.raises(CheckpointError, match="opened to read"):
    reader.save(2, state, {})


def test_last_best_and_milestones_are_kept(tmp_path):
  checkpoints = Checkpoints(tmp_path, keep_last=2, keep_best=1, keep_every_steps=5)
  bits = {2: 3.0, 4: 1.5, 6: float("nan"), 8: 2.0}
  for step in range(1, 9):
    metrics = {"val_bits_per_byte": bits[step]} if step in bits else None
    checkpoints.save(step, {"w": jnp.ones(2)}, {}, metrics)
  checkpoints.close()
  assert checkpoints.steps() == [4, 5, 7, 8]
  again = Checkpoints(tmp_path, keep_last=1, keep_best=1)  # A later run knows the older scores.
  again.save(9, {"w": jnp.ones(2)}, {}, {"val_bits_per_byte": 1.7})
  again.wait()
  assert again.steps() == [4, 9]
  assert again.latest_step() == 9


def test_all_that_were_evaluated_are_kept_if_asked_for(tmp_path):
  for steps, expected in (((1, 2, 3, 4, 5), [2, 4, 5]), ((6, 7, 8), [2, 4, 6, 8])):
    checkpoints = Checkpoints(tmp_path, keep_last=1, keep_best=0, every_eval=True)
    for step in steps:
      checkpoints.save(step, {"w": jnp.ones(2)}, {}, {"x": 1.0} if step % 2 == 0 else None)
    checkpoints.close()
    assert checkpoints.steps() == expected


def test_an_evaluation_without_a_finite_number_is_one_and_never_the_best(tmp_path):
  checkpoints = Checkpoints(tmp_path, keep_last=1, keep_best=1, every_eval=True, best_metric="x")
  for step, value in ((1, math.nan), (2, 3.0), (3, math.inf), (4, None), (5, None)):
    checkpoints.save(step, {"w": jnp.ones(2)}, {}, None if value is None else {"x": value})
  checkpoints.close()
  assert checkpoints.steps() == [1, 2, 3, 5]
  again = Checkpoints(tmp_path, keep_last=1, keep_best=1, best_metric="x")
  again.save(6, {"w": jnp.ones(2)}, {})
  again.close()
  assert again.steps() == [2, 6]


def test_a_step_is_never_overwritten(tmp_path):
  checkpoints = saved(tmp_path)
  with pytest.raises(CheckpointError, match="checkpoints/2 exists already"):
    checkpoints.save(2, make_state(7), {})
  assert_same(checkpoints.restore(abstract(make_state()))[0], make_state(2))


def test_nothing_to_restore_is_said_with_the_path(tmp_path):
  missing = Checkpoints(tmp_path / "none", read_only=True)
  assert missing.latest_step() is None
  with pytest.raises(CheckpointError, match="none/checkpoints holds no checkpoint; train first"):
    missing.restore(abstract(make_state()))
  assert not (tmp_path / "none").exists()
  with pytest.raises(CheckpointError, match=r"checkpoints/5 does not exist; the newest good one is .*/2:"):
    saved(tmp_path).restore(abstract(make_state()), step=5)


def data_file(folder):
  return max((entry for entry in (folder / "state").rglob("*") if entry.is_file()), key=os.path.getsize)


def truncate(folder):
  os.truncate(data_file(folder), os.path.getsize(data_file(folder)) // 2)


def flip_a_bit(folder):
  contents = bytearray(data_file(folder).read_bytes())
  contents[len(contents) // 2] ^= 1
  data_file(folder).write_bytes(contents)


@pytest.mark.parametrize(("damage", "words"), [
    (truncate, "bytes instead of"),
    (flip_a_bit, "other contents"),
    (lambda folder: data_file(folder).unlink(), "is missing"),
    (lambda folder: shutil.rmtree(folder / "state"), "is missing"),
    (lambda folder: (folder / "meta" / "metadata").write_text("{"), "meta/metadata has 1 bytes"),
    (lambda folder: (folder / "files.json").unlink(), "half-written or damaged"),
], ids=["truncated", "bit", "file", "folder", "meta", "inventory"])
@pytest.mark.parametrize("asked", [None, 3])
def test_damage_is_refused_and_the_newest_good_one_is_named(tmp_path, damage, words, asked):
  saved(tmp_path, steps=(1, 2, 3)).close()
  damage(tmp_path / "checkpoints" / "3")
  with pytest.raises(CheckpointError) as error:
    Checkpoints(tmp_path).restore(abstract(make_state()), step=asked)
  assert f"{tmp_path}/checkpoints/3 " in str(error.value)
  assert words in str(error.value)
  assert f"newest good one is {tmp_path}/checkpoints/2:" in str(error.value)


def test_damaged_neighbours_do_not_count_as_good(tmp_path):
  checkpoints = saved(tmp_path, steps=(1, 2, 3))
  truncate(tmp_path / "checkpoints" / "3")
  truncate(tmp_path / "checkpoints" / "2")
  with pytest.raises(CheckpointError, match="newest good one is .*/checkpoints/1:"):
    checkpoints.restore(abstract(make_state()))
  assert checkpoints.newest_good() == tmp_path / "checkpoints" / "1"
  truncate(tmp_path / "checkpoints" / "1")
  with pytest.raises(CheckpointError, match="no other good checkpoint"):
    checkpoints.restore(abstract(make_state()))


def test_a_half_written_step_is_refused_mentioned_and_can_be_saved_anew(tmp_path, caplog):
  saved(tmp_path).close()
  folder = tmp_path / "checkpoints"
  shutil.copytree(folder / "2", folder / "3.orbax-checkpoint-tmp")
  (folder / "3.orbax-checkpoint-tmp" / "files.json").unlink()
  checkpoints = Checkpoints(tmp_path)
  with pytest.raises(CheckpointError, match=r"checkpoints/3 is half-written .*newest good one is .*/2:"):
    checkpoints.restore(abstract(make_state()), step=3)
  caplog.clear()
  with caplog.at_level("WARNING", logger="absl"):
    assert_same(checkpoints.restore(abstract(make_state()))[0], make_state(2))
  assert f"{folder}/3.orbax-checkpoint-tmp is half-written" in caplog.text
  checkpoints.save(3, make_state(3), {})
  assert_same(checkpoints.restore(abstract(make_state()))[0], make_state(3))


@pytest.mark.parametrize(("make", "words"), [
    (lambda: make_state(width=32),
     ("ema/blocks/mlp/up/kernel", "(2, 64, 96)", "(2, 32, 96)", "more leaves differ")),
    (lambda: make_state(ema=False), ("ema/blocks/mlp/up/kernel", "float32 (2, 64, 96)", "absent")),
    (lambda: make_state()._replace(step=jnp.zeros((), jnp.float32)), ("step is int32 ()", "float32 ()"))])
def test_another_model_is_refused_by_leaf_and_shapes(tmp_path, make, words):
  checkpoints = saved(tmp_path)
  with pytest.raises(CheckpointError) as error:
    checkpoints.restore(jax.eval_shape(make))
  for word in words:
    assert word in str(error.value)


def test_a_failed_save_is_reported_with_the_path(tmp_path):
  checkpoints = saved(tmp_path)
  shutil.rmtree(tmp_path / "checkpoints")
  (tmp_path / "checkpoints").write_text("in the way")
  with pytest.raises(CheckpointError, match=f"saving to {tmp_path}/checkpoints failed"):
    checkpoints.save(3, make_state(3), {})


def test_meta_that_is_no_json_is_the_callers_mistake(tmp_path):
  with pytest.raises(TypeError):
    Checkpoints(tmp_path).save(1, make_state(1), {"rows": np.ones(2)})
  with pytest.raises(ValueError, match="config.checkpoint.keep_last=0 must be at least 1"):
    Checkpoints(tmp_path, keep_last=0)


WORKER = """
import sys
import jax, numpy as np
from atlas_jax.checkpoint import CheckpointError, Checkpoints
from atlas_jax.parallel import hosts, mesh as meshes, place
from tests.test_checkpoint import abstract, make_state, placed, truncate
port, rank, workdir = sys.argv[1], int(sys.argv[2]), sys.argv[3]
hosts.start(f"127.0.0.1:{port}", 2, rank)
mesh = meshes.make(data=2, fsdp=2)
rows = np.arange(rank * 4, rank * 4 + 4, dtype=np.int32)
assert int(jax.jit(lambda x: (x ** 2).sum())(hosts.global_batch(mesh, rows))) == 140
stop = hosts.StopFlag(mesh)
stop.signal_name = "SIGTERM" if rank == 1 else None
assert stop.agreed(jax.jit(lambda x: x.sum())(stop.array()))
state = placed(make_state(4), data=2, fsdp=2)
checkpoints = Checkpoints(workdir, keep_last=2)
for step in (3, 4):
  checkpoints.save(step, state, {"step": step})
again, meta = checkpoints.restore(abstract(make_state(), data=1, fsdp=2, tensor=2))
same = jax.tree.map(lambda a, b: bool(jax.jit(lambda a, b: (a == b).all())(a, b)), again, make_state(4))
assert all(jax.tree.leaves(same)) and meta == {"step": 4}
if rank == 0:
  (checkpoints.path / "4" / "files.json").unlink()
try:
  checkpoints.restore(abstract(make_state(), data=2, fsdp=2))
except CheckpointError as error:
  print("REFUSED", error)
checkpoints.close()
"""


def test_two_processes_write_one_checkpoint_that_one_process_reads(tmp_path):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  env = {**os.environ, "JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
  root = Path(__file__).parents[1]
  workers = [subprocess.Popen(
      [sys.executable, "-c", WORKER, str(port), str(rank), str(tmp_path)], env=env, cwd=root,
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for rank in (0, 1)]
  try:
    texts = [worker.communicate(timeout=120)[0] for worker in workers]
  finally:
    for worker in workers:
      worker.kill()
  for worker, text in zip(workers, texts):
    assert worker.returncode == 0, text
    assert "REFUSED" in text
    assert "checkpoints/3: move 4 away" in text
  checkpoints = Checkpoints(tmp_path, read_only=True)
  assert_same(checkpoints.restore(abstract(make_state()), step=3)[0], make_state(4))
  inventory = json.loads((tmp_path / "checkpoints" / "3" / "files.json").read_text())
  assert any("process_1" in name for name in inventory)
