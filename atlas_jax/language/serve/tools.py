"""Tools: shown to the model by its own chat template, and calls of them read from what it writes.

A template tells in which form the model was taught to call: <tool_call>{"name", "arguments"}</tool_call>
around each call, as Qwen's and Hermes' have it, or the bare object as the whole answer, as Llama 3's.
"""
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from atlas_jax.language.serve.api_error import invalid
from atlas_jax.language.serve.constrained import JSON_FORM
from atlas_jax.language.serve.json_fields import UNSUPPORTED, JsonFields, each

OPEN, CLOSE = "<tool_call>", "</tool_call>"
ARGUMENTS = ("arguments", "parameters")  # What models call them.
NO_TOOLS = "leave it out, or describe the tools in a message"


class ToolCall(NamedTuple):
  """A call that the model wrote."""

  id: str
  name: str
  arguments: str  # JSON

  def shape(self) -> dict[str, Any]:
    """Returns the call as messages hold it."""
    return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class ToolUse(NamedTuple):
  """Tools of a request, and how they may be called."""

  tools: tuple[dict, ...]  # {"type": "function", "function": {...}}, as templates know them
  choice: Any  # as the request has it: "auto", "none", "required", or the function by name
  parallel: bool  # whether several calls may be written
  tagged: bool  # whether each call stands between OPEN and CLOSE

  @property
  def shown(self) -> tuple[dict, ...]:
    """Returns the tools that the model sees."""
    return () if self.choice == "none" else self.tools

  @property
  def demanded(self) -> tuple[dict, ...]:
    """Returns the tools of which one must be called; () if the model may also answer itself."""
    if self.choice in ("auto", "none"):
      return ()
    if self.choice == "required":
      return self.tools
    return tuple(one for one in self.tools if one["function"]["name"] == self.choice["name"])

  @property
  def stop_strings(self) -> tuple[str, ...]:
    """Returns where a completion ends that may have one call only."""
    return (CLOSE,) if self.shown and self.tagged and not self.parallel else ()


NOTHING = ToolUse((), "none", True, False)


def read(fields: JsonFields, template_source: str | None, *, nested: bool) -> ToolUse:
  """Reads the fields tools, tool_choice and parallel_tool_calls.

  Args:
    fields: of the request.
    template_source: of the model's chat template; None: it has none.
    nested: whether a tool's name and others stand under "function", as chats have it, or beside its type, as
      responses have it.

  Raises:
    ApiError: for tools that cannot be, or that the model's template does not show.
  """
  listed = fields.take("tools", list, [])
  choice = fields.take("tool_choice", object, "auto" if listed else "none")
  parallel = fields.take("parallel_tool_calls", bool, True)
  tools = tuple(_tool(value, at, nested) for at, value in each(listed, "tools"))
  names = [tool["function"]["name"] for tool in tools]
  if len(set(names)) < len(names):
    raise invalid("tools has two of the same name; give each its own", "tools")
  if tools and (template_source is None or "tools" not in template_source):
    raise invalid(f"the model's chat template shows no tools; {NO_TOOLS}", "tools", UNSUPPORTED)
  choice = _choice(choice, names, nested)
  if not tools and choice not in ("auto", "none"):
    raise invalid(f"tool_choice={choice!r} needs tools, and there are none", "tool_choice")
  return ToolUse(tools, choice, parallel, OPEN in (template_source or ""))


def _tool(value: Any, at: str, nested: bool) -> dict:
  fields = JsonFields(value, at)
  kind = fields.need("type", str)
  if kind != "function":
    raise invalid(f"{at}.type={kind!r} is not supported: only tools of type 'function' are, which the client "
                  "runs itself", f"{at}.type", UNSUPPORTED)
  inner = fields
  if nested:
    inner = JsonFields(fields.need("function", dict), f"{at}.function")
    fields.done()
  function: dict[str, Any] = {"name": inner.need("name", str)}
  for name, one in (("description", str), ("parameters", dict)):
    if (given := inner.take(name, one)) is not None:
      function[name] = given
  # Whether arguments must follow the schema: they do where a call is demanded, and may not where it is not.
  inner.take("strict", bool)
  inner.done()
  return {"type": "function", "function": function}


