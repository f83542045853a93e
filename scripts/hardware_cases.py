"""The checks of scripts/hardware_check.py: each takes whether sizes are tiny, and returns its part.

A part has "ok", and the numbers it follows from. What a device cannot do at all is an exception.
"""
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import bench_child
import bench_kernels
import bench_trm
import jax
import numpy as np

from atlas_jax import config as configs
from atlas_jax import opening, recipes, tree
from atlas_jax import state as states
from atlas_jax import step as stepping
from atlas_jax.command import read_config
from atlas_jax.language import pretraining
from atlas_jax.monitor import profile
from atlas_jax.parallel import hosts
from atlas_jax.parallel import mesh as meshes
from atlas_jax.recipes import memory_lm, trm
from atlas_jax.state import LoadedParams, Trained

# Largest differences, as a fraction of the reference's largest entry, and of losses and norms.
KERNEL_GAP = 2e-4
LOSS_GAP, NORM_GAP, UPDATE_GAP = 1e-4, 1e-3, 0.05
STEPS = {True: 2, False: 10}  # Steps that are timed, behind one that is not.
LONG = {"optim.steps": 1_000}  # A length, where that of the data would decide.
SMALL = {"model.depth": 1, "data.segment_len": 32, "data.batch_rows": 4, "train.accumulate_steps": 1,
         "monitor.group_norms": False}
REMEMBERING = {**SMALL, "model.memory_layers": None, "model.memory.chunk_size": 8}
MADE_HERE = {"data.files": None, "data.tokenizer": "byte", "ranked.eval_files": None}
# Name of a check -> config and fields changed, at its size and tiny.
TRAINED = {
  "memory_40m": (("configs/memory_40m.py:pretrain", {"data.batch_rows": 24, "data.segment_len": 1_024,
                                                     "train.accumulate_steps": 2}),
                 ("configs/memory_40m.py:smoke,pretrain", REMEMBERING)),
  "trm": (("configs/trm_sudoku.py", LONG), ("configs/trm_sudoku.py:4x4,smoke", {})),
  "grpo": (("experiments/grpo_letters/config.py:small", {"train.accumulate_steps": 1}),
           ("configs/grpo_arithmetic.py:smoke", {})),
  "memory_340m": (("configs/memory_340m.py", {"data.batch_rows": 4, "train.accumulate_steps": 4}),
                  ("configs/memory_340m.py:smoke,mix=none", SMALL)),
  "atlas_ranked": (("configs/atlas_ranked.py", {**MADE_HERE, **LONG}), ("configs/atlas_ranked.py:smoke", {})),
}  # fmt: skip


class Job(NamedTuple):
  """A training whose steps are measured."""

  config: Any
  recipe: recipes.Recipe
  next_batch: Callable  # what a source is handed -> the rows of a batch
  unit: str  # of which `per_step` is counted
  per_step: int


def device():
  """Returns the one device that is checked."""
  return jax.devices()[0]


def about(tiny: bool) -> dict:
  """Describes the device, and the software on it."""
  del tiny
  one = device()
  stats = one.memory_stats() or {}
  on_cpu = one.platform == "cpu"
  return {"platform": one.platform, "kind": bench_child.processor() if on_cpu else one.device_kind,
          "devices": jax.device_count(), "memory_bytes": stats.get("bytes_limit"),
          "peak_flops": profile.run_peak_flops([one]), "runtime": one.client.platform_version,
          "versions": bench_child.versions("jax", "jaxlib", "flax", "optax", "numpy")}


# --------------------------------------------------------------------------------------------------- kernels


def kernels(tiny: bool, *, pallas: bool = False) -> dict:
  """Compares forms of every kernel with the reference on this device, values and gradients."""
  rows = []
  for kernel, cases in bench_kernels.ROWS.items():
    expected: dict[str, Any] = {}
    if pallas and device().platform == "cpu":
      break  # No kernel has such a form here, and references alone are nothing to compare.
    for shape, impl, function, inputs in cases():
      if tiny and expected and shape not in expected:
        break
      if impl != "reference" and (impl == "pallas") != pallas:
        continue
      out = _both(function, inputs)
      if impl == "reference":
        expected[shape] = out
        continue
      rows.append({"kernel": kernel, "shape": shape, "impl": impl, "gap": _gap(out, expected[shape]),
                   "limit": KERNEL_GAP})
  some = bool(rows) or pallas and device().platform == "cpu"
  return {"ok": some and all(row["gap"] <= row["limit"] for row in rows), "rows": rows}


