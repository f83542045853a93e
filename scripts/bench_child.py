"""One case of scripts/bench.py in a process of its own: says when it is ready, then repeats it when told.

It is started with a JSON object and speaks in JSON lines: first what it is about to measure, then for each
"go" on standard input the seconds of one repeat, and for each "product" those of plain matrix products.
"""
import ctypes
import dataclasses
import json
import os
import pathlib
import platform
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable
from importlib import metadata
from typing import NamedTuple

MIB = 2**20
PRODUCT_SIZE = {"cpu": 1024, "gpu": 8192, "tpu": 8192}
PRODUCTS = 4  # in a row


class Case(NamedTuple):
  """What is measured."""

  run: Callable  # does it once, and waits until it is done; gives whether the result is finite
  info: dict  # what there is to say before
  peak_bytes: Callable  # the most memory used so far
  product: Callable | None = None  # like run, of PRODUCTS matrix products


def forget_peak() -> None:
  """Returns freed memory back and starts the count of the most memory anew, where the system can."""
  trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
  if trim is not None:
    trim(0)
  try:
    pathlib.Path("/proc/self/clear_refs").write_text("5")
  except OSError:
    pass  # The figure then holds preparation and compilation too.


def host_peak_bytes() -> int:
  """Returns the most memory this process held since `forget_peak`."""
  status = pathlib.Path("/proc/self/status")
  if status.exists():  # getrusage would count the parent's memory before the start too.
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def processor() -> str:
  """Names the processor and how many of its cores this process may use."""
  path, name = pathlib.Path("/proc/cpuinfo"), platform.processor() or platform.machine()
  if path.exists():
    names = [line.partition(":")[2].strip() for line in path.read_text().splitlines() if "model name" in line]
    name = names[0] if names else name
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  return f"{name}, {cores} cores"


def versions(*packages: str) -> dict:
  """Returns the versions of packages by their names."""
  return {name: metadata.version(name) for name in packages}


# ------------------------------------------------------------------------------------------------------- ours


def _about_jax(tokens: int, flops, dtype, row: dict, devices: int = 1) -> tuple[dict, Callable, Callable]:
  """Returns what is said of a case of ours, its peak memory, and the product it is compared with."""
  import jax
  import jax.numpy as jnp

  device = jax.devices()[0]
  size = PRODUCT_SIZE.get(device.platform, 1024)
  on_cpu = device.platform == "cpu"
  info = {"tokens": tokens, "flops": flops, "platform": device.platform, "devices": 1 if on_cpu else devices,
          "device": processor() if on_cpu else f"{devices} x {device.device_kind}", "row": row,
          "versions": {"python": platform.python_version(), **versions("jax", "jaxlib", "flax", "numpy")}}
  seen = []  # On an accelerator the product's own memory is not the case's.

  def peak_bytes():
    return host_peak_bytes() if on_cpu else seen[0] if seen else device.memory_stats()["peak_bytes_in_use"]

  multiply = jax.jit(jnp.dot)

  def product():
    seen.append(peak_bytes())
    square = jnp.ones((size, size), dtype)
    multiply(square, square).block_until_ready()
    start = clock()
    for _ in range(PRODUCTS):
      done = multiply(square, square)
    done.block_until_ready()
    return {**since(start), "flops": 2 * size**3 * PRODUCTS}

  return info, peak_bytes, product


def _layer(spec: dict):
  """Makes the memory layer of a case.

  Raises:
    ValueError, TypeError: if the rule, its options or `impl` do not fit.
  """
  from atlas_jax import config as configs
  from atlas_jax.memory.layer import Memory

  size = spec["width"] // spec["heads"]
  fields = {**configs.default().model.memory.to_dict(), "rule": spec["rule"], "options": spec["options"],
            "heads": spec["heads"], "key_dim": size, "value_dim": size, "chunk_size": spec["chunk"],
            "remat_chunks": spec["remat_chunks"]}
  if "impl" in {field.name for field in dataclasses.fields(Memory)}:
    fields["impl"] = spec["impl"]
  elif spec["impl"] not in ("auto", "chunked"):
    raise ValueError(f"--impl={spec['impl']} is unknown; the layer has the form chunked alone (or auto)")
  layer = Memory(**fields)
  layer.zero_state(1)  # Makes the rule, which refuses what does not fit.
  return layer


