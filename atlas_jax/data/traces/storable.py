"""JSON values that every store takes and gives back alike: JSON lines, SQLite and PostgreSQL.

PostgreSQL refuses NUL and halves of characters in texts, and no JSON has NaN. What cannot be stored is
replaced before any store sees it, so that a trace read from a file equals the one read from a database.
Replacing twice changes nothing more.

Source: the limits are those of the runtime's record format (depth 12, 256 kB a text).
"""
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from atlas_jax.files import json_text

REPLACEMENT = "\ufffd"
MOST_DEPTH = 12            # Lists and objects in one another, counted from the value of a field.
MOST_TEXT_BYTES = 256_000  # Of one text, in UTF-8.
TRUNCATED = "truncated"    # Its key in what stands for a value that was too long or too deep.
SHA256 = "sha256"
# U+0000 and all surrogates: Python's strings hold a surrogate only where its other half is missing.
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
EXPONENT = 1e16  # From here on Python writes floats with an exponent.
HUGE = 10**json_text.INTEGER_DIGITS  # Numbers from here on are refused by the reader of JSON.


class Storable(NamedTuple):
  """A value that can be stored."""

  value: Any
  sanitized: int  # how many characters, numbers, texts and branches were replaced


def storable(value: Any) -> Storable:
  """Returns a JSON value with whatever cannot be stored replaced, and how much that was.

  NUL and halves of characters become U+FFFD, NaN, infinities and numbers of more than 40 digits null, texts
  of more than 256 kB and what lies deeper than 12 levels {"truncated": its bytes, "sha256": of it}. A value
  without any of that is returned itself, not a copy.

  Args:
    value: of JSON's types: dict with texts as keys, list, str, int, float, bool, None.

  Raises:
    ValueError: for another type, and where two names of an object become the same.
  """
  if is_storable(value):
    return Storable(value, 0)
  count = [0]
  changed = _walk(value, 1, count)
  return Storable(changed, count[0])


def record(value: Mapping[str, Any]) -> Storable:
  """Returns a trace's object made storable: `storable` of each field, and of each field of its steps.

  A field is what depth is counted from, so that it does not matter whether a store keeps a step in a row of
  its own.
  """
  # Most records need nothing. Where the whole is not too deep, none of its fields is.
  if is_storable(value, MOST_DEPTH + 1):
    return Storable(value, 0)
  found: dict[str, Any] = {}
  count = 0
  for name, one in value.items():
    if name == "steps" and isinstance(one, list):
      steps = [record(step) for step in one]
      field = Storable([step.value for step in steps], sum(step.sanitized for step in steps))
    else:
      field = storable(one)
    key = [0]
    found[_name(name, found, key)] = field.value
    count += key[0] + field.sanitized
  return Storable(found, count)


def is_storable(value: Any, most_depth: int = MOST_DEPTH) -> bool:
  """Returns whether a value of JSON's types can be stored as it is.

  Args:
    value: any.
    most_depth: lists and objects that may lie in one another.

  Raises:
    ValueError: for another type.
  """
  # Level by level, the texts of a level at once: nearly all records need nothing, and a
  # million of small questions is what reading would take its time for.
  level = [value]
  for depth in range(most_depth + 1):
    texts = [one for one in level if type(one) is str]
    if texts and not _are_plain(texts):
      return False
    inner: list[Any] = []
    for one in level:
      kind = type(one)
      if depth == most_depth and (kind is dict or kind is list):
        return False
      if kind is dict:
        if one and not _are_plain(one):
          return False
        inner += one.values()
      elif kind is list:
        inner += one
      elif kind is float or kind is int:
        if not -HUGE < one < HUGE:  # Also NaN.
          return False
      elif not (kind is str or kind is bool or one is None):
        raise ValueError(f"holds {kind.__name__}, which is none of JSON's types")
    if not inner:
      break
    level = inner
  return True


def _are_plain(texts: Iterable[str]) -> bool:
  """Returns whether no text of some is too long or has a character that cannot be stored."""
  try:
    joined = "".join(texts)
  except TypeError as error:
    raise ValueError("has a name that is no text") from error
  if len(joined) * 4 > MOST_TEXT_BYTES:
    return all(_text(one, [0]) is one for one in texts)
  return "\x00" not in joined and (joined.isascii() or not _UNSTORABLE.search(joined))


def truncated(value: Any) -> dict[str, Any]:
  """Returns what stands for a value that is not kept: its size in bytes, as UTF-8 or JSON, and its hash."""
  encoded = (value if isinstance(value, str) else dumps(value)).encode("utf-8", "replace")
  return {TRUNCATED: len(encoded), SHA256: hashlib.sha256(encoded).hexdigest()}


