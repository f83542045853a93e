"""Rows that the runtime keeps in a store beside traces: leases, events, lessons and deployments.

Functions of a transaction; `runtime.store` puts many of them into one. Replaying any of them changes nothing.
"""
import datetime
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from atlas_jax.data.traces import rows, sql, storable
from atlas_jax.data.traces.connections import StoreError, Transaction
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.store_rows import PendingRows, add_children, session_values

RUNNING = "running"
STREAM_LISTS = ("~student", "~teacher")  # How keys of lists of memory streams end; others are playbooks.


class StoredRun(NamedTuple):
  """A session of the runtime as it is stored."""

  key: str
  id: int
  status: str
  task: str
  metadata: Mapping[str, Any]
  events: tuple[Mapping[str, Any], ...] = ()


class Deployment(NamedTuple):
  """A version of a model that is served, or was."""

  id: int
  role: str     # "teacher" or "student"
  version: str
  url: str
  fraction: float  # of the sessions
  state: str
  metadata: Mapping[str, Any]
  at: str


def begin(transaction: Transaction, key: str, task: str, metadata: Mapping[str, Any], *, owner: str,
          until: datetime.datetime) -> tuple[int, bool]:
  """Begins a session under a key; returns its id, and False if it was there already."""
  [(number,)] = transaction.rows(sql.BEGIN_SESSION, task=task, metadata=transaction.json(dict(metadata)),
                                 created_at=now())
  if transaction.run(sql.BEGIN_KEY, key=key, session_id=number, owner=owner, until=until):
    return number, True
  transaction.run(sql.DROP_SESSION, id=number)
  [(there,)] = transaction.rows(sql.KEYED, key=key)
  return there, False


def put_events(transaction: Transaction, events: Sequence[tuple[int, int, Mapping[str, Any]]]) -> None:
  """Writes events (session id, number, event), all in one statement."""
  # Plain JSON: the names of an event have no order that a reader would see.
  _put(transaction, sql.PUT_EVENTS, [[session, seq, storable.dumps(event)] for session, seq, event in events],
       2)


def finish(transaction: Transaction, number: int, trace: Trace, pending: PendingRows | None = None) -> None:
  """Writes the record of a session that has begun; its review stays.

  Args:
    transaction: to write in.
    number: of the session.
    trace: the record.
    pending: takes the rows below the session, for `put_children` of many; None: they are written at once.
  """
  split = rows.split(rows.without_id(trace.to_json()))
  transaction.run(sql.CHANGE_SESSION, id=number, **session_values(transaction, split))
  children = PendingRows() if pending is None else pending
  add_children(transaction, split, number, children)
  if pending is None:
    put_children(transaction, children)


def put_children(transaction: Transaction, pending: PendingRows) -> None:
  """Writes the rows below sessions, a statement for each table that has any."""
  for statement, listed, keys in ((sql.PUT_PLANS, pending.plans, 1), (sql.PUT_STEPS, pending.steps, 2),
                                  (sql.PUT_ATTEMPTS, pending.attempts, 3), (sql.PUT_NOTES, pending.notes, 3)):
    _put(transaction, statement, [list(one.values()) for one in listed], keys)


def _put(transaction: Transaction, statement: sql.Statement, listed: Sequence[list[Any]], keys: int) -> None:
  """Writes rows, as one statement; of rows with the same key, the first values, the last one counts."""
  if listed:
    last = {tuple(row[:keys]): row for row in listed}
    transaction.run(statement, rows=storable.dumps([*last.values()]))


def of_key(transaction: Transaction, key: str, *, events: bool = True) -> StoredRun | None:
  """Returns the session of a key, None if there is none."""
  found = transaction.rows(sql.OF_KEY, key=key)
  if not found:
    return None
  [(number, status, task, metadata, _, _)] = found
  listed = events_of(transaction, number) if events else ()
  return StoredRun(key, number, status, task, json.loads(metadata or "{}"), tuple(listed))


