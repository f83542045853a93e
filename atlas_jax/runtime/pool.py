"""Many sessions at once: limits, sessions of one key joined, and what a crash left behind taken up again."""
import asyncio
import collections
import dataclasses
import functools
import uuid
from collections.abc import Awaitable, Callable, Sequence

from absl import logging

from atlas_jax.data.traces import storable
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.runtime_rows import StoredRun
from atlas_jax.files.damage import one_line
from atlas_jax.runtime import lanes, records, states
from atlas_jax.runtime.events import EventLog, SessionEvent, Sink
from atlas_jax.runtime.redaction import Redactor
from atlas_jax.runtime.result import SessionResult
from atlas_jax.runtime.session import SessionParts, SessionSpec, run_session
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


class PoolFull(RuntimeError):
  """More sessions wait than may wait."""


class KeyTaken(ValueError):
  """A session key that is that of another task, or of another tenant."""


class Submitted:
  """A session that was submitted.

  Attributes:
    key: of the session.
    spec: of it.
    holders: how many submitted it.
  """

  def __init__(self, spec: SessionSpec):
    """Starts without an answer."""
    self.key = spec.key
    self.spec = spec
    self.holders = 1
    self._answer: asyncio.Future = asyncio.get_running_loop().create_future()
    self._end: asyncio.Future = asyncio.get_running_loop().create_future()

  async def answer(self) -> SessionResult:
    """Waits for the answer, before rewards are known; returns the end's result where there is none."""
    return await asyncio.shield(self._answer)

  async def result(self) -> SessionResult:
    """Waits for the end: the answer is scored and stored."""
    return await asyncio.shield(self._end)

  def answered(self, found: SessionResult) -> None:
    """Takes the answer."""
    if not self._answer.done():
      self._answer.set_result(found)

  def ended(self, found: SessionResult) -> None:
    """Takes the end."""
    self.answered(found)
    if not self._end.done():
      self._end.set_result(found)

  def failed(self, error: BaseException) -> None:
    """Takes an error."""
    for future in (self._answer, self._end):
      if not future.done():
        future.set_exception(error)
        future.exception()  # Looked at: nobody need wait for it.


