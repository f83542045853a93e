"""A scheduler that writes from a script, and clients of a server around it, without any model."""

import asyncio
import contextlib
import itertools
import json
import queue
import threading
import time

import httpx
import numpy as np

from atlas_jax.data.tokenizer import ByteTokenizer
from atlas_jax.language.decoding.requests import Draining, EndEvent, QueueFull, Stream, TokenEvent
from atlas_jax.language.decoding.stops import known
from atlas_jax.language.decoding.stream_text import StopText
from atlas_jax.language.serve import app
from atlas_jax.language.serve.access import Access
from atlas_jax.language.serve.answering import RequestLimits, Service
from atlas_jax.language.serve.conversations import Conversations
from atlas_jax.language.serve.generation_fields import CompletionLimits
from atlas_jax.language.serve.memory_trace import MemoryTrace
from atlas_jax.language.serve.served_text import ServedText
from atlas_jax.language.serve.server_metrics import ServerMetrics
from tests.data import templates

TOKENIZER = ByteTokenizer()
VOCAB = 270
# A template of turns with marks, which shows tools and calls in the form of Qwen's.
TOOLS = (
  "{% if tools %}<|im_start|>system\n{{ tools | tojson }} <tool_call><|im_end|>\n{% endif %}"
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
  "{% for call in m.tool_calls or [] %}<tool_call>\n{{ {'name': call.function.name, 'arguments': "
  "call.function.arguments} | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = (
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ScriptedScheduler:
  """Has the interface of `Scheduler`; each request is written by the script, in a thread of its own.

  Attributes:
    script: text of the prompt -> text of the completion.
    may_write: cleared, requests wait before each id.
    most: requests in flight; one more finds the queue full.
    asked, cancelled: requests, and those of streams that were cancelled.
  """

  def __init__(self, script=lambda text: "ok", *, most=1000, error=None):
    self.script, self.most, self.error = script, most, error
    self.may_write = threading.Event()
    self.may_write.set()
    self.asked, self.cancelled, self.streams = [], [], {}
    self.open = True
    self._numbers = itertools.count(1)
    self._known: set = set()

  def models(self):
    return {"base": 3, "adapter": 4}

  def submit(self, request, sink=None):
    if not self.open:
      raise Draining("no more")
    if len(self.streams) >= self.most:
      raise QueueFull(len(self.streams), 7.0)
    request.check(VOCAB, longest_tokens=None)
    stream = Stream(next(self._numbers), request, sink)
    self.asked.append(request)
    self.streams[stream.number] = stream
    threading.Thread(target=self._write, args=(stream,), daemon=True).start()
    return stream

  def cancel(self, stream):
    if stream.number in self.streams:
      self.cancelled.append(stream.request)
      del self.streams[stream.number]

  def drain(self, timeout_s=None):
    self.open = False
    until = time.monotonic() + (timeout_s or 60)
    while self.streams and time.monotonic() < until:
      time.sleep(0.01)
    ended = not self.streams
    self.close()
    return ended

  def close(self):
    self.open = False
    self.streams.clear()

  def stats(self):
    return {"waiting": 0, "state_bytes": 4096}

  def _write(self, stream):
    request = stream.request
    for index in range(request.sampling.n):
      try:
        end = self._completion(stream, index)
      except ValueError as error:  # Of what is allowed, as the scheduler tells it.
        end = self._end(request, index, [], "error", "", None, error)
      with contextlib.suppress(RuntimeError):  # Of a loop that has ended: nobody listens any more.
        stream.send(end)
    self.streams.pop(stream.number, None)

  def _completion(self, stream, index):
    request = stream.request
    text = self.script(TOKENIZER.decode(known(request.prompt, TOKENIZER)))
    stops = StopText(TOKENIZER, request.sampling.stop_strings)
    drawn, reason, stop = [], "length", None
    ids = [*TOKENIZER.encode(text).tolist(), 260]
    # What must follow a grammar goes on until that lets it end.
    for token in ids if request.allowed is None else itertools.chain(ids, itertools.repeat(260)):
      while not self.may_write.wait(0.01) and stream.number in self.streams:
        pass
      if stream.number not in self.streams:
        reason = "abort"
        break
      if self.error is not None:
        return self._end(request, index, drawn, "error", "", None, self.error)
      token = _allowed(request, drawn, token)
      piece = stops.push(token)
      drawn.append(token)
      top = tuple((one, -1.0 - place) for place, one in enumerate([token, *range(request.top_logprobs)]))
      with contextlib.suppress(RuntimeError):
        stream.send(TokenEvent(index, token, piece, -1.0, -0.5, -0.75, top[: request.top_logprobs]))
      if token in request.sampling.stop_tokens:
        reason, stop = "stop_token", token
        break
      if stops.stopped is not None:
        reason, stop = "stop_string", stops.stopped
        break
      if len(drawn) == request.sampling.max_tokens:
        break
    return self._end(request, index, drawn, reason, stops.flush(), stop, None)

  def _end(self, request, index, drawn, reason, rest, stop, error):
    prompt = request.prompt
    shared = max((size for size in range(len(prompt) + 1) if prompt[:size] in self._known), default=0)
    self._known |= {(*prompt, *drawn)[:size] for size in range(1, len(prompt) + len(drawn) + 1)}
    return EndEvent(index, reason, rest, stop, error, 3, len(request.prompt), shared, len(drawn))


def _allowed(request, drawn, token):
  """Returns the token of the script if it may stand here, or one that ends soon."""
  if request.allowed is None:
    return token
  allowed_V = request.allowed(tuple(drawn))
  assert allowed_V.shape == (VOCAB,)
  assert allowed_V.dtype == bool
  wanted = [token, 260, 256, ord('"'), *np.flatnonzero(allowed_V).tolist()]
  return next(one for one in wanted if allowed_V[one])


def text_of(template=None, **fields):
  """Returns the texts of the scripted models."""
  made = None if template is None else templates.template(template)
  return ServedText(TOKENIZER, made, (256, 260), VOCAB, **fields)


class LoadingScheduler(ScriptedScheduler):
  """Queues requests when `loaded` is set, as one does that takes new weights meanwhile; writes nothing."""

  def __init__(self):
    super().__init__()
    self.may_write.clear()
    self.queued, self.loaded = threading.Event(), threading.Event()

  def submit(self, request, sink=None):
    self.queued.set()
    assert self.loaded.wait(10)
    return super().submit(request, sink)


def service(script=lambda text: "ok", *, template=PLAIN, scheduler=None, tokens=(), folder=None, trace=True,
            longest_tokens=None, **limits):
  """Makes the service of a scripted scheduler; limits are those of `RequestLimits` and `CompletionLimits`."""
  writer = scheduler or ScriptedScheduler(script)
  of_one = CompletionLimits(limits.pop("max_tokens", 100), limits.pop("max_completions", 8), longest_tokens)
  usual = {"body_bytes": 2**16, "body_timeout_s": 0.3, "trace_tokens": 64}
  bounds = RequestLimits(**(usual | limits), of_one=of_one)
  text = text_of(template, has_memory=trace, longest_tokens=longest_tokens)
  return Service(writer, text, bounds, Access(tokens), Conversations(folder, 3),
                 ServerMetrics(writer.stats, {}), traced if trace else None)


def traced(tokens):
  """Returns a trace that tells each id in one of its numbers."""
  ids_T = np.asarray(tokens, np.float32)
  return MemoryTrace(ids_T / 1000, ids_T / 100, ids_T)


class Client:
  """Asks a service without sockets."""

  def __init__(self, made):
    self.service = made
    self._app = app.make(made)

  def ask(self, path, body=None, *, method=None, headers=None, content=None):
    """Returns the answer of one request; `content` is a body that need not be JSON."""
    async def one():
      transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
      async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        sent = {"json": body} if body is not None else {"content": content} if content is not None else {}
        kind = method or ("POST" if sent else "GET")
        return await client.request(kind, path, headers=headers, **sent)

    return asyncio.run(one())

  def post(self, path, **body):
    """Returns the JSON of an answer that is no error."""
    answer = self.ask(path, body)
    assert answer.status_code == 200, answer.text
    return answer.json()

  def stream(self, path, **body):
    """Returns the events of a stream, and checks that it ends as it must."""
    answer = self.ask(path, body | {"stream": True})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(one) for one in data[:-1]]

  def refused(self, path, body=None, *, status=400, **options):
    """Returns the error of an answer, and checks its shape."""
    answer = self.ask(path, body, **options)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


class RawRequest:
  """One request in the words of ASGI, whose client may go away at any time."""

  def __init__(self, made, path, body):
    self._app = app.make(made)
    self._scope = {
      "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": path,
      "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http",
      "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")], "client": None,
      "server": None}  # fmt: skip
    self._inbox: asyncio.Queue = asyncio.Queue()
    self._inbox.put_nowait({"type": "http.request", "body": json.dumps(body).encode(), "more_body": False})
    self.sent: queue.SimpleQueue = queue.SimpleQueue()

  def leave(self):
    """Closes the client's end."""
    self._inbox.put_nowait({"type": "http.disconnect"})

  async def run(self):
    """Runs the request to its end."""
    async def send(message):
      self.sent.put(message)

    await self._app(self._scope, self._inbox.get, send)
