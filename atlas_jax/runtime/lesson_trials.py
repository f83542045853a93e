"""Trials of lessons: shown in half of the sessions that they fit, so that both halves can be compared."""
import hashlib
import json
import math
from collections.abc import Sequence
from typing import NamedTuple

CANDIDATE, TRIAL, ACTIVE, RETIRED = "candidate", "trial", "active", "retired"
ENOUGH = 40           # Sessions of both halves after which `LEAST_DELTA` is enough.
LEAST_DELTA = 0.02    # Difference of the mean scores.
_Z = 1.6448536269514722  # Two-sided 90%.


class Use(NamedTuple):
  """One session that a lesson fits: whether it was shown, and the score of its answer, from 0 to 1."""

  session_key: str
  shown: bool
  score: float


class Finding(NamedTuple):
  """The finding of a trial: the state that follows, why, and the 90% interval of the difference."""

  state: str
  reason: str
  delta: float | None
  lower: float
  upper: float
  n: int


def is_shown(session_key: str, entry: str) -> bool:
  """Returns whether a lesson in trial is shown in a session: half of them, by hash."""
  return hashlib.sha256(json.dumps([session_key, entry]).encode()).digest()[0] % 2 == 0


def judge(uses: Sequence[Use], written_by: str) -> Finding:
  """Judges a lesson in trial.

  A score's variance is at most m (1 - m) of its mean m, and each half has one right and one wrong answer
  added (Agresti and Caffo, 2000), so that halves of few sessions, all alike, have an interval too.

  Args:
    uses: sessions that it fits; those that nobody may learn from are left out by the caller.
    written_by: key of the session that wrote it, which is never its evidence.

  Raises:
    ValueError: for a score that is not from 0 to 1.
  """
  counted = [use for use in uses if use.session_key != written_by]
  for use in counted:
    if not 0 <= use.score <= 1:
      raise ValueError(f"score={use.score} of session {use.session_key!r} must be from 0 to 1")
  halves = [[use.score for use in counted if use.shown is shown] for shown in (True, False)]
  means = [(sum(half) + 1) / (len(half) + 2) for half in halves]
  width = _Z * math.sqrt(sum(mean * (1 - mean) / (len(half) + 2) for mean, half in zip(means, halves)))
  lower, upper = means[0] - means[1] - width, means[0] - means[1] + width
  delta = sum(halves[0]) / len(halves[0]) - sum(halves[1]) / len(halves[1]) if all(halves) else None
  state, reason = TRIAL, "not decided"
  if lower > 0:
    state, reason = ACTIVE, "interval above 0"
  elif upper < 0:
    state, reason = RETIRED, "interval below 0"
  elif delta is not None and len(counted) >= ENOUGH and delta >= LEAST_DELTA:
    state, reason = ACTIVE, f"difference of {LEAST_DELTA} after {ENOUGH}"
  return Finding(state, reason, delta, lower, upper, len(counted))