class SessionPool:
  """Runs sessions in one event loop.

  Attributes:
    running: sessions at work now.
  """

  def __init__(self, parts: SessionParts | Callable[[SessionSpec], SessionParts],
               store: RuntimeStore | None = None, *, settings: PoolSettings | None = None,
               sinks: Sequence[Sink] = (), redactor: Redactor | None = None,
               is_own: Callable[[SessionSpec], bool] = lambda spec: True):
    """Takes who works at sessions.

    Args:
      parts: of all sessions, or a function that chooses them for one, such as for a version that is served to
        a fraction of them.
      store: where they are recorded; None: nowhere.
      settings: limits.
      sinks: get every event, besides the store; they must neither raise nor wait.
      redactor: takes secrets out of all that is recorded; None: the common patterns alone.
      is_own: says whether the agent may go on with a session that was cut off.
    """
    self._parts = parts if callable(parts) else lambda spec: parts
    self._store = store
    self._settings = settings or PoolSettings()
    self._sinks = list(sinks)
    self._redactor = redactor or Redactor()
    self._is_own = is_own
    self._room = asyncio.Semaphore(self._settings.sessions)
    self._tenants: dict[str, asyncio.Semaphore] = collections.defaultdict(
        lambda: asyncio.Semaphore(self._settings.tenant))
    self._known: dict[str, Submitted] = {}
    self._tasks: dict[str, asyncio.Task] = {}
    self.running = 0

  @property
  def waiting(self) -> int:
    """Sessions that wait for room."""
    return len(self._tasks) - self.running

  def submit(self, spec: SessionSpec) -> Submitted:
    """Takes a session, which begins when there is room; one whose key runs already is joined.

    Raises:
      PoolFull: if too many wait.
      KeyTaken: if the session that runs under the key is another one.
    """
    if (joined := self._known.get(spec.key)) is not None:
      _check_same(spec, joined.spec.task, joined.spec.tenant)
      joined.holders += 1
      return joined
    if self.waiting >= self._settings.queue:
      raise PoolFull(f"{self.waiting} sessions wait, which are all that may (pool.queue="
                      f"{self._settings.queue}); submit more when some have ended")
    return self._started(spec, functools.partial(self._run, spec))

  async def run(self, spec: SessionSpec) -> SessionResult:
    """Runs a session to its end; cancelling this cancels it, unless others submitted it too."""
    submitted = self.submit(spec)
    try:
      return await submitted.result()
    except asyncio.CancelledError:
      submitted.holders -= 1
      task = self._tasks.get(spec.key)
      if task is not None and not submitted.holders:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
      raise

  async def resume(self, most: int = 1_000) -> list[SessionResult]:
    """Takes up sessions whose process is gone: those with an answer are finished, others end as abandoned.

    An agent that is declared idempotent is asked again, from the last step that was settled.
    """
    submitted = await self.take_up(most)
    ended = await asyncio.gather(*(one.result() for one in submitted), return_exceptions=True)
    for one, found in zip(submitted, ended):
      if isinstance(found, BaseException):  # Its lease expires, and it is taken up again.
        logging.error("session %s is not taken up: %s", one.key, found)
    return [found for found in ended if not isinstance(found, BaseException)]

  async def take_up(self, most: int = 1_000) -> list[Submitted]:
    """Begins to take up sessions whose process is gone, see `resume`, and does not wait for their ends."""
    if self._store is None:
      return []
    submitted = []
    for run in await self._store.claim_expired(most):
      if run.key not in self._known:
        spec = _spec_of(run)
        submitted.append(self._started(spec, functools.partial(self._again, spec, run)))
    return submitted

  async def close(self) -> None:
    """Cancels what runs, and waits until its end is recorded."""
    tasks = [*self._tasks.values()]
    for task in tasks:
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

  def _started(self, spec: SessionSpec, work: Callable[[], Awaitable[SessionResult]]) -> Submitted:
    submitted = Submitted(spec)
    self._known[spec.key] = submitted
    task = asyncio.create_task(self._limited(spec, work))
    self._tasks[spec.key] = task
    # Called also for a task that is cancelled before it begins, in which no line of it runs.
    task.add_done_callback(functools.partial(self._over, submitted))
    return submitted

  def _over(self, submitted: Submitted, task: asyncio.Task) -> None:
    del self._known[submitted.key], self._tasks[submitted.key]
    if self._store is not None:
      self._store.let_go(submitted.key)
    if task.cancelled():
      submitted.failed(asyncio.CancelledError(f"session {submitted.key!r} was cancelled"))
    elif (error := task.exception()) is not None:
      submitted.failed(error)
    else:
      submitted.ended(task.result())

  async def _limited(self, spec: SessionSpec, work: Callable[[], Awaitable[SessionResult]]) -> SessionResult:
    async with self._tenants[spec.tenant], self._room:
      self.running += 1
      try:
        return await work()
      finally:
        self.running -= 1

  async def _run(self, spec: SessionSpec) -> SessionResult:
    parts = self._with_store(self._parts(spec))
    state = None
    if self._store is not None:
      task, _ = self._redactor.redacted(spec.task)
      metadata, _ = self._redactor.redacted(_metadata_of(spec))
      beginning = asyncio.ensure_future(self._store.begin(spec.key, task, metadata))
      try:
        _, new = await asyncio.shield(beginning)
      except asyncio.CancelledError:
        await asyncio.shield(self._not_run(spec, parts, beginning))
        raise
      if not new:
        stored = await self._store.load(spec.key)
        if stored is not None:
          _check_same(spec, stored.task, stored.metadata.get("tenant_id"), shown=task)
        if stored is not None and stored.status != RUNNING:
          return await self._stored_result(spec, stored)
        raise RuntimeError(f"session {spec.key!r} runs in another process, or was cut off there; wait, or "
                           "take it up by `atlas resume` when its lease has expired")
    return await run_session(spec, parts, self._log(spec.key), state=state,
                             answered=self._known[spec.key].answered)

  async def _not_run(self, spec: SessionSpec, parts: SessionParts, beginning: asyncio.Future) -> None:
    """Ends a session that is cancelled while it begins, else it would be in the store as one that runs."""
    _, new = await beginning
    if new:
      log = self._log(spec.key)
      await run_session(spec, parts, log, state=_closed(log, SessionState(), "cancelled", "before it began"))

  async def _again(self, spec: SessionSpec, run: StoredRun) -> SessionResult:
    state = _replayed(run)
    parts = self._with_store(self._parts(spec))
    log = self._log(spec.key, state)
    # An agent of another version, or another one of the same store, is not asked in its place.
    can_go_on = state.is_answered or state.has_ended or parts.agent.idempotent and self._is_own(spec)
    if not can_go_on:
      state = _closed(log, state, "abandoned", "its process ended before there was an answer")
      logging.warning("session %s was cut off before its answer, and is abandoned", spec.key)
    elif not state.is_answered:
      state = _cut(state)
    return await run_session(spec, parts, log, state=state, answered=self._known[spec.key].answered)

  def _with_store(self, parts: SessionParts) -> SessionParts:
    return dataclasses.replace(parts, store=None if self._store is None else _Redacting(self._store,
                                                                                       self._redactor))

  def _log(self, key: str, state: SessionState | None = None) -> EventLog:
    def sink(event: SessionEvent) -> None:
      event = self._redactor.event(event)
      if self._store is not None:
        self._store.append(event)
      for one in [*self._sinks]:
        try:
          one(event)
        except Exception as error:  # Whoever looks on cannot end a session.
          logging.error("a sink of events is taken off, which raised: %s", one_line(error))
          self._sinks.remove(one)

    first = state or SessionState()
    return EventLog(key, sink, first_seq=first.next_seq, first_span=first.next_span)

  async def _stored_result(self, spec: SessionSpec, stored: StoredRun) -> SessionResult:
    assert self._store is not None
    trace = await self._store.record(stored.id)
    assert trace is not None
    return records.result_of(trace, key=spec.key, number=stored.id)


