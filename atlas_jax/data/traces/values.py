"""Values of a record as what they mean, None or empty where they are of another type."""
from collections.abc import Mapping
from typing import Any

from atlas_jax.files import json_text

NOTHING: Mapping[str, Any] = {}


def as_object(value: Any) -> Mapping[str, Any]:
  """Returns an object, an empty one in place of anything else."""
  return value if isinstance(value, Mapping) else NOTHING


def as_boolean(value: Any) -> bool | None:
  """Returns a boolean; None for anything else, such as the text "false", which old runtimes took for true."""
  return value if isinstance(value, bool) else None


def as_word(value: Any) -> str | None:
  """Returns a text in lower case without blanks at its ends; None for anything else and for an empty one."""
  return value.strip().lower() or None if isinstance(value, str) else None


def as_number(value: Any, default: int) -> int:
  """Returns an integer, or the default."""
  return value if isinstance(value, int) and not isinstance(value, bool) else default


def as_text(value: Any) -> str:
  """Returns a text, an empty one in place of anything else, such as of one too long to be stored."""
  return value if isinstance(value, str) else ""


def as_texts(value: Any) -> tuple[str, ...]:
  """Returns the texts of a list, or a text alone, without blank ones."""
  listed = value if isinstance(value, list) else [value]
  return tuple(one for one in listed if isinstance(one, str) and one.strip())


def decoded(value: Any) -> Mapping[str, Any]:
  """Returns an object, read from JSON text where it is one; a text that is no JSON is {"raw": text}."""
  if not isinstance(value, str):
    return as_object(value)
  try:
    return as_object(json_text.parse(value, nan=True))
  except ValueError:
    return {"raw": value}
