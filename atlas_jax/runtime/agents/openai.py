"""Agents that are models behind a chat endpoint in OpenAI's form: ours, vLLM's and others."""
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from atlas_jax.rollout.chat_form import EndpointReply
from atlas_jax.rollout.endpoint import AskOptions, Endpoint, EndpointError, EndpointSettings
from atlas_jax.runtime.agents.agent import AgentError, AgentReply, AgentSession, CallTokens, Tool
from atlas_jax.runtime.agents.replies import clean_text, read_calls
from atlas_jax.runtime.agents.threads import AgentThreads

ABOUT = "a model at an endpoint in OpenAI's form"
TOOL_CHOICES = ("auto", "required")


@dataclasses.dataclass(frozen=True)
class OpenAIAgentSettings:
  """A model at a chat endpoint as an agent; see `EndpointSettings` for the tries and times.

  Raises:
    ValueError: for a value that cannot be, naming its field.
  """

  url: str                         # up to the version, such as http://127.0.0.1:8000/v1
  model: str                       # its name there
  key_variable: str | None = None  # variable of the environment that has the key; None: no key is sent
  system: str | None = None        # a message before all others; None: none
  name: str | None = None          # for people and the learning key; None: the model's
  version: str | None = None       # None: the model's name
  idempotent: bool = True          # a model has no state that a second call would change
  temperature: float | None = None
  top_p: float | None = None
  max_tokens: int | None = None    # of a reply
  seed: int | None = None
  tool_choice: str = "auto"        # "required": the first round must call one
  timeout_s: float = 60.0          # of one try
  deadline_s: float = 180.0        # of all tries
  tries: int = 3
  backoff_s: float = 0.5           # bound of the first pause between tries, which doubles
  parallel_requests: int = 64      # at the same time, at most
  form: str = "chat"               # "texts" for a model without a chat template: one message, no tools
  extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # fields of the request's own

  def __post_init__(self):
    if self.tool_choice not in TOOL_CHOICES:
      raise ValueError(f"tool_choice={self.tool_choice!r} must be one of {', '.join(TOOL_CHOICES)}")
    self.endpoint()

  def endpoint(self) -> EndpointSettings:
    """Returns the settings of the endpoint."""
    names = [field.name for field in dataclasses.fields(EndpointSettings) if hasattr(self, field.name)]
    return EndpointSettings(**{name: getattr(self, name) for name in names})


def make(settings: OpenAIAgentSettings, *, threads: AgentThreads | None = None) -> "OpenAIAgent":
  """Returns the agent; nothing is asked yet.

  Raises:
    ValueError: if the variable of the key is named and not set.
  """
  del threads  # It waits, and computes nothing.
  return OpenAIAgent(settings)


def imports(settings: OpenAIAgentSettings) -> list[tuple[str, str, str]]:
  """Returns what `make` runs: nothing."""
  del settings
  return []


class AskedEndpoint(Protocol):
  """The interface of what an agent asks: an `Endpoint`, or one with a stream of memory."""

  usage: Any

  async def ask(self, messages: Sequence[Mapping[str, Any]], *,
                options: AskOptions | Mapping[str, Any] | None = None) -> EndpointReply:
    """Returns the reply to messages."""

  async def close(self) -> None:
    """Closes the connections of the running loop."""


class OpenAIAgent:
  """A model at a chat endpoint as an agent: roles stay roles.

  Attributes:
    name, version, idempotent: see `agent.Agent`.
    endpoint: that is asked; its `usage` counts.
  """

  def __init__(self, settings: OpenAIAgentSettings, *, endpoint: AskedEndpoint | None = None):
    """Takes an endpoint that others fraction, or makes its own."""
    self._settings = settings
    self.endpoint: AskedEndpoint = endpoint or Endpoint(settings.endpoint())
    self.name = settings.name or settings.model
    self.version = settings.model if settings.version is None else settings.version
    self.idempotent = settings.idempotent

  async def __call__(self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Tool] = (),
                     session: AgentSession) -> AgentReply:
    """Returns the model's reply, see `agent.Agent`.

    Raises:
      AgentError: if there is none after all tries, by the `EndpointError` that is its cause, or one cannot
        be read.
    """
    del session  # The endpoint is told nothing of it.
    settings = self._settings
    system = [] if settings.system is None else [{"role": "system", "content": settings.system}]
    extra = dict(settings.extra)
    if tools and settings.form == "texts":
      raise AgentError("tools", f"the agent {self.name} is asked with texts, which name no tools; use "
                       "form='chat'")
    if tools:
      extra["tools"] = [described(one) for one in tools]
      has_called = any(one.get("role") == "tool" for one in messages)
      # Required for ever would never let it answer.
      extra["tool_choice"] = "auto" if has_called else settings.tool_choice
    options = AskOptions(temperature=settings.temperature, top_p=settings.top_p, seed=settings.seed,
                         max_tokens=settings.max_tokens, extra=extra)
    try:
      reply = await self.endpoint.ask([*system, *messages], options=options)
    except EndpointError as error:
      raise AgentError("endpoint", f"the agent {self.name}: {error}") from error
    calls = (reply.raw["choices"][0].get("message") or {}).get("tool_calls") or ()
    return AgentReply(clean_text(reply.text), read_calls(calls), CallTokens(*reply.usage), reply.raw)

  def on(self, endpoint: AskedEndpoint) -> "OpenAIAgent":
    """Returns the same agent, asked through another endpoint of its model."""
    return OpenAIAgent(self._settings, endpoint=endpoint)

  async def close(self) -> None:
    """Closes the connections of the running loop."""
    await self.endpoint.close()


def described(tool: Tool) -> dict[str, Any]:
  """Returns a tool as a request names it."""
  return {"type": "function", "function": {"name": tool.name, "description": tool.description,
                                           "parameters": dict(tool.schema)}}
