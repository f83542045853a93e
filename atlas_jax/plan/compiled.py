"""Compilation of an update for machines that are not there, and what the compiler says of it."""
import contextlib
import dataclasses
import logging as standard_logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from atlas_jax.kernels import platform as kernels
from atlas_jax.parallel import mesh as meshes
from atlas_jax.plan import hlo
from atlas_jax.plan.targets import Target
from atlas_jax.plan.update import Planned, on_mesh

# TPU topologies by number of chips: the shape that a slice of so many has, and chips of one host.
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
TPU_SHAPES = {"v5e": _FLAT, "v6e": _FLAT,
              "v5p": {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8"}}
MISSING = ("--mode=plan with --target={name} needs the compiler of that machine: pip install "
           "'atlas_jax[plan]'")


@dataclasses.dataclass(frozen=True)
class DeviceMemory:
  """The compiler's own account of one device's memory, in bytes."""

  arguments: int  # parameters, optimizer, batch
  outputs: int  # that share no memory with arguments
  temporaries: int
  code: int

  @property
  def peak(self) -> int:
    """Returns how much is held at most."""
    return self.arguments + self.outputs + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Compiled:
  """An update compiled for a target."""

  memory: DeviceMemory
  program: hlo.Schedule
  seconds: float  # that lowering and compiling took
  text: str  # of the compiled program


def devices(target: Target, count: int, *, slices: int = 1) -> Sequence[Any]:
  """Returns devices of a target to compile for, none of which need exist.

  Args:
    target: see `targets.load`.
    count: how many, over all slices.
    slices: of TPUs, or machines of GPUs, connected by the hosts' network.

  Raises:
    ValueError: if the machine comes in no such number.
    ModuleNotFoundError: without the extra `plan`.
  """
  if target.kind == "cpu":
    return _cpus(count)
  from jax.experimental import topologies
  with _quiet():
    try:
      if target.kind == "tpu":
        found = topologies.get_topology_desc(platform="tpu", **_tpu(target, count, slices))
      else:
        found = topologies.get_topology_desc(platform="cuda", target_config=target.gpu_target_config,
                                             topology=f"{slices}x{count // slices}x1")
    except (RuntimeError, NotImplementedError, AssertionError) as error:
      if _has_compiler(target.kind):
        raise ValueError(f"--target={target.name} --devices={count}: {str(error).splitlines()[0]}") from error
      raise ModuleNotFoundError(MISSING.format(name=target.name), name="atlas_jax[plan]") from error
  if len(found.devices) != count:
    raise ValueError(f"--devices={count}: jax lays out {len(found.devices)} for --target={target.name}")
  return found.devices


def _cpus(count: int) -> Sequence[Any]:
  found = jax.local_devices(backend="cpu")
  if count > len(found):
    raise ValueError(f"--target=cpu --devices={count}: this process has {len(found)}; set "
                     f"JAX_NUM_CPU_DEVICES={count} before the program starts")
  return found[:count]


def _tpu(target: Target, count: int, slices: int) -> dict[str, Any]:
  shapes = TPU_SHAPES[str(target.topology)]
  if count % slices or count // slices not in shapes:
    raise ValueError(f"--target={target.name} --devices={count}: a slice has one of "
                     f"{', '.join(map(str, shapes))} chips, and config.mesh.dcn_data={slices} says how many "
                     "slices there are")
  shape = shapes[count // slices]
  named: dict[str, Any] = {"topology_name": f"{target.topology}:{shape}"}
  if count // slices == 1:
    named["chips_per_host_bounds"] = (1, 1, 1)
  if slices > 1 or count == 1:
    named["num_slices"] = slices
  return named


def _has_compiler(kind: str) -> bool:
  from importlib.util import find_spec
  return find_spec("libtpu" if kind == "tpu" else "jax_cuda12_plugin") is not None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Silences what the plugins say of devices that they do not find."""
  # libtpu asks a cloud's metadata server where it is, and waits for the answer.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  # One process at a time has a TPU; its compiler any number can have, several plans too.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  logger = standard_logging.getLogger("jax._src.xla_bridge")
  level = logger.level
  logger.setLevel(standard_logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(level)


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
  """Leaves the cache of compiled programs alone: those of machines that are not there cannot be read back."""
  before = jax.config.values["jax_enable_compilation_cache"]
  jax.config.update("jax_enable_compilation_cache", False)
  try:
    yield
  finally:
    jax.config.update("jax_enable_compilation_cache", before)


def mesh_of(config, target: Target, count: int) -> Mesh:
  """Makes the mesh of a config over so many devices of a target; see `parallel.mesh.make`."""
  return meshes.make(**config.mesh, devices=devices(target, count, slices=config.mesh.dcn_data))


def compile_for(planned: Planned, target: Target, mesh: Mesh) -> Compiled:
  """Compiles the update of a plan for the devices of a mesh.

  Raises:
    ValueError: if the compiler refuses, with its words; see also `update.on_mesh`.
  """
  began = time.perf_counter()
  update = on_mesh(planned, mesh)
  with kernels.compiling_for({"gpu": "gpu", "tpu": "tpu", "cpu": "cpu"}[target.kind]):
    lowered = update.function.lower(*update.args)
  with _uncached():
    compiled = lowered.compile()
  found = compiled.memory_analysis()
  memory = DeviceMemory(found.argument_size_in_bytes, found.output_size_in_bytes - found.alias_size_in_bytes,
                  found.temp_size_in_bytes, found.generated_code_size_in_bytes)
  text = compiled.as_text()
  return Compiled(memory, hlo.read(text, mesh.shape), time.perf_counter() - began, text)
