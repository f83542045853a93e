"""Lessons kept by the rules of the Atlas SDK: `persona_rules` promote, `playbook_rules` drop.

Candidates are shown at once, in all sessions that they fit, and compared with the session that wrote them and
with all others. Deviations, which `legacy` does not bring back: sessions that review holds back count for
nothing, the session that wrote a lesson is no use of it, and lessons stand in a message of the user.
"""
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from atlas_jax.data.traces.record import Trace
from atlas_jax.runtime import evidence, lesson_states, persona_rules, playbook_rules
from atlas_jax.runtime.lesson_trials import ACTIVE, RETIRED

INCIDENT = "incident_id"  # Key of the caller's metadata.


def moved(entries: Sequence[Mapping[str, Any]], used: Mapping[str, Collection[int]],
          sessions: Mapping[int, Trace]) -> list[dict[str, Any]]:
  """Returns the entries of a playbook in the states that follow by the SDK's rules.

  Args:
    entries: of the playbook.
    used: ids of the sessions that were shown a lesson, by lesson.
    sessions: of the family, and those that lessons were learnt from, by id.
  """
  scores = {number: score for number, trace in sessions.items()
            if (score := evidence.score(trace)) is not None}
  records, usage = [], {}
  for place, one in enumerate(entries):
    source = lesson_states.source_of(one)
    shown = [number for number in used.get(one["id"], ()) if number in scores and number != source]
    records.append(_record(place, one, scores.get(source) if source is not None else None,
                           sessions.get(source) if source is not None else None,
                           [persona_rules.classify(scores[number]) for number in shown]))
    usage[str(place)] = [{"mode": sessions[number].lane, "reward": {"score": scores[number]},
                          "retry_count": _retries(sessions[number])} for number in shown]
  found = [dict(one) for one in entries]
  for audience in dict.fromkeys(one["audience"] for one in entries):
    listed = [one for one in records if one["persona"] == audience]
    for status, places in persona_rules.changes(listed, usage):
      state = {"state": ACTIVE} if status == "active" else {"state": RETIRED, "reason": status}
      for place in places:
        found[place] |= state
  for one in found:
    reason = playbook_rules.dropped_for(_impact(one, used.get(one["id"], ()), scores, sessions))
    if reason is not None and one["state"] != RETIRED:
      one |= {"state": RETIRED, "reason": reason}
  return found


def _record(place: int, entry: Mapping[str, Any], score: float | None, source: Trace | None,
            classes: Sequence[str]) -> dict[str, Any]:
  """Returns a lesson as the SDK keeps its memories."""
  return {"memory_id": place, "status": entry["state"], "persona": entry["audience"], "updated_at": place,
          "instruction": {"append": entry["action"]},
          "reward_snapshot": None if score is None else {"score": score},
          "retry_count": None if source is None else _retries(source),
          "metadata": {f"{name}_count": classes.count(name) for name in ("helpful", "harmful")}}


def _retries(trace: Trace) -> int:
  return sum(max(len(step.attempts) - 1, 0) for step in trace.steps)


def _impact(entry: Mapping[str, Any], used: Collection[int], scores: Mapping[int, float],
            sessions: Mapping[int, Trace]) -> dict[str, Any]:
  """Returns counts of a lesson under the SDK's names; an adoption is a use with a right answer."""
  source = lesson_states.source_of(entry)
  counted = {number: score for number, score in scores.items() if number != source}
  shown = [score for number, score in counted.items() if number in used]
  others = [score for number, score in counted.items() if number not in used]
  incidents = [str(sessions[number].session_metadata[INCIDENT]) for number in used
               if number in counted and INCIDENT in sessions[number].session_metadata]
  return {"sessions_observed": len(counted), "sessions_with_hits": len(shown), "total_cue_hits": len(shown),
          "successful_adoptions": sum(score >= evidence.RIGHT_FROM for score in shown),
          "incident_ids": incidents, "reward_with_sum": sum(shown), "reward_with_count": len(shown),
          "reward_without_sum": sum(others), "reward_without_count": len(others)}
