"""A client of chat endpoints in OpenAI's form: tries, deadlines, a circuit, usage, replies on disk.

One `Endpoint` is shared by all who ask the same model at the same address. What fails is an `EndpointError`
that says how; nothing is answered in its place.
"""
import asyncio
import collections
import dataclasses
import json
import random
import time
import uuid
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from atlas_jax.files.damage import one_line
from atlas_jax.rollout import async_loop, chat_form, endpoint_limits, reply_schema
from atlas_jax.rollout.chat_form import AskOptions, EndpointReply, ReplyTokens
from atlas_jax.rollout.endpoint_settings import EndpointSettings, read_key
from atlas_jax.rollout.reply_cache import ReplyCache

KINDS = ("connect", "timeout", "status", "reply", "schema", "deadline", "circuit")
PASSING = frozenset({408, 409, 425, 429})  # Tried again, as every status from 500 on is.
OVERLOADED = frozenset({409, 425, 429})  # It works and wants less: no outage.
MOST_REPLY_BYTES = 16 * 2**20
REPAIR = ("Your reply could not be used: {why}. Reply again with the corrected JSON object alone, without "
          "any other text.")


class EndpointError(Exception):
  """An endpoint that gave no reply.

  Attributes:
    kind: one of `KINDS`.
    status: of HTTP, None if there was none.
    tries: requests that were sent.
    usage: tokens of replies that cannot be used, which were spent all the same; None: not said.
  """

  def __init__(self, kind: str, status: int | None, tries: int, why: str = "", *,
               usage: ReplyTokens | None = None):
    """Takes what went wrong; `why` must not hold a key."""
    super().__init__(f"{kind}{'' if status is None else f' {status}'} after {tries} tries: {why}")
    self.kind = kind
    self.status = status
    self.tries = tries
    self.usage = usage


class ChatRequest(NamedTuple):
  """A request for `Endpoint.ask_all`."""

  messages: Sequence[Mapping[str, Any]]
  options: "AskOptions | Mapping[str, Any] | None" = None


