"""Messages of chats: roles, contents that are texts, calls of tools, and which turns are learnt.

A message is an object with "role" and "content". Read as well are messages of ShareGPT ("from" and "value"),
contents in parts of text, calls of tools as OpenAI writes them ("tool_calls", or "function_call" in older
files), and "weight", 1 or 0: whether a turn of the assistant is learnt.
"""
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from atlas_jax.files import json_text

ROLES = ("system", "developer", "user", "assistant", "tool")
# What ShareGPT calls who speaks; a "function_call" is the assistant's and holds the call as JSON.
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
            "chatgpt": "assistant", "bot": "assistant", "model": "assistant", "system": "system",
            "tool": "tool", "observation": "tool", "function_response": "tool", "function_call": "assistant"}
WEIGHT = "weight"
# How Python, and so tables that pandas writes, shows a list of messages.
AS_PYTHON = re.compile(r"\s*\[\s*\{\s*'(role|content|from|value)'\s*:")
CALL, FUNCTION = ("id", "type", "index"), ("name", "arguments")  # The fields of a call, and of its function.


def check(where: str, messages: Any) -> list[dict]:
  """Returns messages as dicts with "role" and "content", a text; parts of text are joined by line ends.

  Args:
    where: place of the messages, for errors.
    messages: a list of messages, or such a list as JSON text.

  Raises:
    ValueError: naming the place, the message and its field.
  """
  if isinstance(messages, str):
    messages = parsed(where, "messages", messages)
  if not is_list(messages) or not len(messages):
    kind = "an empty list" if is_list(messages) else type(messages).__name__
    raise ValueError(f"{where}: messages are {kind}, not a list of at least one")
  return [_message(f"{where}: messages[{number}]", message) for number, message in enumerate(messages)]


def is_chat(value: Any) -> bool:
  """Returns whether a column holds messages: a list, or the text of a list of messages, right JSON or not."""
  if not isinstance(value, str):
    return is_list(value)
  if not value.lstrip().startswith("["):
    return False
  try:
    # The lenient parser: here a text is only to be told from a chat. `check` parses it again, and refuses it
    # there with place and column.
    found = json.loads(value)
  except (ValueError, RecursionError):
    return AS_PYTHON.match(value) is not None
  return isinstance(found, list) and bool(found) and all(
      isinstance(one, dict) and ("role" in one or "from" in one) for one in found)


def is_list(value: Any) -> bool:
  """Returns whether a value is a list of some kind, not a text."""
  return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def parsed(where: str, column: str, text: str) -> Any:
  """Returns what a column of JSON text holds; ValueError, naming the column, if it is not JSON."""
  try:
    return json_text.parse(text)
  except json.JSONDecodeError as error:
    raise ValueError(f"{where}: {column!r} is a text that is not JSON ({error}); write it with double "
                     "quotes, as json.dumps does") from error
  except ValueError as error:
    raise ValueError(f"{where}: {column!r} {error}") from error


def turns(messages: Sequence[Mapping]) -> list[int]:
  """Returns which messages are the assistant's."""
  return [number for number, message in enumerate(messages) if message["role"] == "assistant"]


def weighs(message: Mapping) -> bool:
  """Returns whether a turn of the assistant is learnt: its weight is not 0."""
  return bool(message.get(WEIGHT, 1))


def bare(messages: Sequence[Mapping]) -> list[dict]:
  """Returns messages without their weights, as a template is shown them."""
  return [{name: value for name, value in message.items() if name != WEIGHT} for message in messages]


def _message(where: str, message: Any) -> dict:
  if not isinstance(message, Mapping):
    raise ValueError(f"{where} is {type(message).__name__}, not an object with 'role' and 'content'")
  # Tables in Arrow give every message the fields of all others, null where it has none.
  kept = {name: value for name, value in message.items() if value is not None}
  if "role" not in kept and "from" in kept:
    kept = _of_sharegpt(where, kept)
  if "function_call" in kept and "tool_calls" in kept:
    raise ValueError(f"{where} has 'tool_calls' and 'function_call', its older name; keep one of them")
  # OpenAI's form before tools: one call in a message, and its answer under the role "function".
  if "function_call" in kept:
    kept["tool_calls"] = [{"type": "function", "function": kept.pop("function_call")}]
  kept["role"] = "tool" if kept.get("role") == "function" else kept.get("role")
  if kept["role"] not in ROLES:
    raise ValueError(f"{where} has role {kept['role']!r}; it must be one of {', '.join(ROLES)}")
  if "tool_calls" in kept:
    kept["tool_calls"] = _calls(where, kept["tool_calls"])
    if not kept["tool_calls"]:
      del kept["tool_calls"]
  if WEIGHT in kept:
    _check_weight(where, kept)
  return {**kept, "content": _content(where, kept)}


