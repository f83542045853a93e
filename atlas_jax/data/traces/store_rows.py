"""Reads a page of sessions, and writes one session, in a transaction of a store."""
import collections
import datetime
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from atlas_jax.data.traces import rows, sql
from atlas_jax.data.traces.connections import StoreConflict, StoreError, Transaction
from atlas_jax.data.traces.filters import RUNNING
from atlas_jax.data.traces.query import PENDING, Cursor, SessionQuery
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.rows import SessionRows
from atlas_jax.data.traces.values import as_word
from atlas_jax.files.damage import clipped

_JSON = frozenset(("metadata", "reward", "reward_stats", "reward_audit", "plan"))
_TIMES = frozenset(("created_at", "completed_at"))
STEP, ATTEMPT, NOTE = range(3)  # Kinds of rows in `sql.CHILDREN`.


class StoredSession(NamedTuple):
  """One session as it is stored.

  Attributes:
    id: of its row.
    rows: decoded.
  """
  id: int
  rows: SessionRows

  @property
  def cursor(self) -> Cursor:
    """Its place in the order of time."""
    at = rows.instant(self.rows.session["created_at"])
    assert at is not None, "the column is NOT NULL"
    return Cursor(at, self.id)

  @property
  def review_status(self) -> str:
    """Its state in review."""
    return self.rows.session["review_status"]

  @property
  def is_running(self) -> bool:
    """True if it has not ended yet."""
    return as_word(self.rows.session["status"]) == RUNNING

  def record(self) -> dict[str, Any]:
    """Returns its record.

    Raises:
      ValueError: if its metadata was tampered with.
    """
    try:
      return rows.join(self.rows)
    except ValueError as error:
      raise ValueError(f"session {self.id}: {error}; quarantine it") from error


def read_page(transaction: Transaction, query: SessionQuery, size: int) -> list[StoredSession]:
  """Returns the first sessions of a query, at most so many, by three queries."""
  names, values = query.clauses()
  statement = sql.page(names, newest_first=query.newest_first)
  found = transaction.rows(statement, rows=size, offset=query.offset, **values)
  if not found:
    return []
  ids = [row[0] for row in found]
  steps = _steps(transaction.rows(sql.CHILDREN, ids=ids))
  if query.most_events is None:
    listed = transaction.rows(sql.EVENTS, ids=ids)
  else:
    listed = transaction.rows(sql.NEWEST_EVENTS, ids=ids, most_events=query.most_events)
  events = collections.defaultdict(list)
  for session_id, number, at, event in listed:
    events[session_id].append({"id": number, "event": json.loads(event), "created_at": rows.normal(at)})
  return [StoredSession(row[0], SessionRows(_session(row), steps[row[0]], events[row[0]])) for row in found]


def _session(row: tuple) -> dict[str, Any]:
  session = dict(zip(sql.SESSION_COLUMNS, row))
  for name in _JSON:
    session[name] = _decoded(session[name])
  for name in _TIMES:
    session[name] = rows.normal(session[name])
  return session


def _decoded(cell: str | None) -> Any:
  return None if cell is None else json.loads(cell)


def _steps(children: Iterable[tuple]) -> dict[int, list[dict[str, Any]]]:
  """Returns the steps of each session, with their attempts and guidance."""
  steps = collections.defaultdict(list)
  for session_id, step_id, kind, place, attempts, first, second, evaluation, metadata in children:
    of = steps[session_id]
    if kind == STEP:
      of.append({"step_id": step_id, "trace": first, "output": second, "evaluation": _decoded(evaluation),
                 "attempts": attempts, "metadata": _decoded(metadata), "attempt_details": [],
                 "guidance_notes": []})
    elif of and of[-1]["step_id"] == step_id:  # The SDK, too, reads no attempts of steps that have no result.
      if kind == ATTEMPT:
        of[-1]["attempt_details"].append({"attempt": place, "evaluation": _decoded(evaluation)})
      else:
        of[-1]["guidance_notes"].append(first)
  return steps


class PendingRows:
  """Rows of the tables below sessions, put off: those of many sessions go in one call for each table."""

  def __init__(self) -> None:
    """Starts without any."""
    self.plans: list[dict[str, Any]] = []
    self.steps: list[dict[str, Any]] = []
    self.attempts: list[dict[str, Any]] = []
    self.notes: list[dict[str, Any]] = []
    self.events: list[dict[str, Any]] = []           # whose ids the database allots
    self.numbered_events: list[dict[str, Any]] = []  # that have ids
    self.event_ids: set[int] = set()                 # of those

  def flush(self, transaction: Transaction) -> None:
    """Writes them."""
    for statement, pending in ((sql.ADD_PLAN, self.plans), (sql.ADD_STEP, self.steps),
                               (sql.ADD_ATTEMPT, self.attempts), (sql.ADD_NOTE, self.notes),
                               (sql.ADD_EVENT, self.events), (sql.ADD_NUMBERED_EVENT, self.numbered_events)):
      transaction.run_many(statement, pending)
    if self.numbered_events:
      transaction.run(sql.COUNT_EVENTS_ON, id=max(self.event_ids))
    for written in (self.plans, self.steps, self.attempts, self.notes, self.events, self.numbered_events,
                    self.event_ids):
      written.clear()


