"""Exports a store's sessions as JSON lines, and beside them a manifest that says what they are.

The file appears whole or not at all; its form is one of FORMS. The manifest stands beside it as
FILE.manifest.json: counts by review status and status, the sessions that the review gate held back, the
file's hash, and the cursor from which a later export goes on.
"""
import collections
import dataclasses
import datetime
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from atlas_jax.data.traces import compact, forms, runtime_events, runtime_rows
from atlas_jax.data.traces.query import PAGE_ROWS, SessionQuery
from atlas_jax.data.traces.store import SqlStore
from atlas_jax.data.traces.store_rows import StoredSession
from atlas_jax.files import write

MANIFEST = ".manifest.json"
FORMAT = 1  # Of the manifest.
# Records without copies; the same with references to values before them; the Atlas SDK's.
FORMS = ("plain", "compact", "sdk")


@dataclasses.dataclass
class ExportSummary:
  """Counts of an export.

  Attributes:
    sessions: records written.
    steps: in them.
    review_statuses: sessions by review status.
    statuses: sessions by status.
    withheld: sessions by review status that fit all but the review gate.
    cursor: of the last session that was written, None if none was.
    newest: the latest time at which one of them began, which a later export takes for `since`.
  """
  sessions: int = 0
  steps: int = 0
  review_statuses: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  statuses: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  withheld: dict[str, int] = dataclasses.field(default_factory=dict)
  cursor: str | None = None
  newest: str | None = None

  def add(self, stored: StoredSession, record: dict[str, Any]) -> None:
    """Counts a session that was written."""
    session = stored.rows.session
    self.sessions += 1
    self.steps += len(record.get("steps") or [])
    self.review_statuses[stored.review_status] += 1
    self.statuses[session["status"]] += 1
    self.cursor = str(stored.cursor)
    self.newest = max(filter(None, (self.newest, session["created_at"])))


class _NothingToWrite(Exception):
  """Leaves the writer of a file without a file."""


def export(store: SqlStore, output, query: SessionQuery, *, form: str = "plain", page_rows: int = PAGE_ROWS,
           scrub: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> ExportSummary:
  """Writes the sessions of a query, and the manifest; if there are none, neither.

  Args:
    store: to read from.
    output: the file; folders above it are made.
    query: which; those named by `ids` come in the order of the ids.
    form: one of FORMS. With "sdk" the limit, too, is the SDK's: it counts sessions that a filter leaves out.
    page_rows: sessions that are read at once.
    scrub: returns a record as it may be written, such as without names of persons; None: as it is.
  """
  if form not in FORMS:
    raise ValueError(f"the form {form!r} is none of {', '.join(FORMS)}")
  path = pathlib.Path(output)
  path.parent.mkdir(parents=True, exist_ok=True)
  summary = ExportSummary()
  digest = hashlib.sha256()
  try:
    with write.opened(path) as out:
      for line in _lines(store, query, form, page_rows, summary, scrub):
        out.write(line)
        digest.update(line)
      if not summary.sessions:
        raise _NothingToWrite
  except _NothingToWrite:
    pass
  summary.withheld = store.withheld(query)
  if summary.sessions:
    found = _manifest(store, path, query, summary, digest.hexdigest(), form)
    write.json(path.with_name(path.name + MANIFEST), {**found, "scrubbed": scrub is not None})
  return summary


def _lines(store: SqlStore, query: SessionQuery, form: str, page_rows: int, summary: ExportSummary,
           scrub: Callable[[dict[str, Any]], dict[str, Any]] | None) -> Iterator[bytes]:
  """Yields the lines of a file, and counts the sessions in them."""
  encoder = compact.CompactEncoder()
  if form == "compact":
    yield line_of(compact.HEADER, form)
  for stored in sessions(store, query, legacy=form == "sdk", page_rows=page_rows):
    record = record_of(stored, form)
    if scrub is not None:
      record = scrub(record)
    summary.add(stored, record)
    yield line_of(encoder.encode(record) if form == "compact" else record, form)


def record_of(stored: StoredSession, form: str) -> dict[str, Any]:
  """Returns a session's record in a form."""
  return forms.sdk_form(stored.rows) if form == "sdk" else forms.without_copies(stored.record())


def line_of(value: Any, form: str) -> bytes:
  """Returns a line of JSON."""
  spaces = (", ", ": ") if form == "sdk" else (",", ":")
  return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=spaces).encode() + b"\n"


