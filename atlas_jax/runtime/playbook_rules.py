"""Rules by which the Atlas SDK 0.1.15 took and dropped playbook entries, to read old playbooks as it did.

They drop every lesson of users who send no incident ids;
`lesson_trials` has the rules that the runtime goes by.

Of its gate of generality, dates and `BANNED` words are here; its rules for names, ids of incidents and the
length of a text are in no recorded case and left out, as are prefixes of handles and synonyms of fields.
"""
import hashlib
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

LEAST_SESSIONS = 10
LEAST_HIT_RATE = 0.05
LEAST_DELTA = 0.01
TRANSFER_SESSIONS = 20
_HARM_HITS, _NEUTRAL_HITS, _ADOPTED, _INCIDENTS = 5, 10, 0.5, 2

WEIGHTS = {"actionability": 0.4, "generality": 0.3, "hookability": 0.2, "concision": 0.1}
CUES = {"regex": 1.0, "predicate": 0.6, "keyword": 0.4}  # Their hookability.
MOST_CHARS = 420                                         # Of a lesson; above, concision falls.
BANNED = ("case",)                                       # Also within words.
_DATE = re.compile(r"\b(?:19|20)[0-9]{2}(?:[-/](?:0?[1-9]|1[0-2])(?:[-/][0-9]{1,2})?)?\b")


class Evaluation(NamedTuple):
  """The evaluation of a lesson by the SDK, which takes a reply if the gates of all lessons are open."""

  gates: Mapping[str, bool]
  scores: Mapping[str, float]
  total: float
  reasons: tuple[str, ...]
  id: str


def evaluated(lesson: Mapping[str, Any] | str, handles: Collection[str], *, strict: bool = False,
              audience: str = "student") -> Evaluation:
  """Evaluates a lesson.

  Args:
    lesson: {cue, action, expected_effect, scope}, or its imperative alone.
    handles: of the runtime's tools; case does not count.
    strict: whether lessons must be general.
    audience: whom it is for.
  """
  given: Mapping[str, Any] = {"action": {"imperative": lesson}} if isinstance(lesson, str) else lesson
  cue = given.get("cue") or ""
  kind, pattern = ("keyword", cue) if isinstance(cue, str) else (cue.get("type"), cue.get("pattern") or "")
  action, scope = given.get("action") or {}, given.get("scope") or {}
  imperative, handle = action.get("imperative") or "", action.get("runtime_handle") or ""
  effect, limits = given.get("expected_effect") or "", scope.get("constraints") or ""
  text = " ".join((imperative, effect, limits, pattern))
  is_handle = handle.casefold() in {one.casefold() for one in handles}
  special = _special(text) if strict else None
  gates = {"actionability": bool(imperative) and is_handle, "cue": _is_cue(kind, pattern),
           "generality": special is None}
  why = {"actionability": "runtime handle missing" if imperative else "imperative missing",
         "cue": "invalid cue pattern", "generality": special}
  over = max(0, len(text) - MOST_CHARS) / MOST_CHARS
  scores = {"actionability": float(gates["actionability"]), "generality": float(gates["generality"]),
            "hookability": CUES[kind] if gates["cue"] else 0.0, "concision": round(max(0.0, 1 - over), 4)}
  total = sum(weight * scores[name] for name, weight in WEIGHTS.items())
  reasons = tuple(f"{name}_gate:{why[name]}" for name, is_open in gates.items() if not is_open)
  named = "||".join((audience, kind, pattern, imperative, handle, limits))
  digest = hashlib.sha256(named.encode()).hexdigest()
  return Evaluation(gates, scores, round(total, 6), reasons, f"playbook-entry-{digest[:12]}")


def _is_cue(kind: str, pattern: str) -> bool:
  if kind not in CUES or not pattern.strip():
    return False
  if kind == "regex":
    try:
      re.compile(pattern)
    except re.error:
      return False
  return True


def _special(text: str) -> str | None:
  """Returns what makes a text too special; None: nothing does."""
  word = next((one for one in BANNED if one in text.lower()), None)
  return f"banned_token:{word}" if word else "contains_date" if _DATE.search(text) else None


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