def pallas_kernels(tiny: bool) -> dict:
  """Compares the forms that are written for the device; there are none for a CPU."""
  return kernels(tiny, pallas=True)


def _both(function: Callable, inputs):
  # In full float32: what is compared are programs, not the roundings that a device is allowed by default.
  with jax.default_matmul_precision("highest"):
    out = jax.jit(lambda *args: (function(*args), bench_kernels.both_passes(function, args)(*args)))(*inputs)
  return jax.tree.map(np.asarray, out)


def _gap(found, expected) -> float:
  """Returns the largest difference as a fraction of a leaf's largest entry, infinity where one is NaN."""
  gaps = [np.abs(a - b).max() / max(1e-30, np.abs(b).max())
          for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)]
  return float(np.nan_to_num(max(gaps), nan=np.inf))


# ------------------------------------------------------------------------------------------- against the CPU


def against_cpu(tiny: bool) -> dict:
  """Makes the same three updates on this device and on the CPU, and compares losses, norms and parameters.

  Compilers have been seen to give wrong values without an error; this is what finds them.
  """
  # On a CPU the same code meets itself, with or without memory.
  spec, fields = ("smoke,pretrain,baseline", SMALL) if tiny else ("smoke,pretrain", {})
  job = _memory_lm(f"configs/memory_40m.py:{spec}", {**fields, "model.dtype": "float32"})
  runs = []
  start = None
  # A machine with a GPU has a CPU backend, too; on another one the device meets itself.
  for one in (jax.devices("cpu")[0], device()):
    mesh = meshes.make(devices=[one])
    with jax.default_matmul_precision("highest"):
      if start is None:  # Drawn once: what is compared are updates, not draws.
        start = jax.tree.map(jax.device_get, _started(job, mesh)._replace(rng=()))
      runs.append(_three_updates(job, mesh, start))
  (expected, first), (found, second) = runs
  loss_gap, norm_gap = (float(np.abs(found[:, at] / expected[:, at] - 1).max()) for at in (0, 1))
  began = jax.tree.leaves(start.params)
  moved = [[np.asarray(a, np.float64) - b for a, b in zip(jax.tree.leaves(end), began, strict=True)]
           for end in (first, second)]
  norm = sum(np.square(x).sum() for x in moved[0]) ** 0.5
  update_gap = float(sum(np.square(a - b).sum() for a, b in zip(*moved, strict=True)) ** 0.5 / norm)
  limits = {"loss_gap": LOSS_GAP, "norm_gap": NORM_GAP, "update_gap": UPDATE_GAP}
  gaps = {"loss_gap": loss_gap, "norm_gap": norm_gap, "update_gap": update_gap}
  return {"ok": all(gaps[name] <= limits[name] for name in gaps), **gaps, "limits": limits,
          "losses": found[:, 0].tolist(), "cpu_losses": expected[:, 0].tolist()}


def _three_updates(job: Job, mesh, start):
  rng = jax.random.key(job.config.seed)
  abstract = opening.abstract_state(job.config, job.recipe, mesh)[0]
  placed = jax.tree.map(lambda x: x.sharding, abstract)
  state = jax.device_put(start._replace(rng=rng), placed)
  step, stop = stepping.jit_step(job.config, job.recipe, mesh, state), hosts.StopFlag(mesh).array()
  rows = []
  for _ in range(3):
    batch = hosts.global_batch(mesh, job.next_batch(None))
    state, metrics = step(state, batch, (), stop)
    rows.append([float(metrics["train/loss_nats"]), float(metrics["grad/norm"])])
  return np.asarray(rows), jax.device_get(state.params)


# -------------------------------------------------------------------------------------------- training steps


