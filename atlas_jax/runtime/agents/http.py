"""Agents behind an address of HTTP that takes JSON in a form of its own."""
import asyncio
import dataclasses
import json
import os
import random
import re
import uuid
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from atlas_jax.data.traces import storable
from atlas_jax.fields import nearest
from atlas_jax.files import json_text
from atlas_jax.files.damage import one_line
from atlas_jax.rollout import chat_form, endpoint_limits
from atlas_jax.rollout.endpoint import MOST_REPLY_BYTES, PASSING, EndpointError
from atlas_jax.runtime.agents.agent import AgentError, AgentReply, AgentSession, Tool
from atlas_jax.runtime.agents.replies import json_value, prompt_text, reply_of
from atlas_jax.runtime.agents.threads import AgentThreads

ABOUT = "an address of HTTP that takes JSON of any form"
# Names that a template may hold in braces, and what stands there then.
PLACEHOLDERS = ("task", "messages", "metadata", "session", "step", "attempt")
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")


@dataclasses.dataclass(frozen=True)
class HttpAgentSettings:
  """An address of HTTP as an agent.

  Raises:
    ValueError: for a value that cannot be, naming its field.
  """

  url: str                    # whole, with its path; nothing is added
  template: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"prompt": "{task}",
                                                                           "metadata": "{metadata}"})
  result_path: Sequence[str | int] = ()  # names and places that lead to the answer; (): the whole body
  headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
  header_variables: Mapping[str, str] = dataclasses.field(default_factory=dict)  # header -> variable
  name: str | None = None     # for people and the learning key; None: the address's host
  version: str | None = None  # None: not said
  idempotent: bool = False    # whether it may be asked again for the same step after a crash
  timeout_s: float = 60.0     # of one try
  tries: int = 3              # on 408, 409, 425, 429, 5xx and lost connections; others are final
  backoff_s: float = 0.5      # bound of the first pause between tries, which doubles
  backoff_most_s: float = 20.0  # bound of any pause
  parallel_requests: int = 64   # at the same time, at most

  def __post_init__(self):
    parts = urlsplit(self.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
      raise ValueError("url of an agent must be http://HOST:PORT/PATH or https://HOST/PATH")
    if parts.username or parts.password:
      raise ValueError(f"url of the agent at {parts.hostname} holds a name or password; put it into a "
                       "variable of the environment, and name that in header_variables")
    if not self.timeout_s > 0 or self.tries < 1 or self.backoff_s < 0 or self.parallel_requests < 1:
      raise ValueError("timeout_s of an agent must be above 0, tries and parallel_requests at least 1, "
                       "backoff_s at least 0")
    used = _check_template(self.template, "template")
    if not used & {"task", "messages"}:
      raise ValueError("template of an agent uses neither {task} nor {messages}: the task would not be sent; "
                       'write for instance {"prompt": "{task}"}')
    twice = sorted({name.lower() for name in self.headers} & {name.lower() for name in self.header_variables})
    if twice:
      raise ValueError(f"headers and header_variables both set {', '.join(twice)}; set it once")


def make(settings: HttpAgentSettings, *, threads: AgentThreads | None = None) -> "HttpAgent":
  """Returns the agent; nothing is sent yet."""
  del threads
  return HttpAgent(settings)


def imports(settings: HttpAgentSettings) -> list[tuple[str, str, str]]:
  """Returns what `make` runs: nothing."""
  del settings
  return []


class HttpAgent:
  """An address of HTTP as an agent.

  Attributes:
    name, version, idempotent: see `agent.Agent`.
  """

  def __init__(self, settings: HttpAgentSettings, *, rng: random.Random | None = None,
               sleep: Callable[[float], Awaitable] = asyncio.sleep):
    """Reads the variables of headers.

    Raises:
      ValueError: if one of them is not set.
      ModuleNotFoundError: without the package httpx.
    """
    _httpx()
    self._settings = settings
    self.name = settings.name or urlsplit(settings.url).hostname or "http"
    self.version = settings.version
    self.idempotent = settings.idempotent
    self._secrets = {header: _variable(header, name) for header, name in settings.header_variables.items()}
    self._rng = rng or random.Random()
    self._sleep = sleep
    self._of_loop: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

  async def __call__(self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Tool] = (),
                     session: AgentSession) -> AgentReply:
    """Returns the reply, see `agent.Agent`; where tools are offered it may ask for them in OpenAI's form.

    Raises:
      AgentError: if there is none after all tries, by the `EndpointError` that is its cause, or one cannot
        be used.
    """
    values = {"task": prompt_text(messages), "messages": [dict(one) for one in messages],
              "metadata": json_value(session.metadata), "session": session.key, "step": session.step,
              "attempt": session.attempt}
    content = json.dumps(_filled(self._settings.template, values), allow_nan=False).encode("ascii")
    try:
      found = await self._tried(content)
    except EndpointError as error:
      raise AgentError("endpoint", f"the agent {self.name}: {error}") from error
    return reply_of(self._answer(found), tools_offered=bool(tools))

  async def close(self) -> None:
    """Closes the connections of the running loop."""
    found = self._of_loop.pop(asyncio.get_running_loop(), None)
    if found is not None:
      await found.aclose()

  async def _tried(self, content: bytes) -> bytes:
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    settings = self._settings
    for number in range(1, settings.tries + 1):
      error, wait_s = None, 0.0
      try:
        status, found, wait_s = await self._sent(content, headers)
        if 200 <= status < 300:
          return found
        why = self._clean(found[:1000].decode("utf-8", "replace"))
        error = EndpointError("status", status, number, why)
        if status not in PASSING and status < 500:
          break
      except EndpointError as failed:
        error = EndpointError(failed.kind, None, number, self._clean(failed.__cause__ or failed))
        error.__cause__ = failed.__cause__
        if failed.kind == "reply":
          break
      if number < settings.tries:
        await self._sleep(max(wait_s, endpoint_limits.pause_s(number, settings.backoff_s,
                                                              settings.backoff_most_s, self._rng)))
    assert error is not None  # There is at least one try.
    raise error

  async def _sent(self, content: bytes, headers: Mapping[str, str]) -> tuple[int, bytes, float]:
    """Returns the status, the body and the seconds that the address asks to wait."""
    httpx = _httpx()
    try:
      async with asyncio.timeout(self._settings.timeout_s):
        found = bytearray()
        async with self._client().stream("POST", self._settings.url, content=content,
                                         headers=headers) as answer:
          async for part in answer.aiter_bytes():
            found += part
            if len(found) > MOST_REPLY_BYTES:
              raise EndpointError("reply", answer.status_code, 1, f"more than {MOST_REPLY_BYTES} bytes")
      wait_s = min(chat_form.retry_after(answer.headers.get("retry-after")), self._settings.backoff_most_s)
      body = bytes(found)
      for secret in self._secrets.values():  # Before anything is read or cut: an address may well quote it.
        body = body.replace(secret.encode(), b"***")
      return answer.status_code, body, wait_s
    except (TimeoutError, httpx.TimeoutException) as error:
      raise EndpointError("timeout", None, 1) from error
    except httpx.HTTPError as error:
      raise EndpointError("connect", None, 1) from error

  def _client(self):
    loop = asyncio.get_running_loop()
    if loop not in self._of_loop:
      httpx = _httpx()
      most = self._settings.parallel_requests
      self._of_loop[loop] = httpx.AsyncClient(
        headers={"Content-Type": "application/json", **self._settings.headers, **self._secrets},
        timeout=None, follow_redirects=False, verify=self._settings.url.startswith("https"),
        limits=httpx.Limits(max_connections=most, max_keepalive_connections=most))
    return self._of_loop[loop]

  def _answer(self, content: bytes) -> Any:
    """Returns the value that the path leads to; a body that is no JSON is a text, where there is no path."""
    text = content.decode("utf-8", "replace")
    path = self._settings.result_path
    try:
      value = json_text.parse(text, nan=True, unchecked=True)
    except (ValueError, json.JSONDecodeError) as error:
      if not path:
        return text
      raise AgentError("reply", f"the body of the agent {self.name} {self._clean(error)}, and result_path "
                       "leads into JSON") from error
    for number, name in enumerate(path):
      try:
        value = value[name]
      except (KeyError, IndexError, TypeError) as error:
        there = f"; there are {', '.join(map(str, value))}" if isinstance(value, dict) else ""
        raise AgentError("reply", f"result_path {list(path)} of the agent {self.name} leads nowhere at "
                         f"{list(path[:number + 1])}{self._clean(there) if there else ''}") from error
    return value

  def _clean(self, why: object) -> str:
    text = str(why) or type(why).__name__
    for secret in self._secrets.values():
      text = text.replace(secret, "***")
    return one_line(text)