def is_truncated(value: Any) -> bool:
  """Returns whether a value stands for one that was not kept."""
  return (isinstance(value, dict) and value.keys() == {TRUNCATED, SHA256}
          and isinstance(value[TRUNCATED], int) and isinstance(value[SHA256], str))


def canonical(value: Any) -> str:
  """Returns the JSON of a value that is the same for equal values: names sorted, whole numbers as integers.

  PostgreSQL gives numbers back without an exponent, so that 1e22 comes back as an integer, and no negative
  zero.
  """
  found = dumps(value, sort_keys=True)
  return dumps(_whole_numbers(value), sort_keys=True) if "e+" in found or "-0.0" in found else found


def _whole_numbers(value: Any) -> Any:
  if isinstance(value, dict):
    return {name: _whole_numbers(one) for name, one in value.items()}
  if isinstance(value, list):
    return [_whole_numbers(one) for one in value]
  if not isinstance(value, float):
    return value
  return int(value) if abs(value) >= EXPONENT else value or 0.0  # Also of -0.0.


def dumps(value: Any, *, sort_keys: bool = False) -> str:
  """Returns strict JSON in one line, characters as they are.

  Raises:
    ValueError: for NaN and infinities.
  """
  return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=sort_keys, separators=(",", ":"))


def text(value: str) -> Storable:
  """Returns a text without characters that cannot be stored."""
  count = [0]
  return Storable(_text(value, count), count[0])


def _walk(value: Any, level: int, count: list[int]) -> Any:
  """Returns a value made storable; `level` is that of a container here, and replacements are counted."""
  # By exact type first: most values are texts, and isinstance is the slower question.
  kind = type(value)
  if kind is str:
    return _text(value, count)
  if kind is float:
    return _number(value, count)
  if value is None or kind is bool:
    return value
  if kind is int:
    return _whole(value, count)
  if kind is dict:
    return _object(value, level, count)
  if kind is list:
    if level > MOST_DEPTH:
      return _cut(value, count)
    for number, one in enumerate(value):
      changed = _walk(one, level + 1, count)
      if changed is not one:
        return [*value[:number], changed, *(_walk(each, level + 1, count) for each in value[number + 1:])]
    return value
  raise ValueError(f"holds {kind.__name__}, which is none of JSON's types")


def _object(value: dict, level: int, count: list[int]) -> dict:
  if level > MOST_DEPTH:
    # What was cut before stays as it is, or a second writing would hash the hash.
    return value if is_truncated(value) else _cut(value, count)
  found = {}
  same = True
  for name, one in value.items():
    key = _name(name, found, count)
    found[key] = _walk(one, level + 1, count)
    same = same and key is name and found[key] is one
  return value if same else found


def _name(name: Any, others: Mapping[str, Any], count: list[int]) -> str:
  """Returns the name of a field; ValueError if it is too long or one of the others."""
  if type(name) is not str:
    raise ValueError(f"has the name {name!r}, which is no text")
  key = _text(name, count)
  if not isinstance(key, str):
    raise ValueError(f"has a name of {len(name)} characters")
  if key in others:
    raise ValueError(f"has two names that differ only in characters that cannot be stored: {key!a}")
  return key


def _cut(value: Any, count: list[int]) -> dict:
  count[0] += 1
  # Cleaned first, level by level from 1, so that the hash is of something that has JSON.
  return truncated(_plain(value))


def _plain(value: Any) -> Any:
  """Returns a value with characters and numbers replaced, however deep."""
  if isinstance(value, dict):
    return {_text(str(name), [0]): _plain(one) for name, one in value.items()}
  if isinstance(value, list):
    return [_plain(one) for one in value]
  return _walk(value, 1, [0])


def _text(value: str, count: list[int]) -> str | dict:
  if _UNSTORABLE.search(value):
    value, found = _UNSTORABLE.subn(REPLACEMENT, value)
    count[0] += found
  # At most 4 bytes a character: most texts need no encoding to be known as short.
  if len(value) * 4 > MOST_TEXT_BYTES and len(value.encode()) > MOST_TEXT_BYTES:
    count[0] += 1
    return truncated(value)
  return value


def _number(value: float, count: list[int]) -> float | int | None:
  if not abs(value) < HUGE:  # Also of NaN.
    count[0] += 1
    return None
  return value


def _whole(value: int, count: list[int]) -> int | None:
  if -HUGE < value < HUGE:
    return value
  count[0] += 1
  return None
