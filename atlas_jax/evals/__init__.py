"""Measurements of a trained model, and the plain models it is compared with."""
import pathlib
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from atlas_jax.workdir import EVALS


class Eval(NamedTuple):
  """One measurement of a recipe, and when the loop takes it."""

  # (trained, *, step: int, workdir=None) -> EvalOut; `trained` is a `state.Trained`; files go below the
  # workdir, if there is one.
  run: Callable
  when: str  # "every" (each config.train.eval_every_steps, and at the end) or "end"


class EvalOut(NamedTuple):
  """The outcome of a measurement: numbers for the metrics, words for the terminal, pictures, notes."""

  scalars: dict[str, float]
  text: str = ""
  images: Mapping[str, Any] = MappingProxyType({})  # name -> uint8, height x width x 3
  notes: Mapping[str, str] = MappingProxyType({})  # name -> words for summary.json
  rows: tuple[Mapping[str, Any], ...] = ()  # of a table, as JSON holds them; for summary.json and --mode=eval


def join(outs: Iterable[EvalOut]) -> EvalOut:
  """Puts several measurements together; of equal names the later one stays."""
  outs = list(outs)
  scalars = {name: value for out in outs for name, value in out.scalars.items()}
  images = {name: image for out in outs for name, image in out.images.items()}
  notes = {name: words for out in outs for name, words in out.notes.items()}
  rows = tuple(row for out in outs for row in out.rows)
  return EvalOut(scalars, "\n".join(out.text for out in outs if out.text), images, notes, rows)


def summary_name(metric: str) -> str:
  """Returns the name that an evaluation's metric has in summary.json: eval/a/b is a_b."""
  return metric.removeprefix("eval/").replace("/", "_")


def folder_of(workdir, step: int) -> pathlib.Path:
  """Returns, and makes, the folder for what the evaluation of a step leaves behind."""
  folder = pathlib.Path(workdir) / EVALS / f"step_{step:08d}"
  folder.mkdir(parents=True, exist_ok=True)
  return folder
