"""Files of one JSON value; ours may be sealed with a checksum of what they hold.

A sealed file is an object with the field SEAL, a SHA-256 of all other fields, so that a flipped bit is seen.
One that was changed by hand is refused until the field is deleted: then it is taken as it is.
"""
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from atlas_jax.files import json_text
from atlas_jax.files.damage import AGAIN, Damaged, clipped

SEAL = "checksum"
MOST_BYTES = 2**31  # Of a file; tokenizers have tens of megabytes.
Value = TypeVar("Value")


def read(file, kind: type[Value] = dict, *, remedy: str = AGAIN, nan: bool = False) -> Value:  # type: ignore
  """Reads a JSON file.

  Args:
    file: its path; UTF-8, with or without a mark of the order of bytes.
    kind: what it must hold, such as dict; `object` takes all.
    remedy: what to do with a damaged one.
    nan: whether NaN and Infinity are read.

  Raises:
    Damaged: naming the file, the line where it breaks, and the remedy.
    OSError: if there is no such file, or it may not be read.
  """
  path = pathlib.Path(file)
  if path.stat().st_size > MOST_BYTES:
    raise Damaged(file, f"has {path.stat().st_size} bytes, far more than such a file needs", remedy)
  return parse(file, path.read_bytes(), kind, remedy=remedy, nan=nan)


def parse(file, data: bytes, kind: type[Value] = dict, *, remedy: str = AGAIN,  # type: ignore
          nan: bool = False) -> Value:
  """Returns the value that bytes of a file hold; arguments and errors as of `read`."""
  if not data.strip():
    raise Damaged(file, f"is empty ({len(data)} bytes), and should hold JSON", remedy)
  try:
    found = json_text.parse(data.decode("utf-8-sig"), nan=nan)
  except json.JSONDecodeError as error:
    why = f"not JSON ({error.msg}: line {error.lineno} column {error.colno})"
    raise Damaged(file, why, remedy, line=error.lineno) from error
  except UnicodeDecodeError as error:
    raise Damaged(file, f"not UTF-8 ({error.reason} at byte {error.start})", remedy) from error
  except ValueError as error:
    raise Damaged(file, error, remedy) from error
  # The very type: a bool is an int to isinstance.
  if kind is not object and type(found) is not kind:
    needs = "an object" if kind is dict else f"a {kind.__name__}"
    raise Damaged(file, f"holds a {type(found).__name__}, and must hold {needs}", remedy)
  return found


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
  """Returns an object with its checksum."""
  return {**content, SEAL: _sum(content)}


def read_sealed(file, *, remedy: str = AGAIN, needed: bool = False, nan: bool = False) -> dict[str, Any]:
  """Reads an object and checks its seal; gives it without.

  Args:
    file: its path.
    remedy: what to do with a damaged one.
    needed: whether a file without a seal, such as one of an older version, is refused.
    nan: whether NaN and Infinity are read.

  Raises:
    Damaged: also if the file holds something else than was sealed.
  """
  found = read(file, remedy=remedy, nan=nan)
  if SEAL not in found:
    # A flipped bit in the name of SEAL itself would make a sealed file look like an unsealed one: so a field
    # that holds the checksum of all others counts as a damaged seal.
    if needed or any(_is_seal(found, name) for name in found):
      raise Damaged(file, f"has no {SEAL!r}", remedy)
    return found
  recorded = found.pop(SEAL)
  if recorded != _sum(found):
    raise Damaged(file, f"was changed since it was written, its {SEAL!r} is of other contents", remedy)
  return found


def _is_seal(content: Mapping[str, Any], name: str) -> bool:
  """Returns whether a field is the seal of all others, its own name damaged."""
  value = content[name]
  return isinstance(value, str) and len(value) == 64 and value == _sum(
      {other: content[other] for other in content if other != name})


def _sum(content: Mapping[str, Any]) -> str:
  # Of the values, not of the bytes: indentation and the order of fields may
  # change, what the file says may not.
  text = json.dumps(content, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()


def field(file, content: Mapping[str, Any], name: str, fits: Callable[[Any], bool], needs: str, *,
          remedy: str = AGAIN) -> Any:
  """Returns a field of an object, checked.

  Args:
    file: that the object is of, for the message.
    content: the object.
    name: of the field.
    fits: says whether its value will do; a field that is missing is None.
    needs: what it must be, for the message.
    remedy: what to do.

  Raises:
    Damaged: naming the file, the field, its value, and what it must be.
  """
  value = content.get(name)
  if not fits(value):
    raise Damaged(file, f"{name}={clipped(repr(value), 60)} must be {needs}", remedy)
  return value


def is_int(value: Any, low: int = 0, high: int = 2**31 - 1) -> bool:
  """Returns whether a value is a whole number, no truth value, between two bounds."""
  # No isinstance: True would pass for 1.
  return type(value) is int and low <= value <= high


def is_real(value: Any, low: float, high: float) -> bool:
  """Returns whether a value is a number, no truth value and no NaN, between two bounds."""
  return type(value) in (int, float) and low <= value <= high
