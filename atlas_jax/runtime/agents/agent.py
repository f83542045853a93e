"""The interface of agents: messages in, a reply out."""
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable


class ToolRequest(NamedTuple):
  """A tool that an agent wants to have run."""

  id: str
  name: str
  arguments: Mapping[str, Any]
  problem: str | None = None  # why the arguments cannot be read; then they are empty


class AgentError(Exception):
  """An agent that gave no reply, or one that cannot be used.

  Attributes:
    kind: one of `KINDS`.
  """

  KINDS = ("raised", "reply", "tools", "endpoint", "late")

  def __init__(self, kind: str, why: str):
    """Takes what went wrong; `why` must not hold a key."""
    super().__init__(why)
    if kind not in self.KINDS:
      raise ValueError(f"kind={kind!r} of an agent's error must be one of {', '.join(self.KINDS)}")
    self.kind = kind


class CallTokens(NamedTuple):
  """Tokens of calls of a model; None: not said."""

  prompt: int | None = None
  completion: int | None = None
  calls: int = 1


class AgentReply(NamedTuple):
  """An agent's reply: text, or tools that it wants to have run first."""

  text: str
  tool_calls: tuple[ToolRequest, ...] = ()
  tokens: CallTokens | None = None  # None: no model was called, or nobody counted
  raw: Any = None                   # as it came


class AgentSession(NamedTuple):
  """The session that an agent is called in, as far as it may know it."""

  key: str
  task: str
  metadata: Mapping[str, Any]
  step: int | str | None = None
  attempt: int = 1


@dataclasses.dataclass(frozen=True)
class Tool:
  """A tool that agents may call.

  Attributes:
    name: by which it is called.
    description: for the model.
    schema: JSON Schema of its arguments.
    run: takes the arguments by name, returns a text or JSON value; may be a coroutine function.
  """

  name: str
  description: str
  schema: Mapping[str, Any]
  run: Any


@runtime_checkable
class Agent(Protocol):
  """An agent.

  Attributes:
    name: for people and the learning key.
    version: changes where the agent does; None: not said.
    idempotent: whether a session that a crash cut off may call it again for the same step.
  """

  name: str
  version: str | None
  idempotent: bool

  async def __call__(self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Tool] = (),
                     session: AgentSession) -> AgentReply:
    """Returns the reply to messages {"role", "content", ...}."""