def trained(name: str, tiny: bool) -> dict:
  """Measures the training step of one of TRAINED: time, memory, throughput and fraction of the peak."""
  spec, fields = TRAINED[name][tiny]
  job = {"trm": _trm, "grpo": _loaded, "atlas_ranked": _loaded}.get(name, _memory_lm)(spec, fields)
  mesh = meshes.make(devices=[device()])
  state = _started(job, mesh)
  frozen = opening.frozen_of(job.config, job.recipe, mesh, LoadedParams())
  stop = hosts.StopFlag(mesh).array()
  began = time.perf_counter()
  batch = hosts.global_batch(mesh, job.next_batch(Trained(state.params, frozen, state.tables)))
  batch_s, began = time.perf_counter() - began, time.perf_counter()
  flops = stepping.model_flops(job.recipe, state, frozen, batch)
  step = stepping.jit_step(job.config, job.recipe, mesh, state)
  compiled = step.lower(state, batch, frozen, stop).compile()
  compile_s = time.perf_counter() - began
  parameters = tree.count(state.params)
  seconds = {"update": [], "batch": []}
  for _ in range(1 + STEPS[tiny]):
    began = time.perf_counter()
    batch = hosts.global_batch(mesh, job.next_batch(Trained(state.params, frozen, state.tables)))
    jax.block_until_ready(batch)
    seconds["batch"].append(time.perf_counter() - began)
    began = time.perf_counter()
    state, metrics = jax.block_until_ready(compiled(state, batch, frozen, stop))
    seconds["update"].append(time.perf_counter() - began)
  loss, skipped = float(metrics["train/loss_nats"]), int(metrics["train/skipped_updates"])
  step_s = statistics.median(seconds["update"][1:])
  peak_flops = profile.run_peak_flops([device()])
  return {"ok": skipped == 0 and bool(np.isfinite(loss)), "config": spec, "fields": fields,
          "parameters": parameters, "loss": loss, "skipped": skipped, "compile_s": compile_s,
          "first_batch_s": batch_s, "batch_s": statistics.median(seconds["batch"][1:]), "step_s": step_s,
          "unit": job.unit, "per_step": job.per_step, "per_s": job.per_step / step_s, "flops": flops,
          "fraction_of_peak": None if peak_flops is None else flops / step_s / peak_flops,
          "peak_bytes": _peak_bytes(), "compiled_bytes": _compiled_bytes(compiled)}


def _peak_bytes() -> int:
  stats = device().memory_stats()
  return bench_child.host_peak_bytes() if stats is None else stats["peak_bytes_in_use"]


def _compiled_bytes(compiled) -> int:
  """Returns the most memory of the step by the compiler's own account."""
  found = compiled.memory_analysis()
  return (found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
          + found.temp_size_in_bytes + found.generated_code_size_in_bytes)


def _started(job: Job, mesh):
  abstract, _ = opening.abstract_state(job.config, job.recipe, mesh)
  return states.build(abstract, *opening.state_args(job.config, job.recipe))


def _config(spec: str, fields: dict):
  return configs.resolve(read_config(spec, {name: str(value) for name, value in fields.items()}))


def _memory_lm(spec: str, fields: dict) -> Job:
  """A memory model on random tokens; no corpus and no tokenizer is read."""
  config = _config(spec, fields)
  model = pretraining.model_of(config)
  recipe = recipes.Recipe(pretraining.init_of(config, model), memory_lm.loss_of(config, model), None, {},
                          update=recipes.Update(by_step=pretraining.by_step_of(config)))
  shape = (config.data.batch_rows, config.data.segment_len)
  draw = np.random.default_rng(0).integers(0, config.model.vocab_size, (2, *shape), np.int32)
  batch = {"tokens_BT": draw[0], "targets_BT": draw[1], "weight_BT": np.ones(shape, np.float32),
           "doc_BT": np.zeros(shape, np.int32), "bytes_BT": np.ones(shape, np.int32)}
  return Job(config, recipe, lambda _: batch, "tokens", shape[0] * shape[1])


def _trm(spec: str, fields: dict) -> Job:
  """A recursive model on random puzzles."""
  config = _config(spec, fields)
  model = trm.model_of(config)
  recipe = recipes.Recipe(trm.init_of(config, model, 1), trm.loss_of(config, model), None, {},
                          update=trm.update_of(config), accounting=trm.accounting_of(config, "puzzles"))
  batch = bench_trm.puzzles(config, model)
  return Job(config, recipe, lambda _: batch, "puzzles", config.data.batch_rows)


def _loaded(spec: str, fields: dict) -> Job:
  """A language model tuned with the recipe's own source; of policy training it writes the completions."""
  config = _config(spec, fields)
  recipe = recipes.load(config, meshes.make(devices=[device()]))
  return Job(config, recipe, recipe.source.next, "rows", config.data.batch_rows)


CHECKS: dict[str, Callable[[bool], dict]] = {
  "against_cpu": against_cpu, "kernels": kernels,
  **{name: (lambda tiny, name=name: trained(name, tiny)) for name in TRAINED},
  "pallas_kernels": pallas_kernels,
}  # fmt: skip
