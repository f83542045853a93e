"""The one mesh: axes data (rows), fsdp (rows, and parameters split), tensor (heads and widths split)."""
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# tensor comes last, since neighbours along the last axis are the nearest devices: they exchange activations
# in every layer, while devices along fsdp exchange parameters, and along data gradients alone.
AXES = ("data", "fsdp", "tensor")
ROW_AXES = ("data", "fsdp")  # A batch's rows are split over both.


def make(data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices=None) -> Mesh:
  """Makes the mesh of all devices.

  Args:
    data: devices that hold different rows and the same parameters; -1 takes what fsdp and tensor leave.
    fsdp: devices that hold different rows and different parts of the parameters.
    tensor: devices that hold the same rows and split heads and widths.
    devices: the devices to use; all of them, over all processes, if None.

  Raises:
    ValueError: if the sizes do not use up the devices exactly.
  """
  devices = jax.devices() if devices is None else list(devices)
  for name, size in (("fsdp", fsdp), ("tensor", tensor)):
    if size < 1:
      raise ValueError(f"config.mesh.{name}={size} must be at least 1; 1 switches this split off")
  if data < 1 and data != -1:
    raise ValueError(f"config.mesh.data={data} must be at least 1, or -1 for the devices that are left")
  shape = (_rest(len(devices), fsdp, tensor) if data == -1 else data, fsdp, tensor)
  if shape[0] * fsdp * tensor != len(devices):
    raise ValueError(
        f"config.mesh.data={shape[0]} x fsdp={fsdp} x tensor={tensor} needs {shape[0] * fsdp * tensor} "
        f"devices, this run has {len(devices)} ({devices[0].device_kind}); set config.mesh.data=-1 to take "
        "what is left")
  # Auto: arguments and results of the step have shardings, and the compiler decides on all in between.
  # Positional: the first argument is named axis_shapes in jax 0.10 and axis_sizes in jax 0.11.
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


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
