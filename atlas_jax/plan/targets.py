"""Machines that a run can be planned for: memory, peaks and links, each number with its source and date.

The numbers stand in targets.json beside this file. A number is written [value, key of its source]; a value
that nobody has published is an assumption, and its source says so.
"""
import dataclasses
import datetime
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

from atlas_jax.files import json_file
from atlas_jax.plan import machine

TABLE = pathlib.Path(__file__).with_name("targets.json")
# Precisions of matrix products: bfloat16 (and float16) operands with float32 sums; float32 operands at jax's
# default precision, which is TensorFloat-32 on these GPUs and one bfloat16 pass on TPUs; and float32 operands
# at jax.lax.Precision.HIGHEST.
PRECISIONS = ("bfloat16", "float32", "float32_highest")
# Of the versions that compiled programs of this project, see `Target.gpu_target_config`.
DNN_VERSION, CUDA_VERSION = (9, 8), (12, 9)


@dataclasses.dataclass(frozen=True)
class Target:
  """One device of a machine, as jax counts devices.

  Attributes:
    name: of the target, such as "h100".
    kind: "gpu", "tpu" or "cpu".
    description: the device's name, as its maker or jax writes it.
    memory_bytes: that programs can ask for in all, as the device or its compiler reports it.
    reserved_bytes: of them, those that the runtime takes for itself.
    memory_bandwidth_bytes_s: reads and writes of the device's memory together.
    flops_s: FLOP/s of dense matrix products by PRECISIONS.
    vector_flops_s: FLOP/s of elementwise operations in float32.
    launch_s: time that a kernel takes beside its work; on a TPU or CPU that of an operation of the program.
    ici_bytes_s: to the other devices of the machine or slice, one way, over all links of the device.
    dcn_bytes_s: to other machines or slices, one way, this device's part of the host's network.
    gpu_target_config: text that XLA takes for a GPU which is not there, None for others.
    topology: how jax names a TPU's topologies, without their size ("v5e"), None for others.
    tile: how many rows and columns the matrix unit works on at once: a product whose sizes are no multiples
      is counted as if they were. 1 where it does not matter.
    transcendental_s: time of one exponential or the like, beside its one elementwise FLOP; 0 where it hides.
    rates: (side of a square product, FLOP/s) as measured, the smallest first; empty where the peak alone is
      known.
    sources: dotted field -> title, address and date of the number's source.
  """

  name: str
  kind: str
  description: str
  memory_bytes: int
  reserved_bytes: int
  memory_bandwidth_bytes_s: float
  flops_s: Mapping[str, float]
  vector_flops_s: float
  launch_s: float
  ici_bytes_s: float
  dcn_bytes_s: float
  gpu_target_config: str | None = None
  topology: str | None = None
  tile: int = 1
  transcendental_s: float = 0.0
  rates: tuple[tuple[float, float], ...] = ()
  sources: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)

  @property
  def limit_bytes(self) -> int:
    """Returns how many bytes a program can have."""
    return self.memory_bytes - self.reserved_bytes


@functools.cache
def _table() -> dict[str, Any]:
  return json_file.read(TABLE, remedy="install the package again")


def names() -> list[str]:
  """Lists the targets of the table, and cpu: this machine, which is measured."""
  return [*_table()["targets"], "cpu"]


@functools.cache
def load(name: str) -> Target:
  """Returns a target of the table; cpu is this machine, which is measured for some seconds, once a process.

  Raises:
    ValueError: if the table has no such target.
  """
  entries = _table()["targets"]
  if name == "cpu":
    return of_machine(machine.measure())
  if name not in entries:
    raise ValueError(f"--target={name} is unknown; it must be one of {', '.join(names())}")
  entry = entries[name]
  values = _without_sources(entry)
  described = values.pop("gpu_device_info", None)
  text = None if described is None else _target_config(described, values["description"])
  return Target(name=name, **values, gpu_target_config=text, sources=_sources_of(entry))


def of_machine(measured: Mapping[str, Any]) -> Target:
  """Returns this machine as a target, of what `machine.measure` gives."""
  source = {"title": "measured on this machine", "url": "", "date": datetime.date.today().isoformat()}
  return Target(name="cpu", kind="cpu", **measured, sources={"": source})


def peak_of_kind(kind: str) -> float | None:
  """Returns the peak FLOP/s of dense bfloat16 products of a device kind as jax names it, None if unknown.

  The first entry found in the kind decides, so longer names stand first.
  """
  for part, peak in _table()["device_kinds"]:
    if part in kind.lower():
      return load(peak).flops_s["bfloat16"] if isinstance(peak, str) else float(peak[0])
  return None


def name_of_kind(kind: str) -> str | None:
  """Returns the target that is a device kind as jax names it, None if the table has none."""
  found = next((peak for part, peak in _table()["device_kinds"] if part in kind.lower()), None)
  return found if isinstance(found, str) else None


def _is_number(value) -> bool:
  return isinstance(value, list) and len(value) == 2 and isinstance(value[1], str)


def _without_sources(value):
  if isinstance(value, dict):
    return {name: _without_sources(part) for name, part in value.items()}
  return value[0] if _is_number(value) else value


def _sources_of(value, prefix: str = "") -> dict[str, Mapping[str, str]]:
  if _is_number(value):
    return {prefix: _table()["sources"][value[1]]}
  found = {}
  for name, part in value.items() if isinstance(value, dict) else ():
    found.update(_sources_of(part, f"{prefix}.{name}" if prefix else name))
  return found


def _target_config(described: Mapping[str, Any], description: str) -> str:
  """Writes the text proto of a GPU: XLA's GpuTargetConfigProto, with the fields that its compiler needs."""
  lines = _proto({"gpu_device_info": described, "platform_name": "CUDA",
                  "dnn_version_info": dict(zip(("major", "minor"), DNN_VERSION)),
                  "runtime_version": dict(zip(("major", "minor"), CUDA_VERSION)),
                  "device_description_str": description})
  return "\n".join(lines) + "\n"


def _proto(fields: Mapping[str, Any], indent: str = "") -> list[str]:
  lines = []
  for name, value in fields.items():
    if isinstance(value, Mapping):
      lines += [f"{indent}{name} {{", *_proto(value, indent + "  "), f"{indent}}}"]
    else:
      lines.append(f"{indent}{name}: " + (f'"{value}"' if isinstance(value, str) else f"{value}"))
  return lines
