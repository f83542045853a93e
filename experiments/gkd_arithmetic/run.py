"""Trains the study's teacher, then its students, and keeps what each reaches in one JSON file.

  python -m experiments.gkd_arithmetic.run --workdir=runs/gkd_arithmetic \
    --out=experiments/gkd_arithmetic/results.json

What the file already holds is not run again. See the README for what the runs are.
"""
import argparse
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from atlas_jax import config as configs
from atlas_jax import recipes, train
from atlas_jax.data.tokenizer import ByteTokenizer
from atlas_jax.language.initial_model import load_initial_model
from atlas_jax.language.pretrained import hf_export
from atlas_jax.monitor import report
from atlas_jax.parallel import mesh as meshes
from atlas_jax.state import Trained
from experiments.gkd_arithmetic import config as settings

# What students are: neurons per block, whether these are the teacher's, and how they learn.
STUDENTS = {
    **{f"half_{recipe}_{lr:g}": dict(recipe=recipe, ff_width=84, pruned=True, lr=lr)
       for lr in (1e-3, 2e-3, 3e-3, 6e-3) for recipe in ("gkd", "sft")},
    **{f"half_{recipe}_seed_{seed}": dict(recipe=recipe, ff_width=84, pruned=True, lr=2e-3, seed=seed)
       for seed in (1, 2) for recipe in ("gkd", "sft")},
    "half_gkd_on_policy": dict(recipe="gkd", ff_width=84, pruned=True, lr=2e-3, on_policy_frac=0.5),
    "half_gkd_symmetric": dict(recipe="gkd", ff_width=84, pruned=True, lr=2e-3, beta=0.5),
    "quarter_gkd": dict(recipe="gkd", ff_width=42, pruned=True, lr=3e-3),
    "drawn_gkd": dict(recipe="gkd", ff_width=168, pruned=False, lr=1e-2),
}


def trained(config, workdir: pathlib.Path) -> dict:
  """Trains a config and says what it reached; processor seconds are with compilation and evaluations."""
  config, mesh = configs.resolve(config), meshes.make(devices=jax.devices()[:1])
  started_s = time.process_time()
  recipe = recipes.load(config, mesh)
  workdir.mkdir(parents=True, exist_ok=True)
  configs.save(config, workdir)
  recipe.assets.save(workdir)
  before = accuracy_before(recipe, mesh) if config.model.path else None
  summary = train.run(config, recipe, mesh, workdir)
  cpu_s = time.process_time() - started_s
  scores = {row["step"]: round(row["val/accuracy"], 4) for row in report.read_metrics(workdir)
            if "val/accuracy" in row}
  return {"accuracy": scores[summary["steps"]], "accuracy_before": before, "accuracy_by_step": scores,
          "steps": summary["steps"], "problems": summary["steps"] * config.data.batch_rows,
          "params": summary["params"], "cpu_s": round(cpu_s, 1)}


def accuracy_before(recipe, mesh) -> float:
  """Returns how often a student is right that has learnt nothing yet."""
  loaded = recipe.load(mesh, True)
  trained = Trained(loaded.params, loaded.frozen)
  return round(recipe.evals["problems"].run(trained, step=0).scalars["val/accuracy"], 4)


def pruned(params, ff_width: int):
  """Returns a decoder's parameters with fewer feed-forward neurons per block.

  Those stay whose weights are largest: by the product of the norms of what enters and leaves a neuron.
  """
  mlp, axes = params["blocks"]["mlp"], {"gate": 2, "up": 2, "down": 1}
  kernels = {name: np.asarray(mlp[name]["kernel"]) for name in axes}
  norms = [np.linalg.norm(kernels[name], axis=3 - axis) for name, axis in axes.items()]
  stay_LF = np.sort(np.argsort(-np.prod(norms, axis=0), axis=1)[:, :ff_width], axis=1)
  taken = {name: np.take_along_axis(kernels[name], np.expand_dims(stay_LF, 3 - axis), axis)
           for name, axis in axes.items()}
  fewer = {**mlp, **{name: {**mlp[name], "kernel": jnp.asarray(taken[name])} for name in axes}}
  return {**params, "blocks": {**params["blocks"], "mlp": fewer}}


def write_pruned(workdir: pathlib.Path, folder: pathlib.Path, ff_width: int) -> None:
  """Writes what a student starts from: the teacher with so many feed-forward neurons per block."""
  config = settings.teacher()
  config.model.path = str(workdir)
  start = load_initial_model(configs.resolve(config))
  params, _ = start.read(meshes.make(devices=jax.devices()[:1]), True)
  model = start.language.module.copy(ff_width=ff_width)
  hf_export.save(folder, model, pruned(params, ff_width), max_tokens=64)
  ByteTokenizer().save(folder)


def main() -> None:
  """Runs what is missing."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--only", nargs="*", default=list(STUDENTS), choices=list(STUDENTS))
  given = parser.parse_args()
  results = json.loads(given.out.read_text()) if given.out.exists() else {}
  teacher = given.workdir / "teacher"

  def keep(name: str, config, workdir) -> None:
    if name not in results:
      results[name] = trained(config, workdir)
      given.out.write_text(json.dumps(results, indent=2) + "\n")
    print(name, results[name], flush=True)

  keep("teacher", settings.teacher(), teacher)
  for name in given.only:
    fields = {**STUDENTS[name]}
    start = given.workdir / f"start_{fields['ff_width']}" if fields.pop("pruned") else None
    if start is not None and not (start / "config.json").exists():
      write_pruned(teacher, start, fields["ff_width"])
    config = settings.student(**fields, teacher_workdir=str(teacher), start=start and str(start))
    keep(name, config, given.workdir / name)


if __name__ == "__main__":
  main()
