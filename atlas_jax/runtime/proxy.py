"""`atlas proxy`: an OpenAI-style endpoint before another, which records what goes through it as sessions.

  POST /v1/chat/completions, /v1/completions    streaming and not
  GET /v1/models, /v1/models/NAME
  POST /sessions/KEY/end                        ends a session; else it ends when nobody goes on with it

An agent is pointed at it and needs no change; the header x-atlas-session names its session. Replies and
errors of the upstream are passed on as they are. Where it is our own server, the proxy asks for token ids and
log-probabilities, so that training needs no encoding again.
"""
import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from absl import logging

from atlas_jax.files.damage import one_line
from atlas_jax.runtime import http_guard
from atlas_jax.runtime.proxy_replies import StreamReader, assembled
from atlas_jax.runtime.proxy_sessions import Exchange, Opened, ProxySessions, SessionTaken
from atlas_jax.runtime.spool import StoreFull

SESSION = "x-atlas-session"
PASSED_ON = ("content-type", "idempotency-key", "openai-organization", "openai-project")  # To the upstream,
PASSED_BACK = ("content-type", "retry-after", "x-request-id")  # and from it.
OURS = "atlas_jax"  # Who owns the models of our own server.


@dataclasses.dataclass(frozen=True)
class ProxySettings:
  """A proxy.

  Raises:
    ValueError: for a value that cannot be, naming its field.
  """

  upstream: str = "http://127.0.0.1:8000/v1"
  host: str = "127.0.0.1"
  port: int = 8091
  token: str | None = None         # that clients must send; needed where others reach the address
  upstream_key: str | None = None  # sent in place of the client's; from the environment
  token_ids: str = "auto"          # whether ids are asked for: "auto" (of our own server), "always", "never"
  tenant: str = "default"
  idle_s: float = 300.0            # without an exchange, after which a session ends
  timeout_s: float = 600.0         # of the upstream

  def __post_init__(self):
    http_guard.check_host("proxy", self.host, self.token)
    if not self.upstream.startswith(("http://", "https://")):
      raise ValueError(f"proxy.upstream={self.upstream!r} must be a URL, such as http://127.0.0.1:8000/v1")
    if self.token_ids not in ("auto", "always", "never"):
      raise ValueError(f"proxy.token_ids={self.token_ids!r} must be auto, always or never")
    for name in ("idle_s", "timeout_s"):
      if not getattr(self, name) > 0:
        raise ValueError(f"proxy.{name}={getattr(self, name)} must be above 0")


class Proxy:
  """The proxy; see the module."""

  def __init__(self, settings: ProxySettings, sessions: ProxySessions):
    """Takes where to, and who records.

    Raises:
      ImportError: without the extra `runtime`.
    """
    import httpx
    self._settings = settings
    self.sessions = sessions
    self._errors = httpx.HTTPError
    self._client = httpx.AsyncClient(timeout=settings.timeout_s, limits=httpx.Limits(max_connections=256))
    self._tells_ids: bool | None = None if settings.token_ids == "auto" else settings.token_ids == "always"

  async def close(self) -> None:
    """Ends the sessions, and closes its connections."""
    await self.sessions.close()
    await self._client.aclose()

  async def models(self, path: str, headers: Mapping[str, str]) -> tuple[int, list, bytes]:
    """Asks the upstream for its models."""
    try:
      found = await self._client.get(f"{self._base}/{path}", headers=self._headers(headers))
    except self._errors as error:
      return _broken(error)
    return found.status_code, _back(found.headers), found.content

  async def ask(self, route: str, raw: bytes, headers: Mapping[str, str]) -> "ProxyAnswer":
    """Forwards a request, and returns what answers it."""
    try:
      body = json.loads(raw)
      if not isinstance(body, dict):
        raise ValueError("it is no object")
    except ValueError as error:
      body = http_guard.error_body(f"the body is no JSON object: {error}", "invalid_request_error")
      return ProxyAnswer(400, _JSON, body)
    credential = headers.get("authorization", "")
    try:
      opened = await self.sessions.begin(route, body, named=headers.get(SESSION), credential=credential)
    except SessionTaken as error:
      return ProxyAnswer(409, _JSON, http_guard.error_body(str(error), "invalid_request_error"))
    except StoreFull as error:  # Nothing goes through that is not recorded.
      return ProxyAnswer(503, _JSON, http_guard.error_body(str(error), "server_error"))
    began = time.monotonic()
    try:
      sent = {**body, "return_token_ids": True} if await self._asks_ids(headers) else None
      content = raw if sent is None else json.dumps({**sent, **body}).encode()
      request = self._client.build_request("POST", f"{self._base}/{route}", content=content,
                                           headers=self._headers(headers))
      reply = await self._client.send(request, stream=True)
      if "text/event-stream" in reply.headers.get("content-type", ""):
        return ProxyAnswer(reply.status_code, _back(reply.headers), None,
                      Streamed(self, opened, route, body, reply, began))
      whole = await reply.aread()
      await reply.aclose()
    except self._errors as error:
      status, head, failure = _broken(error)
      self._ended(opened, route, body, None, None, False, one_line(error) or type(error).__name__, began)
      return ProxyAnswer(status, head, failure)
    except BaseException:
      self._ended(opened, route, body, None, None, False, "the request was cut off", began)
      raise
    value = _object(whole)
    problem = None if value is not None and reply.status_code == 200 else f"HTTP {reply.status_code}"
    self._ended(opened, route, body, reply.status_code, value, False, problem, began)
    return ProxyAnswer(reply.status_code, _back(reply.headers), whole)

  def _ended(self, opened: Opened, route: str, body, status, reply, streamed: bool, problem, began) -> None:
    self.sessions.ended(opened, Exchange(route, body, status, reply, streamed, problem,
                                         time.monotonic() - began))

  async def _asks_ids(self, headers: Mapping[str, str]) -> bool:
    if self._tells_ids is None:
      status, _, body = await self.models("models", headers)
      listed = (_object(body) or {}).get("data") if status == 200 else None
      if not isinstance(listed, list):
        return False  # It is asked again at the next request.
      self._tells_ids = any(isinstance(one, dict) and one.get("owned_by") == OURS for one in listed)
    return self._tells_ids

  @property
  def _base(self) -> str:
    return self._settings.upstream.rstrip("/")

  def _headers(self, given: Mapping[str, str]) -> dict[str, str]:
    found = {name: given[name] for name in PASSED_ON if name in given}
    if self._settings.upstream_key:
      found["authorization"] = f"Bearer {self._settings.upstream_key}"
    elif "authorization" in given and not self._settings.token:  # Our own token is nobody else's.
      found["authorization"] = given["authorization"]
    return {**found, "accept-encoding": "identity"}


