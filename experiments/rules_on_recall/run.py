"""Trains a model with each memory rule on far recall, over seeds; keeps what each reaches in one JSON file.

  python -m experiments.rules_on_recall.run --workdir=runs/far --out=experiments/rules_on_recall/results.json

Rows go by RULE/SEED, and are written after every run; what the file already holds is not run again. Arms
beside the rules: "none" has no memory, "unwritten" reads the learned start of delta's memory alone.
"""
import argparse
import fcntl
import json
import pathlib
import time

import jax

from atlas_jax import config as configs
from atlas_jax import recipes, train
from atlas_jax.memory import rules
from atlas_jax.parallel import mesh as meshes
from experiments import arms
from experiments.rules_on_recall import config as settings
from experiments.rules_on_recall import sizes

CONTROLS = ("none", "unwritten")
KEPT = ("val_accuracy", "val_across")


def trained(config, workdir: pathlib.Path) -> dict:
  """Trains a config and says what it reached.

  Returns:
    accuracies by the recipe's names, the loss of the last updates, updates, parameters, and seconds of
    processor time, with compilation unless it was compiled before.
  """
  config = configs.resolve(config)
  mesh = meshes.make(devices=jax.devices()[:1])
  started_s = time.process_time()
  summary = train.run(config, recipes.load(config, mesh), mesh, workdir)
  row = {name: round(value, 5) for name, value in summary.items() if name.startswith(KEPT)}
  jax.clear_caches()  # What is compiled for all rules is more than a process may map.
  return {**row, "train_loss_nats": summary["train_loss_nats"], "steps": summary["steps"],
          "params": summary["params"], "cpu_s": round(time.process_time() - started_s, 1)}


def state_of(arm: str) -> dict:
  """Returns how large an arm's memory is."""
  if arm == "none":
    return {}
  rule = "delta" if arm in CONTROLS else arm
  width = sizes.width_of(rule)
  return {"width": width, "floats_per_head": sizes.floats(rule, width)}


def add(out: pathlib.Path, rows: dict) -> None:
  """Adds rows to the file of results, also where several commands write it in turn."""
  with open(out.with_suffix(".lock"), "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    out.write_text(json.dumps({**arms.read(out), **rows}, indent=1) + "\n")


def main(argv: list[str] | None = None) -> None:
  """Runs what the file does not hold yet, seed by seed, and writes it after every run."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--arms", default=",".join([*rules.names(), *CONTROLS]))
  parser.add_argument("--seeds", default="0,1,2")
  parser.add_argument("--more", default="", help="added to every config argument, such as steps=400,lr=3e-3")
  asked = parser.parse_args(argv)
  end = f",{asked.more}" if asked.more else ""
  for seed in asked.seeds.split(","):
    for arm in asked.arms.split(","):
      name = f"{arm}{end}/{seed}"
      if name not in arms.read(asked.out):
        arg = f"{arm if arm in CONTROLS else f'rule={arm}'},seed={seed}{end}"
        row = trained(settings.get_config(arg), asked.workdir / arg)
        add(asked.out, {name: {**row, **state_of(arm), "config": arg, **arms.machine()}})
        print(name, row["val_accuracy"], f"{row['cpu_s']} CPU-s", flush=True)


if __name__ == "__main__":
  main()
