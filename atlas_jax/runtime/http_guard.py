"""The guard before every server of the runtime: who may ask, and how much may be sent."""
import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

MOST_BODY_BYTES = 2**20
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def check_host(where: str, host: str, token: str | None) -> None:
  """Refuses an address that others reach without a token.

  Raises:
    ValueError: naming the field.
  """
  if not is_loopback(host) and not token:
    raise ValueError(f"{where}.host={host!r} is reached from other machines; set {where}.token, which they "
                     "must send, or take 127.0.0.1")


def is_loopback(host: str) -> bool:
  """Returns whether an address is reached from this machine alone."""
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host == "localhost"


def error_body(message: str, kind: str) -> bytes:
  """Returns an error as OpenAI's API has it."""
  return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": None}}).encode()


class Guard:
  """An ASGI application before another: a bearer token where one is set, and bodies of at most 1 MiB."""

  def __init__(self, app: Any, *, token: str | None = None, most_bytes: int = MOST_BODY_BYTES):
    """Takes the application, the token and the bound."""
    self._app = app
    self._token = token
    self._most_bytes = most_bytes

  async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Answers a request, or hands it on with its body read."""
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    given = dict(scope["headers"]).get(b"authorization", b"")
    if self._token and not hmac.compare_digest(given, f"Bearer {self._token}".encode()):
      await _refuse(send, 401, "send the token of this server: Authorization: Bearer TOKEN",
                    "authentication_error")
      return
    body = b""
    while True:
      message = await receive()
      if message["type"] != "http.request":
        return  # It is gone.
      body += message.get("body", b"")
      if len(body) > self._most_bytes:
        await _refuse(send, 413, f"a body may have {self._most_bytes} bytes; send less",
                      "invalid_request_error")
        return
      if not message.get("more_body"):
        break
    whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
      return whole.pop() if whole else await receive()

    await self._app(scope, replayed, send)


async def _refuse(send: Send, status: int, message: str, kind: str) -> None:
  await respond(send, status, [(b"content-type", b"application/json")], error_body(message, kind))


async def respond(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
  """Sends a whole answer."""
  await send({"type": "http.response.start", "status": status,
              "headers": [*headers, (b"content-length", str(len(body)).encode())]})
  await send({"type": "http.response.body", "body": body})


async def gone(receive: Receive) -> None:
  """Waits until whoever asked is gone."""
  while (await receive())["type"] != "http.disconnect":
    pass
