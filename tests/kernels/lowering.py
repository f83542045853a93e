"""Lowers functions for a device that is not there, which runs the kernel compilers' front ends."""

import contextlib

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
  """Gives the text of a function's program for "cuda" or "tpu"."""
  with _device(platform):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
