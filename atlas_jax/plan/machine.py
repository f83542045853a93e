"""Measures this machine's CPU as a target of plans: products of several sizes, vectors, memory, kernels."""
import os
import pathlib
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

SIZES = (8, 16, 32, 64, 128, 512)  # of square products
SMALL = 128  # Products up to this size are measured as a batch of them, larger ones alone.
BATCH_ELEMENTS = 2**18
VECTOR = 2**22  # numbers, 16 MiB: more than the caches near a core
CACHED = 2**14
CHAIN = 64  # small kernels that wait for one another
REPEATS = 5


def measure() -> dict[str, Any]:
  """Returns the fields of `targets.Target` but name, kind and sources, in a few seconds.

  Each is the fastest of several: whatever else the machine does can only slow it down.
  """
  rates = tuple((float(n), _product_rate(n)) for n in SIZES)
  vector, exponential = _vector_rates()
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  bandwidth = _bandwidth()
  peak = max(rate for _, rate in rates)
  return {"description": _processor(), "memory_bytes": memory, "reserved_bytes": 0,
          "memory_bandwidth_bytes_s": bandwidth,
          "flops_s": {"bfloat16": peak, "float32": peak, "float32_highest": peak},
          "vector_flops_s": vector, "transcendental_s": exponential, "launch_s": _kernel_s(),
          # Virtual devices of a CPU exchange arrays through its memory: read once, written once.
          "ici_bytes_s": bandwidth / 2, "dcn_bytes_s": bandwidth / 2, "rates": rates}


def better(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
  """Returns the faster of each number of two measurements: other programs disturb each at other moments."""
  rates = tuple((side, max(a, b)) for (side, a), (_, b) in zip(one["rates"], other["rates"]))
  peak = max(rate for _, rate in rates)
  found = {**one, "rates": rates, "flops_s": dict.fromkeys(one["flops_s"], peak)}
  for name in ("memory_bandwidth_bytes_s", "vector_flops_s", "ici_bytes_s", "dcn_bytes_s"):
    found[name] = max(one[name], other[name])
  for name in ("launch_s", "transcendental_s"):
    found[name] = min(one[name], other[name])
  return found


def _processor() -> str:
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  info = pathlib.Path("/proc/cpuinfo")
  lines = info.read_text().splitlines() if info.exists() else []
  names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
  return f"{names[0] if names else platform.machine()}, {cores} cores"


def _fastest(function: Callable, *args) -> float:
  device = jax.local_devices(backend="cpu")[0]
  args = jax.device_put(args, device)
  compiled = jax.jit(function).lower(*args).compile()
  seconds = []
  for _ in range(REPEATS + 1):
    start = time.perf_counter()
    jax.block_until_ready(compiled(*args))
    seconds.append(time.perf_counter() - start)
  return min(seconds)


def _product_rate(n: int) -> float:
  batch = max(BATCH_ELEMENTS // n**2, 1) if n <= SMALL else 1
  a = jnp.ones((batch, n, n), jnp.float32)
  seconds = _fastest(lambda x: jnp.einsum("bnk,bkm->bnm", x, x), a)
  return 2 * batch * n**3 / seconds


def _vector_rates() -> tuple[float, float]:
  """Returns elementwise FLOP/s in the cache, and the seconds of an exponential beside its FLOP."""
  turns = 64
  x = jnp.full((CACHED,), 0.5, jnp.float32)

  def chain(step):
    return lambda x: jax.lax.fori_loop(0, turns, lambda _, x: step(x), x)

  plain = _fastest(chain(lambda x: ((x * 0.5 + 0.25) * x - 0.1) * x + 0.3), x)
  exponential = _fastest(chain(lambda x: jnp.exp(x) * 0.3), x)
  rate = turns * CACHED * 6 / plain
  return rate, max(exponential / (turns * CACHED) - 2 / rate, 0.0)


def _bandwidth() -> float:
  x = jnp.ones((VECTOR,), jnp.float32)
  return 2 * x.nbytes / _fastest(lambda x: x + 1, x)


def _kernel_s() -> float:
  """Returns the time of a kernel that does little: sums over one axis, then the other."""
  def chain(x):
    for turn in range(CHAIN):
      axis = turn % 2
      x = x - jnp.expand_dims(jnp.sum(x, axis), axis)
    return x

  # By the count of `plan.fusion`: a sum, and what takes it away.
  return _fastest(chain, jnp.ones((32, 32), jnp.float32)) / (2 * CHAIN)
