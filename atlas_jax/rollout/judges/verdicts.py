"""Samples of judges and what is made of them; None wherever there is no verdict."""
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class JudgeSample(NamedTuple):
  """One judgement of one model."""

  score: float
  uncertainty: float
  rationale: str = ""
  principles: Sequence[Any] = ()
  temperature: float | None = None
  flags: frozenset[str] = frozenset()

  def to_json(self, *, temperature: bool = True) -> dict[str, Any]:
    """Returns it as a trace has it."""
    return {"score": self.score, "rationale": self.rationale, "principles": list(self.principles),
            "uncertainty": self.uncertainty, "temperature": self.temperature if temperature else None}


class JudgeVerdict(NamedTuple):
  """The verdict of one judge."""

  identifier: str
  score: float | None  # None: no verdict
  rationale: str = ""
  principles: Sequence[Any] = ()
  samples: Sequence[JudgeSample] = ()
  escalated: bool = False
  escalation_reason: str | None = None
  flags: frozenset[str] = frozenset()
  problem: str | None = None  # why there is no verdict

  def to_json(self, *, temperatures: bool = True) -> dict[str, Any]:
    """Returns it as a trace has it."""
    return {"identifier": self.identifier, "score": self.score, "rationale": self.rationale,
            "principles": list(self.principles),
            "samples": [sample.to_json(temperature=temperatures) for sample in self.samples],
            "escalated": self.escalated, "escalation_reason": self.escalation_reason}


def read_sample(data: Mapping[str, Any], temperature: float, *, out_of_range: str) -> JudgeSample:
  """Reads a reply that fits `prompts.SCHEMA`.

  Args:
    data: the reply.
    temperature: it was drawn at.
    out_of_range: "clamp" takes a number beyond [0, 1] for the nearest end, "refuse" for none.

  Raises:
    ValueError: for numbers that are none, or that are refused.
  """
  numbers = {}
  for name in ("score", "uncertainty"):
    value = data[name]
    # A boolean is an int in Python. NaN would make every comparison false, and pass for agreement.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
      raise ValueError(f"{name} is {value!r}, not a number")
    if not 0 <= value <= 1 and out_of_range == "refuse":
      raise ValueError(f"{name} is {value}, outside of [0, 1]")
    numbers[name] = min(1.0, max(0.0, float(value)))
  return JudgeSample(numbers["score"], numbers["uncertainty"], data["rationale"], tuple(data["principles"]),
                     temperature, frozenset(data["flags"]))


def read_legacy(given: Any) -> dict[str, Any] | None:
  """Reads a payload as Atlas Core does, whose quirks traces hold: booleans count, no bounds, no code blocks.

  Returns:
    score, uncertainty, rationale, principles, evidence and all else the payload has; None if it is invalid.
  """
  if isinstance(given, str):
    try:
      given = json.loads(given)
    except (ValueError, RecursionError):
      return None
  if not isinstance(given, Mapping):
    return None
  if not all(isinstance(given.get(name), int | float) for name in ("score", "uncertainty")):
    return None
  texts = [given.get(name) for name in ("rationale", "explanation")]
  lists = {name: list(given[name]) if isinstance(given.get(name), list) else []
           for name in ("principles", "evidence")}
  return {**given, "score": float(given["score"]), "uncertainty": float(given["uncertainty"]), **lists,
          "rationale": next((text for text in texts if isinstance(text, str)), "")}


def surest(samples: Sequence[JudgeSample]) -> JudgeSample:
  """Returns the sample with the lowest uncertainty, of equal ones the first in the order of temperatures."""
  return min(samples, key=lambda sample: sample.uncertainty)


def spread(samples: Sequence[JudgeSample]) -> float:
  """Returns the standard deviation of scores, of the population."""
  return statistics.pstdev([sample.score for sample in samples])


def reward_stats(samples: Sequence[JudgeSample], score: float | None) -> dict[str, Any]:
  """Returns the numbers that a trace has of its reward; those without a sample are None."""
  if not samples:
    return {"score": score, "score_mean": None, "score_stddev": None, "sample_count": 0,
            "uncertainty_mean": None, "uncertainty_stddev": None, "best_uncertainty": None}
  scores = [sample.score for sample in samples]
  unsure = [sample.uncertainty for sample in samples]
  return {"score": score, "score_mean": sum(scores) / len(scores), "score_stddev": statistics.pstdev(scores),
          "sample_count": len(samples), "uncertainty_mean": sum(unsure) / len(unsure),
          "uncertainty_stddev": statistics.pstdev(unsure), "best_uncertainty": min(unsure)}
