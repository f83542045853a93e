"""Lowers functions for a device that is not there, and counts what compiled programs do."""

import collections
import contextlib
import re

import jax
from jax.sharding import AbstractMesh, AxisType


def _device(platform):
  """From jax 0.11 on, kernels for GPUs ask which one it is."""
  if platform != "cuda" or not hasattr(jax.sharding, "AbstractDevice"):
    return contextlib.nullcontext()
  gpu = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
  mesh = AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=gpu)
  return jax.sharding.use_abstract_mesh(mesh)


def lower(function, *arguments, platform):
  """Returns the text of a function's program for "cuda" or "tpu"."""
  with _device(platform):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-broadcast", "collective-permute",
               "ragged-all-to-all", "reduce-scatter")  # fmt: skip


def collectives(text):
  """Counts the messages between devices in a compiled program, by their kind."""
  called = re.findall(rf" ({'|'.join(COLLECTIVES)})(?:-start)?\(", text)
  return dict(collections.Counter(called))


def shapes(text):
  """Returns the shapes of all arrays in a compiled program: what one device holds of them."""
  found = re.findall(r"\b[a-z]+\d+\[(\d+(?:,\d+)*)\]", text)
  return {tuple(int(size) for size in sizes.split(",")) for sizes in found}
