"""Trains the study's models one after another, and keeps what each reaches in one JSON file.

  python -m experiments.mqar.run --workdir=runs/mqar --out=experiments/mqar/results.json

What the file already holds is not run again. See the README for what the runs are.
"""
import argparse
import datetime
import json
import pathlib
import platform
import sys
import time

import jax

from atlas_jax import closing, recipes, train
from atlas_jax import config as configs
from atlas_jax.monitor import report
from atlas_jax.parallel import mesh as meshes
from atlas_jax.state import Trained
from experiments.mqar import config as settings

RULES = ("titans", "delta", "omega", "atlas")
GOAL = 0.95
CHUNKS = (1, 8, 32)


def trained(arg: str, workdir: pathlib.Path) -> dict:
  """Trains the config of that argument and says what it reached.

  Returns:
    accuracy on held-out sequences at the end, the first evaluation above GOAL (or None), updates, seconds of
    processor time with compilation and evaluations, and parameters.
  """
  config = configs.resolve(settings.get_config(arg))
  mesh = meshes.make(devices=jax.devices()[:1])
  started_s = time.process_time()
  summary = train.run(config, recipes.load(config, mesh), mesh, workdir)
  cpu_s = time.process_time() - started_s
  scores = {row["step"]: row["val/accuracy"] for row in report.read_metrics(workdir) if "val/accuracy" in row}
  reached = [step for step, score in scores.items() if score > GOAL]
  return {"accuracy": summary["val_accuracy"], "goal_step": min(reached, default=None),
          "steps": summary["steps"], "cpu_s": round(cpu_s, 1), "params": summary["params"]}


def read_at(arg: str, workdir: pathlib.Path) -> dict[str, float]:
  """Returns accuracy of a trained model when it reads by chunks of other sizes than it was trained with."""
  found = {}
  mesh = meshes.make(devices=jax.devices()[:1])
  for size in CHUNKS:
    config = configs.resolve(settings.get_config(f"{arg},chunk_size={size}"))
    recipe = recipes.load(config, mesh)
    abstract, _ = train.abstract_state(config, recipe, mesh)
    state, _ = train.Checkpoints(workdir, **config.checkpoint, read_only=True).restore(abstract)
    scalars = closing.evaluate(recipe, Trained(state.params), step=int(state.step)).scalars
    found[str(size)] = scalars["val/accuracy"]
  return found


def machine() -> dict:
  """Returns where and with what the numbers were made."""
  return {"command": " ".join(["python -m experiments.mqar.run", *sys.argv[1:]]),
          "date": datetime.date.today().isoformat(), "jax": jax.__version__,
          "python": platform.python_version(), "backend": jax.default_backend()}


def main(argv: list[str] | None = None) -> None:
  """Runs what the file does not hold yet, and writes it after every run."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--rules", default=",".join(RULES))
  parser.add_argument("--more", default="", help="added to every config argument, such as steps=20,pairs=4")
  asked = parser.parse_args(argv)
  found = json.loads(asked.out.read_text()) if asked.out.exists() else {}
  end = f",{asked.more}" if asked.more else ""
  args = [f"rule={rule}{off}{end}" for off in ("", ",writes_off") for rule in asked.rules.split(",")]
  jobs = [(arg, trained, arg) for arg in args]
  jobs += [(f"{arg} read by chunks of", read_at, arg) for arg in args if "writes_off" not in arg]
  for name, job, arg in jobs:
    if name not in found:
      row = job(arg, asked.workdir / arg)
      found[name] = {**row, **machine()}
      asked.out.write_text(json.dumps(found, indent=2) + "\n")
      print(name, json.dumps(row), flush=True)


if __name__ == "__main__":
  main()