def events_of(transaction: Transaction, number: int, *, after: int = -1) -> list[Mapping[str, Any]]:
  """Returns the events of a session behind a number, in their order."""
  return [json.loads(text) for (text,) in transaction.rows(sql.EVENTS_OF, id=number, after=after)]


def events_of_many(transaction: Transaction, ids: Sequence[int]) -> dict[int, list[Mapping[str, Any]]]:
  """Returns the events of sessions by their ids, in one query."""
  found: dict[int, list[Mapping[str, Any]]] = {}
  for number, text in transaction.rows(sql.RUN_EVENTS, ids=[*ids]):
    found.setdefault(number, []).append(json.loads(text))
  return found


def heartbeat(transaction: Transaction, owner: str, keys: Sequence[str], until: datetime.datetime) -> None:
  """Prolongs the leases that an owner has of sessions at which it works, and ends those of ended sessions."""
  transaction.run(sql.RELEASE, owner=owner)
  if keys:
    transaction.run(sql.HEARTBEAT, owner=owner, keys=[*keys], until=until)


def claim_expired(transaction: Transaction, owner: str, until: datetime.datetime,
                  most: int) -> list[StoredRun]:
  """Takes over sessions whose owner is gone; each is given to one claimer alone."""
  found = []
  for key, _, _ in transaction.rows(sql.EXPIRED, now=now(), rows=most):
    if transaction.run(sql.CLAIM, key=key, owner=owner, until=until, now=now()) == 1:
      run = of_key(transaction, key)
      assert run is not None
      found.append(run)
  return found


def read_playbook(transaction: Transaction, key: str) -> tuple[int, list[Any]]:
  """Returns the version and entries of a playbook; 0 and none where there is none."""
  found = transaction.rows(sql.PLAYBOOK, key=key)
  return (found[0][0], json.loads(found[0][1])) if found else (0, [])


def write_playbook(transaction: Transaction, key: str, version: int, entries: Sequence[Any]) -> bool:
  """Replaces the entries of a playbook if its version is still the one that was read; says whether it was."""
  text = transaction.json(list(entries))
  if version == 0:
    return transaction.run(sql.ADD_PLAYBOOK, key=key, entries=text) == 1
  return transaction.run(sql.CHANGE_PLAYBOOK, key=key, version=version, entries=text) == 1


def put_uses(transaction: Transaction, number: int, key: str, shown: Sequence[str],
             withheld: Sequence[str]) -> None:
  """Writes which lessons of a playbook a session was shown, and which fitted and were withheld."""
  transaction.run_many(sql.PUT_USE, [
      {"session_id": number, "key": key, "entry_id": entry, "shown": int(was)}
      for was, listed in ((True, shown), (False, withheld)) for entry in listed])


def uses(transaction: Transaction, key: str) -> list[tuple[str, bool, int]]:
  """Returns (entry, whether it was shown, session id) of a playbook."""
  return [(entry, bool(shown), number) for entry, shown, number in transaction.rows(sql.USES, key=key)]


def uses_of(transaction: Transaction, key: str, entry: str, most: int) -> list[tuple[int, bool]]:
  """Returns (session id, whether it was shown) of a lesson, the oldest first and at most so many."""
  return [(number, bool(shown)) for number, shown in transaction.rows(sql.USES_OF, key=key, entry=entry,
                                                                      rows=most)]


def deployments(transaction: Transaction, role: str) -> list[Deployment]:
  """Returns the deployments of a role, oldest first."""
  found = []
  for number, of, version, url, fraction, state, metadata, at in transaction.rows(sql.DEPLOYMENTS, role=role):
    given = json.loads(metadata or "{}")
    found.append(Deployment(number, of, version, url, fraction, state, given, rows.normal(at) or ""))
  return found


def add_deployment(transaction: Transaction, *, role: str, version: str, url: str, fraction: float,
                   state: str, metadata: Mapping[str, Any]) -> int:
  """Writes a deployment; returns its id."""
  [(number,)] = transaction.rows(sql.ADD_DEPLOYMENT, role=role, version=version, url=url, fraction=fraction,
                                 state=state, metadata=transaction.json(dict(metadata)), at=now())
  return number


