"""Measures a model on the held-out questions of a plan: before a training, and after it from its summary."""
import math
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from atlas_jax import closing, evals, modes, recipes, train
from atlas_jax.language import runs
from atlas_jax.parallel import mesh as meshes
from atlas_jax.pipeline.plan import Training, changed
from atlas_jax.state import LoadedParams, Trained

PREFIXES = ("teaching_", "val_")  # Of the numbers of an evaluation in a summary.


def leave_start(config, folder: pathlib.Path) -> None:
  """Makes a run that has made no update, in place of what a start that was killed has left."""
  shutil.rmtree(folder, ignore_errors=True)
  modes.leave_start(config, str(folder))


def of_start(training: Training, folder: pathlib.Path) -> dict[str, Any]:
  """Measures the model that a training starts from, with the questions and seeds of its own evaluations.

  Args:
    training: whose start is measured.
    folder: for a run that is made for it, and taken away.

  Returns:
    "step": 0, "metrics" by name, and "worst": rows of the answers that guidance spoilt most.
  """
  config = training.config
  try:
    leave_start(config, folder)
    mesh = meshes.make(**config.mesh)
    recipe = recipes.load(config, mesh)
    params, tables, step = runs.restore(config, folder, recipe.init, mesh)
    loaded = LoadedParams() if recipe.load is None else recipe.load(mesh, False)
    trained = Trained(params, train.frozen_of(config, recipe, mesh, loaded), tables)
    out = closing.evaluate(recipe, trained, step=step)
  finally:
    shutil.rmtree(folder, ignore_errors=True)
  named = {evals.summary_name(name): value for name, value in out.scalars.items()}
  return {"step": step, "metrics": _numbers(named), "worst": list(out.rows)}


def of_summary(summary: Mapping[str, Any]) -> dict[str, Any] | None:
  """Returns the measurement at the end of a training; None where there was none."""
  metrics = _numbers(summary)
  if not metrics:
    return None
  return {"step": summary["steps"], "metrics": metrics, "worst": list(summary.get("rows", ()))}


def from_model(training: Training, run: pathlib.Path) -> Training:
  """Returns a training that starts from the model of another run."""
  fields = {**training.overrides, "model.path": str(run), "data.tokenizer": "model"}
  return changed(training, fields)


def _numbers(summary: Mapping[str, Any]) -> dict[str, float]:
  return {name: float(value) for name, value in summary.items()
          if name.startswith(PREFIXES) and isinstance(value, int | float) and not isinstance(value, bool)
          and math.isfinite(value)}
