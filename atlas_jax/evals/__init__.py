"""What a trained model is measured by, and the plain models it is measured against."""
from collections.abc import Callable
from typing import NamedTuple


class Eval(NamedTuple):
  """One measurement of a recipe, and when the loop takes it."""

  run: Callable  # (params, *, step: int) -> EvalOut
  when: str  # "every" (each config.train.eval_every_steps, and at the end) or "end"


class EvalOut(NamedTuple):
  """What a measurement gives: numbers for the metrics, and words for the terminal."""

  scalars: dict[str, float]
  text: str = ""
