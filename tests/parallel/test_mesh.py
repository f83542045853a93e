"""The mesh and its refusals."""
import jax
import pytest
from jax.sharding import AxisType, PartitionSpec

from atlas_jax.parallel import mesh as meshes


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
    (dict(data=0), ("config.mesh.data=0", "-1"))])
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
