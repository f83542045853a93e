"""The store of the runtime: one for a process, whose writes go to disk many at a time.

Sessions hand over what is to be written and go on; one thread writes all that has come meanwhile in one
transaction. Where the store is down it goes to a spool, and from there to the store when that is back.
"""
import asyncio
import concurrent.futures
import dataclasses
import datetime
import functools
import pathlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging

from atlas_jax.data.traces import runtime_rows
from atlas_jax.data.traces.connections import StoreConflict, StoreError, Transaction, UnreachableStore
from atlas_jax.data.traces.query import SessionQuery
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.runtime_rows import Deployment, StoredRun
from atlas_jax.data.traces.store import SqlStore, open_store
from atlas_jax.runtime.events import Event
from atlas_jax.runtime.group_commit import GroupCommit, Write
from atlas_jax.runtime.spool import Spool, StoreFull

CONFLICT_TRIES = 3
STORED, SPOOLED = "stored", "spooled"


@dataclasses.dataclass(frozen=True)
class StoreSettings:
  """A store, and how it is written to.

  Raises:
    ValueError: for a value that cannot be, naming its field.
  """

  url: str = "sqlite:///.atlas/atlas.db"
  spool: str = ".atlas/spool"  # folder
  batch_rows: int = 200        # events that are written together, at most,
  batch_s: float = 0.25        # and the longest that they wait
  lease_s: float = 30.0        # after which a session whose process is silent may be taken over
  heartbeat_s: float = 10.0
  retry_s: float = 5.0         # between tries of a store that is down

  def __post_init__(self):
    for name in ("batch_rows", "batch_s", "lease_s", "heartbeat_s", "retry_s"):
      if not getattr(self, name) > 0:
        raise ValueError(f"store.{name}={getattr(self, name)} must be above 0")
    if self.heartbeat_s * 2 > self.lease_s:
      raise ValueError(f"store.heartbeat_s={self.heartbeat_s} must be at most half of "
                       f"store.lease_s={self.lease_s}, so that one late heartbeat loses no session")


