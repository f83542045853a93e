"""Answers while the client is there: one that goes away is noticed at once, and its completions end."""
import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

DONE = b"data: [DONE]\n\n"
WRITE_S = 60.0  # For a client to take what was sent; a slower one is left.
HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store",
           "X-Accel-Buffering": "no"}  # The last one for proxies, which would hold events back.
Value = TypeVar("Value")


class ClientGone(Exception):
  """Raised where the client has closed its connection."""


async def while_connected(request: Request, work: Awaitable[Value]) -> Value:
  """Returns what some work gives; the body must have been read.

  Raises:
    ClientGone: if the client goes away before; the work is cancelled.
  """
  task = asyncio.ensure_future(work)
  gone = asyncio.ensure_future(_gone(request.receive))
  try:
    await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
      return task.result()
    raise ClientGone
  finally:
    for one in (task, gone):
      one.cancel()
      with contextlib.suppress(asyncio.CancelledError, Exception):
        await one


async def _gone(receive: Any) -> None:
  while (await receive())["type"] != "http.disconnect":
    pass


class EventStream(Response):
  """Server-sent events, until they end or the client goes away; the source is closed in either case."""

  def __init__(self, events: AsyncGenerator[dict, None], close: Callable[[], None]):
    """Takes the events.

    Args:
      events: one with a "type" is sent under that name.
      close: called at the end; unlike what stands behind the generator's last line, also where the client was
        gone before the first event was asked for.
    """
    super().__init__(headers=HEADERS)
    del self.headers["content-length"]
    self._events = events
    self._close = close

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    """Sends all events; see the ASGI specification."""
    writing = asyncio.ensure_future(self._write(send))
    gone = asyncio.ensure_future(_gone(receive))
    try:
      await asyncio.wait({writing, gone}, return_when=asyncio.FIRST_COMPLETED)
      if writing.done():
        # A client that takes nothing counts as gone.
        with contextlib.suppress(TimeoutError):
          writing.result()
    finally:
      for one in (writing, gone):
        one.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
          await one
      await self._events.aclose()
      self._close()

  async def _write(self, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
    async for event in self._events:
      await self._send(send, encoded(event))
    await self._send(send, DONE)
    await send({"type": "http.response.body", "body": b"", "more_body": False})

  async def _send(self, send: Any, data: bytes) -> None:
    async with asyncio.timeout(WRITE_S):
      await send({"type": "http.response.body", "body": data, "more_body": True})


def encoded(event: dict) -> bytes:
  """Returns an event as it is sent."""
  name = f"event: {event['type']}\n" if "type" in event else ""
  return f"{name}data: {json.dumps(event, ensure_ascii=False)}\n\n".encode("utf-8", "replace")