@dataclasses.dataclass(frozen=True)
class ProxyAnswer:
  """An answer to a client, whole or streamed; an ASGI application."""

  status: int
  headers: list[tuple[bytes, bytes]]
  body: bytes | None
  stream: "Streamed | None" = None

  async def __call__(self, scope, receive, send) -> None:
    """Sends it."""
    del scope
    if self.stream is None:
      await http_guard.respond(send, self.status, self.headers, self.body or b"")
    else:
      await self.stream.sent(self.status, self.headers, receive, send)


class Streamed:
  """A stream on its way through, recorded when it ends, however it ends."""

  def __init__(self, proxy: Proxy, opened: Opened, route: str, body, reply, began: float):
    """Takes the reply of the upstream."""
    self._proxy, self._opened, self._route, self._body = proxy, opened, route, body
    self._reply, self._began = reply, began
    self._reader = StreamReader()

  async def sent(self, status: int, headers, receive, send) -> None:
    """Passes it on until its end, or until the client is gone."""
    work = asyncio.create_task(self._passed(status, headers, send))
    watch = asyncio.create_task(http_guard.gone(receive))
    problem: str | None = "the client went away"
    try:
      await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
      if work.done():
        problem = work.result()
    except OSError:
      pass  # Writing to a client that is gone.
    finally:
      for task in (work, watch):
        task.cancel()
      await asyncio.gather(work, watch, return_exceptions=True)
      reader = self._reader
      whole = assembled(reader.chunks) if reader.chunks else None
      self._proxy._ended(self._opened, self._route, self._body, status, whole, True,
                         problem or reader.problem, self._began)
      await asyncio.shield(self._reply.aclose())

  async def _passed(self, status: int, headers, send) -> str | None:
    """Passes bytes on; returns what went wrong."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    problem = None
    try:
      async for part in self._reply.aiter_raw():
        self._reader.push(part)
        await send({"type": "http.response.body", "body": part, "more_body": True})
      if not self._reader.is_whole:
        problem = "the stream ended without its end"
    except self._proxy._errors as error:
      problem = f"the upstream broke off: {one_line(error) or type(error).__name__}"
      body = http_guard.error_body(problem, "upstream_error")
      await send({"type": "http.response.body", "body": b"data: " + body + b"\n\n", "more_body": True})
    await send({"type": "http.response.body", "body": b""})
    return problem


def application(proxy: Proxy, settings: ProxySettings) -> Any:
  """Returns the ASGI application.

  Raises:
    ImportError: without the extra `serve`.
  """
  from starlette.applications import Starlette
  from starlette.requests import Request
  from starlette.responses import JSONResponse
  from starlette.routing import Route

  async def ask(request: Request) -> Any:
    return await proxy.ask(request.url.path.removeprefix("/v1/"), await request.body(), request.headers)

  async def models(request: Request) -> Any:
    return ProxyAnswer(*await proxy.models(request.url.path.removeprefix("/v1/"), request.headers))

  async def end(request: Request) -> Any:
    key = request.path_params["key"]
    if not await proxy.sessions.finish(key):
      return JSONResponse({"error": f"no session {key!r} is open, or an exchange is at work in it"}, 404)
    return JSONResponse({"ended": key})

  @contextlib.asynccontextmanager
  async def lifespan(app: Any) -> AsyncIterator[None]:
    del app
    sweeping = asyncio.create_task(_sweep(proxy, settings.idle_s))
    try:
      yield
    finally:
      sweeping.cancel()
      await proxy.close()

  routes = [Route("/v1/chat/completions", ask, methods=["POST"]),
            Route("/v1/completions", ask, methods=["POST"]), Route("/v1/models", models),
            Route("/v1/models/{name:path}", models), Route("/sessions/{key}/end", end, methods=["POST"])]
  return http_guard.Guard(Starlette(routes=routes, lifespan=lifespan), token=settings.token)


async def _sweep(proxy: Proxy, idle_s: float) -> None:
  while True:
    await asyncio.sleep(min(idle_s / 4, 30.0))
    try:
      await proxy.sessions.sweep()
    except StoreFull as error:
      logging.error("sessions of the proxy cannot be ended: %s", error)


_JSON = [(b"content-type", b"application/json")]


def _back(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
  return [(name.encode(), headers[name].encode()) for name in PASSED_BACK if name in headers]


def _broken(error: Exception) -> tuple[int, list, bytes]:
  why = one_line(error) or type(error).__name__
  return 502, _JSON, http_guard.error_body(f"the upstream does not answer: {why}", "upstream_error")


def _object(raw: bytes) -> dict[str, Any] | None:
  try:
    found = json.loads(raw)
  except ValueError:
    return None
  return found if isinstance(found, dict) else None
