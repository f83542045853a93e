"""Parses JSON text and loses nothing of it: a name that comes twice, or half of a character, is refused.

Numbers that no field of anything holds are refused: of more than INTEGER_DIGITS digits, or beyond a double.
"""
import json
import math
import re
from collections import Counter
from typing import Any

MOST_DEPTH = 100      # Brackets in brackets; tokenizers and chats with tools have below 20.
INTEGER_DIGITS = 40   # transformers writes 10**30 for "no limit".
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # One of the two escapes of a character beyond U+FFFF.
# A quick look at the text that may find too much, such as digits inside a string, and never too little. Only
# if it finds something are all values visited: a tokenizer.json has hundreds of thousands.
_MAY_BE_HUGE = re.compile(r"\d{41}|[eE]\+?\d{3}|\d{38}[\d.]*[eE]|\d{308}")


def parse(text: str, *, nan: bool = False, unchecked: bool = False) -> Any:
  """Returns what a JSON text holds.

  Args:
    text: one value.
    nan: whether NaN and Infinity, which JSON has not and Python writes, are read.
    unchecked: whether brackets in brackets, the size of numbers and halves of characters are the caller's to
      look at, who mends them.

  Raises:
    json.JSONDecodeError: if it is not JSON.
    ValueError: if it has a name twice in one object, half of a character, too many brackets in brackets, or
      a number beyond all use.
  """
  deep = ValueError(f"has more than {MOST_DEPTH} brackets in brackets; mend or delete it")
  try:
    # json.loads keeps the last of two fields of one name, without a word.
    found = json.loads(text, object_pairs_hook=_once, parse_constant=None if nan else _refuse)
  except RecursionError as error:
    raise deep from error
  except json.JSONDecodeError:
    raise
  except ValueError as error:
    # Python refuses to parse whole numbers of more than 4300 digits, by a
    # ValueError without a type of its own.
    if "integer string conversion" not in str(error):
      raise
    raise _huge("thousands of digits") from error
  if unchecked:
    return found
  huge = _MAY_BE_HUGE.search(text) is not None
  # The number of opening brackets bounds the depth, so that most texts need no walk.
  if huge or text.count("[") + text.count("{") > MOST_DEPTH:
    if depth_of(found, huge) > MOST_DEPTH:
      raise deep
  if _HALF.search(text):
    _check_halves(found)
  return found


def depth_of(value: Any, numbers: bool = False) -> int:
  """Counts the lists and objects that lie in one another; with `numbers` refuses those that are too large."""
  # Level by level, not by recursion: a text of a few kilobytes can nest deeper than Python's stack.
  level = [value]
  depth = 0
  while level:
    if numbers:
      for one in level:
        _check_number(one)
    inner = [one for one in level if isinstance(one, dict | list)]
    depth += bool(inner)
    level = [each for one in inner for each in (one.values() if isinstance(one, dict) else one)]
  return depth


def _check_number(value: Any) -> None:
  if type(value) is int and abs(value) >= 10**INTEGER_DIGITS:
    raise _huge(f"more than {INTEGER_DIGITS} digits")
  if type(value) is float and math.isinf(value):
    raise _huge("a size beyond 1.8e308")


def _huge(what: str) -> ValueError:
  return ValueError(f"has a number of {what}; mend or delete it, or write it as a text")


def _refuse(name: str) -> Any:
  raise ValueError(f"has {name}, which is no number of JSON; write null, or leave it out")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Returns the object of pairs; a name that comes twice would hide a value."""
  found = dict(pairs)
  if len(found) < len(pairs):
    twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
    raise ValueError(f"has {twice!r} twice in one object; keep one of them")
  return found


def _check_halves(found: Any) -> None:
  try:
    # The pattern also finds the two escapes of a whole pair: json.loads has joined those into
    # one character, which encodes.
    json.dumps(found, ensure_ascii=False).encode("utf-8")
  except UnicodeEncodeError as error:
    half = error.object[error.start]
    raise ValueError(f"has {half!a}, half of a character, as of an emoji that was cut in two, for which "
                     "there are no tokens; mend or delete it") from error