class RuntimeStore:
  """The store; see the module.

  Attributes:
    owner: of the leases of this process.
    spool: what waits for the store.
    transactions: so far.
  """

  def __init__(self, settings: StoreSettings | None = None, *, owner: str | None = None):
    """Takes the settings; nothing is opened before `open`."""
    self.settings = settings or StoreSettings()
    self.owner = owner or uuid.uuid4().hex
    self.spool = Spool(self.settings.spool)
    self.transactions = 0
    self._ids: dict[str, int] = {}
    self._store: SqlStore | None = None
    # SQLite's connection is one of a thread, and one writer writes in the order of coming.
    self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="store")
    self._tasks: list[asyncio.Task] = []
    bounds = {name: getattr(self.settings, name) for name in ("batch_rows", "batch_s", "retry_s")}
    self._commit = GroupCommit(self._transaction, self._threaded, self.spool, **bounds)

  @property
  def down(self) -> bool:
    """Whether the store did not answer last."""
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

  async def close(self) -> None:
    """Writes what is pending, and closes it."""
    if self._store is None:
      return
    await self.settled()
    for task in self._tasks:
      task.cancel()
    await asyncio.gather(*self._tasks, return_exceptions=True)
    await self._threaded(self._store.close)
    self._thread.shutdown()
    self._store = None

  # Sessions.

  async def begin(self, key: str, task: str, metadata: Mapping[str, Any]) -> tuple[int | None, bool]:
    """Begins a session under a lease; returns its id, None if it is spooled, and whether it is new.

    Raises:
      StoreFull: if neither store nor spool takes it.
    """
    def work(transaction):
      until = _in(self.settings.lease_s)
      return runtime_rows.begin(transaction, key, task, metadata, owner=self.owner, until=until)

    operation = {"op": "begin", "task": task, "metadata": dict(metadata)}
    found = await self._commit.written(work, (key, operation))
    if found is None:
      return None, True
    self._ids[key] = found[0]
    return found

  def append(self, event: Event) -> None:
    """Takes an event, which is written with others soon; see `flush`."""
    row = event.to_json()
    row.pop("session_key")
    key = event.session_key

    def work(transaction):
      runtime_rows.put_events(transaction, [(self._id(transaction, key), event.seq, row)])

    self._commit.put(Write(work, None, (key, {"op": "events", "events": [row]})))

  async def flush(self, key: str) -> None:
    """Waits until all that was handed over is durable, in the store or the spool."""
    del key
    done = asyncio.get_running_loop().create_future()
    self._commit.put(Write(lambda transaction: None, done, ("", {})), urgent=True)
    await done

  async def finish(self, key: str, trace: Trace) -> tuple[int | None, str]:
    """Writes the record of a session that has ended; returns its id and whether it is stored or spooled."""
    def work(transaction):
      number = self._id(transaction, key)
      runtime_rows.finish(transaction, number, trace)
      return number

    found = await self._commit.written(work, (key, {"op": "finish", "trace": trace.to_json()}))
    self._ids.pop(key, None)
    return found, SPOOLED if found is None else STORED

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
    found = await self._threaded(functools.partial(store.session, number, most_events=0))
    return None if found is None else Trace.from_json(found.record())

  async def claim_expired(self, most: int = 100) -> list[StoredRun]:
    """Takes over sessions whose process is gone."""
    def work(transaction):
      return runtime_rows.claim_expired(transaction, self.owner, _in(self.settings.lease_s), most)

    return await self._commit.written(work, None)

  async def history(self, learning_key: str, most: int) -> list[Trace]:
    """Returns the newest sessions of a family, whatever their review; `evidence` has the gate."""
    query = SessionQuery(learning_key=learning_key, review_statuses=None, newest_first=True, limit=most,
                         most_events=0)
    store = self._opened()

    def read():
      return [Trace.from_json(one.record()) for page in store.pages(query) for one in page]

    return await self._threaded(read)

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

  async def deployments(self, role: str) -> list[Deployment]:
    """Returns the deployments of a role, oldest first."""
    return await self._read(functools.partial(runtime_rows.deployments, role=role))

  async def add_deployment(self, **fields: Any) -> int:
    """Writes a deployment; see `runtime_rows.add_deployment`."""
    return await self._commit.written(functools.partial(runtime_rows.add_deployment, **fields), None)

  async def move_deployment(self, number: int, from_state: str, to_state: str, *, share: float,
                            metadata: Mapping[str, Any] | None = None) -> None:
    """Moves a deployment; see `runtime_rows.move_deployment`."""
    await self._commit.written(functools.partial(
        runtime_rows.move_deployment, number=number, from_state=from_state, to_state=to_state, share=share,
        metadata=metadata), None)

  async def forget(self, *, session_key: str | None = None, tenant: str | None = None) -> tuple[int, int]:
    """Deletes sessions with all that is theirs, in the spool too; returns how many, and how many lessons."""
    found = None if session_key is None else await self.load(session_key)
    for key in self.spool.waiting():
      begun = next((one for one in self.spool.operations(key) if one["op"] == "begin"), {})
      if key == session_key or tenant and begun.get("metadata", {}).get("tenant_id") == tenant:
        self.spool.drop(key)
    ids = [found.id] if found else []
    return await self._commit.written(functools.partial(runtime_rows.forget, ids=ids, tenant=tenant), None)

  # Writing.

  async def settled(self) -> None:
    """Waits until nothing is pending, and what is spooled is stored if the store is back."""
    await self.flush("")
    if len(self.spool):
      await self.drain()

  async def drain(self) -> int:
    """Stores what is spooled; returns how many sessions are left."""
    for key in self.spool.waiting():
      operations = self.spool.operations(key)
      try:
        await self._threaded(functools.partial(self._replay, key, operations))
      except StoreError as error:
        self._commit.down = isinstance(error, UnreachableStore)
        logging.warning("session %s stays in the spool: %s", key, error)
        if self._commit.down:
          break
      else:
        self._commit.down = False
        self._commit.spooled.discard(key)
        self.spool.drop(key)
    return len(self.spool)

  def _replay(self, key: str, operations: Sequence[Mapping[str, Any]]) -> None:
    with self._opened().database.writing() as transaction:
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
          return [one.work(transaction) for one in batch]
      except StoreConflict:
        if tries == CONFLICT_TRIES:
          raise
    raise AssertionError("the last try returns or raises")

  async def _beating(self) -> None:
    """Prolongs the leases of this process, and brings the spool back."""
    while True:
      await asyncio.sleep(self.settings.heartbeat_s)
      try:
        await self._commit.written(lambda transaction: runtime_rows.heartbeat(
            transaction, self.owner, _in(self.settings.lease_s)), None)
        if len(self.spool):
          await self.drain()
      except (StoreError, StoreFull) as error:
        logging.warning("no heartbeat: %s", error)

  async def _read(self, work: Callable[..., Any]) -> Any:
    store = self._opened()

    def read():
      with store.database.reading() as transaction:
        return work(transaction)

    return await self._threaded(read)

  async def _threaded(self, work: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(self._thread, work)

  def _opened(self) -> SqlStore:
    if self._store is None:
      raise StoreError("the store is not open; await open()")
    return self._store


def _in(seconds: float) -> datetime.datetime:
  return runtime_rows.now() + datetime.timedelta(seconds=seconds)
