"""Replies in JSON: reading one from the text of a model, and checking it against a JSON Schema.

Of JSON Schema the keywords in `KEYWORDS` are known; a schema with another one is refused, since a check that
passes it over would be none.
"""
import json
import math
import operator
import re
from collections.abc import Mapping
from typing import Any

from atlas_jax.files import json_text
from atlas_jax.files.damage import clipped

MOST_CHARS = 1_000_000  # Of a reply that is parsed.
_TYPES: dict[str, tuple[type, ...]] = {
  "object": (dict,), "array": (list,), "string": (str,), "boolean": (bool,), "null": (type(None),),
  "number": (int, float), "integer": (int,)}
_BOUNDS = {
  "minimum": operator.ge, "maximum": operator.le,
  **{name: lambda value, bound: len(value) >= bound for name in ("minLength", "minItems")},
  **{name: lambda value, bound: len(value) <= bound for name in ("maxLength", "maxItems")}}
_BOUNDED = {"minimum": "number", "maximum": "number", "minLength": "string", "maxLength": "string",
            "minItems": "array", "maxItems": "array"}
_SAID = {"title", "description", "default", "examples", "$schema"}  # They bind nothing.
KEYWORDS = frozenset({"type", "enum", "const", "properties", "required", "additionalProperties", "items",
                      "anyOf", *_BOUNDS, *_SAID})
_FENCED = re.compile(r"\s*```[a-zA-Z]*[ \t]*\n(.*?)\n?[ \t]*```\s*", re.DOTALL)


def read(text: str, schema: Mapping[str, Any]) -> Any:
  """Returns the JSON value of a reply that fits a schema.

  Args:
    text: the whole reply; it may stand in one block of code.
    schema: that it must fit.

  Raises:
    ValueError: if it is no JSON, holds NaN or a name twice, or does not fit; it says where.
  """
  if len(text) > MOST_CHARS:
    raise ValueError(f"the reply has {len(text)} characters, more than {MOST_CHARS}")
  fenced = _FENCED.fullmatch(text)
  try:
    found = json_text.parse((fenced[1] if fenced else text).strip())
  except json.JSONDecodeError as error:
    raise ValueError(f"the reply is not JSON: {error.msg} at character {error.pos}") from error
  except ValueError as error:
    raise ValueError(f"the reply {error}") from error
  problem = mismatch(found, schema)
  if problem is not None:
    raise ValueError(f"the reply does not fit its schema: {problem}")
  return found


def check_schema(schema: Any, at: str = "schema") -> None:
  """Refuses a schema that cannot be checked here.

  Raises:
    ValueError: names the place and the keyword.
  """
  if not isinstance(schema, Mapping):
    raise ValueError(f"{at} is {type(schema).__name__}, not an object of keywords")
  for name in schema:
    if name not in KEYWORDS:
      raise ValueError(f"{at} has the keyword {name!r}, which is not checked here; known are "
                       f"{', '.join(sorted(KEYWORDS))}")
  kinds = schema.get("type", [])
  for kind in [kinds] if isinstance(kinds, str) else kinds:
    if kind not in _TYPES:
      raise ValueError(f"{at}.type={kind!r} must be one of {', '.join(_TYPES)}")
  for name, inner in schema.get("properties", {}).items():
    check_schema(inner, f"{at}.properties.{name}")
  inner = schema.get("additionalProperties", True)
  parts = [("items", schema["items"])] if "items" in schema else []
  parts += [] if isinstance(inner, bool) else [("additionalProperties", inner)]
  parts += [(f"anyOf.{number}", one) for number, one in enumerate(schema.get("anyOf", []))]
  for name, part in parts:
    check_schema(part, f"{at}.{name}")


def mismatch(value: Any, schema: Mapping[str, Any], at: str = "$") -> str | None:
  """Returns where and why a value does not fit a schema, None if it does."""
  kinds = schema.get("type")
  if kinds is not None:
    wanted = [kinds] if isinstance(kinds, str) else list(kinds)
    if not any(_is(value, kind) for kind in wanted):
      return f"{at} is {_shown(value)} and must be {' or '.join(wanted)}"
  if "enum" in schema and not any(_same(value, one) for one in schema["enum"]):
    return f"{at} is {_shown(value)} and must be one of {schema['enum']}"
  if "const" in schema and not _same(value, schema["const"]):
    return f"{at} is {_shown(value)} and must be {schema['const']!r}"
  for name, fits in _BOUNDS.items():
    if name in schema and _is(value, _BOUNDED[name]) and not fits(value, schema[name]):
      return f"{at} is {_shown(value)}, against {name} {schema[name]}"
  if "anyOf" in schema and all(mismatch(value, one, at) for one in schema["anyOf"]):
    return f"{at} is {_shown(value)} and fits none of anyOf"
  if isinstance(value, dict):
    return _object_mismatch(value, schema, at)
  if isinstance(value, list) and "items" in schema:
    found = (mismatch(one, schema["items"], f"{at}[{number}]") for number, one in enumerate(value))
    return next(filter(None, found), None)
  return None


def _object_mismatch(value: dict, schema: Mapping[str, Any], at: str) -> str | None:
  for name in schema.get("required", []):
    if name not in value:
      return f"{at} lacks {name!r}"
  known = schema.get("properties", {})
  others = schema.get("additionalProperties", True)
  for name, one in value.items():
    if name not in known and others is False:
      return f"{at} has {clipped(repr(name), 80)}, and may have only {', '.join(map(repr, known))}"
    inner = known.get(name, others)
    problem = None if isinstance(inner, bool) else mismatch(one, inner, f"{at}.{clipped(name, 80)}")
    if problem is not None:
      return problem
  return None


def _is(value: Any, kind: str) -> bool:
  if isinstance(value, bool):  # A boolean is an int in Python, and no number in JSON.
    return kind == "boolean"
  if kind == "integer":
    return isinstance(value, int) or isinstance(value, float) and math.isfinite(value) and value.is_integer()
  return isinstance(value, _TYPES[kind])


def _same(left: Any, right: Any) -> bool:
  return left == right and isinstance(left, bool) == isinstance(right, bool)


def _shown(value: Any) -> str:
  return clipped(repr(value), 80)
