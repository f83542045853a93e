"""Events to sinks, side by side: redacted, then queued for each sink and session, then taken by the sink.

A sink that is slow drops chunks first, then what is new, and holds up neither sessions nor other sinks; what
was dropped is counted and said. A sink that raises is detached and reported. The store is no sink: a
session's state is the fold of its events, so that none may be missing there. It takes them from
`Redactor.event`.
"""
import asyncio
import collections
import concurrent.futures
import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from absl import logging

from atlas_jax.files.damage import one_line
from atlas_jax.runtime.events import SessionEvent
from atlas_jax.runtime.redaction import Redactor

CHUNK = "CHUNK"


class EventSink(Protocol):
  """Takes events; `name` is said in reports. It may raise, and may be slow."""

  name: str

  async def take(self, events: Sequence[SessionEvent]) -> None:
    """Takes events of one session, in their order."""

  async def close(self) -> None:
    """Ends it, once all was taken."""


@dataclasses.dataclass(frozen=True)
class TelemetrySettings:
  """Bounds of queues.

  Raises:
    ValueError: for a value that cannot be, naming its field.
  """

  queue: int = 1_024    # events of one session that wait for one sink
  batch: int = 64       # that a sink is handed at once
  close_s: float = 5.0  # that the end waits for slow sinks

  def __post_init__(self):
    for name in ("queue", "batch", "close_s"):
      if not getattr(self, name) > 0:
        raise ValueError(f"telemetry.{name}={getattr(self, name)} must be above 0")


class Telemetry:
  """Hands events to sinks; an instance is called with each, and neither raises nor waits.

  Attributes:
    redactor: that all events go through.
    problems: (name of a sink, what it raised) of those that were detached.
  """

  def __init__(self, sinks: Sequence[EventSink] = (), *, redactor: Redactor | None = None,
               settings: TelemetrySettings | None = None):
    """Starts without queues; must be called in the event loop that it works in."""
    self.redactor = redactor or Redactor()
    self.problems: list[tuple[str, str]] = []
    self._settings = settings or TelemetrySettings()
    self._feeds = [_Feed(one, self._settings, self.problems) for one in sinks]

  def __call__(self, event: SessionEvent) -> None:
    """Takes an event."""
    try:
      clean = self.redactor.event(event)
    except Exception as error:  # Without redaction nothing may pass, and a session must not fail by it.
      logging.warning("event %d of session %s is shown nowhere, its redaction failed: %s", event.seq,
                      event.session_key, one_line(error))
      self.problems.append(("redaction", one_line(error)))
      return
    for one in self._feeds:
      one.put(clean)

  def add(self, sink: EventSink) -> None:
    """Adds a sink, which gets the events from now on."""
    self._feeds.append(_Feed(sink, self._settings, self.problems))

  def dropped(self) -> dict[str, dict[str, int]]:
    """Returns sink -> kind of event -> how many were dropped, of sinks that dropped any."""
    return {one.sink.name: dict(one.dropped) for one in self._feeds if one.dropped}

  def waiting(self) -> int:
    """Returns how many events wait for the sink that is most behind."""
    return max((one.waiting for one in self._feeds), default=0)

  async def close(self) -> None:
    """Waits for the sinks, though not for ever, and says what was dropped."""
    await asyncio.gather(*(one.close() for one in self._feeds))


