"""Models that the runtime asks: an endpoint, or a Python function in its place, behind one interface."""
import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from atlas_jax.files.damage import one_line
from atlas_jax.rollout import chat_form, reply_schema
from atlas_jax.rollout.chat_form import AskOptions, EndpointReply, ReplyTokens

REPAIR = ("Your reply could not be used: {why}. Reply again with the corrected JSON object alone, without "
          "any other text.")
Messages = Sequence[Mapping[str, Any]]


class ModelError(Exception):
  """A model that gave no reply that can be used; `rollout.endpoint.EndpointError` says the same of servers.

  Attributes:
    kind: "schema" for a reply of another form, "failed" for a function that raised.
    tries: calls that were made.
    usage: tokens of replies that cannot be used, which were spent all the same; None: not said.
  """

  def __init__(self, kind: str, why: str, *, tries: int = 1, usage: ReplyTokens | None = None):
    """Takes what went wrong."""
    super().__init__(f"{kind}: {why}")
    self.kind = kind
    self.tries = tries
    self.usage = usage


class ChatModel(Protocol):
  """The interface; `rollout.endpoint.Endpoint` has it.

  It raises `ModelError` or `EndpointError` where there is no reply that can be used.
  """

  async def ask(self, messages: Messages, *, options: AskOptions | Mapping[str, Any] | None = None
                ) -> EndpointReply:
    """Returns the reply to messages."""


class FunctionModel:
  """A Python function as a model: takes messages, returns a text or an `EndpointReply`, may be async.

  Attributes:
    calls: how often the function was called.
  """

  def __init__(self, function: Callable[[list[dict]], str | EndpointReply | Awaitable]):
    """Takes the function."""
    self._function = function
    self.calls = 0

  async def ask(self, messages: Messages, *, options: AskOptions | Mapping[str, Any] | None = None
                ) -> EndpointReply:
    """Returns its reply; one that does not fit the schema is asked for once more, as of an endpoint.

    Raises:
      ModelError: if it raises, or its reply does not fit.
    """
    how = options if isinstance(options, AskOptions) else AskOptions(**(options or {}))
    began = time.monotonic()
    reply = await self._called(messages)
    if how.schema is None:
      return reply._replace(seconds=time.monotonic() - began)
    try:
      return reply._replace(data=reply_schema.read(reply.text, how.schema))
    except ValueError as error:
      why = one_line(error)
    if not how.repair:
      raise ModelError("schema", why, usage=reply.usage)
    again = await self._called([*messages, {"role": "assistant", "content": reply.text},
                                {"role": "user", "content": REPAIR.format(why=why)}])
    usage = chat_form.summed(reply.usage, again.usage)
    try:
      data = reply_schema.read(again.text, how.schema)
    except ValueError as error:
      raise ModelError("schema", f"also after one repair: {one_line(error)}", tries=2, usage=usage) from error
    return again._replace(data=data, usage=usage, tries=2, seconds=time.monotonic() - began)

  async def _called(self, messages: Messages) -> EndpointReply:
    self.calls += 1
    try:
      found = self._function([dict(one) for one in messages])
      if inspect.isawaitable(found):
        found = await found
    except asyncio.CancelledError:
      raise
    except Exception as error:  # A function of a user may raise anything.
      raise ModelError("failed", one_line(error) or type(error).__name__) from error
    if isinstance(found, EndpointReply):
      return found
    if not isinstance(found, str):
      raise ModelError("failed", f"the function gave {type(found).__name__}, not a text")
    return EndpointReply(found, ReplyTokens(), {})
