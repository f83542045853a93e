"""Requests from body to answer: read, queued, told, kept, and ended where the client goes away."""
import asyncio
import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from absl import logging
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from atlas_jax.language.decoding.requests import EndEvent
from atlas_jax.language.serve import conversations, request_body
from atlas_jax.language.serve.access import Access
from atlas_jax.language.serve.api_call import ApiCall, ReadContext
from atlas_jax.language.serve.api_error import ApiError
from atlas_jax.language.serve.constrained import GrammarTokens
from atlas_jax.language.serve.conversations import Conversation, Conversations
from atlas_jax.language.serve.event_stream import EventStream, while_connected
from atlas_jax.language.serve.generation import ServedGeneration
from atlas_jax.language.serve.generation_fields import CompletionLimits
from atlas_jax.language.serve.json_fields import JsonFields
from atlas_jax.language.serve.loading import Loader
from atlas_jax.language.serve.memory_trace import MemoryTrace
from atlas_jax.language.serve.policy_weights import PolicyWeights
from atlas_jax.language.serve.served_text import ServedText
from atlas_jax.language.serve.server_metrics import ServerMetrics

ReadCall = Callable[[JsonFields, ReadContext], ApiCall]


@dataclasses.dataclass(frozen=True)
class RequestLimits:
  """Bounds of what clients send.

  Attributes:
    body_bytes: of a request.
    body_timeout_s: until all of a body is here.
    trace_tokens: of a text whose memory is looked at.
    of_one: bounds of completions.
  """

  body_bytes: int
  body_timeout_s: float
  trace_tokens: int
  of_one: CompletionLimits


class Service:
  """All that the routes share.

  Attributes:
    scheduler: writes completions, see `decoding.scheduler`.
    text: of its models.
    limits: of requests.
    access: decides who may ask.
    conversations: that go on.
    metrics: counts.
    trace: ids -> what the memory does at each; None: the model has none.
    loader: of adapters and newer weights; None: nothing can be loaded.
    draining: whether the server is about to end.
    policy: takes weights from training; None: nobody may change them.
    tensor_parallel_size: over how many devices a matrix is divided.
  """

  def __init__(self, scheduler: Any, text: ServedText, limits: RequestLimits, access: Access,
               kept: Conversations, metrics: ServerMetrics,
               trace: Callable[[Any], MemoryTrace] | None = None, loader: Loader | None = None):
    """Takes the parts; see the class."""
    self.scheduler = scheduler
    self.text = text
    self.limits = limits
    self.access = access
    self.conversations = kept
    self.metrics = metrics
    self.trace = trace
    self.loader = loader
    self.draining = False
    self._grammar_lock = threading.Lock()
    self.policy: PolicyWeights | None = None
    self.tensor_parallel_size = 1

  async def read(self, request: Request) -> tuple[str, JsonFields]:
    """Returns whose request it is, and the fields of its body; ApiError for one that may not be."""
    tenant = self.access.tenant(request.headers)
    body = await request_body.read(request, most_bytes=self.limits.body_bytes,
                                   timeout_s=self.limits.body_timeout_s)
    return tenant, JsonFields(body)

  def model_of(self, fields: JsonFields) -> str:
    """Takes the name of the model.

    Raises:
      ApiError: status 404 if there is none of this name.
    """
    known = self.scheduler.models()
    name = fields.take("model", str, next(iter(known), None))
    if name not in known:
      raise ApiError(404, f"there is no model {str(name)[:100]!r}; there are {', '.join(known)}",
                     param="model", code="model_not_found")
    return name

  async def answer(self, request: Request, read_call: ReadCall) -> Response:
    """Answers a request for completions.

    Args:
      request: whose body nobody has read.
      read_call: of its route.

    Raises:
      ApiError: for the client; ClientGone if there is none any more.
    """
    began_s = time.monotonic()
    tenant, fields = await self.read(request)
    with contextlib.ExitStack() as stack:
      prepare = functools.partial(self._prepare, tenant, fields, read_call, stack)
      # In a thread: templates, tokenizers and schemas may take a while, and others are being answered.
      kept, call = await asyncio.to_thread(prepare)
      generation = ServedGeneration(self.scheduler, call.requests)
      stack.callback(self._release, generation)
      work = _Work(self, tenant, kept, call, generation, began_s)
      if not call.stream:
        return JSONResponse(await while_connected(request, work.whole()))
      await generation.submit()
      # Ended by the stream, which lives longer than this call.
      return EventStream(work.events(), stack.pop_all().close)

  def _release(self, generation: ServedGeneration) -> None:
    if generation.is_open:
      self.metrics.cancelled.inc()
    # Also where nothing is open: the client may have gone while its request was on its way to the scheduler.
    if not generation.has_ended:
      generation.cancel()

  def _prepare(self, tenant: str, fields: JsonFields, read_call: ReadCall,
               stack: contextlib.ExitStack) -> tuple[Conversation | None, ApiCall]:
    model = self.model_of(fields)
    name = conversations.read_name(fields)
    kept = None if name is None else stack.enter_context(self.conversations.claimed(tenant, name))
    context = ReadContext(model, self.text, self.limits.of_one, tenant, kept, self._grammar_tokens)
    return kept, read_call(fields, context)

  def _grammar_tokens(self) -> GrammarTokens:
    with self._grammar_lock:
      return self._made_grammar_tokens

  @functools.cached_property
  def _made_grammar_tokens(self) -> GrammarTokens:
    return GrammarTokens(self.text)


class _Work:
  """One request for completions that is being answered."""

  def __init__(self, service: Service, tenant: str, kept: Conversation | None, call: ApiCall,
               generation: ServedGeneration, began_s: float):
    self._service = service
    self._tenant = tenant
    self._kept = kept
    self._call = call
    self._generation = generation
    self._began_s = began_s
    self._has_begun = False

  async def whole(self) -> dict[str, Any]:
    """Returns the answer when all is written."""
    await self._generation.submit()
    async for _, event in self._generation.events():
      self._note_first(event)
    await self._end()
    return self._call.reply.whole(self._generation)

  async def events(self) -> AsyncGenerator[dict, None]:
    """Yields the events of the answer; an error is the last of them."""
    reply = self._call.reply
    try:
      for part in reply.opening():
        yield part
      async for completion, event in self._generation.events():
        self._note_first(event)
        for part in reply.event(completion, event):
          yield part
      # Kept before the last event: who has that can rely on it, also if the server is killed then.
      await self._end()
      for part in reply.closing(self._generation):
        yield part
    except ApiError as error:
      for part in reply.failure(error):
        yield part
    except Exception:
      logging.exception("a stream failed")
      for part in reply.failure(ApiError(500, "the server failed; its log says why")):
        yield part

  def _note_first(self, event: Any) -> None:
    if not self._has_begun and not isinstance(event, EndEvent):
      self._has_begun = True
      self._service.metrics.first_token_s.observe(time.monotonic() - self._began_s)

  async def _end(self) -> None:
    metrics = self._service.metrics
    metrics.count(self._generation.usage)
    metrics.request_s.observe(time.monotonic() - self._began_s)
    if self._kept is None:
      return
    completion = self._generation.completions[0]
    assert completion.end is not None
    drawn = [event.token for event in completion.tokens]
    messages = self._call.messages
    kind = conversations.CHAT if messages else conversations.TEXT
    if messages:
      messages = (*messages, self._call.reply.message(completion))
    after = self._kept.after(kind, self._call.requests[0].prompt, drawn, completion.end, completion.text,
                             messages)
    await asyncio.to_thread(self._service.conversations.keep, self._tenant, after)
