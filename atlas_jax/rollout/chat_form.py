"""Chat completions in OpenAI's form: what is sent, and how answers are read."""
import dataclasses
import email.utils
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from atlas_jax.rollout import reply_schema

FORMATS = ("json_schema", "json_object", "none")
ROUTES = {"chat": "chat/completions", "texts": "completions"}  # By the form of an endpoint.


class ReplyTokens(NamedTuple):
  """Tokens of a reply, None where the endpoint does not say."""

  prompt_tokens: int | None = None
  completion_tokens: int | None = None


class EndpointReply(NamedTuple):
  """A reply of an endpoint."""

  text: str
  usage: ReplyTokens
  raw: Mapping[str, Any]  # the whole answer
  data: Any = None        # the JSON value of the text, where a schema was asked for
  is_cached: bool = False  # read from disk
  tries: int = 0          # requests that were sent for it, repairs included
  seconds: float = 0.0    # until it was there, without the wait for room


@dataclasses.dataclass(frozen=True)
class AskOptions:
  """Options of one request; None: as the endpoint has it."""

  temperature: float | None = None
  top_p: float | None = None
  max_tokens: int | None = None
  seed: int | None = None
  stop: str | Sequence[str] | None = None
  schema: Mapping[str, Any] | None = None  # JSON Schema that the reply must fit, see `reply_schema`
  schema_name: str = "reply"
  repair: bool = True  # whether a reply that does not fit is asked for once more, with what is wrong
  cached: bool = True  # whether the endpoint's cache is read and written
  extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # fields of the request's own


def request_body(settings, messages, how: AskOptions) -> dict[str, Any]:
  """Returns what is sent.

  Args:
    settings: of the endpoint: its model, form and response_format.
    messages: {"role", "content"} each; one alone where the form is "texts".
    how: the options.

  Raises:
    ValueError: for messages or options that cannot be sent.
  """
  are_messages = all(isinstance(one, Mapping) and isinstance(one.get("role"), str) for one in messages)
  if not messages or not are_messages:
    raise ValueError("messages of a request must be a list of {'role', 'content'} with at least one")
  named = {"temperature": how.temperature, "top_p": how.top_p, "max_tokens": how.max_tokens,
           "seed": how.seed, "stop": how.stop}
  body: dict[str, Any] = {"model": settings.model, **_asked(settings.form, messages),
          **{name: value for name, value in named.items() if value is not None}}
  response_format = settings.response_format
  if how.schema is not None:
    reply_schema.check_schema(how.schema)
    if response_format == "json_schema":
      body["response_format"] = {"type": "json_schema", "json_schema": {
        "name": how.schema_name, "schema": dict(how.schema), "strict": True}}
    elif response_format == "json_object":
      body["response_format"] = {"type": "json_object"}
  twice = sorted(set(body) & set(how.extra))
  if twice:
    raise ValueError(f"extra fields of a request name {', '.join(twice)} again; set them once")
  try:
    json.dumps(body := {**body, **how.extra}, allow_nan=False)
  except (TypeError, ValueError) as error:
    raise ValueError(f"a request cannot be written as JSON: {error}") from error
  return body


def _asked(form: str, messages) -> dict[str, Any]:
  if form == "chat":
    return {"messages": [dict(one) for one in messages]}
  if len(messages) != 1:
    raise ValueError(f"{len(messages)} messages cannot be one prompt; an endpoint whose form is 'texts' is "
                     "asked with one message, so use templates of one, or form='chat'")
  return {"prompt": messages[0]["content"]}


def read_reply(content: bytes, form: str = "chat") -> EndpointReply:
  """Reads an answer.

  Args:
    content: of the response.
    form: of the endpoint.

  Raises:
    ValueError: if it is not a chat completion.
  """
  try:
    raw = json.loads(content)
    choice = raw["choices"][0]
    message = choice["message"] if form == "chat" else {"content": choice["text"]}
    text = message.get("content")
  except (AttributeError, IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
    raise ValueError(f"the answer is no chat completion ({type(error).__name__}: {error})") from error
  if text is None and message.get("tool_calls"):
    text = ""
  if not isinstance(text, str):
    raise ValueError(f"the answer's content is {type(text).__name__}, not a text")
  given = raw.get("usage")
  counts = [given.get(name) if isinstance(given, dict) else None for name in ReplyTokens._fields]
  return EndpointReply(text, ReplyTokens(*(count if type(count) is int and count >= 0 else None
                                      for count in counts)), raw)


def summed(left: ReplyTokens, right: ReplyTokens) -> ReplyTokens:
  """Returns the tokens of two replies, None where one of them does not say."""
  return ReplyTokens(*(None if one is None or other is None else one + other
                      for one, other in zip(left, right, strict=True)))


def retry_after(value: str | None) -> float:
  """Returns the seconds of a Retry-After header, 0 if there is none that can be read."""
  if value is None:
    return 0.0
  try:
    seconds = float(value)
  except ValueError:
    try:
      seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (TypeError, ValueError):
      return 0.0  # Not a header of HTTP; the pauses of this client hold.
  return max(0.0, seconds) if math.isfinite(seconds) else 0.0
