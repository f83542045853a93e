"""Agents that are objects of LangChain or LangGraph, told by their method `ainvoke`; neither is imported.

Source: the names of messages' fields are those of langchain_core.messages (content, tool_calls,
usage_metadata, type), and of langgraph's state with "messages".
"""
import dataclasses
import inspect
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from atlas_jax.files.damage import one_line
from atlas_jax.rollout import user_functions
from atlas_jax.runtime.agents.agent import AgentError, AgentReply, AgentSession, CallTokens, Tool
from atlas_jax.runtime.agents.openai import described
from atlas_jax.runtime.agents.python import source_hash
from atlas_jax.runtime.agents.replies import (
  added,
  clean_text,
  content_text,
  prompt_text,
  read_calls,
  read_tokens,
  reply_of,
)
from atlas_jax.runtime.agents.threads import AgentThreads

ABOUT = "an object with ainvoke, of LangChain or LangGraph"
INPUTS = ("state", "messages", "text")


@dataclasses.dataclass(frozen=True)
class GraphAgentSettings:
  """An object with `ainvoke` as an agent.

  Raises:
    ValueError: for a value that cannot be, naming its field.
  """

  object: str                    # "FILE.py:NAME" or "package.module:NAME"; a function is called for it
  takes: str | None = None       # one of INPUTS; None: a state if it is a graph, else messages
  result_key: str | None = None  # of an object that it returns; None: its last message, or "output"
  name: str | None = None        # for people and the learning key; None: the object's
  version: str | None = None     # None: the hash of the function that makes it, if one does
  idempotent: bool = False       # whether it may be called again for the same step after a crash

  def __post_init__(self):
    if not self.object:
      raise ValueError("object is missing; name it as FILE.py:NAME or package.module:NAME")
    if self.takes is not None and self.takes not in INPUTS:
      raise ValueError(f"takes={self.takes!r} must be one of {', '.join(INPUTS)}")


def make(settings: GraphAgentSettings, *, threads: AgentThreads | None = None) -> "GraphAgent":
  """Returns the agent of an object that is named, or that a function without parameters returns."""
  del threads
  found = user_functions.find(settings.object)
  version = settings.version
  if not hasattr(found, "ainvoke") and callable(found):
    version = source_hash(found) if version is None else version
    try:
      found = found()
    except Exception as error:
      raise ValueError(f"object={settings.object!r} was called for a graph and raised "
                       f"{type(error).__name__}: {one_line(error)}") from error
  return GraphAgent(found, takes=settings.takes, result_key=settings.result_key, name=settings.name,
                    version=version, idempotent=settings.idempotent)


def imports(settings: GraphAgentSettings) -> list[tuple[str, str, str]]:
  """Returns what `make` runs: (field, what is done, name)."""
  return [("object", "imports", settings.object)]


class GraphAgent:
  """An object with `ainvoke` as an agent.

  Attributes:
    name, version, idempotent: see `agent.Agent`.
  """

  def __init__(self, graph: Any, *, takes: str | None = None, result_key: str | None = None,
               name: str | None = None, version: str | None = None, idempotent: bool = False):
    """Takes an object; see `GraphAgentSettings`.

    Raises:
      ValueError: if it has no `ainvoke` that is a coroutine function.
    """
    if not inspect.iscoroutinefunction(getattr(graph, "ainvoke", None)):
      raise ValueError(f"object is {type(graph).__name__}, which has no coroutine function ainvoke; name a "
                       "graph or a runnable, or a function without parameters that returns one")
    self._graph = graph
    # Graphs have nodes, and a state between them; what else can be invoked takes messages.
    self._takes = takes or ("state" if hasattr(graph, "nodes") else "messages")
    self._result_key = result_key
    shown = getattr(graph, "name", None)
    self.name = name or (shown if isinstance(shown, str) and shown else type(graph).__name__)
    self.version = version
    self.idempotent = idempotent
    parameters = inspect.signature(graph.ainvoke).parameters.values()
    self._has_config = any(one.name == "config" or one.kind is one.VAR_KEYWORD for one in parameters)

  async def __call__(self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Tool] = (),
                     session: AgentSession) -> AgentReply:
    """Returns the reply, see `agent.Agent`.

    Raises:
      AgentError: if the object raises, or returns what holds no answer.
    """
    plain = [dict(one) for one in messages]
    given = {"state": {"messages": plain}, "messages": plain, "text": prompt_text(plain)}[self._takes]
    # A thread for each call: a graph with a memory of its own would else hold every message twice.
    config = {"configurable": {"thread_id": f"{session.key}/{uuid.uuid4().hex}"},
              "metadata": dict(session.metadata)}
    try:
      invoked = self._with_tools(tools)
      value = await (invoked.ainvoke(given, config=config) if self._has_config else invoked.ainvoke(given))
    except AgentError:
      raise
    except Exception as error:
      raise AgentError("raised", f"the agent {self.name} raised {type(error).__name__}: {one_line(error)}"
                       ) from error
    return self._reply(value, len(plain), bool(tools))

  def _with_tools(self, tools: Sequence[Tool]) -> Any:
    if not tools:
      return self._graph
    if not hasattr(self._graph, "bind_tools"):
      raise AgentError("tools", f"the agent {self.name} has no bind_tools, so that the tools of the config "
                       "cannot be given to it; build them into the graph, and remove them from the config")
    return self._graph.bind_tools([described(one) for one in tools])

  def _reply(self, value: Any, n_given: int, has_tools: bool) -> AgentReply:
    if isinstance(value, Mapping):
      if self._result_key is not None:
        if self._result_key not in value:
          raise AgentError("reply", f"the agent {self.name} returned {', '.join(map(str, value))}, and no "
                           f"result_key={self._result_key!r}")
        return self._reply_of_value(value[self._result_key], has_tools)._replace(raw=value)
      listed = value.get("messages")
      if isinstance(listed, Sequence) and not isinstance(listed, str) and listed:
        # A state holds the messages that it was given too, which were counted before.
        new = listed[n_given:] if len(listed) > n_given else listed[-1:]
        tokens = added(_tokens(one) for one in new if _field(one, "type", "role") in ("ai", "assistant"))
        return self._reply_of_value(listed[-1], has_tools)._replace(tokens=tokens, raw=value)
      if "output" in value:
        return self._reply_of_value(value["output"], has_tools)._replace(raw=value)
    return self._reply_of_value(value, has_tools)

  def _reply_of_value(self, value: Any, has_tools: bool) -> AgentReply:
    """Returns the reply of a message, a text or a JSON value."""
    content = _field(value, "content")
    if content is None:
      return reply_of(value, tools_offered=has_tools)
    calls = read_calls(_field(value, "tool_calls") or ()) if has_tools else ()
    return AgentReply(clean_text(content_text(content)), calls, _tokens(value), value)


def _field(value: Any, *names: str) -> Any:
  """Returns the first of several fields of a message that is an object or a mapping; None without."""
  for name in names:
    found = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
    if found is not None:
      return found
  return None


def _tokens(message: Any) -> CallTokens | None:
  return read_tokens(_field(message, "usage_metadata", "usage"))
