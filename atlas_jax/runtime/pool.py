"""Many sessions at once: limits, sessions of one key joined, and what a crash left behind taken up again."""
import asyncio
import collections
import dataclasses
import uuid
from collections.abc import Callable, Sequence

from absl import logging

from atlas_jax.data.traces.runtime_rows import StoredRun
from atlas_jax.runtime import records, states
from atlas_jax.runtime.events import Event, EventLog, Sink
from atlas_jax.runtime.result import SessionResult
from atlas_jax.runtime.session import Parts, SessionSpec, run_session
from atlas_jax.runtime.states import SessionState
from atlas_jax.runtime.store import RuntimeStore

RUNNING = "running"


@dataclasses.dataclass(frozen=True)
class PoolSettings:
  """Limits of a process.

  Raises:
    ValueError: for a limit that cannot be, naming its field.
  """

  sessions: int = 256  # at the same time
  tenant: int = 32     # of one tenant at the same time
  queue: int = 4_096   # that wait; more are refused

  def __post_init__(self):
    for name in ("sessions", "tenant", "queue"):
      if getattr(self, name) < 1:
        raise ValueError(f"pool.{name}={getattr(self, name)} must be at least 1")


class QueueFull(RuntimeError):
  """More sessions wait than may wait."""


class Submitted:
  """A session that was submitted.

  Attributes:
    key: of the session.
  """

  def __init__(self, key: str):
    """Starts without an answer."""
    self.key = key
    self._answer: asyncio.Future = asyncio.get_running_loop().create_future()
    self._end: asyncio.Future = asyncio.get_running_loop().create_future()

  async def answer(self) -> SessionResult:
    """Waits for the answer, before rewards are known; returns the end's result where there is none."""
    return await asyncio.shield(self._answer)

  async def result(self) -> SessionResult:
    """Waits for the end: the answer is scored and stored."""
    return await asyncio.shield(self._end)

  def told(self, found: SessionResult) -> None:
    """Takes the answer."""
    if not self._answer.done():
      self._answer.set_result(found)

  def ended(self, found: SessionResult) -> None:
    """Takes the end."""
    self.told(found)
    if not self._end.done():
      self._end.set_result(found)

  def failed(self, error: BaseException) -> None:
    """Takes an error."""
    for future in (self._answer, self._end):
      if not future.done():
        future.set_exception(error)
        future.exception()  # Looked at: nobody need wait for it.


