"""Watches a runtime at work: files of events and metrics, alerts, and events over HTTP."""
import asyncio
import dataclasses
import os
from collections.abc import Sequence

from absl import logging

from atlas_jax.defaults import alerts, bounds
from atlas_jax.files.damage import one_line
from atlas_jax.monitor.writer import MetricsWriter
from atlas_jax.runtime import event_server, measures
from atlas_jax.runtime.agents import threads
from atlas_jax.runtime.event_server import EventHub, EventServerSettings
from atlas_jax.runtime.measures import Gauges, Measures
from atlas_jax.runtime.pool import SessionPool
from atlas_jax.runtime.redaction import Redactor
from atlas_jax.runtime.result import SessionResult
from atlas_jax.runtime.sinks import EventsFile
from atlas_jax.runtime.store import RuntimeStore
from atlas_jax.runtime.telemetry import EventSink, Telemetry


@dataclasses.dataclass(frozen=True)
class WatchSettings:
  """Files and addresses of what is watched; see the fields of config.telemetry."""

  events_file: str | None = None
  folder: str | None = None
  every_s: float = 10.0
  port: int | None = None
  host: str = "127.0.0.1"
  token_variable: str | None = None


class Watching:
  """Sinks of events and counts of sessions, for one pool.

  Attributes:
    telemetry: takes every event, as a sink of the pool.
  """

  def __init__(self, settings: WatchSettings, store: RuntimeStore, redactor: Redactor, *,
               sinks: Sequence[EventSink] = ()):
    """Opens the files; must be called in the event loop.

    Raises:
      ValueError: for an address that others reach, without a token.
    """
    self._settings = settings
    self._store = store
    self._resumed = 0
    self._pool: SessionPool | None = None
    own: list[EventSink] = [*sinks]
    if settings.events_file:
      own.append(EventsFile(settings.events_file))
    self._hub: EventHub | None = None
    if settings.port is not None:
      token = read_token(settings.token_variable, "telemetry")
      served = EventServerSettings(host=settings.host, port=settings.port, token=token)
      self._hub = EventHub(self._older, settings=served, redactor=redactor)
      self._served = served
      own.append(self._hub)
    self.telemetry = Telemetry(own, redactor=redactor)
    self._measures = Measures(self._gauges)
    self._rules = measures.engine(bounds.plain(alerts.group()))
    self._writer = None if settings.folder is None else MetricsWriter(settings.folder, tensorboard=False)
    self._tasks: list[asyncio.Task] = []

  def start(self, pool: SessionPool) -> None:
    """Begins to write and to serve what a pool does."""
    self._pool = pool
    if self._writer is not None:
      self._tasks.append(asyncio.create_task(self._rows()))
    if self._hub is not None:
      app = event_server.application(self._hub, self._served)
      self._tasks.append(asyncio.create_task(event_server.serve(app, self._served.host, self._served.port)))

  def ended(self, result: SessionResult) -> None:
    """Counts a session that has ended; one that was read from the store is none."""
    if not result.resumed:
      self._measures.add(result)

  def taken_up(self, count: int) -> None:
    """Counts sessions whose process was gone."""
    self._resumed += count

  async def close(self) -> None:
    """Writes the last row, and waits for the sinks."""
    for task in self._tasks:
      task.cancel()
    await asyncio.gather(*self._tasks, return_exceptions=True)
    if self._writer is not None:
      if self._measures.sessions:
        measures.write(self._writer, self._measures, self._rules)
      self._writer.close()
    await self.telemetry.close()

  async def _rows(self) -> None:
    seen = 0
    while True:
      await asyncio.sleep(self._settings.every_s)
      if self._measures.sessions == seen:
        continue
      seen = self._measures.sessions
      try:
        assert self._writer is not None
        measures.write(self._writer, self._measures, self._rules)
      except OSError as error:
        logging.warning("no row of metrics is written: %s", one_line(error))

  async def _older(self, key: str, after: int):
    return await self._store.events(key, after=after)

  def _gauges(self) -> Gauges:
    dropped = sum(sum(kinds.values()) for kinds in self.telemetry.dropped().values())
    waiting = 0 if self._pool is None else self._pool.waiting
    return Gauges(waiting, threads.shared().late_total, len(self._store.spool), self._resumed, dropped,
                  len(self.telemetry.problems))


def read_token(variable: str | None, group: str) -> str | None:
  """Returns the token that a variable of the environment has, None without a variable.

  Raises:
    ValueError: if it is not set.
  """
  if variable is None:
    return None
  if not os.environ.get(variable):
    raise ValueError(f"config.{group}.token_variable={variable}: the environment has no such variable; set "
                     "it to the token that readers must send")
  return os.environ[variable]
