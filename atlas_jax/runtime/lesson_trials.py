"""Trials of lessons: shown in half of the sessions that they fit, so that both halves can be compared.

The rule "looks" looks at a trial when it has `LOOKS` scored sessions, once each, and spends `ACTIVATE` on
them: chances to find a useless lesson useful, which add up to .10. A lesson whose use is not shown by the
last look is retired. The rule "spec" is that of the specification, kept for comparisons: it looks after each
session, and after 40 a difference of .02 is enough for it.

Lessons that end as active, in percent of those of an effect on a chance of .5 to be right, within 160
sessions (in parentheses: sessions until the decision, mean; 2,000 lessons each, 400 by "spec"):

  effect of the lesson       0            +.2          -.2
  looks                      7 (139)      83 (109)     0 (88)
  spec                       67 (45)      94 (27)      16 (38)
"""
import hashlib
import json
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

CANDIDATE, TRIAL, ACTIVE, RETIRED = "candidate", "trial", "active", "retired"
RULES = ("looks", "spec")
LOOKS = (20, 40, 80, 160)          # Scored sessions of both halves.
ACTIVATE = (0.01, 0.02, 0.03, 0.04)  # One-sided; retiring wrongly costs less, and is spent more freely.
RETIRE = 0.05                      # At each look.
ENOUGH = 40           # Sessions of both halves after which `LEAST_DELTA` is enough for the rule "spec".
LEAST_DELTA = 0.02    # Difference of the mean scores.
SPEC = 0.05           # One-sided, of the 90% interval of the rule "spec".


class Use(NamedTuple):
  """One session that a lesson fits: whether it was shown, and the score of its answer, from 0 to 1."""

  session_key: str | int
  shown: bool
  score: float


class Finding(NamedTuple):
  """The finding of a trial: the state that follows, why, and the bounds of the difference."""

  state: str
  reason: str
  delta: float | None
  lower: float  # by which a lesson becomes active if it is above 0,
  upper: float  # and retired if it is below
  n: int
  looks: int = 0  # that were taken


def is_shown(session_key: str, entry: str) -> bool:
  """Returns whether a lesson in trial is shown in a session: half of them, by hash."""
  return hashlib.sha256(json.dumps([session_key, entry]).encode()).digest()[0] % 2 == 0


def judge(uses: Sequence[Use], written_by: str | int | None, *, looks: int = 0,
          rule: str = "looks") -> Finding:
  """Judges a lesson in trial.

  Args:
    uses: sessions that it fits; those that nobody may learn from are left out by the caller.
    written_by: the session that wrote it, which is never its evidence.
    looks: that were taken before; none is taken twice, whatever came to the uses since.
    rule: one of `RULES`.

  Raises:
    ValueError: for a score that is not from 0 to 1, or a rule that is none.
  """
  if rule not in RULES:
    raise ValueError(f"lessons.rule={rule!r} must be one of {', '.join(RULES)}")
  counted = [use for use in uses if use.session_key != written_by]
  for use in counted:
    if not 0 <= use.score <= 1:
      raise ValueError(f"score={use.score} of session {use.session_key!r} must be from 0 to 1")
  if rule == "spec":
    return _of_spec(counted)
  due = sum(len(counted) >= look for look in LOOKS)
  if due <= looks:
    delta, lower, upper = _difference(counted, ACTIVATE[min(looks, len(LOOKS) - 1)], RETIRE)
    return Finding(TRIAL, "not decided", delta, lower, upper, len(counted), looks)
  delta, lower, upper = _difference(counted, ACTIVATE[due - 1], RETIRE)
  state, reason = (ACTIVE, "it helps") if lower > 0 else (RETIRED, "it harms") if upper < 0 else \
      (RETIRED, "no use is shown") if due == len(LOOKS) else (TRIAL, "not decided")
  return Finding(state, reason, delta, lower, upper, len(counted), due)


def missing(n: int, looks: int) -> int | None:
  """Returns how many scored sessions more the next look needs; None: there is no further one."""
  return max(LOOKS[looks] - n, 0) if looks < len(LOOKS) else None


def _difference(uses: Sequence[Use], below: float, above: float) -> tuple[float | None, float, float]:
  """Returns the difference of the halves' means, and bounds that it passes with these chances.

  A score's variance is at most m (1 - m) of its mean m, and each half has one right and one wrong answer
  added (Agresti and Caffo, 2000), so that halves of few sessions, all alike, have an interval too.
  """
  halves = [[use.score for use in uses if use.shown is shown] for shown in (True, False)]
  means = [(sum(half) + 1) / (len(half) + 2) for half in halves]
  error = math.sqrt(sum(mean * (1 - mean) / (len(half) + 2) for mean, half in zip(means, halves)))
  lower, upper = (means[0] - means[1] + sign * error * NormalDist().inv_cdf(1 - chance)
                  for sign, chance in ((-1, below), (1, above)))
  delta = sum(halves[0]) / len(halves[0]) - sum(halves[1]) / len(halves[1]) if all(halves) else None
  return delta, lower, upper


def _of_spec(uses: Sequence[Use]) -> Finding:
  delta, lower, upper = _difference(uses, SPEC, SPEC)
  state, reason = TRIAL, "not decided"
  if lower > 0:
    state, reason = ACTIVE, "interval above 0"
  elif upper < 0:
    state, reason = RETIRED, "interval below 0"
  elif delta is not None and len(uses) >= ENOUGH and delta >= LEAST_DELTA:
    state, reason = ACTIVE, f"difference of {LEAST_DELTA} after {ENOUGH}"
  return Finding(state, reason, delta, lower, upper, len(uses))