class Endpoint:
  """A chat endpoint.

  Attributes:
    settings: as given.
    usage: counts since the start: asks, requests, cached, failed, prompt_tokens, completion_tokens, unmetered
      (replies that do not say their tokens) and seconds.
    circuit: opens while the endpoint fails.
    cache: of replies, None if they are not saved.
  """

  def __init__(self, settings: EndpointSettings, *, clock: Callable[[], float] = time.monotonic,
               sleep: Callable[[float], Awaitable] = asyncio.sleep, rng: random.Random | None = None):
    """Reads the key; nothing is sent yet.

    Args:
      settings: of the endpoint.
      clock, sleep, rng: of pauses and of the circuit.

    Raises:
      ValueError: if the variable of the key is named and not set.
      ModuleNotFoundError: without the package httpx.
    """
    _httpx()
    self.settings = settings
    self.usage: dict[str, float] = collections.defaultdict(float)
    self.circuit = endpoint_limits.Circuit(settings.circuit_failures, settings.circuit_open_s, clock)
    self.cache = None if settings.cache_dir is None else ReplyCache(settings.cache_dir)
    self._key = read_key(settings.key_variable)
    self._clock = clock
    self._sleep = sleep
    self._rng = rng or random.Random()
    # Connections and waiting lists are bound to the loop they were made in.
    self._of_loop: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

  async def ask(self, messages: Sequence[Mapping[str, Any]], *,
                options: AskOptions | Mapping[str, Any] | None = None) -> EndpointReply:
    """Returns the reply to messages.

    Args:
      messages: {"role", "content"} each.
      options: of the request.

    Raises:
      EndpointError: if there is no reply that can be used, after all tries.
      ValueError: for options or messages that cannot be.
    """
    how = options if isinstance(options, AskOptions) else AskOptions(**(options or {}))
    body = chat_form.request_body(self.settings, messages, how)
    self.usage["asks"] += 1
    # Of the address too: two servers may serve different models by one name.
    asked = {"url": self.settings.url, "schema": how.schema, **body}
    saved = self.cache.get(asked) if self.cache is not None and how.cached else None
    if saved is not None:
      self.usage["cached"] += 1
      reply = EndpointReply(saved["text"], ReplyTokens(*saved["usage"]), saved["raw"], is_cached=True)
      return reply if how.schema is None else reply._replace(data=reply_schema.read(reply.text, how.schema))
    try:
      reply = await self._asked(body, how)
    except EndpointError:
      self.usage["failed"] += 1
      raise
    if self.cache is not None and how.cached:
      self.cache.put(asked, {"text": reply.text, "usage": list(reply.usage), "raw": reply.raw})
    return reply

  def ask_all(self, requests: Sequence[ChatRequest], *,
              concurrency: int | None = None) -> list[EndpointReply | EndpointError]:
    """Asks all, in one event loop; returns for each its reply, or the error of it alone.

    Args:
      requests: what to ask.
      concurrency: requests at the same time; None: as the settings say.
    """
    room = asyncio.Semaphore(concurrency or self.settings.parallel_requests)

    async def one(request: ChatRequest) -> EndpointReply | EndpointError:
      async with room:
        try:
          return await self.ask(request.messages, options=request.options)
        except EndpointError as error:
          return error

    async def gathered():
      return await asyncio.gather(*map(one, requests))

    return async_loop.run(gathered())

  async def call(self, method: str, route: str, body: Mapping[str, Any] | None = None) -> tuple[int, Any]:
    """Asks another route of the same server, once.

    Args:
      method: of HTTP.
      route: behind the url of the settings, such as "models".
      body: of the request.

    Returns:
      Status and the JSON of the answer, also of one that refuses.

    Raises:
      EndpointError: if there is no answer, or it is no JSON.
    """
    httpx = _httpx()
    client, _ = self._connection()
    try:
      async with asyncio.timeout(self.settings.timeout_s):
        url = f"{self.settings.url.rstrip('/')}/{route}"
        async with client.stream(method, url, json=None if body is None else dict(body)) as answer:
          found = await _content(answer)
      return answer.status_code, json.loads(found)
    except (TimeoutError, httpx.TimeoutException) as error:
      raise EndpointError("timeout", None, 1,
                          f"no answer within {self.settings.timeout_s:g} seconds") from error
    except httpx.HTTPError as error:
      raise EndpointError("connect", None, 1, self._clean(error)) from error
    except _Failure as error:
      raise error.error(1) from error
    except ValueError as error:
      raise EndpointError("reply", answer.status_code, 1, f"no JSON: {self._clean(error)}") from error

  async def close(self) -> None:
    """Closes the connections of the running loop."""
    found = self._of_loop.pop(asyncio.get_running_loop(), None)
    if found is not None:
      await found[0].aclose()

  async def _asked(self, body: Mapping[str, Any], how: AskOptions) -> EndpointReply:
    """Returns a reply that fits its schema, asked again once if it does not."""
    client, room = self._connection()
    async with room:
      began = self._clock()
      asking = _Asking(client, room, began + self.settings.deadline_s)
      try:
        async with asyncio.timeout(self.settings.deadline_s):
          reply = await self._fitting(asking, body, how, await self._tried(asking, body))
      except TimeoutError as error:
        raise EndpointError("deadline", None, asking.tries,
                            f"no reply within {self.settings.deadline_s:g} seconds") from error
      finally:
        self.usage["seconds"] += self._clock() - began
    return reply._replace(tries=asking.tries, seconds=self._clock() - began)

  async def _fitting(self, asking: "_Asking", body, how: AskOptions, reply: EndpointReply) -> EndpointReply:
    if how.schema is None:
      return reply
    try:
      return reply._replace(data=reply_schema.read(reply.text, how.schema))
    except ValueError as error:
      why = one_line(error)
    if not how.repair or self.settings.form == "texts":  # A text has no turn to say it in.
      raise EndpointError("schema", 200, asking.tries, why, usage=reply.usage)
    more = [{"role": "assistant", "content": reply.text},
            {"role": "user", "content": REPAIR.format(why=why)}]
    again = await self._tried(asking, {**body, "messages": [*body["messages"], *more]})
    usage = chat_form.summed(reply.usage, again.usage)
    try:
      return again._replace(data=reply_schema.read(again.text, how.schema), usage=usage)
    except ValueError as error:
      raise EndpointError("schema", 200, asking.tries, f"also after one repair: {one_line(error)}",
                          usage=usage) from error

  async def _tried(self, asking: "_Asking", body) -> EndpointReply:
    """Sends a request until it is answered, or must not be sent again."""
    failure: _Failure | None = None
    headers = {"Idempotency-Key": str(uuid.uuid4())}  # One for all tries: it is the same request.
    for number in range(1, self.settings.tries + 1):
      if not self.circuit.admits():
        if failure is not None:
          raise failure.error(asking.tries)
        raise EndpointError("circuit", None, asking.tries,
                            f"{self.settings.circuit_failures} failures in a row; asked again within "
                            f"{self.settings.circuit_open_s:g} seconds")
      asking.tries += 1
      self.usage["requests"] += 1
      try:
        reply = await self._sent(asking.client, body, headers)
      except _Failure as error:
        failure = error
        if error.is_outage:
          self.circuit.failed()
        else:  # It works, whatever it says.
          self.circuit.succeeded()
        if error.status in OVERLOADED:
          asking.room.overloaded()
      except BaseException:  # Cancelled, as by the deadline or the end of the program.
        self.circuit.abandoned()
        raise
      else:
        self.circuit.succeeded()
        asking.room.succeeded()
        return reply
      if not failure.passes or number == self.settings.tries:
        break
      pause = max(failure.wait_s, endpoint_limits.pause_s(
        number, self.settings.backoff_s, self.settings.backoff_most_s, self._rng))
      if self._clock() + pause > asking.ends:  # It would hold others up, and be cut off before the next try.
        break
      await self._sleep(pause)
    assert failure is not None  # There is at least one try.
    raise failure.error(asking.tries)

  async def _sent(self, client, body, headers) -> EndpointReply:
    """Sends one request.

    Raises:
      _Failure: whatever goes wrong with it.
    """
    httpx = _httpx()
    try:
      async with asyncio.timeout(self.settings.timeout_s):
        # Its own clock, besides that of the connection: an endpoint that sends a byte now and then ends too.
        content = json.dumps(body, allow_nan=False).encode("ascii")
        url = f"{self.settings.url.rstrip('/')}/{chat_form.ROUTES[self.settings.form]}"
        async with client.stream("POST", url, content=content, headers=headers) as answer:
          found = await _content(answer)
      if self._key is not None:  # Before anything is read, cut or saved: an endpoint may well quote it.
        found = found.replace(self._key.encode(), b"***")
    except (TimeoutError, httpx.TimeoutException) as error:
      raise _Failure("timeout", None, f"no answer within {self.settings.timeout_s:g} seconds", passes=True,
                     is_outage=True) from error
    except httpx.TransportError as error:
      raise _Failure("connect", None, self._clean(error), passes=True, is_outage=True) from error
    except httpx.HTTPError as error:
      raise _Failure("reply", None, self._clean(error), passes=True, is_outage=True) from error
    status = answer.status_code
    if not 200 <= status < 300:
      passes = status in PASSING or status >= 500
      raise _Failure("status", status, self._clean(found[:1000].decode("utf-8", "replace")), passes=passes,
                     is_outage=passes and status not in OVERLOADED,
                     wait_s=chat_form.retry_after(answer.headers.get("retry-after")) if passes else 0.0)
    try:
      reply = chat_form.read_reply(found, self.settings.form)
    except ValueError as error:
      raise _Failure("reply", status, self._clean(error), passes=True, is_outage=True) from error
    for name, count in reply.usage._asdict().items():
      self.usage[name] += count or 0
    self.usage["unmetered"] += reply.usage.completion_tokens is None
    return reply

  def _connection(self):
    """Returns the client and the limit of the running loop."""
    loop = asyncio.get_running_loop()
    if loop not in self._of_loop:
      httpx = _httpx()
      most = self.settings.parallel_requests
      headers = {"Content-Type": "application/json",
                 **({} if self._key is None else {"Authorization": f"Bearer {self._key}"})}
      # Certificates take long to read, and are of no use where there is no TLS: no redirect is followed.
      client = httpx.AsyncClient(headers=headers, timeout=self.settings.timeout_s, follow_redirects=False,
                                 verify=self.settings.url.startswith("https"),
                                 limits=httpx.Limits(max_connections=most, max_keepalive_connections=most))
      self._of_loop[loop] = client, endpoint_limits.CallLimit(most)
    return self._of_loop[loop]

  def _clean(self, why: object) -> str:
    """Returns a message in one line, without the key."""
    text = str(why) or type(why).__name__
    return one_line(text if self._key is None else text.replace(self._key, "***"))


