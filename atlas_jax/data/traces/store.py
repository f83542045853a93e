"""The store of traces: sessions of agents in PostgreSQL or an SQLite file, written, reviewed and read.

A store is opened by its URL. Its tables are made and brought up to date by an explicit call alone, `migrate`;
opening one only checks its version. Reading asks three queries a page, however many sessions it has, and by
default lets approved sessions pass alone.

  with open_store("sqlite:///traces.db") as store:
    for where, trace in store.traces(SessionQuery(learning_key="pumps")):
      print(where, trace.task)
"""
import collections
import datetime
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from absl import logging

from atlas_jax.data.traces import connections, rows, sql, sql_schema
from atlas_jax.data.traces.connections import StoreConflict, StoreError, Transaction
from atlas_jax.data.traces.filters import RUNNING, Filters
from atlas_jax.data.traces.jsonl import FoundTrace
from atlas_jax.data.traces.query import PAGE_ROWS, SessionQuery, of_filters
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.store_rows import PendingRows, StoredSession, read_page, write_trace
from atlas_jax.data.traces.values import as_word

INIT = "arc-atlas init --database-url=URL"
TRIES = 3            # Of a transaction that another one crosses.
WRITE_ROWS = 200     # Traces in one transaction of `write_all`.
ANALYZE_FROM = 1000  # Traces of one `write_all`.


class WrongVersion(StoreError):
  """A store whose tables are not those that this program knows."""


