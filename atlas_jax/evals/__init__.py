"""What a trained model is measured by, and the plain models it is measured against."""
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Eval(NamedTuple):
  """One measurement of a recipe, and when the loop takes it."""

  # (params, *, step: int, tables=(), workdir=None) -> EvalOut; files go below the workdir, if there is one.
  run: Callable
  when: str  # "every" (each config.train.eval_every_steps, and at the end) or "end"


class EvalOut(NamedTuple):
  """What a measurement gives: numbers for the metrics, words for the terminal, pictures."""

  scalars: dict[str, float]
  text: str = ""
  images: Mapping[str, Any] = MappingProxyType({})  # name -> uint8, height x width x 3