def _choice(value: Any, names: Sequence[str], nested: bool) -> Any:
  if value in ("auto", "none", "required"):
    return value
  fields = JsonFields(value, "tool_choice")
  fields.take("type", str, choices=("function",))
  inner = JsonFields(fields.need("function", dict), "tool_choice.function") if nested else fields
  name = inner.need("name", str)
  inner.done()
  fields.done()
  if name not in names:
    raise invalid(f"tool_choice names the function {name!r}, and tools has no such one", "tool_choice")
  return {"type": "function", "name": name}


def grammar(use: ToolUse) -> str | None:
  """Returns the grammar of an answer that is one call of a demanded tool, in Lark; None: none is demanded."""
  if not use.demanded:
    return None
  calls = [{"type": "object", "additionalProperties": False, "required": ["name", ARGUMENTS[0]],
            "properties": {"name": {"const": tool["function"]["name"]}, ARGUMENTS[0]:
                           tool["function"].get("parameters", {"type": "object"})}}
           for tool in use.demanded]
  schema = {"anyOf": calls} if len(calls) > 1 else calls[0]
  body = f"call: %json {json.dumps({**schema, 'x-guidance': JSON_FORM})}\n"
  if not use.tagged:
    return f"start: call\n{body}"
  return f'start: "{OPEN}\\n" call "\\n{CLOSE}"\n{body}'


class CallReader:
  """Parts what a model writes, piece by piece, into text for the user and calls of tools.

  What only looks like a call, because it is no JSON or names no tool, is text.
  """

  def __init__(self, use: ToolUse):
    """Starts with an empty text."""
    self._names = {tool["function"]["name"] for tool in use.shown}
    self._tagged = use.tagged
    self._held = ""
    self._inside = False
    self.calls: list[ToolCall] = []

  def push(self, text: str) -> tuple[str, list[ToolCall]]:
    """Returns (text that is certainly no call, calls that are complete) with a piece more."""
    if not self._names:
      return text, []
    self._held += text
    if not self._tagged:
      # An object is the whole answer or none: it is known at the end.
      if self._held.lstrip().startswith("{") or not self._held.strip():
        return "", []
      return self._take(len(self._held)), []
    return self._tags()

  def flush(self) -> tuple[str, list[ToolCall]]:
    """Returns what was held back, at the end."""
    rest = self._take(len(self._held))
    if not self._names:
      return rest, []
    # The closing tag is missing where it is what stopped the completion.
    body = rest.removeprefix(OPEN) if self._inside else rest
    found = self._call(body) if self._inside or not self._tagged else None
    return (rest, []) if found is None else ("", [found])

  def _tags(self) -> tuple[str, list[ToolCall]]:
    said = ""
    calls: list[ToolCall] = []
    while True:
      if not self._inside:
        at = self._held.find(OPEN)
        if at < 0:
          said += self._take(len(self._held) - _overlap(self._held, OPEN))
          break
        # White space before a call belongs to it: templates put a line's end there.
        said += self._take(at).rstrip()
        self._inside = True
      end = self._held.find(CLOSE)
      if end < 0:
        break
      block = self._take(end + len(CLOSE))
      self._inside = False
      call = self._call(block.removeprefix(OPEN).removesuffix(CLOSE))
      if call is None:
        said += block
      else:
        calls.append(call)
    # Between calls and behind them stand line ends alone.
    if self.calls and not said.strip():
      said = ""
    return said, calls

  def _take(self, size: int) -> str:
    taken, self._held = self._held[:size], self._held[size:]
    return taken

  def _call(self, text: str) -> ToolCall | None:
    try:
      found = json.loads(text)
    except (ValueError, RecursionError):
      return None
    if not isinstance(found, Mapping) or found.get("name") not in self._names:
      return None
    arguments = next((found[name] for name in ARGUMENTS if name in found), {})
    if not isinstance(arguments, str):
      arguments = json.dumps(arguments, ensure_ascii=False)
    call = ToolCall(f"call_{secrets.token_hex(12)}", found["name"], arguments)
    self.calls.append(call)
    return call


def _overlap(text: str, tag: str) -> int:
  """Returns how many characters at the end of a text are the start of a tag."""
  return next((size for size in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:size])), 0)