class SqlStore:
  """A store of traces, see `open_store`.

  Attributes:
    database: that it lies in.
    name: of it, for messages.
  """

  def __init__(self, database: connections.Database):
    """Takes an open database."""
    self.database = database
    self.name = database.name

  def __enter__(self) -> "SqlStore":
    """Returns the store."""
    return self

  def __exit__(self, *_: object) -> None:
    """Closes it."""
    self.close()

  def close(self) -> None:
    """Closes its connections."""
    self.database.close()

  # The schema.

  def version(self) -> int | None:
    """Returns the version of its tables: 0 for tables of the Atlas SDK, None where there are none."""
    with self.database.reading() as transaction:
      return _version(transaction)

  def check(self, *, writable: bool) -> None:
    """Checks that the tables are there and of this program's version.

    A database of the Atlas SDK, which has no version, can be read as it is.

    Raises:
      WrongVersion: naming both versions and the command that helps.
    """
    found = self.version()
    if found == sql_schema.VERSION or found == 0 and not writable:
      return
    if found is not None and found > sql_schema.VERSION:
      raise WrongVersion(f"{self.name} has tables of version {found}, and this program knows up to "
                         f"{sql_schema.VERSION}; install a newer atlas_jax")
    said = "no tables" if found is None else f"tables of version {found}, and {sql_schema.VERSION} is needed"
    raise WrongVersion(f"{self.name} has {said}; run {INIT}")

  def migrate(self) -> list[int]:
    """Makes the tables, or brings them up to date; returns the versions that were applied.

    Programs that migrate at once take turns, and tables of the Atlas SDK are taken over with what they hold.
    """
    with self.database.writing(patient=True) as transaction:
      transaction.run(sql.MIGRATION_LOCK)
      transaction.run(sql.BOOKS)
      [(found,)] = transaction.rows(sql.VERSION)
      if found > sql_schema.VERSION:
        raise WrongVersion(f"{self.name} has tables of version {found}, and this program knows up to "
                           f"{sql_schema.VERSION}; install a newer atlas_jax")
      applied = [migration for migration in sql.MIGRATIONS if migration[0] > found]
      for version, name, statements in applied:
        for statement in statements:
          transaction.run(statement)
        transaction.run(sql.APPLIED, version=version, name=name, at=_now().isoformat())
    return [version for version, _, _ in applied]

  # Writing.

  def write(self, trace: Trace, *, key: str | None = None, who: str = "writer") -> int:
    """Writes a session in one transaction; returns the id of its row.

    Writing a trace again changes nothing, and writing a later state of the same session replaces the earlier
    one, but for its review: status and notes of the review are those that reviewers gave.

    Args:
      trace: the session. Its session_id, if it is an integer that fits, is the id of its row.
      key: names a session whose id the store chooses; the id that the trace has is kept in its metadata as
        source_session_id. A trace without an id that fits has by default its identity as key.
      who: is logged for a review status that the trace brings with it.

    Raises:
      StoreError: if the id is that of another session in the store.
    """
    [number] = self._retried(functools.partial(self._write_batch, [trace], key, who))
    return number

  def write_all(self, traces: Iterable[Trace], *, who: str = "writer") -> int:
    """Writes many sessions, WRITE_ROWS in a transaction; returns how many."""
    total = 0
    remaining = iter(traces)
    while batch := list(itertools.islice(remaining, WRITE_ROWS)):
      total += len(self._retried(functools.partial(self._write_batch, batch, None, who)))
    if total >= ANALYZE_FROM:
      # A server that does not know yet how many there are would sort them all for every page.
      with self.database.writing(patient=True) as transaction:
        transaction.run(sql.ANALYZE)
    return total

  def _write_batch(self, batch: list[Trace], key: str | None, who: str, transaction: Transaction
                   ) -> list[int]:
    pending = PendingRows()
    ids = [write_trace(transaction, trace, pending, key=key, who=who, name=self.name) for trace in batch]
    pending.flush(transaction)
    return ids

  def _retried(self, work: Callable[[Transaction], Any]) -> Any:
    for tries in itertools.count(1):
      try:
        with self.database.writing() as transaction:
          return work(transaction)
      except StoreConflict:
        if tries == TRIES:
          raise

  # Reading.

  def pages(self, query: SessionQuery, *, page_rows: int = PAGE_ROWS) -> Iterator[list[StoredSession]]:
    """Yields the sessions of a query in pages, each from one state of the store."""
    remaining = query.limit
    while remaining is None or remaining > 0:
      size = page_rows if remaining is None else min(page_rows, remaining)
      with self.database.reading() as transaction:
        page = read_page(transaction, query, size)
      if page:
        yield page
      if len(page) < size:
        return
      remaining = None if remaining is None else remaining - len(page)
      # By the key of the last one, not by counting: sessions that come meanwhile move no page.
      query = query.changed(cursor=page[-1].cursor, offset=0)

  def traces(self, wanted: SessionQuery | Filters | None = None, *,
             on_reject: Callable[[str, str], None] | None = None) -> Iterator[FoundTrace]:
    """Yields traces, oldest first unless a query says otherwise; they pass the review gate.

    Args:
      wanted: a query, or filters, which whoever reads applies to the traces too, see `of_filters`. None: the
        approved sessions.
      on_reject: is called with where and why for a session that is no trace; None: it is an error.

    Raises:
      ValueError: for a session that is no trace.
    """
    query = of_filters(wanted) if isinstance(wanted, Filters) else wanted or SessionQuery()
    if isinstance(wanted, Filters):
      # Filters count what they leave out, and the gate leaves these out before.
      logging.info("%s: review holds back %s", self.name, self.withheld(query) or "no session")
    for page in self.pages(query):
      for stored in page:
        where = f"{self.name}#{stored.id}"
        try:
          trace = Trace.from_json(stored.record())
        except ValueError as error:
          if on_reject is None:
            raise ValueError(f"{where}: {error}; mend that row, or quarantine the session") from error
          on_reject(where, str(error))
        else:
          yield FoundTrace(where, trace)

  def session(self, number: int, *, most_events: int | None = None) -> StoredSession | None:
    """Returns one session whatever its review says, None if there is none."""
    everything = SessionQuery(review_statuses=None, ids=(number,), most_events=most_events)
    return next((page[0] for page in self.pages(everything)), None)

  def counts(self, query: SessionQuery) -> dict[tuple[str, str], int]:
    """Counts the sessions of a query, without regard to its limit, by review status and status."""
    names, values = query.clauses()
    with self.database.reading() as transaction:
      return {(review, status): count
              for review, status, count in transaction.rows(sql.counts(names), **values)}

  def withheld(self, query: SessionQuery) -> dict[str, int]:
    """Counts, by review status, the sessions that fit a query but for its review gate, and those that run."""
    gate = query.review_statuses
    counted: collections.Counter[str] = collections.Counter()
    if gate is not None:
      for (review, status), count in self.counts(query.changed(review_statuses=None, is_ended=False)).items():
        if review not in gate:
          counted[review] += count
        elif query.is_ended and as_word(status) == RUNNING:
          counted[RUNNING] += count
    return dict(sorted(counted.items()))

  def baseline(self, query: SessionQuery, window: int) -> list[Any]:
    """Returns the statistics of the newest rewards of a query, newest first."""
    names, values = query.changed(newest_first=True).clauses()
    with self.database.reading() as transaction:
      found = transaction.rows(sql.baseline(names), rows=window, offset=0, **values)
    return [json.loads(text) for (text,) in found]

  # Reviewing.

  def move(self, number: int, to_status: str, *, who: str, note: str | None,
           may: Callable[[str], bool]) -> tuple[str, bool]:
    """Moves a session to another review status, and logs it; returns where it was and whether it was moved.

    Args:
      number: of its row.
      to_status: where to.
      who: moves it, for the log.
      note: replaces the note; None keeps it.
      may: says of the status that it has whether it may move from there.

    Raises:
      KeyError: if there is no such session.
      StoreConflict: if another one moved it meanwhile.
    """
    with self.database.writing() as transaction:
      found = transaction.rows(sql.REVIEWED, id=number)
      if not found:
        raise KeyError(number)
      [(before,)] = found
      if before == to_status or not may(before):
        return before, False
      values = {"id": number, "from_status": before, "to_status": to_status, "note": note}
      if transaction.run(sql.MOVE, **values) != 1:
        raise StoreConflict(f"{self.name}: session {number} is no longer {before}; look at it again")
      transaction.run(sql.LOG_MOVE, **values, who=who, at=_now())
    return before, True

  def moves(self, number: int) -> list[dict[str, Any]]:
    """Returns what moved a session in review, oldest first: {from, to, who, note, at}."""
    with self.database.reading() as transaction:
      found = transaction.rows(sql.MOVES, id=number)
    return [{"from": before, "to": after, "who": who, "note": note, "at": rows.normal(at)}
            for before, after, who, note, at in found]

  def keep_drift(self, number: int, drift: dict[str, Any], note: str | None) -> None:
    """Puts a finding of the drift guard into a session's metadata, and a note beside it, if there is one."""
    with self.database.writing() as transaction:
      # Held until the end: what another program writes meanwhile would be undone.
      transaction.rows(sql.FIND_SESSION, id=number)
      [stored] = read_page(transaction, SessionQuery(review_statuses=None, ids=(number,)), 1)
      metadata = {**(stored.rows.session["metadata"] or {}), "drift": drift, "drift_alert": drift["alert"]}
      transaction.run(sql.KEEP_DRIFT, id=number, metadata=transaction.json(metadata), note=note)


def open_store(url: str, *, writable: bool = False, create: bool = False) -> SqlStore:
  """Opens a store of traces.

  Args:
    url: sqlite:///PATH or postgresql://USER:PASSWORD@HOST:PORT/NAME.
    writable: whether it is going to be written to; tables of the Atlas SDK are read as they are, and written
      to only after `migrate`.
    create: makes the tables, or brings them up to date, and the SQLite file if it is not there.

  Raises:
    ValueError: for another URL.
    UnreachableStore: if it cannot be opened.
    WrongVersion: if its tables are not there, or of another version.
  """
  store = SqlStore(connections.connect(url, create=create))
  try:
    if create:
      store.migrate()
    store.check(writable=writable)
  except BaseException:
    store.close()
    raise
  return store


def _now() -> datetime.datetime:
  return datetime.datetime.now(datetime.UTC)


def _version(transaction: Transaction) -> int | None:
  [(booked,)] = transaction.rows(sql.HAS_TABLE, name="schema_migrations")
  if booked:
    [(version,)] = transaction.rows(sql.VERSION)
    return version
  [(found,)] = transaction.rows(sql.HAS_TABLE, name="sessions")
  return 0 if found else None
