"""The routes of the server, as a FastAPI application."""
import asyncio
import pathlib
import time
from collections.abc import Callable
from typing import Any

from absl import logging
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from atlas_jax.language.serve import (
  api_error,
  chat_completions,
  chat_prompt,
  loading,
  policy_weights,
  responses,
  rollout_routes,
  text_completions,
  token_report,
  tools,
)
from atlas_jax.language.serve.answering import ReadCall, Service
from atlas_jax.language.serve.api_error import ApiError, invalid
from atlas_jax.language.serve.event_stream import ClientGone
from atlas_jax.language.serve.http_protocol import MOST_HEADER_BYTES
from atlas_jax.language.serve.json_fields import JsonFields, whole_numbers
from atlas_jax.language.serve.loading import Loader
from atlas_jax.language.serve.policy_weights import PolicyWeights

PAGE = pathlib.Path(__file__).parent / "page"
PAGES = {"/": ("index.html", "text/html"), "/page.css": ("page.css", "text/css"),
         "/page.js": ("page.js", "text/javascript")}
# The page loads nothing from elsewhere and sends nothing there, whatever a model writes into it.
POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
          "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
GONE = 499  # In logs and metrics: the client closed the connection.


def make(service: Service) -> Any:
  """Returns the application of a service, in the form of ASGI."""
  # No page of documentation: it would be loaded from elsewhere. No redirection of paths that end with "/":
  # its address would be that of whatever host the request names.
  app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
  _add_completions(app, service)
  _add_models(app, service)
  _add_loading(app, service)
  _add_texts(app, service)
  _add_conversations(app, service)
  _add_state(app, service)
  _add_weights(app, service)
  rollout_routes.add(app, service)
  _add_pages(app)
  app.add_exception_handler(ApiError, _on_api_error)
  app.add_exception_handler(HTTPException, _on_http_error)
  app.add_exception_handler(ClientGone, _on_gone)
  app.add_exception_handler(ClientDisconnect, _on_gone)
  app.add_exception_handler(Exception, _on_failure)
  return Watched(app, service)


def _add_completions(app: FastAPI, service: Service) -> None:
  def route(path: str, read: ReadCall) -> None:
    async def answer(request: Request) -> Response:
      return await service.answer(request, read)

    app.add_api_route(path, answer, methods=["POST"])

  route("/v1/completions", text_completions.read)
  route("/v1/chat/completions", chat_completions.read)
  route("/v1/responses", responses.read)


def _add_models(app: FastAPI, service: Service) -> None:
  def described(name: str, version: int) -> dict[str, Any]:
    text = service.text
    stats = service.scheduler.stats()
    loader = service.loader
    return {"id": name, "object": "model", "created": text.created_s, "owned_by": "atlas_jax",
            "parent": None if loader is None else loader.parents.get(name), "version": version,
            "max_model_len": text.longest_tokens, "chat": text.template is not None,
            "tools": text.shows_tools, "memory": text.has_memory,
            "state_bytes": stats["state_bytes"] if "state_bytes" in stats else None}

  @app.get("/v1/models")
  async def models(request: Request) -> Response:
    service.access.tenant(request.headers)
    found = await asyncio.to_thread(service.scheduler.models)
    return JSONResponse({"object": "list", "data": [described(*one) for one in found.items()]})

  @app.get("/v1/models/{name:path}")
  async def model(name: str, request: Request) -> Response:
    service.access.tenant(request.headers)
    found = service.model_of(JsonFields({"model": name}))
    return JSONResponse(described(found, service.scheduler.models()[found]))


def _add_loading(app: FastAPI, service: Service) -> None:
  def route(path: str, answer: Callable[[Loader, JsonFields], Any]) -> None:
    async def load(request: Request) -> Response:
      service.access.tenant(request.headers)
      if service.loader is None:
        raise ApiError(403, loading.CLOSED)
      # Before the body is read: who may not change weights sends none.
      if service.access.has_trainers:
        service.access.need_trainer(request.headers)
      _, fields = await service.read(request)
      # In a thread: reading and compiling take seconds, and others are being answered.
      done = await asyncio.to_thread(answer, service.loader, fields)
      return PlainTextResponse(done) if isinstance(done, str) else JSONResponse(done)

    app.add_api_route(path, load, methods=["POST"])

  route("/v1/load_lora_adapter", Loader.answer_load)
  route("/v1/unload_lora_adapter", Loader.answer_unload)
  route("/v1/load_weights", Loader.answer_weights)