class _Redacting:
  """A store that gets no secrets."""

  def __init__(self, store: RuntimeStore, redactor: Redactor):
    self._store = store
    self._redactor = redactor

  async def flush(self, key: str) -> None:
    await self._store.flush(key)

  async def finish(self, key: str, trace: Trace) -> tuple[int | None, str]:
    found, count = self._redactor.redacted(trace.to_json())
    return await self._store.finish(key, Trace.from_json(found) if count else trace)


def new_key() -> str:
  """Returns a key that no session has."""
  return uuid.uuid4().hex


def _metadata_of(spec: SessionSpec) -> dict:
  """Returns what the store keeps of a session while it runs, enough to take it up again."""
  return {**records.metadata_of(spec), "status": RUNNING}


def _check_same(spec: SessionSpec, task: str, tenant: str | None, *, shown: str | None = None) -> None:
  """Refuses a session under a key of another one: its result is for whoever asked for it alone.

  Args:
    spec: of the session.
    task, tenant: of the one that has the key.
    shown: the session's task as it is stored; None: as it is given.
  """
  asked = spec.task if shown is None else shown
  if spec.tenant != (tenant or "default") or storable.text(asked).value != storable.text(task).value:
    raise KeyTaken(f"the session key {spec.key!r} is taken by another task or tenant; give another key, or "
                   "none")


def _spec_of(run: StoredRun) -> SessionSpec:
  given = run.metadata
  own = {name: value for name, value in given.items() if name not in records.OURS}
  asked = (run.events[0].get("data") or {}).get("lane") if run.events else None
  return SessionSpec(run.key, run.task, own, ground_truth=given.get("ground_truth"),
                     tags=tuple(given.get("tags") or ()), tenant=given.get("tenant_id") or "default",
                     lane=asked if asked in lanes.LANES else None, learning_key=given.get("learning_key"))


def _replayed(run: StoredRun) -> SessionState:
  """Returns the state behind the events of a stored session, up to the first that is missing or wrong."""
  state = SessionState()
  for row in run.events:
    try:
      state = states.advance(state, SessionEvent(**{"parent": None, **row, "session_key": run.key}))
    except (ValueError, TypeError, KeyError) as error:
      logging.error("session %s goes on before its event %s: %s", run.key, row.get("seq"), error)
      break
  return state


def _closed(log: EventLog, state: SessionState, status: str, problem: str) -> SessionState:
  """Ends a session at which nobody works."""
  if state.stage == "new":
    state = states.advance(state, log.emit("session", "START", span=log.span()))
  ended = log.emit("session", "END", span=0, data={"status": status, "problem": problem})
  return states.advance(state, ended)


def _cut(state: SessionState) -> SessionState:
  """Returns a state without the attempts at steps that were not settled, which are made again."""
  kept = tuple(one for one in state.attempts if one.step in state.settled)
  return state._replace(attempts=kept)
