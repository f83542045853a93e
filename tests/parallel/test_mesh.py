"""The mesh, its refusals, and slices that a slow network joins."""
import itertools
import types

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from atlas_jax import state as states
from atlas_jax import step as stepping
from atlas_jax import train
from atlas_jax.parallel import hosts
from atlas_jax.parallel import mesh as meshes
from tests import runs


def test_data_takes_the_devices_that_are_left():
  mesh = meshes.make(data=-1, fsdp=2, tensor=2)
  assert dict(mesh.shape) == {"data": jax.device_count() // 4, "fsdp": 2, "tensor": 2}
  assert set(mesh.axis_types) == {AxisType.Auto}


def test_one_device_makes_a_mesh_of_one():
  mesh = meshes.make(devices=jax.devices()[:1])
  assert mesh.size == 1
  assert meshes.n_row_shards(mesh) == 1


@pytest.mark.parametrize(("sizes", "words"), [
    (dict(fsdp=3), ("config.mesh.fsdp=3", "8 devices", "[1, 2, 4, 8]")),
    (dict(data=2), ("config.mesh.data=2", "needs 2", "has 8", "config.mesh.data=-1")),
    (dict(data=16), ("config.mesh.data=16", "needs 16", "has 8")),
    (dict(tensor=0), ("config.mesh.tensor=0", "at least 1")),
    (dict(data=0), ("config.mesh.data=0", "-1")),
    (dict(dcn_data=0), ("config.mesh.dcn_data=0", "at least 1")),
    (dict(fsdp=4, dcn_data=4), ("config.mesh.dcn_data=4", "config.mesh.data=2", "[1, 2]"))])
def test_sizes_that_do_not_fit_are_refused_by_name(sizes, words):
  with pytest.raises(ValueError) as error:
    meshes.make(**sizes)
  for word in words:
    assert word in str(error.value)


def test_a_batch_splits_its_rows_over_data_and_fsdp():
  mesh = meshes.make(fsdp=2, tensor=2)
  assert meshes.batch_sharding(mesh).spec == PartitionSpec(("data", "fsdp"))
  meshes.check_rows(mesh, 12)
  with pytest.raises(ValueError, match=r"config.data.batch_rows=6 .* = 4; nearest are 4 and 8"):
    meshes.check_rows(mesh, 6)


def pretended(slices: int, per_slice: int, *, per_process: int = 4, platform: str = "gpu"):
  """Devices of several slices in a mixed order, as far as arranging looks at them."""
  devices = [types.SimpleNamespace(slice_index=i // per_slice, process_index=i // per_process, id=i,
                                   platform=platform, device_kind="pretended")
             for i in range(slices * per_slice)]
  return [devices[i] for i in np.random.default_rng(0).permutation(len(devices))]


@pytest.mark.parametrize("slices, dcn_data", [(2, 2), (4, 2), (2, 4)])
def test_neighbours_along_fsdp_and_tensor_lie_in_one_slice(slices, dcn_data):
  arranged = meshes._over_slices(pretended(slices, 16 // slices), (4, 2, 2), dcn_data)
  assert arranged.shape == (4, 2, 2) and len({device.id for device in arranged.flat}) == 16
  for row in arranged:
    assert len({device.slice_index for device in row.flat}) == 1
  # Along data come first the rows of a slice, then those of the next: a slice adds up gradients by itself.
  groups = [{device.slice_index for device in part.flat} for part in np.split(arranged, dcn_data)]
  assert all(left.isdisjoint(right) or left == right for left, right in itertools.combinations(groups, 2))


def test_simulated_devices_lie_in_slices_by_their_order():
  mesh = meshes.make(fsdp=2, dcn_data=2, devices=jax.devices()[::-1])
  assert [[device.id for device in row.flat] for row in mesh.devices] == [[0, 1], [2, 3], [4, 5], [6, 7]]
  assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1}


def test_slices_that_are_not_those_of_the_devices_are_refused():
  with pytest.raises(ValueError, match="dcn_data=1, and the 8 devices .* lie in 2 slices; set config.mesh"):
    meshes.make(devices=pretended(2, 4, platform="tpu"))
  with pytest.raises(ValueError, match="config.mesh.dcn_data=3 parts 12 devices in the middle"):
    meshes._over_slices(pretended(2, 6), (3, 4, 1), 3)


def losses_on(mesh):
  """Losses of three updates of a toy."""
  config = runs.toy_config(data__batch_rows=8, mesh__fsdp=2)
  recipe = runs.toy_recipe(config)
  abstract, _ = train.abstract_state(config, recipe, mesh)
  frozen = states.first(recipe.init, config.seed).frozen
  state = states.build(abstract, *train.state_args(config, recipe))
  step, losses = stepping.jit_step(config, recipe, mesh, state), []
  with hosts.StopFlag(mesh) as stop:
    for _ in range(3):
      state, metrics = step(state, hosts.global_batch(mesh, recipe.source.next(None)), frozen, stop.array())
      losses.append(float(metrics["train/loss_nats"]))
  return losses


def test_slices_change_no_loss():
  mixed = [jax.devices()[i] for i in (0, 2, 4, 6, 1, 3, 5, 7)]
  flat, hybrid = meshes.make(fsdp=2, devices=mixed), meshes.make(fsdp=2, dcn_data=2)
  assert flat != hybrid
  first = losses_on(flat)
  assert len(set(first)) == 3
  np.testing.assert_allclose(losses_on(hybrid), first, rtol=1e-6)