class Pool:
  """Runs sessions in one event loop.

  Attributes:
    running: sessions at work now.
    waiting: sessions that wait for room.
  """

  def __init__(self, parts: Parts | Callable[[SessionSpec], Parts], store: RuntimeStore | None = None, *,
               settings: PoolSettings | None = None, sinks: Sequence[Sink] = ()):
    """Takes who works at sessions.

    Args:
      parts: of all sessions, or a function that chooses them for one, such as for a version that is served to
        a share of them.
      store: where they are recorded; None: nowhere.
      settings: limits.
      sinks: get every event, besides the store; they must neither raise nor wait.
    """
    self._parts = parts if callable(parts) else lambda spec: parts
    self._store = store
    self._settings = settings or PoolSettings()
    self._sinks = list(sinks)
    self._room = asyncio.Semaphore(self._settings.sessions)
    self._tenants: dict[str, asyncio.Semaphore] = collections.defaultdict(
        lambda: asyncio.Semaphore(self._settings.tenant))
    self._known: dict[str, Submitted] = {}
    self._tasks: dict[str, asyncio.Task] = {}
    self.running = 0
    self.waiting = 0

  def submit(self, spec: SessionSpec) -> Submitted:
    """Takes a session, which begins when there is room; one whose key runs already is joined.

    Raises:
      QueueFull: if too many wait.
    """
    if spec.key in self._known:
      return self._known[spec.key]
    if self.waiting >= self._settings.queue:
      raise QueueFull(f"{self.waiting} sessions wait, which are all that may (pool.queue="
                      f"{self._settings.queue}); submit more when some have ended")
    return self._started(spec, self._through(spec))

  async def run(self, spec: SessionSpec) -> SessionResult:
    """Runs a session to its end; cancelling this cancels it, unless others joined it."""
    submitted = self.submit(spec)
    try:
      return await submitted.result()
    except asyncio.CancelledError:
      if (task := self._tasks.get(spec.key)) is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
      raise

  async def resume(self, most: int = 1_000) -> list[SessionResult]:
    """Takes up sessions whose process is gone: those with an answer are finished, others end as abandoned.

    An agent that is declared idempotent is asked again, from the last step that was settled.
    """
    if self._store is None:
      return []
    found = await self._store.claim_expired(most)
    submitted = []
    for run in found:
      spec = _spec_of(run)
      if spec.key in self._known:
        continue
      submitted.append(self._started(spec, self._again(spec, run)))
    return [await one.result() for one in submitted]

  async def close(self) -> None:
    """Cancels what runs, and waits until its end is recorded."""
    for task in self._tasks.values():
      task.cancel()
    await asyncio.gather(*self._tasks.values(), return_exceptions=True)

  def _started(self, spec: SessionSpec, work) -> Submitted:
    submitted = Submitted(spec.key)
    self._known[spec.key] = submitted
    self.waiting += 1

    async def through():
      try:
        submitted.ended(await work)
      except BaseException as error:
        submitted.failed(error)
        if not isinstance(error, Exception):
          raise
      finally:
        self._known.pop(spec.key, None)
        self._tasks.pop(spec.key, None)

    self._tasks[spec.key] = asyncio.create_task(through())
    return submitted

  async def _through(self, spec: SessionSpec) -> SessionResult:
    try:
      tenant = self._tenants[spec.tenant]
      await tenant.acquire()
      try:
        await self._room.acquire()
      except BaseException:
        tenant.release()
        raise
    finally:
      self.waiting -= 1
    self.running += 1
    try:
      return await self._run(spec)
    finally:
      self.running -= 1
      self._room.release()
      tenant.release()

  async def _run(self, spec: SessionSpec) -> SessionResult:
    parts = self._with_store(self._parts(spec))
    state = None
    if self._store is not None:
      _, new = await self._store.begin(spec.key, spec.task, _metadata_of(spec))
      if not new:
        stored = await self._store.load(spec.key)
        if stored is not None and stored.status != RUNNING:
          return await self._stored_result(spec, stored)
        raise RuntimeError(f"session {spec.key!r} runs in another process, or was cut off there; wait, or "
                           "take it up by `atlas resume` when its lease has expired")
    return await run_session(spec, parts, self._log(spec.key), state=state,
                             answered=self._known[spec.key].told)

  async def _again(self, spec: SessionSpec, run: StoredRun) -> SessionResult:
    self.waiting -= 1
    state = states.replay(_events(run))
    parts = self._with_store(self._parts(spec))
    log = self._log(spec.key, state)
    can_go_on = state.is_answered or state.has_ended or parts.agent.idempotent
    if not can_go_on:
      state = _abandoned(log, state)
      logging.warning("session %s was cut off before its answer, and is abandoned", spec.key)
    elif not state.is_answered:
      state = _cut(state)
    return await run_session(spec, parts, log, state=state, answered=self._known[spec.key].told)

  def _with_store(self, parts: Parts) -> Parts:
    return dataclasses.replace(parts, store=self._store)

  def _log(self, key: str, state: SessionState | None = None) -> EventLog:
    def sink(event: Event) -> None:
      if self._store is not None:
        self._store.append(event)
      for one in self._sinks:
        one(event)

    first = state or SessionState()
    return EventLog(key, sink, first_seq=first.next_seq, first_span=first.next_span)

  async def _stored_result(self, spec: SessionSpec, stored: StoredRun) -> SessionResult:
    assert self._store is not None
    trace = await self._store.record(stored.id)
    assert trace is not None
    return records.result_of(trace, key=spec.key, number=stored.id)


def new_key() -> str:
  """Returns a key that no session has."""
  return uuid.uuid4().hex


def _metadata_of(spec: SessionSpec) -> dict:
  """Returns what the store keeps of a session while it runs, enough to take it up again."""
  return {**records.metadata_of(spec), "status": RUNNING}


def _spec_of(run: StoredRun) -> SessionSpec:
  given = run.metadata
  own = {name: value for name, value in given.items() if name not in records.OURS}
  return SessionSpec(run.key, run.task, own, ground_truth=given.get("ground_truth"),
                     tags=tuple(given.get("tags") or ()), tenant=given.get("tenant_id") or "default",
                     lane=None, learning_key=given.get("learning_key"))


def _events(run: StoredRun) -> list[Event]:
  """Returns the events of a stored session up to the first that is missing."""
  found = []
  for seq, row in enumerate(run.events):
    if row["seq"] != seq:
      break
    fields = {"parent": None, **row}
    found.append(Event(session_key=run.key, **fields))
  return found


def _abandoned(log: EventLog, state: SessionState) -> SessionState:
  """Ends a session that is not taken up."""
  if state.stage == "new":
    state = states.advance(state, log.emit("session", "START", span=log.span()))
  return states.advance(state, log.emit("session", "END", span=0, data={
      "status": "abandoned", "problem": "its process ended before there was an answer"}))


def _cut(state: SessionState) -> SessionState:
  """Returns a state without the attempts at steps that were not settled, which are made again."""
  kept = tuple(one for one in state.attempts if one.step in state.settled)
  return state._replace(attempts=kept)