def sessions(store: SqlStore, query: SessionQuery, *, legacy: bool = False,
             page_rows: int = PAGE_ROWS) -> Iterator[StoredSession]:
  """Yields the sessions of a query; those named by ids in their order."""
  if query.ids is not None:
    yield from _named(store, query, page_rows)
  elif not legacy:
    for page in _pages(store, query, page_rows):
      yield from page
  else:
    # The SDK's rule: the limit is of sessions that are looked at.
    looked_at = query.changed(review_statuses=None, statuses=None)
    for page in _pages(store, looked_at, page_rows):
      yield from (stored for stored in page if _passes(stored, query))


def _pages(store: SqlStore, query: SessionQuery, page_rows: int) -> Iterator[list[StoredSession]]:
  """Yields pages of sessions; those that the runtime wrote get their events as the SDK names them."""
  most = query.most_events
  has_runtime = most != 0 and store.version() != 0  # A database of the SDK has no such table.
  for page in store.pages(query, page_rows=page_rows):
    own = [stored.id for stored in page if not stored.rows.events] if has_runtime else []
    if own:
      with store.database.reading() as transaction:
        events = runtime_rows.events_of_many(transaction, own)
      page = [_with_events(stored, events[stored.id], most) if stored.id in events else stored
              for stored in page]
    yield page


def _with_events(stored: StoredSession, events: list[Mapping[str, Any]], most: int | None) -> StoredSession:
  session = stored.rows.session
  found = runtime_events.rendered(events, task=session["task"], answer=session["final_answer"])
  return stored._replace(rows=stored.rows._replace(events=found[-most:] if most else found))


def _named(store: SqlStore, query: SessionQuery, page_rows: int) -> Iterator[StoredSession]:
  assert query.ids is not None
  ids = list(dict.fromkeys(query.ids))
  remaining = query.limit
  for start in range(0, len(ids), page_rows):
    part = ids[start:start + page_rows]
    found = {stored.id: stored for page in _pages(
        store, query.changed(ids=tuple(part), limit=None, offset=0), page_rows) for stored in page}
    for number in part:
      if number in found and (remaining is None or remaining > 0):
        yield found[number]
        remaining = None if remaining is None else remaining - 1


def _passes(stored: StoredSession, query: SessionQuery) -> bool:
  gate, statuses = query.review_statuses, query.statuses
  return ((gate is None or stored.review_status in gate)
          and (statuses is None or stored.rows.session["status"].lower() in statuses))


def _manifest(store: SqlStore, path: pathlib.Path, query: SessionQuery, summary: ExportSummary,
              sha256: str, form: str) -> dict[str, Any]:
  fields = dataclasses.asdict(query)
  fields |= {"since": query.since.isoformat() if query.since else None,
             "cursor": str(query.cursor) if query.cursor else None}
  return {
    "format": FORMAT, "file": path.name, "sha256": sha256, "bytes": path.stat().st_size, "store": store.name,
    "exported_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "form": form, "sessions": summary.sessions, "steps": summary.steps,
    "review_statuses": dict(sorted(summary.review_statuses.items())),
    "statuses": dict(sorted(summary.statuses.items())), "withheld": summary.withheld,
    "cursor": summary.cursor, "newest": summary.newest, "query": fields}


def missing(store: SqlStore, ids: Sequence[int]) -> list[int]:
  """Returns the ids of which there is no session."""
  named = SessionQuery(review_statuses=None, ids=tuple(ids), most_events=0)
  found = {stored.id for page in store.pages(named) for stored in page}
  return [number for number in ids if number not in found]