def _arrays(layer, spec: dict) -> tuple:
  """Draws the input of a layer, one document a row, and its parameters with the product behind it."""
  import jax
  import jax.numpy as jnp

  from atlas_jax.memory.layer import NO_DOC

  batch, length, width = spec["batch"], spec["length"], spec["width"]
  x_BTD = jax.random.normal(jax.random.key(1), (batch, length, width), spec["dtype"])
  doc_BT, last_doc_B = jnp.zeros((batch, length), jnp.int32), jnp.full((batch,), NO_DOC, jnp.int32)
  state = layer.zero_state(batch, x_BTD.dtype)
  few = (x_BTD[:, :spec["chunk"]], state, doc_BT[:, :spec["chunk"]], last_doc_B)
  init = jax.jit(lambda key: layer.init(key, *few, None, mode="packed"))
  back_ED = jax.random.normal(jax.random.key(2), (width, width), jnp.float32) * width**-0.5
  return {"layer": init(jax.random.key(0)), "back_ED": back_ED}, (x_BTD, state, doc_BT, last_doc_B)


def memory(spec: dict) -> Case:
  """Prepares a memory layer: forward, or forward and backward from mean(out^2) to the parameters."""
  import jax
  import jax.numpy as jnp

  from atlas_jax.monitor import memory_flops

  layer = _layer(spec)
  params, inputs = _arrays(layer, spec)

  def forward(params, x_BTD, *rest):
    out_BTHM, state, _ = layer.apply(params["layer"], x_BTD, *rest, None, mode="packed")
    out_BTE = out_BTHM.reshape(*out_BTHM.shape[:2], -1).astype(x_BTD.dtype)
    return out_BTE @ params["back_ED"].astype(x_BTD.dtype), state

  def mean_square(params, *inputs):
    out_BTD, state = forward(params, *inputs)
    return jnp.mean(jnp.square(out_BTD.astype(jnp.float32))), state

  backward = spec["what"] == "forward_backward"
  function = jax.jit(jax.grad(mean_square, has_aux=True) if backward else forward)
  finite = jax.jit(lambda tree: jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all())

  def run(check=False):
    result = jax.block_until_ready(function(params, *inputs))
    return not check or bool(finite(result))

  sizes = dict(key_dim=layer.key_dim, value_dim=layer.value_dim, chunk_size=layer.chunk_size)
  per_token = memory_flops.layer_flops(spec["rule"], width=spec["width"], heads=spec["heads"],
                                       options=spec["options"], **sizes)
  tokens = spec["batch"] * spec["length"]
  flops = None if per_token is None else per_token * tokens * (3 if backward else 1)
  row = {"impl": "chunked" if not hasattr(layer, "impl") else layer.impl}
  info, peak_bytes, product = _about_jax(tokens, flops, jnp.float32, row)
  return Case(run, info, peak_bytes, product)


def memory_lm(spec: dict) -> Case:
  """Prepares a whole training step of a config on random tokens; no corpus and no tokenizer is read."""
  import jax
  import numpy as np

  from atlas_jax import config as configs
  from atlas_jax import main, modes, recipes, state, train
  from atlas_jax import step as stepping
  from atlas_jax.language import pretraining
  from atlas_jax.optim import build as optim
  from atlas_jax.parallel import hosts
  from atlas_jax.parallel import mesh as meshes
  from atlas_jax.recipes import memory_lm

  config = configs.resolve(main.read_config(spec["config"], spec["overrides"]))
  if config.recipe != "memory_lm":
    raise ValueError(f"--config={spec['config']} trains {config.recipe}, not memory_lm")
  mesh, model = meshes.make(**config.mesh), pretraining.model_of(config)
  modes.check_rows(config, mesh, ("data",))
  recipe = recipes.Recipe(pretraining.init_of(config, model), memory_lm.loss_of(config, model), None, {},
                          update=recipes.Update(by_step=pretraining.by_step_of(config)))
  shape = (config.data.batch_rows, config.data.segment_len)
  draw = np.random.default_rng(0).integers(0, config.model.vocab_size, (2, *shape), np.int32)
  local = {"tokens_BT": draw[0], "targets_BT": draw[1], "weight_BT": np.ones(shape, np.float32),
           "doc_BT": np.zeros(shape, np.int32), "bytes_BT": np.ones(shape, np.int32)}
  batch, stop = hosts.global_batch(mesh, local), hosts.StopFlag(mesh).array()
  abstract, frozen = train.abstract_state(config, recipe, mesh)
  optimizer_of = lambda params: optim.build(params, **config.optim)
  held = [state.build(abstract, recipe.init, optimizer_of, config.optim.ema_decay, config.seed)]
  flops = stepping.model_flops(recipe, held[0], frozen, batch)
  step = stepping.jit_step(config, recipe, mesh, held[0])

  def run(check=False):
    held[0], metrics = jax.block_until_ready(step(held[0], batch, frozen, stop))
    return not check or not int(metrics["train/skipped_updates"])

  fields = config.model.memory.to_dict()
  row = {"what": "train_step", "rule": fields["rule"], "options": fields["options"], "batch": shape[0],
         "length": shape[1], "width": config.model.width, "heads": fields["heads"],
         "chunk": fields["chunk_size"], "impl": fields.get("impl", "chunked"), "dtype": config.model.dtype,
         "remat_chunks": fields["remat_chunks"], "config": spec["config"], "overrides": spec["overrides"]}
  info, peak_bytes, product = _about_jax(shape[0] * shape[1], flops, config.model.dtype, row, mesh.size)
  return Case(run, info, peak_bytes, product)


