"""Measurements of a trained model, and the plain models it is compared with."""
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


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


def join(outs: Iterable[EvalOut]) -> EvalOut:
  """Puts several measurements together; of equal names the later one stays."""
  outs = list(outs)
  scalars = {name: value for out in outs for name, value in out.scalars.items()}
  images = {name: image for out in outs for name, image in out.images.items()}
  notes = {name: words for out in outs for name, words in out.notes.items()}
  return EvalOut(scalars, "\n".join(out.text for out in outs if out.text), images, notes)


def summary_name(metric: str) -> str:
  """Returns the name that an evaluation's metric has in summary.json: eval/a/b is a_b."""
  return metric.removeprefix("eval/").replace("/", "_")