def _of_sharegpt(where: str, kept: Mapping[str, Any]) -> dict:
  speaker = kept["from"]
  value = kept.get("value")
  if speaker not in SPEAKERS:
    raise ValueError(f"{where} is from {speaker!r}; it must be one of {', '.join(SPEAKERS)}")
  others = {name: one for name, one in kept.items() if name not in ("from", "value")}
  if not isinstance(value, str):
    raise ValueError(f"{where} has no field 'value' that is a text")
  calls_one = speaker == "function_call"
  twin = "tool_calls" if calls_one else "content"
  if twin in others:
    raise ValueError(f"{where} has 'value' and {twin!r}, which say the same of it; keep one of them")
  if calls_one:
    calls = parsed(where, "value", value)
    return {**others, "role": "assistant", "tool_calls": calls if isinstance(calls, list) else [calls]}
  return {**others, "role": SPEAKERS[speaker], "content": value}


def _content(where: str, kept: Mapping[str, Any]) -> str:
  content = kept.get("content", "" if kept.get("tool_calls") else None)
  if is_list(content):
    # Parts other than text, such as pictures, make `known` shorter than the content, which is then refused:
    # what a model cannot read must not be left out without a word.
    known = [part["text"] for part in content
             if isinstance(part, Mapping) and isinstance(part.get("text"), str)
             and part.get("type", "text") == "text"]
    strange = [name for part in content if isinstance(part, Mapping)
               for name, value in part.items() if name not in ("type", "text") and value is not None]
    if strange and len(known) == len(content):
      raise ValueError(f"{where} has {strange[0]!r} in a part of its content; a part has 'type' and 'text' "
                       "alone: leave it out")
    content = "\n".join(known) if known and len(known) == len(content) else None
  if not isinstance(content, str):
    raise ValueError(f"{where} has no field 'content' that is a text, or parts with a 'text' each")
  return content


def _calls(where: str, calls: Any) -> list[dict]:
  """Returns calls of tools, each checked to have a name."""
  if isinstance(calls, str):
    calls = parsed(where, "tool_calls", calls)
  named = is_list(calls) and all(
      isinstance(call, Mapping) and isinstance(_function(call), Mapping)
      and isinstance(_function(call).get("name"), str) for call in calls)
  if not named:
    raise ValueError(f"{where} has 'tool_calls' that are no list of calls, each with a function's name and "
                     'arguments: {"type": "function", "function": {"name": TEXT, "arguments": OBJECT}}')
  return [_nested(where, call) for call in calls]


def _nested(where: str, call: Mapping) -> dict:
  """Returns a call in the form that templates know, its function's name and arguments under "function".

  Raises:
    ValueError: for a field that no template shows, such as arguments of another name.
  """
  # Calls come nested, as OpenAI has them, or flat with name and arguments at the top; templates know the
  # nested form. A field that is in neither form would be shown by no template.
  levels = [(call, (*CALL, "function")), (call["function"], FUNCTION)] if "function" in call else [
    (call, (*CALL, *FUNCTION))]
  strange = [name for fields, known in levels for name, value in fields.items()
             if name not in known and value is not None]
  if strange:
    raise ValueError(f"{where} has {strange[0]!r} in a call of a tool; a call has {', '.join(CALL)}, and a "
                     f"function with {' and '.join(FUNCTION)}: rename it, or leave it out")
  given = _function(call).get("arguments")
  if isinstance(given, str):
    _check_arguments(where, given)
  if "function" in call:
    return {name: value for name, value in call.items() if name not in FUNCTION}
  function = {name: value for name, value in call.items() if name in FUNCTION}
  others = {name: value for name, value in call.items() if name not in function}
  return {"type": "function", **others, "function": function}


def _check_arguments(where: str, text: str) -> None:
  """Refuses arguments of which a template would show less than there is."""
  try:
    json_text.parse(text)
  except json.JSONDecodeError:  # A text that is no JSON is shown as it is.
    pass
  except ValueError as error:
    raise ValueError(f"{where} has 'arguments' of a call that {error.args[0]}") from error


def _function(call: Mapping) -> Any:
  return call.get("function", call)


def with_arguments(message: Mapping, *, as_text: bool) -> Mapping:
  """Returns message whose calls have their arguments as JSON text, or as the objects that such texts hold."""
  if "tool_calls" not in message:
    return message
  calls = []
  for call in message["tool_calls"]:
    function = dict(call["function"])
    given = function.get("arguments")
    if as_text and given is not None and not isinstance(given, str):
      function["arguments"] = json.dumps(given, ensure_ascii=False)
    elif not as_text and isinstance(given, str):
      function["arguments"] = _object_of(given)
    calls.append({**call, "function": function})
  return {**message, "tool_calls": calls}


def _object_of(text: str) -> Any:
  """Returns the object that a JSON text holds, or the text if it holds none."""
  try:
    found = json.loads(text)
  except ValueError:
    return text
  return found if isinstance(found, dict) else text


def _check_weight(where: str, kept: Mapping[str, Any]) -> None:
  weight = kept[WEIGHT]
  # 1.0 and True pass: tables turn whole numbers into floats where some are missing.
  if isinstance(weight, str) or weight not in (0, 1):
    raise ValueError(f"{where}.weight is {weight!r}; it must be 1, the turn is learnt, or 0, it is not")
  if weight and kept["role"] != "assistant":
    raise ValueError(f"{where}.weight is {weight!r} in a message of the {kept['role']}; only the assistant's "
                     "are learnt: leave it out, or set it to 0")
