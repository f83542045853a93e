"""Replies of agents made of whatever their code returns, and messages made a text for those that take one."""
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from atlas_jax.data.traces import storable
from atlas_jax.files import json_text
from atlas_jax.files.damage import clipped, one_line
from atlas_jax.runtime.agents.agent import AgentError, AgentReply, CallTokens, ToolRequest

MOST_CHARS = 1_000_000  # Of a reply.


def reply_of(value: Any, *, tools_offered: bool = False) -> AgentReply:
  """Returns the reply that a value stands for.

  A text is the answer. An object, list, number or boolean is written as JSON, with null for NaN inside of it.
  Where tools were offered, an object with "tool_calls" asks for them, as a message of a chat does.

  Args:
    value: that an agent returned.
    tools_offered: whether the agent was given tools.

  Raises:
    AgentError: for a value that is no answer: None, NaN, bytes, an object that JSON has not.
  """
  if isinstance(value, AgentReply):
    return value._replace(text=clean_text(value.text), tool_calls=tuple(value.tool_calls))
  if isinstance(value, str):
    return AgentReply(clean_text(value), raw=value)
  if tools_offered and isinstance(value, Mapping) and value.get("tool_calls"):
    return _message(value)
  return AgentReply(_json_answer(value), raw=value)


def clean_text(text: Any) -> str:
  """Returns a text that every store takes: halves of characters and NUL become U+FFFD.

  Raises:
    AgentError: for what is no text, and for one of more than a million characters.
  """
  if not isinstance(text, str):
    raise AgentError("reply", f"the reply's text is {type(text).__name__}, not a text")
  if len(text) > MOST_CHARS:
    raise AgentError("reply", f"the reply has {len(text)} characters, more than {MOST_CHARS}")
  # Short of the limit of one stored text, which stands for longer ones by their hash.
  step = storable.MOST_TEXT_BYTES // 4
  return "".join(storable.text(text[at:at + step]).value for at in range(0, len(text), step))


def json_value(value: Any) -> Any:
  """Returns a value of JSON's types that can be stored: tuples as lists, NaN as null.

  Raises:
    ValueError: for another type.
  """
  return storable.storable(_plain(value)).value


def _plain(value: Any, depth: int = 0) -> Any:
  if depth > json_text.MOST_DEPTH:
    raise ValueError(f"has more than {json_text.MOST_DEPTH} lists and objects in one another")
  if isinstance(value, Mapping):
    return {name: _plain(one, depth + 1) for name, one in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(one, depth + 1) for one in value]
  if isinstance(value, str):
    return str(value)
  return value


def _json_answer(value: Any) -> str:
  if value is None:
    raise AgentError("reply", "the agent returned None; return its answer, as a text or a JSON value")
  try:
    found = json_value(value)
  except ValueError as error:
    raise AgentError("reply", f"the agent returned {type(value).__name__}: it {one_line(error)}; return a "
                     "text or a JSON value") from error
  if found is None:
    raise AgentError("reply", f"the agent returned {clipped(repr(value), 40)}, which is no answer; return a "
                     "text or a JSON value")
  return clean_text(storable.dumps(found))


def _message(value: Mapping[str, Any]) -> AgentReply:
  unknown = sorted(set(value) - {"role", "content", "tool_calls", "usage"})
  if unknown:
    raise AgentError("reply", f"the agent's message has {', '.join(unknown)}; beside tool_calls it may have "
                     "role, content and usage")
  text = value.get("content")
  return AgentReply("" if text is None else clean_text(text), read_calls(value["tool_calls"]),
                    read_tokens(value.get("usage")), value)


def read_calls(given: Any) -> tuple[ToolRequest, ...]:
  """Returns the calls of a message: in OpenAI's form, or {"id", "name", "arguments" or "args"} each.

  Arguments that cannot be read are the call's `problem`, which its caller is told of.

  Raises:
    AgentError: if it is no list of calls with a name.
  """
  if not isinstance(given, Sequence) or isinstance(given, str):
    raise AgentError("reply", f"tool_calls is {type(given).__name__}, not a list")
  return tuple(_call(number, one) for number, one in enumerate(given))


