"""The plan of a run: whether it fits a machine, what an update costs there, and advice where it does not fit.

All of it is of the run's own update, compiled for the machine and not run; the time is an estimate.
"""
import importlib.metadata
import math
from collections.abc import Mapping
from typing import Any

from absl import logging

from atlas_jax import tree
from atlas_jax.parallel import mesh as meshes
from atlas_jax.plan import advice, compiled, count, hlo, roofline, targets, update
from atlas_jax.plan.compiled import Compiled
from atlas_jax.plan.targets import Target
from atlas_jax.plan.update import Planned

GIB = 2**30
PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin")
HOST_GPUS = 8  # Of one machine; more are connected by its network.
SHOWN_PARTS = 12


def plan(config, target_name: str, n_devices: int = 1, *, command_config: str = "",
         advise: bool = True) -> dict:
  """Plans a run.

  Args:
    config: resolved.
    target_name: see `targets.names`.
    n_devices: of the run, over all slices.
    command_config: as the config was named, for the record.
    advise: whether to look for the smallest change that fits, where the config does not.

  Returns:
    JSON: fits, memory in bytes by the compiler's account, parameters, FLOPs and bytes of an update by part,
    kernels, collectives, estimate of the time with its terms, and advice.

  Raises:
    ValueError: for an unknown target, a number of devices that it does not come in, or a config that cannot
      be trained on them.
    ModuleNotFoundError: without the target's compiler, naming the extra.
  """
  target = targets.load(target_name)
  # Refused before the recipe is built, which may take long.
  mesh = compiled.mesh_of(config, target, n_devices)
  planned = update.prepare(config)
  logging.info("compiling the update of %s for %s x %d; this takes minutes", command_config, target_name,
               n_devices)
  found = compiled.compile_for(planned, target, mesh)
  result = describe(planned, target, mesh, found)
  result = {"config": command_config, "target": target_name, "devices": n_devices, **result,
            "versions": versions(), "is": "compiled, not run"}
  if not result["fits"] and advise:
    result["advice"] = advice.smallest_change(planned, target, mesh, found)
  return result


def versions() -> dict[str, str | None]:
  """Returns the versions of the packages that a plan depends on, None for those that are not installed."""
  found: dict[str, str | None] = {}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = None
  return found


def describe(planned: Planned, target: Target, mesh, found: Compiled) -> dict:
  """Returns what a compiled update costs on a target, as JSON."""
  config = planned.config
  on_mesh = update.on_mesh(planned, mesh)
  counts = count.count(on_mesh.function.trace(*on_mesh.args).jaxpr)
  exchanges = [roofline.Collective(one.kind, one.bytes / one.times,
                                   math.prod(mesh.shape[axis] for axis in one.axes),
                                   crosses_hosts(one, mesh, target, config.mesh.dcn_data), one.times)
               for one in found.program.collectives]
  time = roofline.estimate(counts, target, launches=found.program.kernels, collectives=exchanges,
                           devices=mesh.size)
  units, unit = units_of(planned)
  limit = target.limit_bytes
  return {
      "mesh": dict(mesh.shape), "fits": found.memory.peak <= limit,
      "memory": {"arguments": found.memory.arguments, "outputs": found.memory.outputs,
                 "temporaries": found.memory.temporaries, "code": found.memory.code,
                 "peak": found.memory.peak, "limit": limit, "spare": limit - found.memory.peak},
      "parameters": tree.count(on_mesh.state.params),
      "rows": config.data.batch_rows, "accumulate_steps": config.train.accumulate_steps,
      "made_up": list(planned.made_up),
      "flops": {"update": time.flops, "by_part": _by_part(counts, "flops", mesh.size)},
      "bytes": {"update": time.bytes, "by_part": _by_part(counts, "fused_bytes", mesh.size)},
      "open_loops": [path for path, _ in counts.open_loops],
      "program": {"kernels": found.program.kernels, "bytes": found.program.bytes,
                  "kernels_by_part": _first(found.program.kernels_by_part),
                  "bytes_by_part": _first(found.program.bytes_by_part),
                  "open_loops": found.program.open_loops},
      "collectives": [{"kind": one.kind, "axes": list(one.axes), "part": one.part, "count": one.times,
                       "bytes": one.bytes} for one in found.program.collectives],
      "estimate": {"step_s": time.step_s, "terms_s": time.terms,
                   "largest": [{"term": name, "seconds": seconds} for name, seconds in time.largest],
                   f"{unit}_per_s": units / time.step_s,
                   "hours": time.step_s * config.optim.steps / 3600, "updates": config.optim.steps},
      "compile_s": round(found.seconds, 1), "advice": None}


