"""Rewards of sessions: graders first, then judges, and no verdict where neither has one.

A reward that is not known is None with a reason, never 0.
"""
import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from atlas_jax.files.damage import one_line
from atlas_jax.rollout.judges.case import Case
from atlas_jax.runtime.agents.agent import CallTokens
from atlas_jax.runtime.result import AttemptRecord

NO_TRUTH = "the task has no ground_truth, and there is no judge"


class SessionScore(NamedTuple):
  """A score of a session, and of its attempts."""

  value: float | None = None        # in [0, 1]; None: no verdict
  source: str | None = None         # "grader" or "judge"
  reason: str | None = None         # why there is none
  breakdown: Mapping[str, Any] = {}  # of judges, as traces have it
  attempts: Mapping[str, float] = {}  # "step/attempt" -> score
  tokens: CallTokens | None = None


class Scorer(Protocol):
  """The interface of what scores."""

  def grade(self, task: str, answer: str, ground_truth: str | None, attempts: Sequence[AttemptRecord]
            ) -> SessionScore:
    """Returns what a program says of the answer and its attempts."""

  async def judge(self, task: str, answer: str, ground_truth: str | None, attempts: Sequence[AttemptRecord],
                  plan: Mapping[str, Any] | None) -> SessionScore:
    """Returns what judges say of the answer."""

  @property
  def has_judges(self) -> bool:
    """True if there are judges."""


class GraderAndJudges:
  """Scores by a program where there is a reference answer, else by judges.

  Attributes:
    has_judges: whether there are judges.
  """

  def __init__(self, grader: Callable[..., Any] | None = None, judges=None):
    """Takes what scores.

    Args:
      grader: called with prompt=, completion= and answer=, as rewards of `rollout.rewards` are; gives a score
        in [0, 1], or None.
      judges: a `rollout.judges.rim.RIMReward`; None: there are none.
    """
    self._grader = grader
    self._judges = judges
    self.has_judges = judges is not None

  def grade(self, task: str, answer: str, ground_truth: str | None, attempts: Sequence[AttemptRecord]
            ) -> SessionScore:
    """Grades; see `Scorer`."""
    if self._grader is None or ground_truth is None:
      return SessionScore(reason=NO_TRUTH if not self.has_judges else "the task has no ground_truth")
    try:
      value = self._graded(task, answer, ground_truth)
      # Of one step each attempt answers the task; of several, each answers its own part.
      alone = len({one.step for one in attempts}) == 1
      each = {f"{one.step}/{one.attempt}": score for one in attempts if alone and one.answer is not None
              and (score := self._graded(task, one.answer, ground_truth)) is not None}
    except Exception as error:  # A grader of the user's may raise anything.
      return SessionScore(reason=f"the grader failed: {one_line(error) or type(error).__name__}")
    if value is None:
      return SessionScore(reason="the grader has nothing to say of this answer")
    return SessionScore(value, "grader", attempts=each)

  def _graded(self, task: str, answer: str, ground_truth: str) -> float | None:
    assert self._grader is not None
    found = self._grader(prompt=task, completion=answer, answer=ground_truth)
    if inspect.isawaitable(found):
      raise TypeError("a grader must not be async")
    return _score(found)

  async def judge(self, task: str, answer: str, ground_truth: str | None, attempts: Sequence[AttemptRecord],
                  plan: Mapping[str, Any] | None) -> SessionScore:
    """Asks the judges; see `Scorer`."""
    listed = [{"step": one.step, "attempt": one.attempt, "answer": one.answer, "status": one.status,
               "guidance": one.guidance} for one in attempts]
    case = Case(task, answer, ground_truth=ground_truth, plan=plan, attempts=listed,
                guidance=[one.guidance for one in attempts if one.guidance] or None)
    try:
      found = await self._judges.judge(case)
    except Exception as error:
      return SessionScore(reason=f"the judges failed: {one_line(error) or type(error).__name__}")
    tokens = CallTokens(found.extra.get("tokens"), 0, found.extra.get("calls", 0))
    value = _score(found.score)
    if value is None:
      why = "; ".join(f"{name}: {said}" for name, said in (found.extra.get("no_verdict") or {}).items())
      return SessionScore(reason=f"the judges have no verdict ({why or 'no score'})", tokens=tokens)
    return SessionScore(value, "judge", breakdown=found.breakdown, tokens=tokens)


def _score(value: Any) -> float | None:
  """Returns a score; None for what is none, such as true, a list, NaN or 7."""
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  return float(value) if is_number and math.isfinite(value) and 0 <= value <= 1 else None


@dataclasses.dataclass(frozen=True)
class Unscored:
  """A scorer that says nothing: rewards are skipped.

  Attributes:
    has_judges: none.
  """

  has_judges: bool = False

  def grade(self, task, answer, ground_truth, attempts) -> SessionScore:
    """Says nothing."""
    del task, answer, ground_truth, attempts
    return SessionScore(reason="nothing scores: no grader and no judge is set")

  async def judge(self, task, answer, ground_truth, attempts, plan) -> SessionScore:
    """Says nothing."""
    del plan
    return self.grade(task, answer, ground_truth, attempts)


def of_events(found: SessionScore, *, final: bool = True) -> dict[str, Any]:
  """Returns what the END of a score says; without a value, only the last score says why."""
  data: dict[str, Any] = {"scores": dict(found.attempts)} if found.attempts else {}
  if found.value is not None or final:
    status = "ok" if found.value is not None else "skipped" if not found.tokens and found.source is None and \
        (found.reason or "").startswith("nothing scores") else "no_verdict"
    data["reward"] = {"value": found.value, "status": status, "reason": found.reason, "source": found.source,
                      **({"breakdown": dict(found.breakdown)} if found.breakdown else {})}
  return data
