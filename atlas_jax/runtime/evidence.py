"""What is known of an agent at a family of tasks: outcomes that count, and what follows from them.

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
CERTIFIED_AFTER = 3   # Right outcomes in a row,
LOST_AFTER = 2        # and wrong ones in a row that undo it.
BOUND = 0.9           # The bound is one-sided.
VERSIONS = ("student", "teacher")


@dataclasses.dataclass(frozen=True)
class Evidence:
  """What is known.

  Attributes:
    outcomes: whether the answer was right, oldest first.
    drift_alert: whether a session of the family waits for a reviewer because of drift.
    withheld: sessions of the family that do not count, by reason.
  """

  outcomes: tuple[bool, ...] = ()
  drift_alert: bool = False
  withheld: Mapping[str, int] = dataclasses.field(default_factory=dict)

  @property
  def right(self) -> int:
    """How many outcomes are right."""
    return sum(self.outcomes)

  @property
  def mean(self) -> float:
    """Mean of a Beta(1, 1) prior with the outcomes."""
    return (self.right + 1) / (len(self.outcomes) + 2)

  @property
  def lower(self) -> float:
    """Lower bound of the chance to be right, which it exceeds with probability `BOUND`."""
    from scipy import special  # A third of a second to import.

    return float(special.betaincinv(self.right + 1, len(self.outcomes) - self.right + 1, 1 - BOUND))

  @property
  def certified(self) -> bool:
    """Whether enough right outcomes in a row were seen, and no two wrong ones since, and no alert stands."""
    run, certified, wrong = 0, False, 0
    for right in self.outcomes:
      run, wrong = (run + 1, 0) if right else (0, wrong + 1)
      certified = (certified or run >= CERTIFIED_AFTER) and wrong < LOST_AFTER
    return certified and not self.drift_alert


def of_traces(newest_first: Iterable[Trace], versions: Mapping[str, Any]) -> Evidence:
  """Makes evidence of the sessions of a family.

  Args:
    newest_first: the sessions.
    versions: that they must have been run with.
  """
  outcomes: list[bool] = []
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
    else:
      withheld[reason] = withheld.get(reason, 0) + 1
  return Evidence(tuple(reversed(outcomes)), alert, withheld)


def passes_gate(trace: Trace) -> bool:
  """Returns whether something may be learnt from a session: approved, or graded by a program."""
  if trace.review_status == QUARANTINED:
    return False
  return trace.review_status == APPROVED or _grade(trace) is not None


def _outcome(trace: Trace, versions: Mapping[str, Any]) -> tuple[str | None, bool | None]:
  """Returns why a session is no outcome, or whether it is a right one."""
  if not passes_gate(trace):
    return "gate", None
  if any(trace.versions.get(name) != versions.get(name) for name in VERSIONS):
    return "versions", None
  grade = _grade(trace)
  if grade is not None:
    return None, grade >= RIGHT_FROM
  if trace.lane == "auto":
    audit = as_object(trace.session_metadata.get("audit")).get("valid")
    return (None, audit) if isinstance(audit, bool) else ("unchecked", None)
  return (None, trace.verified) if trace.verified is not None else ("unchecked", None)


def _grade(trace: Trace) -> float | None:
  stats = as_object(trace.data.get("reward_stats"))
  return trace.reward.value if stats.get("source") == "grader" else None


def counted(found: Sequence[bool]) -> dict[str, int]:
  """Returns outcomes as records have them."""
  return {"right": sum(found), "n": len(found)}