@dataclasses.dataclass
class _Asking:
  """A request on its way to a reply."""

  client: Any
  room: endpoint_limits.CallLimit
  ends: float  # by the endpoint's clock
  tries: int = 0  # requests that were sent


class _Failure(Exception):
  """A request that was not answered, and whether it may be sent again."""

  def __init__(self, kind: str, status: int | None, why: str, *, passes: bool, is_outage: bool,
               wait_s: float = 0.0):
    super().__init__(why)
    self.kind = kind
    self.status = status
    self.passes = passes
    self.is_outage = is_outage
    self.wait_s = wait_s

  def error(self, tries: int) -> EndpointError:
    """Returns the error that a caller gets."""
    found = EndpointError(self.kind, self.status, tries, str(self))
    found.__cause__ = self.__cause__
    return found


async def _content(answer) -> bytes:
  """Returns the bytes of an answer.

  Raises:
    _Failure: if there are more of them than any reply has.
  """
  found = bytearray()
  async for part in answer.aiter_bytes():
    found += part
    if len(found) > MOST_REPLY_BYTES:
      raise _Failure("reply", answer.status_code, f"the answer has more than {MOST_REPLY_BYTES} bytes",
                     passes=False, is_outage=True)
  return bytes(found)


def _httpx():
  try:
    import httpx
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError("endpoints need the package httpx: pip install 'atlas_jax[runtime]'") from error
  return httpx
