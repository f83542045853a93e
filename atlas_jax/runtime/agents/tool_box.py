"""The tools of a config: Python functions, and those of servers that are started."""
import dataclasses
import hashlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from atlas_jax.data.traces import storable
from atlas_jax.fields import nearest
from atlas_jax.rollout import reply_schema, user_functions
from atlas_jax.runtime.agents.agent import Tool
from atlas_jax.runtime.agents.load import Import, filled
from atlas_jax.runtime.agents.mcp import McpServer, McpServerSettings

_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object",
          type(None): "null"}


@dataclasses.dataclass(frozen=True)
class PythonToolSettings:
  """A Python function as a tool.

  Raises:
    ValueError: for a value that cannot be, naming its field.
  """

  function: str                   # "FILE.py:NAME" or "package.module:NAME"
  name: str | None = None         # None: the function's
  description: str | None = None  # for the model; None: the first line of its docstring
  schema: Mapping[str, Any] | None = None  # JSON Schema of its arguments; None: by its annotations

  def __post_init__(self):
    if self.schema is not None:
      reply_schema.check_schema(self.schema)


KINDS: dict[str, type] = {"python": PythonToolSettings, "mcp": McpServerSettings}


class ToolBox:
  """The tools of a config; servers among them run from `open` to `close`.

  Attributes:
    tools: all of them, those of servers once it is open.
  """

  def __init__(self, given: Sequence[Mapping[str, Any]], *, field: str = "tools"):
    """Loads the functions; no server is started.

    Args:
      given: {"kind": "python" or "mcp", and the fields of that kind's settings} each.
      field: its place in the config, for errors.

    Raises:
      ValueError: for a kind, field or value that cannot be, naming the field.
      ModuleNotFoundError: if a server is named without the package mcp.
    """
    self._field = field
    self._functions: list[Tool] = []
    self._servers: list[tuple[str, McpServer]] = []
    for place, settings in _settings(given, field):
      try:
        if isinstance(settings, McpServerSettings):
          self._servers.append((place, McpServer(settings)))
        else:
          self._functions.append(_function_tool(settings))
      except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    self.tools: tuple[Tool, ...] = tuple(self._functions)
    self._refuse_twice()

  async def open(self) -> tuple[Tool, ...]:
    """Starts the servers and returns all tools.

    Raises:
      ValueError: if a server does not start, or two tools have one name.
    """
    found = list(self._functions)
    try:
      for place, server in self._servers:
        try:
          found += await server.open()
        except ValueError as error:
          raise ValueError(f"{place}: {error}") from error
      self.tools = tuple(found)
      self._refuse_twice()
    except BaseException:
      await self.close()
      raise
    return self.tools

  async def close(self) -> None:
    """Ends the servers."""
    self.tools = tuple(self._functions)
    for _, server in self._servers:
      await server.close()

  def _refuse_twice(self) -> None:
    names = [tool.name for tool in self.tools]
    for name in names:
      if names.count(name) > 1:
        raise ValueError(f"{self._field} has two tools of the name {name!r}; give one another name, or its "
                         "server a prefix")


def imports(given: Sequence[Mapping[str, Any]], *, field: str = "tools") -> list[Import]:
  """Returns the code that tools would run and the programs that they would start, without doing so.

  Raises:
    ValueError: see `ToolBox`.
  """
  found = []
  for place, settings in _settings(given, field):
    if isinstance(settings, McpServerSettings):
      found.append(Import(f"{place}.command", "starts", " ".join([settings.command, *settings.arguments])))
    else:
      found.append(Import(f"{place}.function", "imports", settings.function))
  return found


def schema_sha(tools: Sequence[Tool]) -> str:
  """Returns a hash of the tools' names, descriptions and schemas, whatever their order."""
  listed = sorted(storable.canonical([tool.name, tool.description, dict(tool.schema)]) for tool in tools)
  return hashlib.sha256("\n".join(listed).encode()).hexdigest()[:16]


def _settings(given: Sequence[Mapping[str, Any]], field: str) -> list[tuple[str, Any]]:
  if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
    raise ValueError(f"{field} is {type(given).__name__}, not a list of tools")
  found = []
  for number, one in enumerate(given):
    place = f"{field}[{number}]"
    kind = one.get("kind") if isinstance(one, Mapping) else None
    if not isinstance(kind, str) or kind not in KINDS:
      raise ValueError(f"{place}.kind={kind!r} is no kind of tool; {nearest(str(kind), KINDS)}")
    found.append((place, filled(KINDS[kind], {name: value for name, value in one.items() if name != "kind"},
                                place)))
  return found


def _function_tool(settings: PythonToolSettings) -> Tool:
  function = user_functions.find(settings.function)
  if not callable(function):
    raise ValueError(f"function={settings.function!r} is {type(function).__name__}, which cannot be called")
  name = settings.name or function.__name__
  lines = (inspect.getdoc(function) or "").splitlines()
  description = settings.description if settings.description is not None else (lines[0] if lines else "")
  schema = settings.schema if settings.schema is not None else schema_of(function, name)
  return Tool(name, description, schema, function)


def schema_of(function: Callable[..., Any], name: str) -> dict[str, Any]:
  """Returns the JSON Schema of a function's arguments, by its annotations; one without takes any value.

  Raises:
    ValueError: for parameters that cannot be given by name, or annotations that JSON has not.
  """
  hints = typing.get_type_hints(function)
  properties: dict[str, Any] = {}
  required = []
  for one in inspect.signature(function).parameters.values():
    if one.kind is not one.POSITIONAL_OR_KEYWORD and one.kind is not one.KEYWORD_ONLY:
      raise ValueError(f"the tool {name} has the parameter {one}, which is not given by name; write a "
                       "schema, or name every parameter")
    properties[one.name] = _schema(hints[one.name], name, one.name) if one.name in hints else {}
    if one.default is one.empty:
      required.append(one.name)
  return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _schema(hint: Any, tool: str, name: str) -> dict[str, Any]:
  origin = typing.get_origin(hint)
  arguments = typing.get_args(hint)
  if hint is Any:
    return {}
  if origin is typing.Literal:
    return {"enum": list(arguments)}
  if origin in (typing.Union, types.UnionType):
    return {"anyOf": [_schema(one, tool, name) for one in arguments]}
  if origin is list and arguments:
    return {"type": "array", "items": _schema(arguments[0], tool, name)}
  if (origin or hint) in _TYPES:
    return {"type": _TYPES[origin or hint]}
  raise ValueError(f"the tool {tool} has the parameter {name} of {hint}, which JSON has not; write a schema")
