"""The loop of an agent and its tools: it asks for tools, is told their results, and so on until it answers.

What goes wrong with a tool is told to the agent, which may try again or do without; it never ends a session.
"""
import asyncio
import dataclasses
import inspect
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from atlas_jax.data.traces import storable
from atlas_jax.fields import nearest
from atlas_jax.files.damage import clipped, one_line
from atlas_jax.rollout import reply_schema
from atlas_jax.runtime.agents.agent import (
  Agent,
  AgentError,
  AgentReply,
  AgentSession,
  CallTokens,
  Tool,
  ToolRequest,
)
from atlas_jax.runtime.agents.replies import added, call_message, clean_text, json_value
from atlas_jax.runtime.agents.threads import AgentThreads, shared
from atlas_jax.runtime.events import EventLog

LAST_ROUND = "No more tools are run after this. Answer now with what you have."
CALL_STATUSES = ("ok", "refused", "error", "timed_out", "cancelled")


@dataclasses.dataclass(frozen=True)
class ToolLoopSettings:
  """Bounds of a loop of tools.

  Raises:
    ValueError: for a value that cannot be, naming its field.
  """

  rounds: int = 8              # calls of the agent at most, the last one without tools that are run
  calls: int = 32              # of tools at most, over all rounds
  call_s: float = 60.0         # seconds of one call of a tool
  result_chars: int = 20_000   # of a result that the agent is told, the rest is cut with a note

  def __post_init__(self):
    for name in ("rounds", "calls", "result_chars"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)} of a loop of tools must be at least 1")
    if not 0 < self.call_s < math.inf:
      raise ValueError(f"call_s={self.call_s} of a loop of tools must be above 0")


class ToolRecord(NamedTuple):
  """A call of a tool that has ended."""

  round: int                    # from 1
  id: str                       # as the agent named the call
  name: str
  arguments: Mapping[str, Any]
  status: str                   # one of CALL_STATUSES
  text: str                     # that the agent was told
  seconds: float


