"""JSON text as values, of which nothing is lost: no name that hides another, no half of a character."""
import json
import re
from collections import Counter
from typing import Any

_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # Of a character that JSON writes as a pair.


def parse(text: str) -> Any:
  """Gives what a JSON text holds.

  Raises:
    json.JSONDecodeError: if it is not JSON.
    ValueError: if it has a name twice in one object, half of a character, or too many brackets in brackets.
  """
  try:
    found = json.loads(text, object_pairs_hook=_once)
  except RecursionError as error:
    raise ValueError("has too many brackets in brackets; mend or delete it") from error
  if _HALF.search(text):
    _check_halves(found)
  return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Gives the object of pairs; a name that comes twice would hide a value."""
  found = dict(pairs)
  if len(found) < len(pairs):
    twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
    raise ValueError(f"has {twice!r} twice in one object; keep one of them")
  return found


def _check_halves(found: Any) -> None:
  try:
    json.dumps(found, ensure_ascii=False).encode("utf-8")
  except UnicodeEncodeError as error:
    half = error.object[error.start]
    raise ValueError(f"has {half!a}, half of a character, as of an emoji that was cut in two, for which "
                     "there are no tokens; mend or delete it") from error