def move_deployment(transaction: Transaction, number: int, from_state: str, to_state: str, *,
                    fraction: float, metadata: Mapping[str, Any] | None = None) -> None:
  """Moves a deployment to another state.

  Raises:
    StoreError: if it is no longer in the state that it is moved from.
  """
  given = None if metadata is None else transaction.json(dict(metadata))
  changed = transaction.run(sql.MOVE_DEPLOYMENT, id=number, from_state=from_state, to_state=to_state,
                            fraction=fraction, metadata=given)
  if changed != 1:
    raise StoreError(f"deployment {number} is no longer {from_state}; look at it again")


def put_canary_pair(transaction: Transaction, deployment: int, session_id: int, new: float | None,
                    old: float | None, is_error: bool) -> list[tuple[float | None, float | None, bool]]:
  """Writes the scores of a session under a version on trial and the one before; returns all of that trial.

  A session that is compared again changes nothing.
  """
  transaction.run(sql.PUT_CANARY_PAIR, deployment=deployment, session_id=session_id, new=new, old=old,
                  is_error=int(is_error))
  return [(one, other, bool(failed)) for one, other, failed in transaction.rows(sql.CANARY_PAIRS,
                                                                                deployment=deployment)]


def streams(transaction: Transaction, *, session_key: str | None,
            tenant: str | None) -> tuple[list[Mapping[str, Any]], list[str]]:
  """Returns the memory streams that a session wrote to, or all of a tenant, and the keys of its sessions.

  A stream that was branched from that of a session holds what that wrote.
  """
  found = []
  for (key,) in transaction.rows(sql.PLAYBOOK_KEYS):
    if key.endswith(STREAM_LISTS):
      _, entries = read_playbook(transaction, key)
      found += [one for one in entries if session_key in one["lineage"] or _tenant_of(key) == tenant]
  if tenant is None:
    return found, []
  return found, [key for (key,) in transaction.rows(sql.KEYS_OF_TENANT, tenant=tenant)]


def _tenant_of(key: str) -> str:
  """Returns whose playbook, or list of streams, a key names."""
  return key.rpartition("/")[0]


def forget(transaction: Transaction, *, ids: Sequence[int] = (), tenant: str | None = None,
           deleted: Collection[str] = ()) -> tuple[int, int]:
  """Deletes sessions with all that belongs to them, and lessons that came from them.

  Args:
    ids: of sessions.
    tenant: whose sessions and lessons are deleted, all of them.
    deleted: memory streams that their server has deleted, which are listed no more; others stay listed.

  Returns:
    How many sessions, and how many lessons.
  """
  numbers = set(ids)
  if tenant is not None:
    numbers |= {number for (number,) in transaction.rows(sql.OF_TENANT, tenant=tenant)}
  lessons = 0
  for (key,) in transaction.rows(sql.PLAYBOOK_KEYS):
    version, entries = read_playbook(transaction, key)
    if key.endswith(STREAM_LISTS):
      left = [one for one in entries if one["id"] not in deleted]
      if not left:
        transaction.run(sql.DROP_PLAYBOOK, key=key)
      elif len(left) < len(entries):
        write_playbook(transaction, key, version, left)
      continue
    if tenant is not None and _tenant_of(key) == tenant:
      transaction.run(sql.DROP_PLAYBOOK, key=key)
      lessons += len(entries)
      continue
    kept = [one for one in entries if (one.get("provenance") or {}).get("session_id") not in numbers]
    if len(kept) < len(entries):
      lessons += len(entries) - len(kept)
      write_playbook(transaction, key, version, kept)
  for number in sorted(numbers):
    transaction.run(sql.DROP_SESSION, id=number)
  return len(numbers), lessons


def now() -> datetime.datetime:
  """Returns the time, in UTC."""
  return datetime.datetime.now(datetime.UTC)
