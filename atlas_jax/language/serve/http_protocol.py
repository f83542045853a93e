"""Connections: so many at most, and each says within some seconds what it wants, or is closed."""
import asyncio
import functools
import http
import json
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from atlas_jax.language.serve import api_error

HEADERS_S = 10.0  # From a connection's start, or its next request's first byte, to the end of the headers.
MOST_HEADER_BYTES = 2**15
LINGER_S = 1.0  # Behind an early answer: closed at once, what the client still sends would undo it.
# Twice this is what a client has at most to take something of its answer, to send the rest of a body that was
# answered without it, or to take what is left when the connection ends.
STALL_S = 20.0


class LingeringTransport:
  """A transport that closes late where the client is still sending, so that it can read why.

  Attributes:
    written: bytes, so far.
  """

  def __init__(self, transport: Any, protocol: "TimedProtocol"):
    """Takes the transport of a protocol; what is not here is the transport's."""
    self._transport = transport
    self._protocol = protocol
    self._lingers = False
    self.written = 0

  def __getattr__(self, name: str) -> Any:
    return getattr(self._transport, name)

  def write(self, data: bytes) -> None:
    """Writes and counts."""
    self.written += len(data)
    self._transport.write(data)

  def is_closing(self) -> bool:
    """Returns whether nothing is read or written any more."""
    return self._lingers or self._transport.is_closing()

  def close(self) -> None:
    """Closes; while a body still comes, after a while in which that is thrown away."""
    if self.is_closing():
      return
    if self._protocol.conn.their_state is not h11.SEND_BODY:
      self._transport.close()
      return
    self._lingers = True
    self._protocol.flow.resume_reading()
    if self._transport.can_write_eof():
      self._transport.write_eof()
    self._protocol.loop.call_later(LINGER_S, self._transport.close)


class TimedProtocol(H11Protocol):
  """A connection whose headers are waited for only so long; what is no HTTP gets an error of the API."""

  transport: Any  # A `LingeringTransport`.

  def __init__(self, *args: Any, most_connections: int, headers_s: float = HEADERS_S,
               stall_s: float = STALL_S, **kwargs: Any):
    """Makes a connection; other arguments as of uvicorn.

    Args:
      most_connections: at the same time; one more is told to come later.
      headers_s: see `HEADERS_S`.
      stall_s: see `STALL_S`.
    """
    super().__init__(*args, **kwargs)
    self._most = most_connections
    self._headers_s = headers_s
    self._stall_s = stall_s
    self._timer: asyncio.TimerHandle | None = None
    self._refused = False
    self._looking: asyncio.TimerHandle | None = None
    self._stalled: tuple[str, int] | None = None  # At the last look.

  def connection_made(self, transport: Any) -> None:
    """Starts the clocks."""
    lingering: Any = LingeringTransport(transport, self)
    super().connection_made(lingering)
    self._looking = self.loop.call_later(self._stall_s, self._look)
    if len(self.connections) > self._most:
      self._refuse(503, f"the server has {self._most} connections, as many as it may (config.serve."
                   "connections); ask again later")
    else:
      self._wait_for_headers()

  def data_received(self, data: bytes) -> None:
    """Takes bytes; the clock runs while a request's headers are incomplete."""
    if self._refused or self.transport.is_closing():
      return
    super().data_received(data)
    # Not started anew by every byte: headers that come drop by drop have the same time as others.
    if self.conn.their_state is not h11.IDLE:
      self._stop_waiting()
    elif self._timer is None:
      self._wait_for_headers()

  def connection_lost(self, exc: Exception | None) -> None:
    """Stops the clocks."""
    self._stop_waiting()
    if self._looking is not None:
      self._looking.cancel()
    super().connection_lost(exc)

  def send_400_response(self, msg: str) -> None:
    """Answers what is no request, which uvicorn calls while it handles the parser's error."""
    del msg
    error = sys.exception()
    status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
    # 501 of a transfer's coding that nobody has: the request is at fault, and a second try would not help.
    status = status if status < 500 else 400
    self._refuse(status, "the headers are too large" if status == 431 else "this is no request of HTTP/1.1")

  def _wait_for_headers(self) -> None:
    self._timer = self.loop.call_later(self._headers_s, self._late)

  def _stop_waiting(self) -> None:
    if self._timer is not None:
      self._timer.cancel()
      self._timer = None

  def _late(self) -> None:
    self._timer = None
    if self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE:
      self._refuse(408, f"the headers of the request did not come within {self._headers_s:g} s")

  def _look(self) -> None:
    """Ends a connection that stands as it did when this was called last; uvicorn waits for ever."""
    now = self._standing()
    if now is not None and now == self._stalled:
      # Not closed: that would wait until the client has taken all that is left.
      self.transport.abort()
    self._stalled = now
    self._looking = self.loop.call_later(self._stall_s, self._look)

  def _standing(self) -> tuple[str, int] | None:
    """Returns what is waited for that only the client can do, and how much of it is done."""
    unsent = self.transport.get_write_buffer_size()
    if unsent or self.transport.is_closing():
      return "unsent", self.transport.written - unsent
    # A byte now and then of a body that nobody reads is no reason to wait for more.
    is_answered = self.cycle is not None and self.cycle.response_complete
    return ("unread", 0) if is_answered and self.conn.their_state is h11.SEND_BODY else None

  def _refuse(self, status: int, message: str) -> None:
    """Writes an error and closes; past the parser, which may have broken off in any state."""
    self._stop_waiting()
    if self._refused or self.transport.is_closing():
      return
    self._refused = True
    if self.cycle is not None and not self.cycle.response_complete:
      # Who answers the request finds its client gone, and writes nothing behind the error.
      self.cycle.disconnected = True
      self.cycle.message_event.set()
    self.transport.write(refusal(status, message))
    if self.transport.can_write_eof():
      self.transport.write_eof()
    self.loop.call_later(LINGER_S, self.transport.close)


def refusal(status: int, message: str) -> bytes:
  """Returns a whole answer of HTTP that is an error of the API and ends the connection."""
  body = json.dumps(api_error.shape(status, message)).encode()
  phrase = http.HTTPStatus(status).phrase
  head = (f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
          "Connection: close\r\n\r\n")
  return head.encode() + body


def protocol(most_connections: int, headers_s: float = HEADERS_S, stall_s: float = STALL_S) -> Any:
  """Returns what makes connections, in the form that uvicorn takes as `http`."""
  return functools.partial(TimedProtocol, most_connections=most_connections, headers_s=headers_s,
                           stall_s=stall_s)