class ToolLoop:
  """One answer of an agent with its tools; not to be used again.

  Attributes:
    tokens: of the agent's calls so far, also where it fails or is cancelled.
    calls: of tools so far.
    rounds: calls of the agent so far.
    messages: that were added to those given.
  """

  def __init__(self, agent: Agent, tools: Sequence[Tool] = (), *, settings: ToolLoopSettings | None = None,
               threads: AgentThreads | None = None):
    """Takes an agent and the tools that it may call.

    Args:
      agent: that answers.
      tools: of different names.
      settings: None: the defaults.
      threads: for tools that are plain functions; None: those of the process.

    Raises:
      ValueError: for two tools of one name.
    """
    self.tokens: CallTokens | None = None
    self.calls: list[ToolRecord] = []
    self.rounds = 0
    self.messages: list[dict[str, Any]] = []
    self._agent = agent
    self._tools = {tool.name: tool for tool in tools}
    if len(self._tools) < len(tools):
      raise ValueError(f"two tools have one name, among {', '.join(tool.name for tool in tools)}")
    self._settings = settings or ToolLoopSettings()
    self._threads = threads or shared()

  async def answer(self, messages: Sequence[Mapping[str, Any]], *, session: AgentSession,
                   log: EventLog | None = None, parent: int | None = None) -> AgentReply:
    """Returns the agent's answer, with the tokens of all rounds and no calls of tools.

    Args:
      messages: for the agent.
      session: that it is called in.
      log: gets START and END of every call of a tool, also of one that is cancelled.
      parent: span that the calls lie in.

    Raises:
      AgentError: if the agent fails, or asks for tools where it must answer and says nothing beside.
    """
    rounds = self._settings.rounds
    while True:
      self.rounds += 1
      is_last = self.rounds == rounds
      if is_last and rounds > 1:
        self.messages.append({"role": "user", "name": "runtime", "content": LAST_ROUND})
      reply = await self._agent([*messages, *self.messages], tools=tuple(self._tools.values()),
                                session=session)
      self.tokens = added([self.tokens, reply.tokens])
      if not reply.tool_calls:
        return reply._replace(tokens=self.tokens)
      if is_last or len(self.calls) >= self._settings.calls:
        return self._without_tools(reply, session, log, parent)
      self.messages.append(call_message(reply))
      for call in reply.tool_calls:
        await self._called(call, session, log, parent)

  def _without_tools(self, reply: AgentReply, session: AgentSession, log: EventLog | None,
                     parent: int | None) -> AgentReply:
    """Returns the text beside calls that are not made any more."""
    for call in reply.tool_calls:
      self._ended(call, "refused", f"not run: {self.rounds} rounds and {len(self.calls)} calls were allowed",
                  0.0, self._begun(call, session, log, parent), session, log, parent)
    if not reply.text.strip():
      raise AgentError("tools", f"the agent {self._agent.name} still asks for tools after {self.rounds} "
                       f"rounds, and gives no answer beside")
    return reply._replace(tokens=self.tokens, tool_calls=())

  async def _called(self, call: ToolRequest, session: AgentSession, log: EventLog | None,
                    parent: int | None) -> None:
    span = self._begun(call, session, log, parent)
    began = time.monotonic()
    status, text = "cancelled", "cancelled"
    try:
      problem = self._problem(call)
      if problem is not None:
        status, text = "refused", problem
      else:
        status, text = await self._ran(self._tools[call.name], call.arguments)
    finally:
      self._ended(call, status, text, time.monotonic() - began, span, session, log, parent)
    content = text if status == "ok" else storable.dumps({"error": text})
    self.messages.append({"role": "tool", "tool_call_id": call.id, "name": call.name, "content": content})

  def _problem(self, call: ToolRequest) -> str | None:
    """Returns why a call is not made, None if it is."""
    if len(self.calls) >= self._settings.calls:
      return f"not run: all {self._settings.calls} calls of tools are used"
    if call.name not in self._tools:
      return f"there is no tool {clipped(call.name, 80)!r}; " + (
        nearest(call.name, self._tools) if self._tools else "there are none")
    if call.problem is not None:
      return call.problem
    problem = reply_schema.mismatch(dict(call.arguments), self._tools[call.name].schema, "arguments")
    return None if problem is None else f"the arguments do not fit the schema: {problem}"

  async def _ran(self, tool: Tool, arguments: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the status and the text of a call."""
    seconds = self._settings.call_s
    within = asyncio.timeout(seconds)
    try:
      async with within:
        if inspect.iscoroutinefunction(tool.run):
          value = await tool.run(**arguments)
        else:
          value = await self._threads.run(tool.run, **arguments)
          if inspect.isawaitable(value):
            value = await value
      return "ok", self._result(value)
    except Exception as error:
      if within.expired():
        return "timed_out", f"the tool {tool.name} gave no result within {seconds:g} seconds"
      return "error", self._clipped(f"the tool {tool.name} raised {type(error).__name__}: {one_line(error)}")

  def _result(self, value: Any) -> str:
    if isinstance(value, str):
      return self._clipped(value)
    return self._clipped(storable.dumps(json_value(value)))

  def _clipped(self, text: str) -> str:
    most = self._settings.result_chars
    return clean_text(clipped(text, most, f" (cut: {len(text)} characters, {most} are shown)"))

  def _begun(self, call: ToolRequest, session: AgentSession, log: EventLog | None, parent: int | None) -> int:
    if log is None:
      return 0
    span = log.span()
    log.emit("tool", "START", actor="tool", span=span, parent=parent, step=session.step,
             attempt=session.attempt,
             data={"id": call.id, "name": call.name, "arguments": dict(call.arguments)})
    return span

  def _ended(self, call: ToolRequest, status: str, text: str, seconds: float, span: int,
             session: AgentSession, log: EventLog | None, parent: int | None) -> None:
    self.calls.append(ToolRecord(self.rounds, call.id, call.name, call.arguments, status, text, seconds))
    if log is not None:
      log.emit("tool", "END", actor="tool", span=span, parent=parent, step=session.step,
               attempt=session.attempt, data={"id": call.id, "name": call.name, "status": status,
                                              "text": text, "seconds": round(seconds, 6)})
