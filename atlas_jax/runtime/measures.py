"""Metrics of the runtime: counts of sessions that ended, as rows of metrics.jsonl, and their rules."""
import collections
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from atlas_jax.monitor.alerts.engine import AlertEngine
from atlas_jax.monitor.alerts.rules import judged
from atlas_jax.monitor.writer import MetricsWriter
from atlas_jax.runtime.result import SessionResult

RECIPE = "runtime"  # What rules of alerts call a process of sessions.


class Gauges(NamedTuple):
  """Numbers of a process as they stand."""

  queue: int = 0           # sessions that wait for room
  late_threads: int = 0    # so far
  spooled: int = 0         # sessions that wait for the store
  leases_expired: int = 0  # so far
  events_dropped: int = 0  # so far
  sinks_detached: int = 0  # so far


class Measures:
  """Counts the sessions of a process.

  Attributes:
    sessions: that have ended.
  """

  def __init__(self, gauges: Callable[[], Gauges] = Gauges):
    """Takes who says the numbers that are no counts of sessions."""
    self.sessions = 0
    self._gauges = gauges
    self._counts: collections.Counter[str] = collections.Counter()
    self._tokens: collections.Counter[str] = collections.Counter()
    self._grades: list[float] = []

  def add(self, result: SessionResult, *, drift_alert: bool = False) -> None:
    """Counts a session that has ended, its reward known or not.

    Args:
      result: of it.
      drift_alert: whether its reward is far from its baseline.
    """
    self.sessions += 1
    counts = self._counts
    counts["ended"] += 1
    counts["auto"] += result.lane == "auto"
    counts["drift"] += drift_alert
    if result.answer is not None:
      counts["answered"] += 1
      counts["verified"] += result.verified is True
      counts["scored"] += result.reward_status in ("ok", "no_verdict")
      counts["no_verdict"] += result.reward_status == "no_verdict"
    for one in result.attempts:
      counts["validations"] += one.validation is not None or one.problem is not None
      # One that errored is the student's; one without the verdict that was asked for is the teacher's.
      counts["teacher_errors"] += one.status == "unverified" and one.problem is not None
    graded = [one.score for one in result.attempts if one.score_source == "grader" and one.score is not None]
    self._grades += graded[-1:]
    for role, said in result.tokens.items():
      self._tokens[role] += said.get("prompt", 0) + said.get("completion", 0)

  def row(self) -> dict[str, float]:
    """Returns the metrics since the row before, and begins the next; a fraction of nothing is left out."""
    counts, gauges = self._counts, self._gauges()
    fractions = {"lane_auto_share": ("auto", "ended"), "verified_share": ("verified", "answered"),
              "teacher_error_share": ("teacher_errors", "validations"),
              "no_verdict_share": ("no_verdict", "scored")}
    found: dict[str, float] = {"sessions": self.sessions, "drift_alerts": counts["drift"], **gauges._asdict()}
    found |= {name: counts[part] / counts[whole] for name, (part, whole) in fractions.items()
              if counts[whole]}
    if self._grades:
      found["accuracy"] = float(np.mean(self._grades))
    found |= {f"tokens_by_role/{role}": count for role, count in sorted(self._tokens.items())}
    self._counts, self._tokens, self._grades = collections.Counter(), collections.Counter(), []
    return {f"runtime/{name}": value for name, value in found.items()}


def engine(alerts: Mapping[str, Any]) -> AlertEngine:
  """Returns the engine of the rules over a process of sessions, those for all runs among them.

  Args:
    alerts: as config.alerts.
  """
  return AlertEngine(judged(alerts, RECIPE), None)


def write(writer: MetricsWriter, measures: Measures, rules: AlertEngine | None = None) -> list[Any]:
  """Writes a row, its step the sessions so far; returns what the rules tell of it."""
  row = measures.row()
  step = measures.sessions
  writer.write(step, row)
  found = rules.observe(step, row) if rules else []
  for event in found:
    logging.warning("%s", event)
  return found
