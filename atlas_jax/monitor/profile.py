"""Costs of a step: FLOPs of its matrix products, the device's peak, memory in use."""
import functools
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import logging

GIB = 2**30
# Dense bfloat16 with float32 sums, FLOP/s of one jax device, from the makers' data sheets. The first entry
# found in a device's kind decides, so longer names stand first.
PEAK_FLOPS = (
    ("h100 pcie", 756e12),
    ("h100 nvl", 835e12),
    ("h100", 989e12),
    ("gh200", 989e12),
    ("h200", 989e12),
    ("b200", 2250e12),
    ("a100", 312e12),
    ("l40s", 362e12),
    ("rtx 5090", 209e12),
    ("rtx 4090", 165e12),
    ("tpu v6 lite", 918e12),
    ("tpu v6e", 918e12),
    ("tpu v5 lite", 197e12),
    ("tpu v5e", 197e12),
    ("tpu v5p", 459e12),
    ("tpu v5", 459e12),
    ("tpu v4", 275e12),
)


class FlopCount(NamedTuple):
  """FLOPs of all matrix products; a loop of unknown length is counted as one turn and is in `open_loops`."""

  flops: int
  open_loops: int


def matmul_flops(function: Callable, *args) -> int:
  """Returns the FLOPs of one call's matrix products; warns if a loop of unknown length counts as one turn."""
  count = count_flops(function, *args)
  if count.open_loops:
    logging.warning("%d loops of unknown length count as one turn each: FLOPs are too low", count.open_loops)
  return count.flops


def count_flops(function: Callable, *args) -> FlopCount:
  """Counts the FLOPs of the dot products that one call of `function` makes.

  It walks the traced program: scans count by their length, a condition by its dearest branch, Pallas kernels
  by their grid, shard_map by its devices. A product of n x k by k x m is 2 n k m. Recomputation that remat
  asks for is counted where it is traced, so model FLOPs are those of the model without remat.

  Args:
    function: any jax function; its gradient or whole step too.
    args: arrays or ShapeDtypeStructs; nothing is computed.
  """
  return _count(jax.make_jaxpr(function)(*args))


def _count(jaxpr) -> FlopCount:
  counts = [_count_equation(equation) for equation in jaxpr.eqns]
  return FlopCount(sum(count.flops for count in counts), sum(count.open_loops for count in counts))


def _count_equation(equation) -> FlopCount:
  name = equation.primitive.name
  params = equation.params
  if name == "dot_general":
    # Axes that are summed count once, those of the result once; batch axes are among the latter.
    (contracted, _), _ = params["dimension_numbers"]
    sizes = [equation.invars[0].aval.shape[axis] for axis in contracted]
    return FlopCount(2 * math.prod(equation.outvars[0].aval.shape) * math.prod(sizes), 0)
  inner = [_count(jaxpr) for value in params.values() for jaxpr in _jaxprs(value)]
  # Only one branch runs, and which is not known: the dearest bounds it.
  if name == "cond":
    return max(inner)
  total = FlopCount(sum(count.flops for count in inner), sum(count.open_loops for count in inner))
  if name == "while":
    # A loop without products costs nothing here, however often it turns: it is no reason for a warning.
    return total._replace(open_loops=total.open_loops + (total.flops > 0))
  return total._replace(flops=total.flops * _turns(name, params))


def _turns(name: str, params) -> int:
  if name == "scan":
    return params["length"]
  if name == "pallas_call":
    grid = params["grid_mapping"].grid
    # A size that is known only at run time counts as one.
    return math.prod(size if isinstance(size, int) else 1 for size in grid)
  if name == "shard_map":
    # Inside, shapes are those of one device; axes that were manual before are counted further out.
    return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
  return 1


def _jaxprs(value) -> Iterator:
  # Inner programs stand in the parameters of an equation, alone or in tuples, under names that differ.
  if hasattr(value, "eqns"):
    yield value
  elif isinstance(value, tuple | list):
    for item in value:
      yield from _jaxprs(item)


def device_peak_flops(device=None) -> float | None:
  """Returns the peak FLOP/s of a device, the first one if None: from PEAK_FLOPS, on CPU measured, else None.

  A CPU's figure is that of the whole machine in float32, however many virtual devices it is cut into.
  """
  device = device or jax.local_devices()[0]
  if device.platform == "cpu":
    return measured_flops(device)
  kind = device.device_kind.lower()
  return next((flops for part, flops in PEAK_FLOPS if part in kind), None)


def run_peak_flops(devices=None) -> float | None:
  """Adds up the peak FLOP/s of a run's devices; virtual CPU devices of a process count as one machine."""
  devices = jax.devices() if devices is None else devices
  peak = device_peak_flops()
  if peak is None:
    return None
  # The virtual devices of a process are cut from one CPU, whose peak was measured as a whole.
  shared = devices[0].platform == "cpu"
  return peak * (len({device.process_index for device in devices}) if shared else len(devices))


@functools.cache
def measured_flops(device, *, n: int = 1024, repeats: int = 7) -> float:
  """Measures FLOP/s of a float32 product of two n x n matrices: the fastest of several, after a warm-up.

  What else the machine does can only slow a product down: the fastest is nearest to the peak. A process
  measures once, however many runs it makes.
  """
  square = jax.device_put(jnp.ones((n, n), jnp.float32), device)
  product = jax.jit(jnp.dot)
  # The first call compiles.
  product(square, square).block_until_ready()
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    product(square, square).block_until_ready()
    seconds.append(time.perf_counter() - start)
  return 2 * n**3 / min(seconds)


def device_memory() -> dict[str, float]:
  """Returns the memory in use as metrics: of the fullest device here, of this process if none says."""
  stats = [device.memory_stats() for device in jax.local_devices()]
  known = [each for each in stats if each]
  if not known:
    return {"perf/host_memory_gib": _resident_bytes() / GIB}
  # The fullest device decides whether a run fits, and splits are seldom even.
  metrics = {"perf/device_memory_gib": max(each["bytes_in_use"] for each in known) / GIB}
  if all("peak_bytes_in_use" in each for each in known):
    metrics["perf/device_memory_peak_gib"] = max(each["peak_bytes_in_use"] for each in known) / GIB
  return metrics


def _resident_bytes() -> int:
  statm = Path("/proc/self/statm")
  if statm.exists():
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
  import resource  # macOS has no /proc; its figure is the highest so far, in bytes.
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
