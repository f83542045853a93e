"""Rules by which the Atlas SDK 0.1.3 kept its persona memories, to read old ones as it did.

They promote what two sessions used, right or wrong; `lesson_trials` has the rules that the runtime goes by.
"""
import json
from collections.abc import Mapping, Sequence
from typing import Any

LEAST_USES = 2
LEAST_DELTA = 0.05
CAPS = {"student": 5, "teacher_plan_review": 2, "teacher_validation": 4}
OTHER_CAP = 3
WEIGHTS = {"auto": 1.2, "paired": 1.0, "coach": 0.85, "escalate": 0.7}
_HELPFUL_FROM, _HARMFUL_TO = 0.8, 0.3
_TITLE = "--- Persona Memory ---"


def classify(score: float) -> str:
  """Returns helpful, neutral or harmful."""
  return "helpful" if score >= _HELPFUL_FROM else "harmful" if score <= _HARMFUL_TO else "neutral"


def used_score(uses: Sequence[Mapping[str, Any]]) -> float | None:
  """Returns the mean score of uses, weighted by lane; None: none has a score."""
  scored = [(WEIGHTS.get(use["mode"], 1.0), use["reward"]["score"]) for use in uses if use.get("reward")]
  total = sum(weight for weight, _ in scored)
  return sum(weight * score for weight, score in scored) / total if total else None


def changes(records: Sequence[Mapping[str, Any]],
            usage: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[str, list[int]]]:
  """Returns (new status, ids of memories) in the order in which they are moved.

  Args:
    records: memories of one persona.
    usage: their uses, by id as text.
  """
  promoted = [one["memory_id"] for one in records
              if one["status"] == "candidate" and _is_promoted(one, usage.get(str(one["memory_id"]), ()))]
  active = [one for one in records if one["status"] == "active" or one["memory_id"] in promoted]
  active.sort(key=lambda one: (_baseline(one) or 0.0, one["updated_at"]), reverse=True)
  kept: list[Mapping[str, Any]] = []
  texts: set[str] = set()
  twice = []
  for one in active:
    text = json.dumps(one["instruction"], sort_keys=True)
    (twice if text in texts else kept).append(one)
    texts.add(text)
  over = kept[CAPS.get(kept[0]["persona"], OTHER_CAP):] if kept else []
  replaced = [one["memory_id"] for one in (*twice, *over)]
  found = [("active", promoted), ("replaced", replaced)]
  return [(status, ids) for status, ids in found if ids]


def merged(base: str, instruction: str | Mapping[str, str]) -> str:
  """Returns a prompt with a memory in it."""
  if isinstance(instruction, str):
    return f"{base}\n\n{_TITLE}\n{instruction}"
  parts = (instruction.get("prepend"), instruction.get("replace", base), instruction.get("append"))
  return "\n\n".join(part for part in parts if part)


def _baseline(record: Mapping[str, Any]) -> float | None:
  return (record["reward_snapshot"] or {}).get("score")


def _is_promoted(record: Mapping[str, Any], uses: Sequence[Mapping[str, Any]]) -> bool:
  helpful, harmful = (record["metadata"].get(f"{name}_count", 0) for name in ("helpful", "harmful"))
  if len(uses) < LEAST_USES and helpful + harmful < LEAST_USES:
    return False
  before, after = _baseline(record), used_score(uses)
  retries = [use["retry_count"] for use in uses if use["retry_count"] is not None]
  if record["retry_count"] is not None and retries and sum(retries) / len(retries) < record["retry_count"]:
    return True
  if before is not None and after is not None:
    return after >= before + LEAST_DELTA
  return before is None if after is not None else helpful >= LEAST_USES and helpful > harmful