def trm(spec: dict) -> Case:
  """Prepares a step of a recursive model, see `bench_trm`."""
  import bench_trm

  return Case(*bench_trm.case(spec, _about_jax))


# --------------------------------------------------------------------------------------------------- the peer


def peer(spec: dict) -> Case:
  """Prepares the Titans memory of titans-pytorch at the same shapes, on the kind of device that ours has.

  Its heads and their fast weights are as wide as ours; with several heads it has a product behind them too.
  It takes one step size and one momentum a chunk, and without `peer_batch_size` all its gradients are at the
  initial weights.
  """
  import titans_pytorch
  import torch

  on_cpu = spec["platform"] == "cpu"
  if not on_cpu and not torch.cuda.is_available():
    raise RuntimeError(f"ours runs on {spec['platform']}, and this torch finds no GPU")
  torch.manual_seed(0)
  heads, options = spec["heads"], spec["options"]
  layer = titans_pytorch.NeuralMemory(
      dim=spec["width"], dim_head=spec["width"] // heads, heads=heads, chunk_size=spec["chunk"],
      batch_size=spec["peer_batch_size"],
      default_model_kwargs={"depth": options["depth"], "expansion_factor": options["expansion"]})
  dtype = getattr(torch, spec["dtype"])
  device = "cpu" if on_cpu else "cuda"
  layer = layer.to(device, dtype)
  x_BTD = torch.randn(spec["batch"], spec["length"], spec["width"], device=device, dtype=dtype)
  backward = spec["what"] == "forward_backward"

  def run(check=False):
    del check
    with torch.set_grad_enabled(backward):
      out_BTD, _ = layer(x_BTD)
      if backward:
        layer.zero_grad(set_to_none=True)
        out_BTD.square().mean().backward()
    if not on_cpu:
      torch.cuda.synchronize()
    return True

  info = {"tokens": spec["batch"] * spec["length"], "platform": spec["platform"],
          "versions": versions("torch", "titans-pytorch")}
  return Case(run, info, host_peak_bytes if on_cpu else torch.cuda.max_memory_allocated)


# --------------------------------------------------------------------------------------------------- speaking


def clock() -> tuple[float, float]:
  return time.perf_counter(), time.process_time()


def since(start: tuple[float, float]) -> dict:
  wall_s, cpu_s = (now - then for now, then in zip(clock(), start))
  return {"wall_s": wall_s, "cpu_s": cpu_s}


def watch(limit_gib: float, say: Callable) -> None:
  """Ends this process, with a word, when it holds more memory than it may."""
  def look():
    while host_peak_bytes() <= limit_gib * 1024 * MIB:
      time.sleep(0.05)
    say({"error": f"passed the limit of {limit_gib:g} GiB (--peer_memory_limit_gib)", "known": True})
    os._exit(3)

  threading.Thread(target=look, daemon=True).start()


def speak(spec: dict, say: Callable) -> int:
  """Prepares the case, warms it up, and answers until there is no more to answer."""
  if "limit_gib" in spec:
    watch(spec["limit_gib"], say)
  try:
    case = {"memory": memory, "memory_lm": memory_lm, "trm": trm, "peer": peer}[spec["side"]](spec)
    if not case.run(check=True):
      raise FloatingPointError("the result is not finite")
  except Exception as error:
    traceback.print_exc()
    known = spec["side"] != "peer" and isinstance(error, (ValueError, TypeError))
    what = f"{error}" if known else f"{type(error).__name__}: {error}"
    say({"error": " ".join(what.split())[:500], "known": known})
    return 1
  forget_peak()
  say(case.info)
  for word in map(str.strip, sys.stdin):
    if word == "product":
      say(case.product())
      continue
    start = clock()
    case.run()
    say({**since(start), "peak_memory_mib": case.peak_bytes() / MIB})
  return 0


def main() -> int:
  """Keeps standard output for what this process has to say; libraries print to standard error."""
  lines = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  return speak(json.loads(sys.argv[1]), lambda line: print(json.dumps(line), file=lines, flush=True))


if __name__ == "__main__":
  sys.exit(main())