class _Feed:
  """One sink with its queues."""

  def __init__(self, sink: EventSink, settings: TelemetrySettings, problems: list[tuple[str, str]]):
    self.sink = sink
    self.dropped: collections.Counter[str] = collections.Counter()
    self.waiting = 0
    self._settings = settings
    self._problems = problems
    # In order of their turn: a session with much to say does not keep the others waiting.
    self._queues: collections.OrderedDict[str, collections.deque[SessionEvent]] = collections.OrderedDict()
    self._missed: collections.Counter[str] = collections.Counter()  # of sessions, since it was last said
    self._wake = asyncio.Event()
    self._detached = False
    self._task: asyncio.Task | None = None

  def put(self, event: SessionEvent) -> None:
    if self._detached:
      return
    queue = self._queues.setdefault(event.session_key, collections.deque())
    if len(queue) >= self._settings.queue and not self._made_room(queue, event):
      self._drop(event)
      return
    queue.append(event)
    self.waiting += 1
    self._wake.set()
    if self._task is None:
      self._task = asyncio.get_running_loop().create_task(self._work())

  def _made_room(self, queue: collections.deque[SessionEvent], event: SessionEvent) -> bool:
    """Drops the oldest chunk for an event that is none; returns whether there was one."""
    if event.kind == CHUNK:
      return False
    place = next((place for place, one in enumerate(queue) if one.kind == CHUNK), None)
    if place is None:
      return False
    self._drop(queue[place])
    del queue[place]
    self.waiting -= 1
    return True

  def _drop(self, event: SessionEvent) -> None:
    self.dropped[event.kind] += 1
    self._missed[event.session_key] += 1

  async def _work(self) -> None:
    try:
      while True:
        while not self._queues:
          self._wake.clear()
          await self._wake.wait()
        key, queue = self._queues.popitem(last=False)
        batch = [queue.popleft() for _ in range(min(len(queue), self._settings.batch))]
        if queue:
          self._queues[key] = queue
        await self.sink.take(batch)
        self.waiting -= len(batch)
        if not queue and (missed := self._missed.pop(key, 0)):
          logging.warning("%s was too slow: %d events of session %s were dropped", self.sink.name, missed,
                          key)
    except Exception as error:  # A sink may raise anything, and no session may fail by it.
      self._detach(one_line(error) or type(error).__name__)

  def _detach(self, why: str) -> None:
    self._detached = True
    self._queues.clear()
    self.waiting = 0
    self._problems.append((self.sink.name, why))
    logging.warning("%s is detached, and gets no more events: %s", self.sink.name, why)

  async def close(self) -> None:
    try:
      async with asyncio.timeout(self._settings.close_s):
        while self.waiting and not self._detached:
          await asyncio.sleep(0.005)
        await self.sink.close()
    except TimeoutError:
      self.dropped.update(one.kind for queue in self._queues.values() for one in queue)
      logging.warning("%s did not take its last %d events within %g s", self.sink.name, self.waiting,
                      self._settings.close_s)
    except Exception as error:  # As of `_work`.
      self._detach(one_line(error) or type(error).__name__)
    if self._task is not None:
      self._task.cancel()
      await asyncio.gather(self._task, return_exceptions=True)
    if self.dropped:
      logging.warning("%s dropped %s", self.sink.name,
                      ", ".join(f"{count} {kind}" for kind, count in sorted(self.dropped.items())))


class ThreadedSink:
  """A sink that may wait, such as for a disk, and works in a thread of its own."""

  name = "sink"

  def __init__(self):
    """Starts its thread with the first events."""
    self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix=self.name)

  async def take(self, events: Sequence[SessionEvent]) -> None:
    """Takes events of one session, in their order."""
    await asyncio.get_running_loop().run_in_executor(self._thread, self.write, events)

  def write(self, events: Sequence[SessionEvent]) -> None:
    """Takes events, in its thread."""
    raise NotImplementedError

  async def close(self) -> None:
    """Ends it."""
    self._thread.shutdown(wait=False, cancel_futures=True)


class Callback(ThreadedSink):
  """A function of a user that gets every event; an async one is awaited, another has a thread of its own."""

  def __init__(self, function: Callable[[SessionEvent], Any], name: str | None = None):
    """Takes the function."""
    self.name = name or f"callback {getattr(function, '__name__', type(function).__name__)}"
    super().__init__()
    self._function = function
    called = getattr(function, "__call__", function)  # noqa: B004  The call of an object may be async.
    self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)

  async def take(self, events: Sequence[SessionEvent]) -> None:
    """Calls the function with each event."""
    if not self._is_async:
      await super().take(events)
      return
    for one in events:
      await self._function(one)

  def write(self, events: Sequence[SessionEvent]) -> None:
    """Calls the function with each event, in the thread."""
    for one in events:
      self._function(one)