def _add_texts(app: FastAPI, service: Service) -> None:
  text = service.text

  def tokenized(fields: JsonFields) -> dict[str, Any]:
    service.model_of(fields)
    opens = fields.take("add_special_tokens", bool, True)
    shows = fields.take("return_token_strs", bool, False)
    messages = fields.take("messages", list)
    if messages is None:
      ids = text.encode(fields.need("prompt", str), opens_document=opens)
    else:
      use = tools.read(fields, text.need_template().source, nested=True)
      values = chat_prompt.template_values(fields, use)
      ids = text.chat(chat_prompt.checked(messages, text), values)
    fields.done()
    strings = {"token_strs": [text.token_text(token) for token in ids]} if shows else {}
    return {"count": len(ids), "max_model_len": text.longest_tokens, "tokens": list(ids), **strings}

  @app.post("/tokenize")
  async def tokenize(request: Request) -> Response:
    _, fields = await service.read(request)
    return JSONResponse(await asyncio.to_thread(tokenized, fields))

  @app.post("/detokenize")
  async def detokenize(request: Request) -> Response:
    _, fields = await service.read(request)
    service.model_of(fields)
    ids = whole_numbers(fields.need("tokens", list), "tokens", lambda one: 0 <= one < text.vocab_size)
    fields.done()
    return JSONResponse({"prompt": await asyncio.to_thread(text.decode, ids)})

  @app.post("/v1/memory")
  async def memory(request: Request) -> Response:
    _, fields = await service.read(request)
    return JSONResponse(await asyncio.to_thread(_memory, service, fields))


def _memory(service: Service, fields: JsonFields) -> dict[str, Any]:
  """Returns what the first model's memory does at each id of a text."""
  first = next(iter(service.scheduler.models()), None)
  name = service.model_of(fields)
  ids = whole_numbers(fields.need("tokens", list), "tokens",
                      lambda one: 0 <= one < service.text.vocab_size)
  fields.done()
  if service.trace is None or name != first:
    raise invalid(f"the model {name!r} has no memory that can be looked at", "model", "no_memory")
  most = service.limits.trace_tokens
  if not 0 < len(ids) <= most:
    raise invalid(f"tokens has {len(ids)} ids; it may have 1 to {most} (config.serve.trace_tokens)", "tokens")
  found = service.trace(ids)
  return {"tokens": list(ids), "token_strs": [service.text.token_text(token) for token in ids],
          **{field.removesuffix("_T"): [token_report.number(one) for one in value_T]
             for field, value_T in found._asdict().items()}}


def _add_conversations(app: FastAPI, service: Service) -> None:
  kept = service.conversations

  @app.get("/v1/conversations/{name}")
  async def conversation(name: str, request: Request) -> Response:
    tenant = service.access.tenant(request.headers)
    found = await asyncio.to_thread(kept.find, tenant, name)
    return JSONResponse({"id": found.id, "object": "conversation", "kind": found.kind,
                         "messages": list(found.messages), "tokens": list(found.tokens)})

  @app.post("/v1/conversations/{name}/branch")
  async def branch(name: str, request: Request) -> Response:
    tenant, fields = await service.read(request)
    to = fields.need("id", str)
    fields.done()
    found = await asyncio.to_thread(kept.branch, tenant, name, to)
    return JSONResponse({"id": found.id, "object": "conversation", "kind": found.kind, "parent": name,
                         "token_count": len(found.tokens)})

  @app.delete("/v1/conversations/{name}")
  async def forget(name: str, request: Request) -> Response:
    tenant = service.access.tenant(request.headers)
    await asyncio.to_thread(kept.forget, tenant, name)
    return JSONResponse({"id": name, "object": "conversation.deleted", "deleted": True})


