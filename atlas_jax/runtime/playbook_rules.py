"""Rules by which the Atlas SDK 0.1.15 dropped playbook entries, to read old playbooks as it did.

They drop every lesson of users who send no incident ids;
`lesson_trials` has the rules that the runtime goes by.
"""
from collections.abc import Mapping
from typing import Any

LEAST_SESSIONS = 10
LEAST_HIT_RATE = 0.05
LEAST_DELTA = 0.01
TRANSFER_SESSIONS = 20
_HARM_HITS, _NEUTRAL_HITS, _ADOPTED, _INCIDENTS = 5, 10, 0.5, 2


def dropped_for(impact: Mapping[str, Any]) -> str | None:
  """Returns why an entry is dropped; None: it is kept.

  Args:
    impact: its counts, under the SDK's names.
  """
  sessions, hits = impact["sessions_observed"], impact["sessions_with_hits"]
  if sessions < LEAST_SESSIONS:
    return None
  if hits / sessions < LEAST_HIT_RATE:
    return "too_specific"
  delta = _delta(impact)
  if delta is not None and hits >= _HARM_HITS and delta < -LEAST_DELTA:
    return "harmful"
  adopted = impact["successful_adoptions"] / max(impact["total_cue_hits"], 1)
  if delta is not None and hits >= _NEUTRAL_HITS and delta < LEAST_DELTA and adopted > _ADOPTED:
    return "neutral"
  if sessions >= TRANSFER_SESSIONS and len(set(impact["incident_ids"])) < _INCIDENTS:
    return "no_transfer"
  return None


def _delta(impact: Mapping[str, Any]) -> float | None:
  counts = [impact[f"reward_{name}_count"] for name in ("with", "without")]
  if not all(counts):
    return None
  return impact["reward_with_sum"] / counts[0] - impact["reward_without_sum"] / counts[1]