def units_of(planned: Planned) -> tuple[int, str]:
  """Returns how much an update reads, and of what: tokens of a text, else rows of a batch."""
  batch = planned.batch
  if planned.recipe.accounting.unit == "tokens" and isinstance(batch, Mapping) and "tokens_BT" in batch:
    return int(batch["tokens_BT"].size), "tokens"
  return planned.config.data.batch_rows, "rows"


def crosses_hosts(one: hlo.Transfer, mesh, target: Target, slices: int) -> bool:
  """Returns whether a collective leaves a slice of TPUs or a machine of GPUs; one over an axis that does is
  taken to leave it, also where it stays inside for a part of the axis."""
  together = mesh.size // slices
  if target.kind == "gpu":
    together = min(together, HOST_GPUS)
  # The last axes run fastest through the devices: those within a machine's number of them stay inside.
  inside = 1
  for axis in reversed(meshes.AXES):
    inside *= mesh.shape[axis]
    if axis in one.axes and inside > together:
      return True
  return False


def _by_part(counts: count.Counts, name: str, devices: int) -> dict[str, dict[str, float]]:
  parts = {part: {pass_: getattr(tally, name) / devices for pass_, tally in passes.items()}
           for part, passes in counts.by_part().items()}
  return dict(sorted(parts.items(), key=lambda one: -sum(one[1].values()))[:SHOWN_PARTS])


def _first(sums: Mapping[str, int]) -> dict[str, int]:
  return dict(list(sums.items())[:SHOWN_PARTS])


def table(found: Mapping[str, Any]) -> str:
  """Returns a plan as lines to read."""
  memory, time, program = found["memory"], found["estimate"], found["program"]
  word = "fits" if found["fits"] else "does not fit"
  per_s = next((name, value) for name, value in time.items() if name.endswith("_per_s"))
  terms = ", ".join(f"{name} {value:.3g} s" for name, value in time["terms_s"].items())
  largest = "; ".join(f"{one['term']} {one['seconds']:.3g} s" for one in time["largest"])
  lines = [
      f"{found['config']} on {found['devices']} x {found['target']}: {word}; compiled, not run",
      f"  memory of a device  {_gib(memory['peak'])} of {_gib(memory['limit'])}: arguments "
      f"{_gib(memory['arguments'])}, temporaries {_gib(memory['temporaries'])}",
      f"  parameters          {found['parameters']:,}; {found['rows']} rows in {found['accumulate_steps']} "
      "parts",
      f"  an update           {found['flops']['update']:.3g} FLOPs, {found['bytes']['update']:.3g} bytes; "
      f"the program has {program['kernels']:,} kernels that move {program['bytes']:.3g}",
      f"  estimated           {time['step_s']:.4g} s an update, {per_s[1]:,.0f} "
      f"{per_s[0].replace('_per_s', '/s')}, {time['hours']:.3g} hours for {time['updates']:,} updates",
      f"  terms               {terms}",
      f"  largest             {largest}"]
  for one in found["collectives"]:
    lines.append(f"  {one['kind']:<19} {one['count']:,} over {' and '.join(one['axes']) or 'one device'} "
                 f"({one['part']}), {one['bytes']:.3g} bytes")
  lines += [f"  made up             {one}" for one in found["made_up"]]
  if found["advice"]:
    lines += [f"  advice              {line}" for line in found["advice"]["lines"]]
  return "\n".join(lines)


def _gib(size: int) -> str:
  return f"{size / GIB:.2f} GiB"