def _check_template(value: Any, at: str) -> set[str]:
  """Returns the names that a template uses, and refuses one that nobody knows."""
  if isinstance(value, Mapping):
    return set().union(*(_check_template(one, f"{at}.{name}") for name, one in value.items()))
  if isinstance(value, list | tuple):
    return set().union(*(_check_template(one, f"{at}[{number}]") for number, one in enumerate(value)))
  if not isinstance(value, str):
    return set()
  used = {found[1] for found in _PLACEHOLDER.finditer(value) if found[1] is not None}
  for name in sorted(used - set(PLACEHOLDERS)):
    raise ValueError(f"{at} of an agent has {{{name}}}, which stands for nothing; "
                     f"{nearest(name, PLACEHOLDERS)}; braces of the text are written twice, {{{{ }}}}")
  return used


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
  """Returns a template with values in place of names; a text that is one name alone becomes its value."""
  if isinstance(value, Mapping):
    return {name: _filled(one, values) for name, one in value.items()}
  if isinstance(value, list | tuple):
    return [_filled(one, values) for one in value]
  if not isinstance(value, str):
    return value
  whole = _PLACEHOLDER.fullmatch(value)
  if whole is not None and whole[1] is not None:
    return values[whole[1]]

  def put(found: re.Match) -> str:
    if found[1] is None:
      return found[0][0]
    one = values[found[1]]
    return one if isinstance(one, str) else storable.dumps(one)

  return _PLACEHOLDER.sub(put, value)  # In one pass: braces of the task stay what they are.


def _variable(header: str, name: str) -> str:
  value = os.environ.get(name, "").strip()
  if not value:
    raise ValueError(f"header_variables.{header} names the environment's variable {name}, which is not set")
  return value


def _httpx():
  try:
    import httpx
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError("agents of HTTP need the package httpx: pip install 'atlas_jax[runtime]'"
                              ) from error
  return httpx
