"""Compares kda and gated_delta_2 with jax-linear-attention and flash-linear-attention: numbers and cost.

  python experiments/benchmarks/linear_rules.py --length=2048 --repeats=5 --torch_python=PYTHON

All sides get the same queries, keys, values, gates and start, of B rows and H heads, [B, T, H, .], and give
reads, the last memory and, in `forward_backward`, the gradients of mean(reads^2) by all that they are given.
Each is a process of its own; they take turns, call by call, and a call's cost is the CPU-seconds of its
process. What is compared:

  atlas_jax             the rule as the layer calls it: `scan.scan_packed` over rows and heads
  jax-linear-attention  `jla.ops.chunked`, its chunk-parallel form in plain JAX, for this Python
  flash-linear-attention `naive_chunk_kda` and `naive_chunk_gdn2`, its plain PyTorch forms by chunks; of
                        --torch_python, which needs torch, einops and fla-core (its kernels are not imported)

A side whose package is not there is named as skipped. One JSON object per side and pass: milliseconds of CPU
(median, and each call), and how far its numbers are from ours, as a fraction of the largest.
"""
import argparse
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
RULES = ("kda", "gated_delta_2")
PASSES = ("forward", "forward_backward")
# The package that a side needs, and those whose versions are reported.
PACKAGES = {"atlas_jax": ("jax", "jax", "jaxlib"),
            "jax-linear-attention": ("jla", "jax-linear-attention", "jax", "jaxlib"),
            "flash-linear-attention": ("fla", "fla-core", "torch")}
NAIVE = {"kda": ("kda", "naive_chunk_kda"), "gated_delta_2": ("gdn2", "naive_chunk_gdn2")}


def draw(args) -> dict[str, np.ndarray]:
  """Draws what all sides are given; gates are those of models, with shut ones among them."""
  rng = np.random.default_rng(args.seed)
  shape = args.batch, args.length, args.heads

  def unit(width):
    x = rng.normal(size=(*shape, width))
    return x / np.linalg.norm(x, axis=-1, keepdims=True)

  def sigmoid(*last):
    return 1 / (1 + np.exp(-rng.normal(size=(*shape, *last))))

  log_keep = -np.exp(rng.uniform(np.log(1e-3), np.log(0.3), (*shape, args.width)))
  given = dict(q=unit(args.width), k=unit(args.width), v=rng.normal(size=(*shape, args.width)),
               log_keep=np.where(rng.uniform(size=log_keep.shape) < 1e-3, -20.0, log_keep),
               start=rng.normal(size=(args.batch, args.heads, args.width, args.width)) * args.width**-0.5)
  if args.rule == "kda":
    given |= dict(rate=sigmoid())
  else:
    given |= dict(erase=sigmoid(args.width), write=sigmoid(args.width))
  return {name: x.astype(np.float32) for name, x in given.items()}


