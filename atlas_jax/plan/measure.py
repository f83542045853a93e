"""Compares the estimate of a step with the step as measured on this machine.

  JAX_PLATFORMS=cpu python -m atlas_jax.plan.measure configs/memory_40m.py:cpu configs/modular.py
  JAX_PLATFORMS=cpu python -m atlas_jax.plan.measure configs/gkd.py:cpu --config.distill.teacher=runs/teacher

prints one JSON line a config. The run's first batch is used; nothing of the run is kept.
"""
import json
import statistics
import sys
import tempfile
import time
from typing import Any, NamedTuple

import jax

from atlas_jax import config as configs
from atlas_jax import recipes
from atlas_jax import state as states
from atlas_jax.command import read_config
from atlas_jax.files import closed_pipe
from atlas_jax.opening import abstract_state, frozen_of, state_args, with_steps
from atlas_jax.parallel import hosts
from atlas_jax.parallel import mesh as meshes
from atlas_jax.plan import machine, roofline, targets
from atlas_jax.plan.count import Counts, count
from atlas_jax.plan.targets import Target
from atlas_jax.state import LoadedParams, Trained
from atlas_jax.step import jit_step

STEPS = 5
ENOUGH_S = 3.0  # More steps are timed until all took so long: the fastest of many is the least disturbed.


class Measured(NamedTuple):
  """Seconds of a step, and what it costs.

  Attributes:
    seconds: of each step, without the first.
    cpu_seconds: that all cores together worked for it.
    counts: of the step.
    compile_s: of tracing and compilation.
  """

  seconds: list[float]
  cpu_seconds: list[float]
  counts: Counts
  compile_s: float


def measure(config, workdir: str, *, steps: int = STEPS, enough_s: float = ENOUGH_S) -> Measured:
  """Makes some updates of a config on one device, all with the first batch.

  Args:
    config: resolved; its number of steps may come with the data.
    workdir: for what the recipe keeps.
    steps: how many to time at least.
    enough_s: how long all of them take at least.
  """
  mesh = meshes.make(**{**config.mesh, "data": 1}, devices=jax.devices()[:1])
  recipe = recipes.load(config, mesh, workdir)
  config = with_steps(config, recipe)
  abstract, _ = abstract_state(config, recipe, mesh)
  loaded = LoadedParams() if recipe.load is None else recipe.load(mesh, True)
  frozen = frozen_of(config, recipe, mesh, loaded)
  state = states.build(abstract, *state_args(config, recipe), params=loaded.params, tables=loaded.tables)
  batch = hosts.global_batch(mesh, recipe.source.next(Trained(state.params, frozen, state.tables)))
  with hosts.StopFlag(mesh) as stop:
    start = time.perf_counter()
    traced = jit_step(config, recipe, mesh, state).trace(state, batch, frozen, stop.array())
    counts = count(traced.jaxpr)
    compiled = traced.lower().compile()
    compile_s = time.perf_counter() - start
    seconds = []
    cpu_seconds = []
    while len(seconds) <= steps or sum(seconds) < enough_s:
      start, cpu_start = time.perf_counter(), time.process_time()
      state, _ = jax.block_until_ready(compiled(state, batch, frozen, stop.array()))
      seconds.append(time.perf_counter() - start)
      cpu_seconds.append(time.process_time() - cpu_start)
  if hasattr(recipe.source, "close"):
    recipe.source.close()
  return Measured(seconds[1:], cpu_seconds[1:], counts, compile_s)


def row(name: str, measured: Measured, target: Target) -> dict[str, Any]:
  """Returns the comparison: estimate over the fastest step, and what the estimate is made of."""
  found = roofline.estimate(measured.counts, target)
  fastest = min(measured.seconds)
  total = measured.counts.total()
  return {"config": name, "ratio": round(found.step_s / fastest, 3), "estimate_s": found.step_s,
          "measured_s": fastest, "measured_median_s": statistics.median(measured.seconds),
          "measured_cpu_s": min(measured.cpu_seconds),
          "terms_s": found.terms, "largest_s": dict(found.largest), "flops": found.flops,
          "product_flops": total.product_flops, "bytes": found.bytes, "launches": found.launches,
          "open_loops": measured.counts.open_loops, "compile_s": measured.compile_s}


@closed_pipe.quiet
def main(names: list[str]) -> int:
  """Measures the configs that are named, prints a line for each; --config.GROUP.FIELD=VALUE changes all."""
  # Before and behind each config: a machine that other programs use is not the same all the time.
  peaks = machine.measure()
  changes = [name for name in names if name.startswith("--config.")]
  overrides = dict(change.removeprefix("--config.").split("=", 1) for change in changes)
  for name in (name for name in names if name not in changes):
    config = configs.resolve(read_config(name, overrides))
    with tempfile.TemporaryDirectory() as workdir:
      measured = measure(config, workdir)
    peaks = machine.better(peaks, machine.measure())
    print(json.dumps(row(name, measured, targets.of_machine(peaks))), flush=True)
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