def _call(number: int, given: Any) -> ToolRequest:
  if isinstance(given, ToolRequest):
    return given
  outer = given if isinstance(given, Mapping) else {}
  inner = outer.get("function", outer)
  name = inner.get("name") if isinstance(inner, Mapping) else None
  if not isinstance(name, str) or not name:
    raise AgentError("reply", f"tool_calls[{number}] has no name")
  key = outer.get("id")
  key = clean_text(key) if isinstance(key, str) and key else f"call_{number}"
  arguments = inner.get("arguments", inner.get("args"))
  try:
    if isinstance(arguments, str):  # Models that call without arguments send "" as well as "{}".
      arguments = json_text.parse(arguments) if arguments.strip() else {}
    found = json_value({} if arguments is None else arguments)
    if not isinstance(found, dict):
      raise ValueError(f"is {type(found).__name__}, not an object")
  except (ValueError, json.JSONDecodeError) as error:
    return ToolRequest(key, clean_text(name), {}, f"the arguments cannot be read: {one_line(error)}")
  return ToolRequest(key, clean_text(name), found)


def read_tokens(usage: Any) -> CallTokens | None:
  """Returns the tokens that a usage object of OpenAI's form or of LangChain's names, None without one."""
  if isinstance(usage, CallTokens):
    return usage
  if not isinstance(usage, Mapping):
    return None
  prompt = _count(usage, "prompt_tokens", "input_tokens")
  completion = _count(usage, "completion_tokens", "output_tokens")
  return CallTokens(prompt, completion)


def _count(usage: Mapping[str, Any], *names: str) -> int | None:
  found = (usage.get(name) for name in names)
  return next((one for one in found if type(one) is int and one >= 0), None)


def added(tokens: Iterable[CallTokens | None]) -> CallTokens | None:
  """Returns the tokens of calls together: None without any; a count is None where one of them is."""
  given = [one for one in tokens if one is not None]
  if not given:
    return None
  prompts = [one.prompt for one in given]
  completions = [one.completion for one in given]
  return CallTokens(None if None in prompts else sum(one or 0 for one in prompts),
                    None if None in completions else sum(one or 0 for one in completions),
                    sum(one.calls for one in given))


def prompt_text(messages: Sequence[Mapping[str, Any]]) -> str:
  """Returns messages as one text for an agent that takes no messages.

  The contents of system and user stand as they are, with a blank line between them; turns of the agent and
  results of tools are headed by who said them. One user message is its content alone.
  """
  return "\n\n".join(filter(None, map(_paragraph, messages)))


def _paragraph(message: Mapping[str, Any]) -> str:
  text = content_text(message.get("content"))
  role = message.get("role")
  if role in ("user", "system", "developer"):
    return text
  if role == "tool":
    return f"[result of {message.get('name') or message.get('tool_call_id') or 'a tool'}]\n{text}"
  calls = [call["function"]["name"] for call in message.get("tool_calls") or []]
  return "\n".join(filter(None, [f"[{role}]", text, *(f"(calls {name})" for name in calls)]))


def content_text(content: Any) -> str:
  """Returns the text of a message's content: a text, or a list of texts and {"type": "text", "text"}."""
  if content is None:
    return ""
  if isinstance(content, str):
    return content
  if isinstance(content, Sequence):
    return "".join(map(_part_text, content))
  raise AgentError("reply", f"the content of a message is {type(content).__name__}, not a text or a list")


def _part_text(part: Any) -> str:
  if isinstance(part, str):
    return part
  text = part.get("text") if isinstance(part, Mapping) else None
  return text if isinstance(text, str) else ""  # Pictures and a model's thoughts have no text to answer with.


def call_message(reply: AgentReply) -> dict[str, Any]:
  """Returns an agent's reply that asks for tools as a message, in OpenAI's form."""
  calls = [{"id": call.id, "type": "function", "function": {
    "name": call.name, "arguments": storable.dumps(dict(call.arguments))}} for call in reply.tool_calls]
  return {"role": "assistant", "content": reply.text or None, "tool_calls": calls}
