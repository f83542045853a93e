"""The rows of `bench.py grpo` and `bench.py sampler`: steps of policy training, and completions alone.

A step of ours is one of `train.run` with the config of experiments/grpo_letters: completions, rewards, loss,
update and what is logged of them. Peers make the same of the same shapes, see `bench_peers`: 8 prompts of 32
ids, 4 completions of each of exactly 64 ids, one update of AdamW, float32. Every system has a process of its
own on the same core, and they make their steps in turn. Only the loops import jax, in the process that is
measured.
"""
import argparse
import os
import pathlib
import shutil
import statistics
import sys
import tempfile
import time

import bench_turns

KINDS = ("grpo", "sampler")
PEERS = {"trl": "trl", "tunix": "google-tunix"}  # What they are called where packages are installed.
CONFIG = "experiments/grpo_letters/config.py"
SIZES = {
  "tiny": dict(vocab_size=1024, width=128, depth=4, heads=4, kv_heads=2, head_dim=32, ff_width=352),
  "small": dict(vocab_size=2048, width=256, depth=4, heads=8, kv_heads=4, head_dim=32, ff_width=704),
}
SHAPE = dict(prompts=8, group=4, prompt_tokens=32, new_tokens=64)
# The emitters that jax takes by default need half as long again to compile a step, and twice the memory, for
# a step that is a twentieth quicker. Set it for short trainings on a CPU, too.
QUICK_COMPILATION = "--xla_cpu_use_fusion_emitters=false"
TABLE = (("system", 10), ("size", 6), ("cpu_s_per_step", 15), ("wall_s_per_step", 16), ("generate_cpu_s", 15),
         ("tokens_per_cpu_s", 17), ("peak_memory_mib", 16), ("first_peak_memory_mib", 22),
         ("first_step_s", 13), ("first_step_cpu_s", 17), ("warm_first_step_s", 18),
         ("warm_first_step_cpu_s", 22), ("ratio", 6))


def add_flags(kinds, one_of) -> list[argparse.ArgumentParser]:
  """Adds both kinds of measurements; gives their parsers, without --repeats and --json."""
  made = []
  for name, what in zip(KINDS, ("steps of policy training", "completions"), strict=True):
    made.append(kinds.add_parser(name, help=what, allow_abbrev=False))
    flag = made[-1].add_argument
    flag("--sizes", type=one_of(tuple(SIZES)), default=list(SIZES), help="tiny, small or both")
    flag("--peer", action="store_true", help="measure TRL and Tunix at the same shapes, turn by turn")
    for peer in PEERS:
      flag(f"--{peer}_python", default=sys.executable, help=f"a Python that has {peer}; left out: this")
    flag("--core", type=int, default=max(os.sched_getaffinity(0)), help="the core all of them run on")
    flag("--huge_pages", choices=("yes", "no"), default="no",
         help="whether large arrays of all systems lie in huge pages where glibc offers them")
  return made


def specs(args) -> list[dict]:
  """Returns what is measured together: one size in each.

  Raises:
    ValueError: for a core or a Python that is not there.
  """
  if args.core not in os.sched_getaffinity(0):
    raise ValueError(f"--core={args.core} is none of those this process may use: "
                     f"{', '.join(map(str, sorted(os.sched_getaffinity(0))))}")
  pythons = {peer: getattr(args, f"{peer}_python") for peer in PEERS}
  for peer, python in pythons.items():
    if args.peer and shutil.which(python) is None:
      raise ValueError(f"--{peer}_python={python} is no program; give the Python that has {peer}")
  return [dict(side=args.name, size=size, repeats=args.repeats, core=args.core, peer=args.peer,
               pythons=pythons, huge_pages=args.huge_pages == "yes", **SHAPE) for size in args.sizes]


def measure(spec: dict, side_of) -> list[dict]:
  """Measures one size; gives a row per system.

  Args:
    spec: what, of `specs`.
    side_of: starts the process of a spec, see `bench.Side`.
  """
  systems = ["atlas_jax", *(PEERS if spec["peer"] else ())]
  with tempfile.TemporaryDirectory() as folder:
    each = [of_system(spec, system, pathlib.Path(folder)) for system in systems]
    cold = [side_of(one) for one in each]
    try:
      for _ in range(bench_turns.WARM_STEPS + spec["repeats"]):
        for side in cold:
          side.go("go", side.times)
    finally:
      for side in cold:
        side.child.close()
    warm = [_first_again(one, side, side_of) for one, side in zip(each, cold, strict=True)]
  rows = [row_of(*found) for found in zip(each, cold, warm, strict=True)]
  for row in rows:
    if rows[0]["cpu_s_per_step"] and row["cpu_s_per_step"]:
      row["ratio"] = round(row["cpu_s_per_step"] / rows[0]["cpu_s_per_step"], 3)
  return rows


def of_system(spec: dict, system: str, folder: pathlib.Path) -> dict:
  """Returns what the process of a system is started with; its compiled programs are kept in the folder."""
  ours = system == "atlas_jax"
  env = {"NPROC": "1", "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1",
         "JAX_COMPILATION_CACHE_DIR": str(folder / system), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
         "JAX_ENABLE_COMPILATION_CACHE": "true"}
  if ours:
    env["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", QUICK_COMPILATION)
  kept = {name: value for name, value in spec.items() if name not in ("pythons", "peer")}
  return {**kept, "system": system, "shape": SIZES[spec["size"]], "env": env,
          "script": "bench_rl.py" if ours else "bench_peers.py",
          "python": sys.executable if ours else spec["pythons"][system]}


