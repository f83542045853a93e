"""Counts of the sessions of a store come to, by version, lane and role: the numbers of `atlas stats`."""
from collections.abc import Iterable
from typing import Any

from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.values import as_object

RIGHT_FROM = 0.8  # Score from which an answer counts as right, as of `evidence`.


class Count:
  """Sums over sessions."""

  def __init__(self) -> None:
    """Starts with none."""
    self.sessions = self.graded = self.right = self.checked = self.verified = self.ended = 0
    self.tokens: dict[str, int] = {}

  def add(self, trace: Trace) -> None:
    """Counts a session."""
    self.sessions += 1
    self.ended += trace.status == "succeeded"
    stats = as_object(trace.data.get("reward_stats"))
    if stats.get("source") == "grader" and trace.reward.value is not None:
      self.graded += 1
      self.right += trace.reward.value >= RIGHT_FROM
    if trace.verified is not None:
      self.checked += 1
      self.verified += trace.verified
    for role, counts in as_object(trace.data.get("tokens")).items():
      given = as_object(counts)
      self.tokens[role] = self.tokens.get(role,
                                          0) + (given.get("prompt") or 0) + (given.get("completion") or 0)

  def to_json(self) -> dict[str, Any]:
    """Returns the sums; fractions that nothing is known of are None."""
    def part_of(part: int, whole: int) -> float | None:
      return round(part / whole, 4) if whole else None

    return {"sessions": self.sessions, "succeeded": self.ended, "graded": self.graded,
            "accuracy": part_of(self.right, self.graded), "checked": self.checked,
            "verified": part_of(self.verified, self.checked), "tokens": self.tokens}


def of_traces(traces: Iterable[Trace]) -> dict[str, Any]:
  """Returns the sums of all sessions, by the teacher's version in the order of coming, by lane and review."""
  total = Count()
  groups: dict[str, dict[str, Count]] = {"teacher": {}, "lane": {}, "review": {}}
  for trace in traces:
    total.add(trace)
    names = {"teacher": trace.versions.get("teacher") or "none", "lane": trace.lane or "none",
             "review": trace.review_status or "pending"}
    for group, name in names.items():
      groups[group].setdefault(str(name), Count()).add(trace)
  return {"all": total.to_json(),
          **{f"by_{group}": {name: one.to_json() for name, one in listed.items()}
             for group, listed in groups.items()}}


def lines(found: dict[str, Any]) -> list[str]:
  """Returns the sums as lines for people."""
  made = [f"{'':<34}{'sessions':>9}{'graded':>8}{'accuracy':>10}{'verified':>10}{'teacher tokens':>16}"]
  for group in ("all", "by_teacher", "by_lane", "by_review"):
    listed = {"all": found["all"]} if group == "all" else found[group]
    for name, one in listed.items():
      shown = name if group == "all" else f"{group.removeprefix('by_')} {name}"[:32]
      made.append(f"{shown:<34}{one['sessions']:>9}{one['graded']:>8}{_percent(one['accuracy']):>10}"
                  f"{_percent(one['verified']):>10}{one['tokens'].get('teacher', 0):>16}")
  return made


def _percent(value: float | None) -> str:
  return "–" if value is None else f"{value:.1%}"
