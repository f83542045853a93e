"""Scores of sessions, steps and attempts, where the absence of a verdict is not a zero.

Old traces write 0.0 for rewards that were never given: placeholders of skipped steps, judges that were down,
offline runs. They are read as no verdict, with the reason. A number outside [0, 1] is no verdict either, and
not clamped: a 7 on a scale to 10 would be read as perfect. Rounding errors of 1e-6 are clamped.
"""
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from atlas_jax.files import json_text

ROUNDING = 1e-6
PLACEHOLDERS = ("deferred", "validation_failed")  # Rationales of rewards that nobody gave.
SOURCES = ("session", "stats", "steps", "grader", "judge", "validator")


@dataclasses.dataclass(frozen=True)
class Score:
  """One score, or why there is none."""

  value: float | None         # in [0, 1], more is better; None: no verdict
  reason: str | None = None   # why there is no verdict; None where there is one
  source: str | None = None   # one of SOURCES; None: not known

  @property
  def has_verdict(self) -> bool:
    """True if there is a score."""
    return self.value is not None

  @classmethod
  def absent(cls, reason: str, source: str | None = None) -> "Score":
    """Returns no verdict."""
    return cls(None, reason, source)

  @classmethod
  def of(cls, value: Any, source: str | None = None) -> "Score":
    """Reads a number.

    NaN, infinities, booleans, lists and whatever else is no number of [0, 1] are no verdict.
    """
    if isinstance(value, str):  # Columns of text hold numbers as texts.
      try:
        value = float(value)
      except ValueError:
        return cls.absent("the score is a text that is no number", source)
    if value is None:
      return cls.absent("there is no score", source)
    if isinstance(value, bool) or not isinstance(value, int | float):
      return cls.absent(f"the score is {type(value).__name__}, not a number", source)
    if value != value:  # Whole numbers may be too large for math.isnan.
      return cls.absent("the score is NaN", source)
    if not -ROUNDING <= value <= 1 + ROUNDING:
      return cls.absent("the score is outside of [0, 1]", source)
    return cls(min(max(float(value), 0.0), 1.0), None, source)

  @classmethod
  def read(cls, payload: Any, source: str | None = None) -> "Score":
    """Reads a reward: a breakdown {score, rationale, judges, raw}, JSON text of one, or a bare number.

    A map of judges to numbers without a key "score", as the old runtime's sample has it, is their mean.
    """
    if isinstance(payload, str):
      try:
        payload = json_text.parse(payload, nan=True)
      except ValueError:
        return cls.absent("the reward is a text that is no JSON", source)
    if payload is None or payload == {}:
      return cls.absent("there is no reward", source)
    if not isinstance(payload, Mapping):
      return cls.of(payload, source)
    if "score" not in payload:
      return cls._of_judges(payload, source)
    found = cls.of(payload["score"], source)
    raw = payload.get("raw")
    raw = raw if isinstance(raw, Mapping) else {}
    inner = raw.get("raw")
    skipped = raw.get("skipped") is True or isinstance(inner, Mapping) and inner.get("skipped") is True
    placed = payload.get("rationale") in PLACEHOLDERS and not payload.get("judges")
    if found.value == 0 and (skipped or placed):
      return cls.absent("the reward is a placeholder", source)
    uncertain = list(_uncertainties(payload))
    if found.value == 0 and uncertain and min(uncertain) >= 1:
      return cls.absent("0.0 with uncertainty 1.0 in all samples: no judge answered", source)
    return found

  @classmethod
  def of_stats(cls, stats: Any) -> "Score":
    """Reads statistics of a session's reward: {score, sample_count, uncertainty_mean, ...}."""
    if not isinstance(stats, Mapping):
      return cls.absent("there are no statistics of the reward", "stats")
    found = cls.of(stats.get("score", stats.get("score_mean")), "stats")
    return cls.absent(OUTAGE, "stats") if found.value == 0 and is_outage(stats) else found

  @classmethod
  def _of_judges(cls, payload: Mapping, source: str | None) -> "Score":
    scores = [cls.of(one).value for one in payload.values()]
    if not scores or None in scores:
      return cls.absent("the reward has no score", source)
    return cls(sum(one for one in scores if one is not None) / len(scores), None, source)

  def to_json(self) -> dict[str, Any]:
    """Returns it as an object: the score, null with a reason where there is no verdict."""
    return {"score": self.value, **({"reason": self.reason} if self.reason else {}),
            **({"source": self.source} if self.source else {})}


OUTAGE = "statistics of samples with uncertainty 1.0: no judge answered"


def is_outage(stats: Mapping) -> bool:
  """Returns whether statistics are those that the old runtime writes when no judge answered."""
  uncertainty = stats.get("uncertainty_mean", stats.get("best_uncertainty"))
  count = stats.get("sample_count")
  is_unsure = isinstance(uncertainty, int | float) and not isinstance(uncertainty, bool) and uncertainty >= 1
  # Of several samples that are not sure at all those are meant that say 0: of each of them no judge answered.
  is_nothing = count == 1 or isinstance(count, int) and count > 1 and stats.get("score_mean", 0) == 0
  return is_unsure and is_nothing


def _uncertainties(payload: Mapping) -> Iterator[float]:
  """Yields the uncertainty of each sample of a breakdown, 0 where a sample has none."""
  judges = payload.get("judges")
  judges = judges if isinstance(judges, list) else []
  judged = [one.get("samples") for one in judges if isinstance(one, Mapping)]
  raw = payload.get("raw")
  # A session's reward has its samples in `raw` also where it lists no judges.
  listed = judged if any(judged) else [raw.get("samples") if isinstance(raw, Mapping) else None]
  for samples in listed:
    for sample in samples if isinstance(samples, list) else ():
      value = sample.get("uncertainty") if isinstance(sample, Mapping) else None
      is_number = isinstance(value, int | float) and not isinstance(value, bool)
      yield float(value) if is_number and value is not None else 0.0
