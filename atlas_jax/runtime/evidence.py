"""Evidence of an agent at a family of tasks: outcomes that count, and what follows from them.

Outcomes count if a reviewer approved the session, or a program graded it and no reviewer quarantined it, and
if they are of the same versions. An answer that nobody checked is no outcome, so that sessions without
supervision count where they were graded or audited alone.
"""
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from atlas_jax.data.traces.query import APPROVED, QUARANTINED
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.values import as_object

RIGHT_FROM = 0.8      # Score from which an answer counts as right.
CERTIFIED_AFTER = 3   # Verified passes that certify,
LOST_AFTER = 2        # and wrong outcomes since that undo it.
BOUND = 0.9           # The bound is one-sided.
VERSIONS = ("student", "teacher")


@dataclasses.dataclass(frozen=True)
class Evidence:
  """Outcomes of a family of tasks.

  Attributes:
    outcomes: whether the answer was right, oldest first.
    passes: of each of them, whether it is a verified pass: the answer passed its check by the teacher, and a
      grader or judge gave at least `RIGHT_FROM`. None certifies where this is empty.
    alone: whether the first attempt was right, before any guidance, which is what is known of the agent
      without a teacher; None: as the outcomes.
    drift_alert: whether a session of the family waits for a reviewer because of drift.
    withheld: sessions of the family that do not count, by reason.
  """

  outcomes: tuple[bool, ...] = ()
  passes: tuple[bool, ...] = ()
  drift_alert: bool = False
  withheld: Mapping[str, int] = dataclasses.field(default_factory=dict)
  alone: tuple[bool, ...] | None = None

  @property
  def right(self) -> int:
    """Number of outcomes that are right."""
    return sum(self.outcomes)

  @property
  def mean(self) -> float:
    """Mean of a Beta(1, 1) prior with the outcomes."""
    return (self.right + 1) / (len(self.outcomes) + 2)

  @property
  def lower(self) -> float:
    """Lower bound of the chance to be right without help, which it exceeds with probability `BOUND`."""
    from scipy import special  # A third of a second to import.

    alone = self.outcomes if self.alone is None else self.alone
    return float(special.betaincinv(sum(alone) + 1, len(alone) - sum(alone) + 1, 1 - BOUND))

  @property
  def certified(self) -> bool:
    """True if there were enough verified passes, no `LOST_AFTER` wrong ones since, and no alert stands.

    A wrong outcome before that begins the count anew.
    """
    passed = wrong = 0
    for right, counts in zip(self.outcomes, self.passes):
      wrong = wrong + (not right) if passed >= CERTIFIED_AFTER else 0
      if not right and (passed < CERTIFIED_AFTER or wrong >= LOST_AFTER):
        passed = wrong = 0
      passed += counts
    return passed >= CERTIFIED_AFTER and not self.drift_alert


def of_traces(newest_first: Iterable[Trace], versions: Mapping[str, Any]) -> Evidence:
  """Makes evidence of the sessions of a family.

  Args:
    newest_first: the sessions.
    versions: that they must have been run with.
  """
  outcomes: list[bool] = []
  passes: list[bool] = []
  alone: list[bool] = []
  withheld: dict[str, int] = {}
  alert = False
  for trace in newest_first:
    metadata = trace.session_metadata
    if (trace.data.get("drift_alert") is True or metadata.get("drift_alert") is True) and \
        trace.review_status != APPROVED:
      alert = True
    reason, right = _outcome(trace, versions)
    if reason is None:
      assert right is not None
      outcomes.append(right)
      passes.append(right and _is_verified_pass(trace))
      alone.append(_alone(trace, right))
    else:
      withheld[reason] = withheld.get(reason, 0) + 1
  oldest_first = [tuple(reversed(one)) for one in (outcomes, passes, alone)]
  return Evidence(oldest_first[0], oldest_first[1], alert, withheld, oldest_first[2])


def passes_gate(trace: Trace) -> bool:
  """Returns whether something may be learnt from a session: approved, or graded by a program."""
  if trace.review_status == QUARANTINED:
    return False
  return trace.review_status == APPROVED or _grade(trace) is not None


def score(trace: Trace) -> float | None:
  """Returns the score of a session's answer, from 0 to 1; None: it has none, or the gate holds it back."""
  if not passes_gate(trace):
    return None
  value = trace.reward.value
  if value is None:
    _, checked = _checked(trace)
    return None if checked is None else float(checked)
  return value


def _outcome(trace: Trace, versions: Mapping[str, Any]) -> tuple[str | None, bool | None]:
  """Returns why a session is no outcome, or whether it is a right one."""
  if not passes_gate(trace):
    return "gate", None
  if any(trace.versions.get(name) != versions.get(name) for name in VERSIONS):
    return "versions", None
  grade = _grade(trace)
  if grade is not None:
    return None, grade >= RIGHT_FROM
  return _checked(trace)


def _alone(trace: Trace, right: bool) -> bool:
  """Returns whether the first attempt was right.

  With a teacher a wrong one may end in a right answer, and a right one in a wrong answer.
  """
  first = next((one for step in trace.steps for one in step.attempts), None)
  if first is not None and first.score.value is not None:
    return first.score.value >= RIGHT_FROM
  if first is None or not right:
    return right
  return first.valid if first.valid is not None else len(trace.steps[0].attempts) == 1


def _checked(trace: Trace) -> tuple[str | None, bool | None]:
  """Returns whether the teacher let an answer pass, in the shadow where the lane has no supervision."""
  if trace.lane == "auto":
    audit = as_object(trace.session_metadata.get("audit")).get("valid")
    return (None, audit) if isinstance(audit, bool) else ("unchecked", None)
  return (None, trace.verified) if trace.verified is not None else ("unchecked", None)


def _is_verified_pass(trace: Trace) -> bool:
  source = as_object(trace.data.get("reward_stats")).get("source")
  value = trace.reward.value
  return _checked(trace)[1] is True and source in ("grader", "judge") and value is not None and \
      value >= RIGHT_FROM


def _grade(trace: Trace) -> float | None:
  stats = as_object(trace.data.get("reward_stats"))
  return trace.reward.value if stats.get("source") == "grader" else None


def counted(found: Sequence[bool]) -> dict[str, int]:
  """Returns outcomes as records have them."""
  return {"right": sum(found), "n": len(found)}
