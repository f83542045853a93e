"""Costs of a step: FLOPs of its matrix products, the device's peak, memory in use."""
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import logging

from atlas_jax.plan import count, targets

GIB = 2**30


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

  See `plan.count`: scans count by their length, a condition by its dearest branch, Pallas kernels by their
  grid, shard_map by its devices. Recomputation that remat asks for is counted where it is traced, so model
  FLOPs are those of the model without remat.

  Args:
    function: any jax function; its gradient or whole step too.
    args: arrays or ShapeDtypeStructs; nothing is computed.
  """
  found = count.count(jax.make_jaxpr(function)(*args), unused=True, traffic=False)
  # A loop without products costs nothing here, however often it turns: it is no reason for a warning.
  return FlopCount(int(found.total().product_flops), sum(flops > 0 for _, flops in found.open_loops))


def device_peak_flops(device=None) -> float | None:
  """Returns the peak FLOP/s of a device, the first one if None; None where it is unknown.

  It is from the table of `plan.targets`, or of a CPU measured. A CPU's figure is that of the whole machine in
  float32, however many virtual devices it is cut into.
  """
  device = device or jax.local_devices()[0]
  if device.platform == "cpu":
    return measured_flops(device)
  return targets.peak_of_kind(device.device_kind)


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
