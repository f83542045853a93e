"""The drift guard: tells a session whose reward is far from those of its family of tasks.

The baseline are the newest approved sessions of the same learning key that began before it. A session that
stands out waits for a reviewer, who finds a note why.

Source: the detector of the Atlas SDK 0.1.15, whose baseline has the session itself and sessions that nobody
has reviewed; `legacy` has it so.
"""
import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from atlas_jax.data.traces.query import SessionQuery
from atlas_jax.data.traces.score import is_outage
from atlas_jax.data.traces.store import SqlStore
from atlas_jax.data.traces.store_rows import StoredSession
from atlas_jax.data.traces.values import as_object

MAD_TO_STD = 1.4826  # The standard deviation of a normal distribution over its median absolute deviation.
MEASURES = ("score", "uncertainty_mean", "best_uncertainty")
# The first of these that is too large is named.
REASONS = ("score_z", "score_mad_z", "uncertainty_z", "uncertainty_mad_z")
TOO_FEW = "insufficient_baseline"


@dataclasses.dataclass(frozen=True)
class DriftSettings:
  """When a reward is far.

  Attributes:
    window: sessions in the baseline at most.
    threshold: of z and of the robust z, in standard deviations.
    min_samples: sessions in the baseline without which there is no alert.
    legacy: the baseline has the session itself, and sessions that are not approved.
  """

  window: int = 50
  threshold: float = 3.0
  min_samples: int = 5
  legacy: bool = False


def detect(current: Any, baseline: Sequence[Mapping[str, Any]], settings: DriftSettings,
           learning_key: str | None = None) -> dict[str, Any] | None:
  """Compares statistics of a reward with those of earlier sessions.

  Args:
    current: {score or score_mean, uncertainty_mean or best_uncertainty}.
    baseline: the same of earlier sessions, newest first; `window` of them are used.
    settings: what is far.
    learning_key: of the session, for the finding.

  Returns:
    {alert, drift_alert, reason, score_delta, score_z, score_mad_z, uncertainty_delta, uncertainty_z,
    uncertainty_mad_z, threshold, window, learning_key, baseline}; numbers are None if they have no meaning,
    such as z of a baseline without spread. None where `current` is no object.
  """
  if not isinstance(current, Mapping):
    return None
  used = [one for one in baseline if isinstance(one, Mapping)][:settings.window]
  values = {name: [value for one in used if (value := _value(one, name)) is not None] for name in MEASURES}
  uncertainty = "uncertainty_mean" if values["uncertainty_mean"] else "best_uncertainty"
  finding: dict[str, Any] = {"alert": False, "drift_alert": False, "reason": None}
  enough = len(used) >= settings.min_samples
  for label, name in (("score", "score"), ("uncertainty", uncertainty)):
    value = _first(current, ("score", "score_mean") if label == "score" else ("uncertainty_mean",
                                                                            "best_uncertainty"))
    finding |= _distances(label, value, values[name], enough)
  finding |= {"threshold": settings.threshold, "window": settings.window, "learning_key": learning_key,
              "baseline": _summary(values, len(used), settings.window)}
  if not enough:
    return finding | {"reason": TOO_FEW}
  far = [name for name in REASONS if finding[name] is not None and abs(finding[name]) >= settings.threshold]
  return finding | ({"alert": True, "drift_alert": True, "reason": far[0]} if far else {})


def _distances(label: str, value: float | None, values: list[float], enough: bool) -> dict[str, float | None]:
  found: dict[str, float | None] = {f"{label}_delta": None, f"{label}_z": None, f"{label}_mad_z": None}
  if value is None or not values:
    return found
  mean, median = statistics.fmean(values), statistics.median(values)
  found[f"{label}_delta"] = value - mean
  spread = statistics.pstdev(values)
  deviation = MAD_TO_STD * statistics.median(abs(one - median) for one in values)
  if enough and spread:
    found[f"{label}_z"] = (value - mean) / spread
  if enough and deviation:
    found[f"{label}_mad_z"] = (value - median) / deviation
  return found


def _summary(values: Mapping[str, list[float]], count: int, window: int) -> dict[str, Any]:
  found: dict[str, Any] = {"window": window, "sample_count": count}
  for measure, listed in values.items():
    name = measure.removesuffix("_mean")
    found |= {f"{name}_mean": statistics.fmean(listed) if listed else None,
              f"{name}_median": statistics.median(listed) if listed else None,
              f"{name}_stddev": statistics.pstdev(listed) if listed else None}
  return found


def _value(stats: Mapping[str, Any], name: str) -> float | None:
  # In a baseline the mean of the samples counts, whatever the session's score became.
  return _first(stats, ("score_mean", "score") if name == "score" else (name,))


def _first(stats: Mapping[str, Any], names: Sequence[str]) -> float | None:
  for name in names:
    value = stats.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
      return float(value)
  return None


def guard(store: SqlStore, stored: StoredSession, settings: DriftSettings) -> dict[str, Any] | None:
  """Returns the finding for a session in a store; None where it has no statistics or no learning key."""
  learning_key = as_object(stored.rows.session["metadata"]).get("learning_key")
  stats = stored.rows.session["reward_stats"]
  if not isinstance(stats, Mapping) or not isinstance(learning_key, str) or not learning_key:
    return None
  if settings.legacy:
    everything = SessionQuery(review_statuses=None, learning_key=learning_key)
    return detect(stats, store.baseline(everything, settings.window), settings, learning_key)
  if is_outage(stats):  # No judge answered: that is no score, neither of the session nor of a baseline.
    return None
  # Older ones alone, which leaves out the session itself.
  older = SessionQuery(learning_key=learning_key, newest_first=True, cursor=stored.cursor)
  baseline = [one for one in store.baseline(older, settings.window)
              if not (isinstance(one, Mapping) and is_outage(one))]
  return detect(stats, baseline, settings, learning_key)


def note_of(finding: Mapping[str, Any]) -> str | None:
  """Returns the note for a reviewer; None without an alert."""
  if not finding["alert"]:
    return None
  reason = finding["reason"]
  return (f"drift: {reason} is {finding[reason]:+.2f}, beyond {finding['threshold']:g}, against "
          f"{finding['baseline']['sample_count']} earlier sessions")