def write_trace(transaction: Transaction, trace: Trace, pending: PendingRows, *, key: str | None, who: str,
                name: str) -> int:
  """Writes a session, see `SqlStore.write`, its steps and events to `pending`; returns its id.

  Raises:
    StoreError: if its id is that of another session.
    StoreConflict: if another transaction writes the same key.
  """
  record = trace.to_json()
  number = rows.id_of(record)
  if key is None and rows.fits(number):
    split = rows.split(record)
    is_there = _is_there(transaction, number, split, name)
  else:
    key = key or trace.identity
    split = rows.split(rows.without_id(record))
    keyed = transaction.rows(sql.KEYED, key=key)
    number, is_there = (keyed[0][0], True) if keyed else (None, False)
  if is_there:
    pending.flush(transaction)  # It may be one of those.
    for statement in sql.CLEAR_SESSION:
      transaction.run(statement, session_id=number)
  split = _with_event_ids(transaction, split, pending)
  number = _write_session(transaction, split, number, is_there, who)
  if key is not None and not is_there and transaction.run(sql.ADD_KEY, key=key, session_id=number) != 1:
    raise StoreConflict(f"{name}: another program writes the session {key!r}")
  add_children(transaction, split, number, pending)
  return number


def _is_there(transaction: Transaction, number: int, split: SessionRows, name: str) -> bool:
  """Returns whether a session is in the store; another one under its id is refused."""
  found = transaction.rows(sql.FIND_SESSION, id=number)
  if not found:
    return False
  [(task, created_at, _)] = found
  given = split.session["created_at"]
  if task != split.session["task"] or given is not None and rows.normal(created_at) != given:
    raise StoreError(
        f"{name}: session {number} is another one there, {clipped(task, 60)!r} of {rows.normal(created_at)}; "
        "write this one under a key, then the store chooses an id")
  return True


def _with_event_ids(transaction: Transaction, split: SessionRows, pending: PendingRows) -> SessionRows:
  """Returns rows whose events have ids that are free in the store, or none."""
  ids = [event["id"] for event in split.events]
  given = [number for number in ids if number is not None]
  if not given:
    return split
  free = len(set(given)) == len(ids) and pending.event_ids.isdisjoint(given)
  if free and transaction.rows(sql.TAKEN_EVENTS, ids=ids) == [(0,)]:
    return split
  metadata = dict(split.session["metadata"])
  metadata[rows.STORE] = {**metadata.get(rows.STORE, {"form": "sdk"}), "event_ids": ids}
  events = [{**event, "id": None} for event in split.events]
  return SessionRows({**split.session, "metadata": metadata}, split.steps, events)


def _write_session(transaction: Transaction, split: SessionRows, number: int | None, is_there: bool,
                   who: str) -> int:
  session = split.session
  values = session_values(transaction, split)
  now = datetime.datetime.now(datetime.UTC)
  if is_there:
    assert number is not None
    transaction.run(sql.CHANGE_SESSION, id=number, **values)
    return number
  if number is None:
    [(number,)] = transaction.rows(sql.ADD_SESSION, **values)
  else:
    transaction.rows(sql.ADD_NUMBERED_SESSION, id=number, **values)
    transaction.run(sql.COUNT_SESSIONS_ON, id=number)
  if session["review_status"] != PENDING:
    transaction.run(sql.LOG_MOVE, id=number, from_status=None, to_status=session["review_status"], who=who,
                    note=session["review_notes"], at=now)
  return number


def session_values(transaction: Transaction, split: SessionRows) -> dict[str, Any]:
  """Returns the values of a session's columns, its id apart."""
  session = split.session
  values = {name: transaction.json(value) if name in _JSON else value
            for name, value in session.items() if name not in ("id", "plan")}
  return values | {"created_at": rows.instant(session["created_at"]) or datetime.datetime.now(datetime.UTC),
                   "completed_at": rows.instant(session["completed_at"])}


def add_children(transaction: Transaction, split: SessionRows, number: int, pending: PendingRows) -> None:
  """Puts the rows below a session to those that are pending."""
  of = {"session_id": number}
  if split.session["plan"] is not None:
    pending.plans.append({**of, "plan": transaction.json(split.session["plan"])})
  for step in split.steps:
    key = {**of, "step_id": step["step_id"]}
    pending.steps.append({**key, "trace": step["trace"], "output": step["output"],
                          "attempts": step["attempts"], "evaluation": transaction.json(step["evaluation"]),
                          "metadata": transaction.json(step["metadata"])})
    pending.attempts += [{**key, "attempt": one["attempt"], "evaluation": transaction.json(one["evaluation"])}
                         for one in step["attempt_details"]]
    pending.notes += [{**key, "sequence": place, "note": note}
                      for place, note in enumerate(step["guidance_notes"])]
  now = datetime.datetime.now(datetime.UTC)
  events = [{**of, "event": transaction.json(event["event"]), "id": event["id"],
             "created_at": rows.instant(event["created_at"]) or now} for event in split.events]
  # All or none: ids that the database allots are in the order of the events.
  if all(event["id"] is not None for event in events):
    pending.numbered_events += events
    pending.event_ids.update(event["id"] for event in events)
  else:
    pending.events += events