def _add_state(app: FastAPI, service: Service) -> None:
  @app.get("/health")
  @app.get("/health/")  # As clients of `rollout_routes` ask.
  async def health() -> Response:
    if service.draining:
      return JSONResponse({"status": "draining"}, 503)
    return JSONResponse({"status": "ok"})

  @app.get("/metrics")
  async def metrics(request: Request) -> Response:
    service.access.tenant(request.headers)
    content, kind = await asyncio.to_thread(service.metrics.text)
    return Response(content, headers={"Content-Type": kind})


def _add_weights(app: FastAPI, service: Service) -> None:
  def policy() -> PolicyWeights:
    if service.policy is None:
      raise ApiError(403, policy_weights.CLOSED)
    return service.policy

  @app.get("/v1/weights")
  async def weights(request: Request) -> Response:
    service.access.tenant(request.headers)
    return JSONResponse({"object": "list", "data": await asyncio.to_thread(policy().described, service.text)})

  @app.post("/v1/weights")
  async def take(request: Request) -> Response:
    service.access.tenant(request.headers)
    found = policy()  # Before the body is read: who may not change weights sends none.
    service.access.need_trainer(request.headers)
    _, fields = await service.read(request)
    name = service.model_of(fields)
    # In a thread: reading weights takes seconds, and others are being answered.
    return JSONResponse(await asyncio.to_thread(found.take, name, fields))


def _add_pages(app: FastAPI) -> None:
  def add(path: str, name: str, kind: str) -> None:
    content = (PAGE / name).read_bytes()

    async def page() -> Response:
      return Response(content, media_type=kind, headers={
          "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff",
          "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"})

    app.add_api_route(path, page, methods=["GET"])

  for path, (name, kind) in PAGES.items():
    add(path, name, kind)


async def _on_api_error(request: Request, error: Exception) -> Response:
  del request
  assert isinstance(error, ApiError)
  return JSONResponse(error.shape(), error.status, headers=error.headers)


async def _on_http_error(request: Request, error: Exception) -> Response:
  del request
  assert isinstance(error, HTTPException)
  message = "there is no such route" if error.status_code == 404 else str(error.detail)
  return JSONResponse(api_error.shape(error.status_code, message), error.status_code, headers=error.headers)


async def _on_gone(request: Request, error: Exception) -> Response:
  del request, error
  return Response(status_code=GONE)


async def _on_failure(request: Request, error: Exception) -> Response:
  del request, error  # Not its words to the client: they may hold what others asked.
  return JSONResponse(api_error.shape(500, "the server failed; its log says why"), 500)


async def _too_large(scope: Any, receive: Any, send: Any) -> None:
  message = f"the headers have more than {MOST_HEADER_BYTES} bytes"
  answer = JSONResponse(api_error.shape(431, message), 431, headers={"Connection": "close"})
  await answer(scope, receive, send)


def _header_bytes(scope: Any) -> int:
  named = sum(len(name) + len(value) for name, value in scope["headers"])
  return named + len(scope["raw_path"]) + len(scope["query_string"])


class Watched:
  """The application with a line in the log and a count for every answer."""

  def __init__(self, app: Any, service: Service):
    """Takes the application."""
    self._app = app
    self._service = service

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    """Answers one request; see the ASGI specification."""
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    began_s = time.monotonic()
    status = 0

    async def noted(message: Any) -> None:
      nonlocal status
      if message["type"] == "http.response.start":
        status = message["status"]
      await send(message)

    metrics = self._service.metrics
    metrics.in_flight.inc()
    # The parser bounds headers that come in several parts; whole ones it takes as they are.
    app = _too_large if _header_bytes(scope) > MOST_HEADER_BYTES else self._app
    try:
      await app(scope, receive, noted)
    except Exception:  # The client has its answer, see `_on_failure`.
      logging.exception("a request failed")
    finally:
      metrics.in_flight.dec()
      # The route and not the path, which a client makes up; no header, no query, no content.
      route = scope["route"].path if "route" in scope else "other"
      metrics.requests.labels(route, str(status or GONE)).inc()
      logging.info("%s %s %d in %.3f s", scope["method"], route, status or GONE, time.monotonic() - began_s)