def ours(args):
  """Returns the function of all given arrays to (reads [B, T, H, M], memory [B, H, K, M])."""
  import jax
  import jax.numpy as jnp

  from atlas_jax.memory import rules, scan
  from atlas_jax.memory.types import Gates, Learned, Token

  rule = rules.load(args.rule, key_dim=args.width, value_dim=args.width, chunk_size=args.chunk)

  def head(q, k, v, gates, start):
    learned = Learned({"w0": start}, {})
    memory, out = scan.scan_packed(rule, rule.start(learned), learned, Token(q, k, v), gates,
                                   jnp.ones(args.length, bool), jnp.zeros(args.length // args.chunk, bool),
                                   chunk_size=args.chunk)
    return out.out_CM, memory.fast["w0"]

  def read(given):
    rows = {name: jnp.moveaxis(x, 2, 1) for name, x in given.items() if name != "start"}
    one = jnp.ones_like(rows["k"][..., 0])
    own = {"decay": -rows["log_keep"], **{name: rows[name] for name in ("erase", "write") if name in rows}}
    gates = Gates(-one, 0 * one, rows.get("rate", 0 * one), own)
    heads = jax.vmap(jax.vmap(head))(rows["q"], rows["k"], rows["v"], gates, given["start"])
    return jnp.moveaxis(heads[0], 1, 2), heads[1]

  return read


def jla(args):
  """Returns the same function of jax-linear-attention's chunked form."""
  from jla.ops import chunked

  def read(given):
    common = dict(scale=1.0, initial_state=given["start"], output_final_state=True, chunk_size=args.chunk)
    gates = [given[name] for name in ("log_keep", "rate", "erase", "write") if name in given]
    form = chunked.kda if args.rule == "kda" else chunked.gdn2
    return form(given["q"], given["k"], given["v"], *gates, **common)

  return read


def of_jax(read, given, backward: bool):
  """Returns a call that computes all, and what it gives as arrays."""
  import jax
  import jax.numpy as jnp

  def loss(given):
    out, memory = read(given)
    return jnp.mean(out * out), (out, memory)

  function = jax.jit(jax.value_and_grad(loss, has_aux=True) if backward else lambda given: (loss(given), ()))
  given = {name: jnp.asarray(x) for name, x in given.items()}

  def call():
    ((_, (out, memory)), grads) = jax.block_until_ready(function(given))
    return {"reads": out, "memory": memory, **{f"gradient of {name}": x for name, x in (grads or {}).items()}}

  return call


def fla(args, given, backward: bool):
  """Returns a call of flash-linear-attention's plain form; its file is loaded alone, without its kernels."""
  import torch

  folder, name = NAIVE[args.rule]
  package = pathlib.Path(importlib.util.find_spec("fla").submodule_search_locations[0])
  spec = importlib.util.spec_from_file_location("naive", package / f"ops/{folder}/naive.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  form = getattr(module, name)
  tensors = {name: torch.tensor(x, requires_grad=backward) for name, x in given.items()}
  gates = [tensors[name] for name in ("log_keep", "rate", "erase", "write") if name in tensors]

  def call():
    with torch.set_grad_enabled(backward):
      out, memory = form(tensors["q"], tensors["k"], tensors["v"], *gates, scale=1.0,
                         initial_state=tensors["start"], output_final_state=True, chunk_size=args.chunk)
      found = {"reads": out.detach(), "memory": memory.detach()}
      if backward:
        grads = torch.autograd.grad((out * out).mean(), list(tensors.values()))
        found |= {f"gradient of {name}": x for name, x in zip(tensors, grads, strict=True)}
    return found

  return call


def child(args) -> None:
  """Measures one side: says when it is ready, then calls once for each line that it reads."""
  given = draw(args)
  backward = args.what == "forward_backward"
  if args.side == "flash-linear-attention":
    call = fla(args, given, backward)
  else:
    call = of_jax(ours(args) if args.side == "atlas_jax" else jla(args), given, backward)
  found = call()
  np.savez(args.into, **{name: np.asarray(x) for name, x in found.items()})
  versions = {name: metadata.version(name) for name in PACKAGES[args.side][1:]}
  print(json.dumps({"python": platform.python_version(), **versions}), flush=True)
  for _ in sys.stdin:
    start = time.process_time()
    call()
    print(json.dumps(time.process_time() - start), flush=True)


class Side:
  """A process that measures one side."""

  def __init__(self, args, name: str, what: str, into: pathlib.Path):
    self.name, self.into = name, into
    python = args.torch_python if name == "flash-linear-attention" else sys.executable
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "OMP_WAIT_POLICY": "passive"}
    env.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    shape = [f"--{key}={getattr(args, key)}" for key in ("rule", *SHAPE)]
    command = [python, __file__, *shape, f"--side={name}", f"--what={what}", f"--into={into}"]
    self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                     stderr=subprocess.PIPE, text=True, env=env)

  def answer(self):
    """Waits for the next line.

    Raises:
      RuntimeError: with its last words, if the process has ended.
    """
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(f"{self.name}: {self._process.stderr.read().strip().splitlines()[-1:]}")
    return json.loads(line)

  def call(self) -> float:
    """Has it call once; returns its CPU-seconds."""
    self._process.stdin.write("go\n")
    self._process.stdin.flush()
    return self.answer()

  def end(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()


SHAPE = ("batch", "length", "heads", "width", "chunk", "seed")


def missing(args, name: str) -> str | None:
  """Says which package a side lacks; None if it has all."""
  needed = PACKAGES[name][0]
  python = args.torch_python if name == "flash-linear-attention" else sys.executable
  look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({needed!r}) is None)"
  absent = subprocess.run([python, "-c", look]).returncode
  return f"{needed} is not installed for {python}" if absent else None


def gaps(mine: pathlib.Path, theirs: pathlib.Path) -> dict[str, float]:
  """Returns how far two sides' arrays are from each other, as a fraction of the largest number."""
  with np.load(mine) as a, np.load(theirs) as b:
    largest = {name: float(np.abs(a[name]).max()) for name in b.files}
    return {name: float(np.abs(a[name] - b[name]).max()) / largest[name] for name in b.files}


def compare(args, what: str, folder: pathlib.Path) -> None:
  """Measures all sides in turn and prints their rows."""
  sides = []
  for name in PACKAGES:
    if lacks := missing(args, name):
      print(json.dumps({"side": name, "rule": args.rule, "what": what, "skipped": lacks}), flush=True)
      continue
    sides.append(Side(args, name, what, folder / f"{name}.npz"))
    sides[-1].versions = sides[-1].answer()  # One after the other, since compilation takes all cores.
  seconds: dict[str, list[float]] = {side.name: [] for side in sides}
  for turn in range(args.repeats + 1):
    for side in sides:
      seconds[side.name] += [side.call()] * (turn > 0)
  for side in sides:
    side.end()
    row = {"side": side.name, "rule": args.rule, "what": what,
           "cpu_ms": round(1e3 * statistics.median(seconds[side.name]), 1),
           "each": [round(1e3 * one, 1) for one in seconds[side.name]],
           **{key: getattr(args, key) for key in SHAPE},
           "gaps": gaps(sides[0].into, side.into), "versions": side.versions,
           "load_average": round(os.getloadavg()[0], 1)}
    print(json.dumps(row), flush=True)


def main() -> None:
  """Compares the rules and passes that are asked for."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rule", choices=(*RULES, "all"), default="all")
  parser.add_argument("--passes", default=",".join(PASSES))
  for name, default in dict(batch=1, length=2048, heads=4, width=64, chunk=64, seed=0, repeats=5).items():
    parser.add_argument(f"--{name}", type=int, default=default)
  parser.add_argument("--torch_python", default=sys.executable, help="a Python that has torch and fla-core")
  for name in ("side", "what", "into"):  # For the processes that this one starts.
    parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.side:
    child(args)
    return
  for rule in RULES if args.rule == "all" else (args.rule,):
    args.rule = rule
    for what in args.passes.split(","):
      with tempfile.TemporaryDirectory() as folder:
        compare(args, what, pathlib.Path(folder))


if __name__ == "__main__":
  main()