def _first_again(spec: dict, cold, side_of) -> list[dict]:
  """Times the first step of another process, whose programs are compiled already."""
  if not cold.works:
    return []
  side = side_of(spec)
  side.go("go", side.times)
  side.child.close()
  return side.times if side.works else []


def row_of(spec: dict, side, warm: list[dict]) -> dict:
  """Makes the row of what was measured in a system's process."""
  info = side.info
  row = {"name": spec["side"], "system": spec["system"], "size": spec["size"],
         **dict.fromkeys([name for name, _ in TABLE[2:]]), "tokens_per_s": None}
  if side.works:
    first, steady = side.times[0], side.times[bench_turns.WARM_STEPS:]
    middle = lambda name: statistics.median(each[name] for each in steady)
    part = "generate_" if spec["side"] == "grpo" else ""
    tokens = spec["prompts"] * spec["group"] * spec["new_tokens"]
    row |= {
      "cpu_s_per_step": round(middle("cpu_s"), 4), "wall_s_per_step": round(middle("wall_s"), 4),
      "generate_cpu_s": round(middle(f"{part}cpu_s"), 4),
      "tokens_per_cpu_s": round(tokens / middle(f"{part}cpu_s"), 1),
      "tokens_per_s": round(tokens / middle(f"{part}wall_s"), 1),
      "peak_memory_mib": round(side.times[-1]["peak_memory_mib"], 1),
      "first_peak_memory_mib": round(first["peak_memory_mib"], 1),
      "first_step_s": round(first["wall_s"], 2), "first_step_cpu_s": round(first["cpu_s"], 2),
      "warm_first_step_s": round(warm[0]["wall_s"], 2) if warm else None,
      "warm_first_step_cpu_s": round(warm[0]["cpu_s"], 2) if warm else None,
    }
  else:
    row |= {"error": info["error"], "refused": bool(info.get("known"))}
  return {**row, **{name: spec[name] for name in (*SHAPE, "shape", "core", "huge_pages", "repeats")},
          "params": info.get("params"), "device": info.get("device"), "versions": info.get("versions", {}),
          "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
          "load_average": round(os.getloadavg()[0], 1), "xla_flags": spec["env"].get("XLA_FLAGS")}


# ------------------------------------------------------------------------- in the process that is measured


class Told:
  """A source whose every batch waits for its turn; see `data.source.Source`."""

  def __init__(self, source, turns: bench_turns.Turns):
    self._source, self._turns = source, turns

  def next(self, trained) -> dict:
    """Returns the next batch, when it is this process's turn."""
    import jax

    jax.block_until_ready(trained.params)
    self._turns.step()
    batch = self._source.next(trained)
    self._turns.part()
    return batch

  def __getattr__(self, name: str):
    """All else is the source's own."""
    return getattr(self._source, name)


def config_of(spec: dict):
  """Returns the config of the study at the shapes that are asked for, resolved."""
  from atlas_jax import config as configs
  from atlas_jax.command import read_config

  fields = {f"decoder.{name}": value for name, value in spec["shape"].items()} | {
    "data.batch_rows": spec["prompts"] * spec["group"], "data.group_size": spec["group"],
    "sampler.max_tokens": spec["new_tokens"], "optim.steps": 10**6}
  return configs.resolve(read_config(CONFIG, {name: str(value) for name, value in fields.items()}))


def about(start) -> dict:
  """Returns what is measured."""
  import bench_child
  import jax

  from atlas_jax import tree

  params = jax.eval_shape(start.init, jax.random.key(0))[0]
  return {"params": tree.count(params), "device": bench_child.processor(),
          "versions": bench_child.versions("jax", "jaxlib", "flax", "numpy")}


def grpo(spec: dict, turns: bench_turns.Turns) -> None:
  """Trains as `main` does."""
  from atlas_jax import recipes, train
  from atlas_jax.language.initial_model import load_initial_model
  from atlas_jax.parallel import mesh as meshes

  config = config_of(spec)
  mesh = meshes.make(**config.mesh)
  turns.info = about(load_initial_model(config))
  with tempfile.TemporaryDirectory() as workdir:
    recipe = recipes.load(config, mesh, workdir)
    train.run(config, recipe._replace(source=Told(recipe.source, turns)), mesh, workdir)


def sampler(spec: dict, turns: bench_turns.Turns) -> None:
  """Writes completions of the same prompts, with other draws each time."""
  import jax

  from atlas_jax.data import prompts
  from atlas_jax.language import samplers
  from atlas_jax.language.initial_model import load_initial_model
  from atlas_jax.parallel import mesh as meshes
  from atlas_jax.rollout import held_out

  config = config_of(spec)
  start = load_initial_model(config)
  turns.info = about(start)
  found = prompts.load(config.data.name, files=config.data.files, split="train", held_out_frac=0.0, seed=0,
                       options={}, fields={}, download=False)
  encode = held_out.encoder_of(config, start)
  asked = [encode(problem).tolist() for problem in found.first(spec["prompts"])]
  options = held_out.options_of(config, start, n=spec["group"], temperature=config.sampler.temperature)
  writer = samplers.load(config, start, meshes.make(**config.mesh))
  writer.load(jax.jit(lambda: start.init(jax.random.key(0))[0])(), 0)
  seed = 0
  while True:
    turns.step()
    writer.generate(asked, options, seed=seed)
    seed += 1


if __name__ == "__main__":
  sys.exit(bench_turns.main({("atlas_jax", "grpo"): grpo, ("atlas_jax", "sampler"): sampler}))
