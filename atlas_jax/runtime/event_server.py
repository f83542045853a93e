"""Events of sessions to readers over HTTP, as server-sent events.

  GET /sessions/KEY/events?after=SEQ    events behind that number, and those that come, until the end
  GET /health                           {"status": "ok"}

A reader that was cut off goes on behind the last number that it has, by `after` or the header Last-Event-ID.
"""
import asyncio
import collections
import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from atlas_jax.runtime import http_guard
from atlas_jax.runtime.events import SessionEvent
from atlas_jax.runtime.redaction import Redactor

Load = Callable[[str, int], Awaitable[Sequence[Mapping[str, Any]]]]
Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class EventServerSettings:
  """An address.

  Raises:
    ValueError: for an address that others reach without a token.
  """

  host: str = "127.0.0.1"
  port: int = 8090
  token: str | None = None  # that readers must send; needed where others reach the address
  sessions: int = 1_024     # whose newest events are kept in memory,
  kept: int = 1_024         # as many for each; older ones come from the store
  alive_s: float = 15.0     # between signs of life to a reader

  def __post_init__(self):
    http_guard.check_host("event_server", self.host, self.token)
    for name in ("sessions", "kept", "alive_s"):
      if not getattr(self, name) > 0:
        raise ValueError(f"event_server.{name}={getattr(self, name)} must be above 0")


class EventHub:
  """A sink of telemetry whose events many may read, each from where it likes."""

  name = "event server"

  def __init__(self, load: Load | None = None, *, settings: EventServerSettings | None = None,
               redactor: Redactor | None = None):
    """Takes where older events come from, such as `lambda key, after: store.events(key, after=after)`."""
    self._load = load
    self._settings = settings or EventServerSettings()
    self._redactor = redactor or Redactor()
    self._kept: collections.OrderedDict[str, collections.deque[Row]] = collections.OrderedDict()
    self._readers: dict[str, set[_Reader]] = collections.defaultdict(set)

  async def take(self, events: Sequence[SessionEvent]) -> None:
    """Takes events of one session."""
    for one in events:
      row = one.to_json()
      ring = self._kept.setdefault(one.session_key, collections.deque(maxlen=self._settings.kept))
      self._kept.move_to_end(one.session_key)
      ring.append(row)
      for reader in tuple(self._readers.get(one.session_key, ())):
        reader.put(row)
    while len(self._kept) > self._settings.sessions:
      self._kept.popitem(last=False)

  async def close(self) -> None:
    """Ends what is read."""
    for readers in self._readers.values():
      for one in readers:
        one.stop()

  async def knows(self, key: str) -> bool:
    """Returns whether a session has events."""
    return key in self._kept or bool(self._load and await self._load(key, -1))

  async def stream(self, key: str, after: int = -1) -> AsyncIterator[Row | None]:
    """Yields the events of a session behind a number, None as a sign of life, until it ends.

    It ends early for a reader that is too slow, which then goes on behind its last number.
    """
    reader = _Reader(self._settings.kept)
    self._readers[key].add(reader)  # Before looking back: else what comes meanwhile would be missed.
    try:
      older = await self._load(key, after) if self._load else []
      older = [self._redactor.redacted(one).value for one in older]
      rows = {one["seq"]: one for one in (*older, *self._kept.get(key, ())) if one["seq"] > after}
      for seq in sorted(rows):
        after = seq
        yield rows[seq]
        if _is_end(rows[seq]):
          return
      while not reader.stopped or reader.rows:
        row = await reader.next(self._settings.alive_s)
        if row is None:
          if not reader.stopped:
            yield None
        elif row["seq"] > after:
          after = row["seq"]
          yield row
          if _is_end(row):
            return
    finally:
      self._readers[key].discard(reader)
      if not self._readers[key]:
        del self._readers[key]


class _Reader:
  """Events that wait for one reader."""

  def __init__(self, most: int):
    self.rows: collections.deque[Row] = collections.deque()
    self.stopped = False
    self._most = most
    self._wake = asyncio.Event()

  def put(self, row: Row) -> None:
    if self.stopped or len(self.rows) >= self._most and row["kind"] == "CHUNK":
      return
    if len(self.rows) >= self._most:
      self.stop()  # It comes back behind the last one that it has, so that none is missing.
      return
    self.rows.append(row)
    self._wake.set()

  def stop(self) -> None:
    self.stopped = True
    self._wake.set()

  async def next(self, seconds: float) -> Row | None:
    if not self.rows and not self.stopped:
      self._wake.clear()
      try:
        await asyncio.wait_for(self._wake.wait(), seconds)
      except TimeoutError:
        return None
    return self.rows.popleft() if self.rows else None


def _is_end(row: Row) -> bool:
  return row["name"] == "session" and row["kind"] == "END"


def frame(row: Row | None) -> bytes:
  """Returns an event as the protocol of server-sent events has it."""
  if row is None:
    return b": alive\n\n"
  return f"id: {row['seq']}\nevent: {row['name']}\ndata: {json.dumps(row, allow_nan=False)}\n\n".encode()


def application(hub: EventHub, settings: EventServerSettings | None = None) -> Any:
  """Returns the ASGI application.

  Raises:
    ImportError: without the extra `serve`.
  """
  from starlette.applications import Starlette
  from starlette.requests import Request
  from starlette.responses import JSONResponse, Response, StreamingResponse
  from starlette.routing import Route

  async def events(request: Request) -> Response:
    key = request.path_params["key"]
    given = request.query_params.get("after", request.headers.get("last-event-id", "-1"))
    try:
      after = int(given)
    except ValueError:
      return JSONResponse({"error": f"after={given!r} must be the number of an event"}, 400)
    if not await hub.knows(key):
      return JSONResponse({"error": f"no session {key!r} has events here"}, 404)

    async def frames() -> AsyncIterator[bytes]:
      async for row in hub.stream(key, after):
        yield frame(row)

    return StreamingResponse(frames(), media_type="text/event-stream", headers={"cache-control": "no-cache"})

  async def health(request: Request) -> Response:
    del request
    return JSONResponse({"status": "ok"})

  routes = [Route("/sessions/{key}/events", events), Route("/health", health)]
  return http_guard.Guard(Starlette(routes=routes), token=(settings or EventServerSettings()).token)


async def serve(app: Any, host: str, port: int) -> None:
  """Serves an application until it is cancelled.

  Raises:
    ImportError: without the extra `serve`.
  """
  import uvicorn
  await uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_level="warning")).serve()
