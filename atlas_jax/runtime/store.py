"""The store of the runtime: one for a process, whose writes go to disk many at a time.

Sessions hand over what is to be written and go on; one thread writes all that has come meanwhile in one
transaction. Where the store is down it goes to a spool, and from there to the store when that is back.
"""
import asyncio
import concurrent.futures
import datetime
import functools
import pathlib
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from absl import logging

from atlas_jax.data.traces import runtime_rows, storable
from atlas_jax.data.traces.connections import StoreConflict, StoreError, Transaction, UnreachableStore
from atlas_jax.data.traces.query import SessionQuery
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.runtime_rows import Deployment, StoredRun
from atlas_jax.data.traces.store import SqlStore, open_store
from atlas_jax.data.traces.store_rows import PendingRows
from atlas_jax.files.damage import clipped
from atlas_jax.runtime.events import SessionEvent
from atlas_jax.runtime.group_commit import GroupCommit, Write
from atlas_jax.runtime.spool import Spool, StoreFull
from atlas_jax.runtime.store_settings import StoreSettings

CONFLICT_TRIES = 3
MOST_KEY = 200  # Characters of a session's key.
STORED, SPOOLED = "stored", "spooled"


class RuntimeStore:
  """The store; see the module.

  Attributes:
    owner: of the leases of this process.
    spool: what waits for the store.
    transactions: of writing, so far,
    statements: and the statements in them.
  """

  def __init__(self, settings: StoreSettings | None = None, *, owner: str | None = None):
    """Takes the settings; nothing is opened before `open`."""
    self.settings = settings or StoreSettings()
    self.owner = owner or uuid.uuid4().hex
    self.spool = Spool(self.settings.spool)
    self.transactions = 0
    self.statements = 0
    self._ids: dict[str, int] = {}
    self._leased: set[str] = set()
    self._store: SqlStore | None = None
    # SQLite's connection is one of a thread, and one writer writes in the order of coming.
    self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="store")
    self._disk = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="spool")
    self._tasks: list[asyncio.Task] = []
    bounds = {name: getattr(self.settings, name) for name in ("batch_rows", "batch_s", "retry_s", "stall_s")}
    self._commit = GroupCommit(self._transaction, self._threaded, self._on_disk, self.spool, **bounds)
    self._ended = PendingRows()

  @property
  def down(self) -> bool:
    """True if the store did not answer last."""
    return self._commit.down

  async def open(self, *, create: bool = False) -> None:
    """Opens it, and starts to write.

    Args:
      create: whether its tables are made; else they must be there.

    Raises:
      StoreError: if it cannot be opened, or its tables are of another version.
    """
    if create and self.settings.url.startswith("sqlite:///"):
      pathlib.Path(self.settings.url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    self._store = await self._threaded(functools.partial(open_store, self.settings.url, writable=True,
                                                         create=create))
    self._tasks = [asyncio.create_task(self._commit.run()), asyncio.create_task(self._beating())]
    await self.drain()

  async def close(self) -> None:
    """Writes what is pending, and closes it."""
    if self._store is None:
      return
    await self.settled()
    for task in self._tasks:
      task.cancel()
    await asyncio.gather(*self._tasks, return_exceptions=True)
    try:
      await self._commit.asked(self._store.close)
    except UnreachableStore as error:
      logging.error("the store is left open: %s", error)
    self._thread.shutdown(wait=False)
    self._disk.shutdown()
    self._store = None

  # Sessions.

  async def begin(self, key: str, task: str, metadata: Mapping[str, Any]) -> tuple[int | None, bool]:
    """Begins a session under a lease; returns its id, None if it is spooled, and whether it is new.

    Raises:
      ValueError: for a key or metadata that cannot be stored.
      StoreFull: if neither store nor spool takes it.
    """
    if not key or len(key) > MOST_KEY or not storable.is_storable(key):
      raise ValueError(f"the session key {clipped(key, 60)!a} must be a text of 1 to {MOST_KEY} characters "
                       "without NUL")
    try:
      given = dict(storable.record(dict(metadata)).value)
    except ValueError as error:
      raise ValueError(f"metadata of session {key!r} {error}; give values of JSON alone") from error
    clean = storable.text(task).value
    text = clean if isinstance(clean, str) else storable.dumps(clean)

    def work(transaction):
      until = _in(self.settings.lease_s)
      return runtime_rows.begin(transaction, key, text, given, owner=self.owner, until=until)

    found = await self._commit.written(work, (key, {"op": "begin", "task": text, "metadata": given}))
    if found is None or found[1]:
      self._leased.add(key)
    if found is None:
      return None, True
    self._ids[key] = found[0]
    return found

  def append(self, event: SessionEvent) -> None:
    """Takes an event, which is written with others soon; see `flush`."""
    row = event.to_json()
    key = row.pop("session_key")
    self._commit.put(Write(None, None, (key, {"op": "events", "events": [row]}), (key, event.seq, row)))

  async def flush(self, key: str) -> None:
    """Waits until all that was handed over is durable, in the store or the spool.

    Raises:
      StoreFull: if something of this session is in neither.
    """
    await self._commit.written(lambda transaction: None, (key, {}))
    if key in self._commit.lost:
      raise StoreFull(f"events of session {key!r} are neither in the store nor in the spool")

  async def finish(self, key: str, trace: Trace) -> tuple[int | None, str]:
    """Writes the record of a session that has ended; returns its id and whether it is stored or spooled.

    Whatever comes of it, the lease is prolonged no more: where it is not stored, `claim_expired` finds it.
    """
    def work(transaction):
      number = self._id(transaction, key)
      runtime_rows.finish(transaction, number, trace, self._ended)
      return number

    try:
      found = await self._commit.written(work, (key, {"op": "finish", "trace": trace.to_json()}))
    finally:
      self.let_go(key)
    return found, SPOOLED if found is None else STORED

  def let_go(self, key: str) -> None:
    """Prolongs the lease of a session no more, because nobody works at it."""
    self._leased.discard(key)
    self._ids.pop(key, None)
    self._commit.lost.discard(key)

  async def load(self, key: str) -> StoredRun | None:
    """Returns the session of a key, None if there is none."""
    return await self._read(functools.partial(runtime_rows.of_key, key=key))

  async def events(self, key: str, *, after: int = -1) -> list[Mapping[str, Any]]:
    """Returns the events of a session behind a number."""
    found = await self.load(key)
    return [one for one in found.events if one["seq"] > after] if found else []

  async def record(self, number: int) -> Trace | None:
    """Returns the record of a session by its id."""
    store = self._opened()
    found = await self._commit.asked(functools.partial(store.session, number, most_events=0))
    return None if found is None else Trace.from_json(found.record())

  async def number(self, key: str) -> int | None:
    """Returns the id of the session of a key; None: it is not stored."""
    found = self._ids.get(key)
    if found is None:
      run = await self._read(functools.partial(runtime_rows.of_key, key=key, events=False))
      found = None if run is None else run.id
    return found

  async def sessions(self, ids: Sequence[int]) -> list[Trace]:
    """Returns the records of sessions, whatever their review; `evidence` has the gate."""
    query = SessionQuery(ids=tuple(ids), review_statuses=None, most_events=0)
    return await self._traces(query) if ids else []

  async def claim_expired(self, most: int = 100) -> list[StoredRun]:
    """Takes over sessions whose process is gone, with what it had put into the spool."""
    await self.drain()

    def work(transaction):
      return runtime_rows.claim_expired(transaction, self.owner, _in(self.settings.lease_s), most)

    found = await self._commit.written(work, None)
    self._leased.update(one.key for one in found)
    return found

  async def history(self, learning_key: str, most: int) -> list[Trace]:
    """Returns the newest sessions of a family, whatever their review; `evidence` has the gate."""
    query = SessionQuery(learning_key=learning_key, review_statuses=None, newest_first=True, limit=most,
                         most_events=0)
    return await self._traces(query)

  async def _traces(self, query: SessionQuery) -> list[Trace]:
    store = self._opened()

    def read():
      return [Trace.from_json(one.record()) for page in store.pages(query) for one in page]

    return await self._commit.asked(read)

  # Lessons and deployments.

  async def read_playbook(self, key: str) -> tuple[int, list[Any]]:
    """Returns version and entries; 0 and none where there is no playbook."""
    return await self._read(functools.partial(runtime_rows.read_playbook, key=key))

  async def write_playbook(self, key: str, version: int, entries: Sequence[Any]) -> bool:
    """Replaces the entries if the version is still the one that was read; says whether it was."""
    return await self._commit.written(functools.partial(runtime_rows.write_playbook, key=key, version=version,
                                                 entries=entries), None)

  async def add_uses(self, key: str, session_key: str, shown: Sequence[str], withheld: Sequence[str]) -> None:
    """Writes which lessons a session was shown, and which were withheld from it."""
    def work(transaction):
      number = self._id(transaction, session_key)
      runtime_rows.put_uses(transaction, number, key, shown, withheld)

    await self._commit.written(work, (session_key, {"op": "uses", "playbook": key, "shown": [*shown],
                                             "withheld": [*withheld]}))

  async def uses(self, key: str) -> list[tuple[str, bool, int]]:
    """Returns (entry, whether it was shown, session id) of a playbook."""
    return await self._read(functools.partial(runtime_rows.uses, key=key))

  async def uses_of(self, key: str, entry: str, most: int) -> list[tuple[int, bool]]:
    """Returns (session id, whether it was shown) of a lesson, the oldest first and at most so many."""
    return await self._read(functools.partial(runtime_rows.uses_of, key=key, entry=entry, most=most))

  async def deployments(self, role: str) -> list[Deployment]:
    """Returns the deployments of a role, oldest first."""
    return await self._read(functools.partial(runtime_rows.deployments, role=role))

  async def add_deployment(self, **fields: Any) -> int:
    """Writes a deployment; see `runtime_rows.add_deployment`."""
    return await self._commit.written(functools.partial(runtime_rows.add_deployment, **fields), None)

  async def move_deployment(self, number: int, from_state: str, to_state: str, *, fraction: float,
                            metadata: Mapping[str, Any] | None = None) -> None:
    """Moves a deployment; see `runtime_rows.move_deployment`."""
    await self._commit.written(functools.partial(
        runtime_rows.move_deployment, number=number, from_state=from_state, to_state=to_state,
        fraction=fraction, metadata=metadata), None)

  async def put_canary_pair(self, deployment: int, session_id: int, pair: Sequence[Any]) -> list[tuple]:
    """Writes a comparison of a version on trial; returns all of them, see `runtime_rows.put_canary_pair`."""
    named = dict(zip(("new", "old", "is_error"), pair, strict=True))
    return await self._commit.written(functools.partial(
        runtime_rows.put_canary_pair, deployment=deployment, session_id=session_id, **named), None)

  async def streams(self, *, session_key: str | None = None, tenant: str | None = None) -> tuple[list, list]:
    """Returns the memory streams of a session or tenant, and its sessions; see `runtime_rows.streams`."""
    return await self._read(functools.partial(runtime_rows.streams, session_key=session_key, tenant=tenant))

  async def forget(self, *, session_key: str | None = None, tenant: str | None = None,
                   deleted: Collection[str] = ()) -> tuple[int, int]:
    """Deletes sessions with all that is theirs, in the spool too; returns how many, and how many lessons.

    Memory streams are at their server; only those of `deleted` leave their lists, see `forgetting`.
    """
    found = None if session_key is None else await self.load(session_key)
    async with self._commit.lock:
      for key in await self._on_disk(self.spool.waiting):
        if key == session_key or tenant is not None and await self._tenant_of(key) == tenant:
          await self._on_disk(functools.partial(self.spool.drop, key))
    ids = [found.id] if found else []
    return await self._commit.written(functools.partial(runtime_rows.forget, ids=ids, tenant=tenant,
                                                      deleted=deleted), None)

  async def _tenant_of(self, key: str) -> str | None:
    """Returns the tenant of a session of which something waits in the spool."""
    operations = await self._on_disk(functools.partial(self.spool.operations, key))
    begun = next((one["metadata"] for one in operations if one["op"] == "begin"), None)
    if begun is None:
      stored = await self.load(key)
      begun = stored.metadata if stored else {}
    return begun.get("tenant_id")

  # Writing.

  async def settled(self) -> None:
    """Waits until nothing is pending, and what is spooled is stored if the store is back."""
    await self._commit.written(lambda transaction: None, ("", {}))
    await self.drain()

  async def drain(self) -> int:
    """Stores what is spooled; returns how many sessions are left."""
    for key in await self._on_disk(self.spool.waiting):
      async with self._commit.lock:  # What is spooled meanwhile would be dropped with what is stored.
        try:
          await self._commit.asked(functools.partial(self._replay, key))
        except UnreachableStore as error:
          self._commit.down = True
          logging.warning("the spool waits: %s", error)
          break
        except Exception as error:  # One that cannot be stored holds up no other.
          logging.error("session %s stays in the spool: %s", key, error)
        else:
          self._commit.down = False
          self._commit.spooled.discard(key)
    return len(self.spool)

  def _replay(self, key: str) -> None:
    with self.spool.taken(key) as operations, self._opened().database.writing() as transaction:
      self._ids.pop(key, None)  # Of a transaction that was undone.
      for one in operations:
        if one["op"] == "begin":
          runtime_rows.begin(transaction, key, one["task"], one["metadata"], owner=self.owner,
                             until=_in(self.settings.lease_s))
        elif one["op"] == "events":
          number = self._id(transaction, key)
          runtime_rows.put_events(transaction, [(number, row["seq"], row) for row in one["events"]])
        elif one["op"] == "uses":
          runtime_rows.put_uses(transaction, self._id(transaction, key), one["playbook"], one["shown"],
                                one["withheld"])
        else:
          runtime_rows.finish(transaction, self._id(transaction, key), Trace.from_json(one["trace"]))

  def _id(self, transaction: Transaction, key: str) -> int:
    """Returns the id of a session; in the thread of writing."""
    if key not in self._ids:
      found = runtime_rows.of_key(transaction, key, events=False)
      if found is None:
        raise StoreError(f"session {key!r} is not in the store; begin it first")
      self._ids[key] = found.id
    return self._ids[key]

  def _transaction(self, batch: Sequence[Write]) -> list[Any]:
    for tries in range(1, CONFLICT_TRIES + 1):
      try:
        with self._opened().database.writing() as transaction:
          self.transactions += 1
          runtime_rows.put_events(transaction, [(self._id(transaction, one.event[0]), *one.event[1:])
                                                for one in batch if one.event])
          self._ended = PendingRows()
          results = [one.work(transaction) if one.work else None for one in batch]
          runtime_rows.put_children(transaction, self._ended)
          self.statements += transaction.statements
          return results
      except StoreConflict:
        if tries == CONFLICT_TRIES:
          raise
    raise AssertionError("the last try returns or raises")

  async def _beating(self) -> None:
    """Prolongs the leases of this process, and brings the spool back."""
    while True:
      await asyncio.sleep(self.settings.heartbeat_s)
      try:
        await self._commit.written(functools.partial(self._beat, sorted(self._leased)), None)
        await self.drain()
      except Exception as error:  # The next one may be heard.
        logging.warning("no heartbeat: %s", error)

  def _beat(self, keys: Sequence[str], transaction: Transaction) -> None:
    runtime_rows.heartbeat(transaction, self.owner, keys, _in(self.settings.lease_s))

  async def _read(self, work: Callable[..., Any]) -> Any:
    store = self._opened()

    def read():
      with store.database.reading() as transaction:
        return work(transaction)

    return await self._commit.asked(read)

  async def _threaded(self, work: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(self._thread, work)

  async def _on_disk(self, work: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(self._disk, work)

  def _opened(self) -> SqlStore:
    if self._store is None:
      raise StoreError("the store is not open; await open()")
    return self._store


def _in(seconds: float) -> datetime.datetime:
  return runtime_rows.now() + datetime.timedelta(seconds=seconds)
