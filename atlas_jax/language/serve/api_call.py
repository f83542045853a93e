"""The interface of a route: it reads a request, and tells of completions, whole or as they come."""
import dataclasses
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from atlas_jax.language.decoding.requests import CompletionRequest, EndEvent, TokenEvent
from atlas_jax.language.serve.api_error import ApiError
from atlas_jax.language.serve.constrained import GrammarTokens
from atlas_jax.language.serve.conversations import Conversation
from atlas_jax.language.serve.generation import ServedCompletion, ServedGeneration
from atlas_jax.language.serve.generation_fields import CompletionLimits
from atlas_jax.language.serve.served_text import ServedText


class Reply(Protocol):
  """The interface of what tells a client of completions."""

  def whole(self, generation: ServedGeneration) -> dict[str, Any]:
    """Returns the answer when all is written."""

  def opening(self) -> list[dict]:
    """Returns the first events of a stream."""

  def event(self, completion: ServedCompletion, event: TokenEvent | EndEvent) -> list[dict]:
    """Returns the events that one of a completion becomes."""

  def closing(self, generation: ServedGeneration) -> list[dict]:
    """Returns the last events of a stream."""

  def failure(self, error: ApiError) -> list[dict]:
    """Returns the events of a stream that ends with an error."""

  def message(self, completion: ServedCompletion) -> dict:
    """Returns what a conversation keeps of a completion, as a message of the assistant."""


@dataclasses.dataclass(frozen=True)
class ReadContext:
  """Parts of the server that a route reads a request with.

  Attributes:
    model: name of the model that was asked for.
    text: of it.
    limits: of this server.
    tenant: whose request it is.
    conversation: that the request goes on with; None: it stands alone.
    grammar_tokens: () -> what constrained decoding needs, made at its first use.
  """

  model: str
  text: ServedText
  limits: CompletionLimits
  tenant: str
  conversation: Conversation | None
  grammar_tokens: Callable[[], GrammarTokens]


@dataclasses.dataclass(frozen=True)
class ApiCall:
  """A request that was read.

  Attributes:
    requests: for the scheduler, one per prompt.
    reply: tells of the completions.
    stream: whether they are told as they come.
    messages: of a conversation, up to the completion; () of one of texts.
  """

  requests: list[CompletionRequest]
  reply: Reply
  stream: bool
  messages: tuple[Mapping, ...] = ()


@dataclasses.dataclass(frozen=True)
class ReplyHead:
  """First fields of an answer, and of every chunk of one."""

  id: str
  model: str
  created: int
  conversation: str | None

  @classmethod
  def new(cls, prefix: str, context: ReadContext) -> "ReplyHead":
    """Makes the head of an answer, with an id of its own."""
    kept = context.conversation
    return cls(new_id(prefix), context.model, int(time.time()), None if kept is None else kept.id)

  def shape(self, kind: str) -> dict[str, Any]:
    """Returns the first fields of an answer; `kind` is what the API calls such an object."""
    return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

  @property
  def ending(self) -> dict[str, Any]:
    """Returns the last fields of an answer."""
    return {} if self.conversation is None else {"conversation": {"id": self.conversation}}


def new_id(prefix: str) -> str:
  """Returns an id that is nobody else's."""
  return f"{prefix}{secrets.token_hex(16)}"
