"""The one mesh: axes data (rows), fsdp (rows, and parameters split), tensor (heads and widths split)."""
import itertools
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# tensor comes last, since neighbours along the last axis are the nearest devices: they exchange activations
# in every layer, while devices along fsdp exchange parameters, and along data gradients alone.
AXES = ("data", "fsdp", "tensor")
ROW_AXES = ("data", "fsdp")  # A batch's rows are split over both.


def make(data: int = -1, fsdp: int = 1, tensor: int = 1, dcn_data: int = 1, *, devices=None) -> Mesh:
  """Makes the mesh of all devices.

  Args:
    data: devices that hold different rows and the same parameters; -1 takes what fsdp and tensor leave.
    fsdp: devices that hold different rows and different parts of the parameters.
    tensor: devices that hold the same rows and split heads and widths.
    dcn_data: slices of devices, each with a fast network inside (ICI, NVLink) and a slow one between them
      (DCN). The axis data runs over slices first; fsdp and tensor stay within a slice.
    devices: the devices to use; all of them, over all processes, if None.

  Raises:
    ValueError: if the sizes do not use up the devices exactly, or do not fit the slices that there are.
  """
  devices = jax.devices() if devices is None else list(devices)
  shape = shape_of(len(devices), data, fsdp, tensor, dcn_data, kind=devices[0].device_kind)
  if (slices := n_slices(devices)) > 1 and slices != dcn_data:
    raise ValueError(f"config.mesh.dcn_data={dcn_data}, and the {len(devices)} devices of this run "
                     f"({devices[0].device_kind}) lie in {slices} slices; set config.mesh.dcn_data={slices}")
  # Auto: arguments and results of the step have shardings, and the compiler decides on all in between.
  axis_types = (AxisType.Auto,) * len(AXES)
  if dcn_data > 1:
    return Mesh(_over_slices(devices, shape, dcn_data), AXES, axis_types=axis_types)
  # Positional: the first argument is named axis_shapes in jax 0.10 and axis_sizes in jax 0.11.
  return jax.make_mesh(shape, AXES, axis_types=axis_types, devices=devices)


def shape_of(n_devices: int, data: int, fsdp: int, tensor: int, dcn_data: int, *,
             kind: str = "planned") -> tuple[int, int, int]:
  """Returns the sizes of the axes on so many devices; `kind` names them in errors.

  Raises:
    ValueError: if the sizes do not use up the devices exactly.
  """
  for name, size in (("fsdp", fsdp), ("tensor", tensor), ("dcn_data", dcn_data)):
    if size < 1:
      raise ValueError(f"config.mesh.{name}={size} must be at least 1; 1 switches this split off")
  if data < 1 and data != -1:
    raise ValueError(f"config.mesh.data={data} must be at least 1, or -1 for the devices that are left")
  data = _rest(n_devices, fsdp, tensor) if data == -1 else data
  if data * fsdp * tensor != n_devices:
    raise ValueError(
        f"config.mesh.data={data} x fsdp={fsdp} x tensor={tensor} needs {data * fsdp * tensor} "
        f"devices, this run has {n_devices} ({kind}); set config.mesh.data=-1 to take "
        "what is left")
  if data % dcn_data:
    raise ValueError(
        f"config.mesh.dcn_data={dcn_data} does not divide config.mesh.data={data}: every slice holds whole "
        f"copies of the parameters, on fsdp={fsdp} x tensor={tensor} devices each; make dcn_data one of "
        f"{_divisors(data)}")
  return data, fsdp, tensor


def n_slices(devices) -> int:
  """Returns in how many slices TPUs lie; 1 for other devices, which reach each other without a topology."""
  if devices[0].platform != "tpu":
    return 1
  return len({getattr(device, "slice_index", 0) for device in devices})


def _over_slices(devices: Sequence, shape: tuple[int, int, int], dcn_data: int) -> np.ndarray:
  """Arranges devices so that a step along fsdp or tensor stays within a slice."""
  # Devices that are no TPUs lie in slices by their order: those of a machine, and of machines that are
  # numbered one behind the other, lie together. GPUs count what NVLink joins as a slice.
  ordered = sorted(devices, key=lambda device: (getattr(device, "slice_index", 0), device.process_index,
                                                device.id))
  size = len(ordered) // dcn_data
  slices = [ordered[first:first + size] for first in range(0, len(ordered), size)]
  joined = [{getattr(device, "slice_index", 0) for device in one} for one in slices]
  if any(len(left | right) < len(left) + len(right) and len(left | right) > 1
         for left, right in itertools.pairwise(joined)):
    raise ValueError(f"config.mesh.dcn_data={dcn_data} parts {len(ordered)} devices in the middle of those "
                     f"that a fast network joins, of which there are {len(set().union(*joined))} groups; "
                     "make it a divisor or a multiple of that")
  within = (shape[0] // dcn_data, *shape[1:])
  # Axes of one torus may be split, as jax.make_mesh does: fsdp=8 lies on half of 4 x 4.
  return np.concatenate([mesh_utils.create_device_mesh(within, one, allow_split_physical_axes=True)
                         for one in slices])


def _rest(n_devices: int, fsdp: int, tensor: int) -> int:
  if n_devices % (fsdp * tensor):
    raise ValueError(
        f"config.mesh.fsdp={fsdp} x config.mesh.tensor={tensor} does not divide the {n_devices} devices of "
        f"this run; choose sizes whose product is one of {_divisors(n_devices)}")
  return n_devices // (fsdp * tensor)


def _divisors(number: int) -> list[int]:
  return [part for part in range(1, number + 1) if number % part == 0]


def n_row_shards(mesh: Mesh) -> int:
  """Returns into how many parts a batch's rows are split."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Splits the leading axis, rows, over data and fsdp; other axes stay whole."""
  return NamedSharding(mesh, PartitionSpec(ROW_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """Puts a whole copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def check_rows(mesh: Mesh, batch_rows: int) -> None:
  """Refuses a number of rows that the mesh cannot split evenly."""
  shards = n_row_shards(mesh)
  if batch_rows % shards:
    raise ValueError(
        f"config.data.batch_rows={batch_rows} is not a multiple of config.mesh.data x fsdp = {shards}; "
        f"nearest are {batch_rows // shards * shards or shards} and {(batch_rows // shards + 1) * shards}")
