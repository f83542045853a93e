"""The review of sessions: who may move them where, and lines that show them.

A session waits as pending. A reviewer approves or quarantines it, and may approve it after a quarantine. What
is approved may be quarantined too, for which a note says why. Sessions that are not approved reach no
training, lesson or baseline.
"""
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from atlas_jax.data.traces.query import APPROVED, QUARANTINED, SessionQuery
from atlas_jax.data.traces.store import SqlStore
from atlas_jax.data.traces.store_rows import StoredSession
from atlas_jax.data.traces.values import as_object

DECISIONS = (APPROVED, QUARANTINED)
WHERE = ("learning_key", "status", "since", "min_reward")  # What `matching` selects by.


class ReviewRefused(ValueError):
  """A decision that is not possible; one line."""


class Decision(NamedTuple):
  """The outcome of a decision."""
  session_id: int
  before: str
  moved: bool


def decide(store: SqlStore, number: int, to_status: str, *, who: str, note: str | None = None) -> Decision:
  """Approves or quarantines a session, and logs who did.

  Args:
    store: that has it.
    number: its id.
    to_status: one of DECISIONS.
    who: decides.
    note: why; replaces the session's note.

  Raises:
    ReviewRefused: if there is no such session, or an approval is withdrawn without a note.
    StoreConflict: if somebody else moved it meanwhile.
  """
  if to_status not in DECISIONS:
    raise ReviewRefused(f"sessions are moved to {' or '.join(DECISIONS)}, not to {to_status!r}")
  needs_note = to_status == QUARANTINED and not (note or "").strip()
  try:
    before, moved = store.move(number, to_status, who=who, note=note,
                               may=lambda before: not (before == APPROVED and needs_note))
  except KeyError:
    raise ReviewRefused(f"{store.name} has no session {number}") from None
  if not moved and before != to_status:
    raise ReviewRefused(f"session {number} is {before}; say by --note why it is quarantined after all")
  return Decision(number, before, moved)


def matching(store: SqlStore, query: SessionQuery) -> Iterator[int]:
  """Yields the ids of the sessions of a query."""
  for page in store.pages(query.changed(most_events=0)):
    yield from (stored.id for stored in page)


def lines(stored: StoredSession) -> list[str]:
  """Returns a session for a list: drift, reward, task, note and how many calls of judges it has."""
  session = stored.rows.session
  metadata = as_object(session["metadata"])
  drift = as_object(metadata.get("drift"))
  stats = as_object(session["reward_stats"])
  alert = metadata.get("drift_alert") is True or drift.get("alert") is True
  audit = session["reward_audit"]
  return [
    f"  {stored.id:>6} | {'ALERT' if alert else 'ok':<5}"
    f" | score delta={_number(drift, 'score_delta', '+.2f')}"
    f" | uncertainty delta={_number(drift, 'uncertainty_delta', '+.2f')} | reward={_reward(stats)}"
    f" | status={shown(session['status'])} | created={session['created_at']}"
    f" | reason={shown(drift.get('reason'))}",
    f"         Task: {shown(session['task'])}",
    f"         Notes: {shown(session['review_notes'])}",
    f"         Reward audit entries: {len(audit) if isinstance(audit, list) else 0}"]


def shown(value: Any) -> str:
  """Returns a text of a session in one line, "-" for none; characters that could move a terminal become ?."""
  text = " ".join(str(value).split()) if value else ""
  return "".join(one if one.isprintable() else "?" for one in text) or "-"


def _reward(stats: Mapping[str, Any]) -> str:
  score = _number(stats, "score" if stats.get("score") is not None else "score_mean", ".2f")
  spread = _number(stats, "score_stddev", ".2f")
  return score if spread == "n/a" else f"{score}±{spread} (n={stats.get('sample_count', '?')})"


def _number(found: Mapping[str, Any], name: str, form: str) -> str:
  value = found.get(name)
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  return format(value, form) if is_number else "n/a"
