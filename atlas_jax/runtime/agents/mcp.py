"""Tools of servers that speak the Model Context Protocol over their standard streams; needs the package mcp.

Source: modelcontextprotocol.io, and the package's client.
"""
import asyncio
import dataclasses
import logging
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from atlas_jax.files.damage import clipped, one_line
from atlas_jax.rollout import reply_schema
from atlas_jax.runtime.agents.agent import Tool

LOG = logging.getLogger(__name__)
MOST_TOOLS = 1_000  # Of a server.


@dataclasses.dataclass(frozen=True)
class McpServerSettings:
  """A server of tools that is started as a program.

  Raises:
    ValueError: for a value that cannot be, naming its field.
  """

  command: str                    # the program
  arguments: Sequence[str] = ()   # of it
  variables: Sequence[str] = ()   # of the environment that it gets, besides PATH, HOME and their like
  folder: str | None = None       # that it works in; None: this program's
  only: Sequence[str] | None = None  # names of its tools that are offered; None: all
  prefix: str = ""                # before the names of its tools, where two servers have the same
  start_s: float = 30.0           # until it must have said its tools

  def __post_init__(self):
    if not self.command:
      raise ValueError("command is missing; name the program, and what follows it in arguments")
    if not 0 < self.start_s < math.inf:
      raise ValueError(f"start_s={self.start_s} must be above 0")


class McpServer:
  """A server of tools.

  Attributes:
    tools: that it has, once it is open.
    unchecked: keywords of their schemas that are not checked here, but by the server.
  """

  def __init__(self, settings: McpServerSettings):
    """Starts nothing yet.

    Raises:
      ModuleNotFoundError: without the package mcp.
      ValueError: if a variable is named that is not set.
    """
    _mcp()
    missing = [name for name in settings.variables if name not in os.environ]
    if missing:
      raise ValueError(f"variables names {missing[0]}, which is not set in the environment")
    self.tools: tuple[Tool, ...] = ()
    self.unchecked: tuple[str, ...] = ()
    self._settings = settings
    self._task: asyncio.Task | None = None
    self._stop = asyncio.Event()
    self._session: Any = None

  async def open(self) -> tuple[Tool, ...]:
    """Starts the server and returns its tools.

    Raises:
      ValueError: if it does not start, says nothing in time, or lacks a tool that is named.
    """
    settings = self._settings
    ready: asyncio.Future = asyncio.get_running_loop().create_future()
    self._stop = asyncio.Event()
    # A task of its own: the package wants its streams closed by the task that opened them.
    self._task = asyncio.create_task(self._serve(ready))
    try:
      async with asyncio.timeout(settings.start_s):
        listed = await ready
    except TimeoutError as error:
      await self.close()
      raise ValueError(f"command={settings.command!r} did not say its tools within {settings.start_s:g} "
                       "seconds; see its messages above, or raise start_s") from error
    except Exception as error:
      await self.close()
      raise ValueError(f"command={settings.command!r} is no server of tools: {type(error).__name__}: "
                       f"{one_line(error)}") from error
    except BaseException:
      await self.close()
      raise
    try:
      self.tools = self._made(listed)
    except ValueError:
      await self.close()
      raise
    return self.tools

  async def close(self) -> None:
    """Ends the server; nothing happens if it is not open."""
    task, self._task = self._task, None
    self._stop.set()
    if task is not None:
      if self._session is None:  # It has not begun to wait for the end.
        task.cancel()
      # It ends by itself within a few seconds; whoever waits here may give up, and it ends all the same.
      await asyncio.wait([task])
      if not task.cancelled() and task.exception() is not None:
        LOG.warning("the server of tools %s ended with %s", self._settings.command,
                    one_line(task.exception()))

  async def _serve(self, ready: asyncio.Future) -> None:
    mcp = _mcp()
    settings = self._settings
    parameters = mcp.StdioServerParameters(
      command=settings.command, args=list(settings.arguments), cwd=settings.folder,
      env={name: os.environ[name] for name in settings.variables})
    try:
      # Its messages go where ours go: to the stream that Python began with, since another may be no file.
      async with (mcp.stdio_client(parameters, errlog=sys.__stderr__) as (reading, writing),
                  mcp.ClientSession(reading, writing) as session):
        await session.initialize()
        listed = await _listed(mcp, session)
        self._session = session
        if not ready.done():
          ready.set_result(listed)
        await self._stop.wait()
    except Exception as error:
      if ready.done():
        raise
      ready.set_exception(_first(error))
    finally:
      self._session = None

  def _made(self, listed: Sequence[Mapping[str, Any]]) -> tuple[Tool, ...]:
    settings = self._settings
    names = [one["name"] for one in listed]
    missing = sorted(set(settings.only or ()) - set(names))
    if missing:
      raise ValueError(f"only names the tool {missing[0]!r}, which {settings.command!r} has not; it has "
                       f"{', '.join(names) or 'none'}")
    offered = [one for one in listed if settings.only is None or one["name"] in settings.only]
    self.unchecked = tuple(sorted(set().union(*(_unknown(one["inputSchema"]) for one in offered))))
    if self.unchecked:
      LOG.info("arguments of tools of %s are checked by it alone for %s", settings.command,
               ", ".join(self.unchecked))
    return tuple(Tool(settings.prefix + one["name"], one.get("description") or "", one["inputSchema"],
                      self._caller(one["name"])) for one in offered)

  def _caller(self, name: str):
    async def run(**arguments: Any) -> Any:
      if self._session is None:
        raise RuntimeError(f"the server of {name} has ended")
      result = await self._session.call_tool(name, arguments)
      return _value(name, result.model_dump(by_alias=True, mode="json", exclude_none=True))
    return run


async def _listed(mcp, session) -> list[dict[str, Any]]:
  """Returns all tools of a server, page by page."""
  found: list[dict[str, Any]] = []
  cursor = None
  while True:
    params = None if cursor is None else mcp.types.PaginatedRequestParams(cursor=cursor)
    page = (await session.list_tools(params=params)).model_dump(by_alias=True, mode="json",
                                                                exclude_none=True)
    found += page["tools"]
    cursor = page.get("nextCursor")
    if len(found) > MOST_TOOLS:
      raise ValueError(f"it has more than {MOST_TOOLS} tools")
    if cursor is None:
      return found


def _value(name: str, result: Mapping[str, Any]) -> Any:
  """Returns what an agent is told of a result: its texts, else its JSON value.

  Raises:
    RuntimeError: if the tool says that it failed.
  """
  texts = [one["text"] if one.get("type") == "text" else f"[{one.get('type')}, which is not shown]"
           for one in result.get("content", ())]
  text = "\n".join(texts)
  if result.get("isError"):
    raise RuntimeError(clipped(text, 300) or f"{name} failed and does not say why")
  return text if texts else result.get("structuredContent", "")


def _unknown(schema: Any) -> set[str]:
  """Returns keywords of a schema that are not checked here."""
  if not isinstance(schema, Mapping):
    return set()
  found = {str(name) for name in schema if name not in reply_schema.KEYWORDS}
  inner = [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties"),
           *schema.get("anyOf", ())]
  return found.union(*map(_unknown, inner))


def _first(error: BaseException) -> BaseException:
  """Returns the error inside of groups of one."""
  while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
    error = error.exceptions[0]
  return error


def _mcp():
  try:
    import mcp
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError("servers of tools need the package mcp: pip install 'atlas_jax[mcp]'"
                              ) from error
  return mcp
