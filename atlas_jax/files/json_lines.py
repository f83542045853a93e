"""JSON lines: one value in each line, and lines end at a line feed alone.

U+0085, U+2028 and U+2029 are characters of a text like any other here, as JSON has them, though
`str.splitlines` ends lines there.
"""
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from atlas_jax.files import json_text
from atlas_jax.files.damage import Damaged

MEND = "mend or delete that line"


def read(file, *, torn: str = "refuse") -> Iterator[dict[str, Any]]:
  """Yields the objects of a file of ours; empty lines are passed over.

  Args:
    file: its path.
    torn: "drop" leaves out a last line without a line end that is no JSON, as a kill in the middle of a write
      leaves one; "refuse" refuses it.

  Raises:
    Damaged: for a line that holds no object, with file and line.
  """
  for number, line in enumerate(lines(file), start=1):
    if not line.strip():
      continue
    try:
      yield parse(file, number, line)
    except Damaged:
      # Only a line without its end: a whole line that is no JSON was not cut by a
      # kill, and is damage anywhere.
      if torn == "drop" and not line.endswith(b"\n"):
        return
      raise


def lines(file) -> Iterator[bytes]:
  """Yields the lines of a file with their ends."""
  with pathlib.Path(file).open("rb") as opened:
    yield from opened  # A file of bytes is split at line feeds alone.


def parse(file, number: int, line: bytes | str, *, nan: bool = False, remedy: str = MEND) -> dict[str, Any]:
  """Returns the object in a line.

  Args:
    file: that the line is of.
    number: of the line, from 1.
    line: its bytes, UTF-8, or its text.
    nan: whether NaN and Infinity are read.
    remedy: what to do with a damaged one.

  Raises:
    Damaged: if it holds none, with file and line.
  """
  try:
    # A mark of the order of bytes can stand before the first line alone; anywhere else it is a character.
    text = line if isinstance(line, str) else line.decode("utf-8-sig" if number == 1 else "utf-8")
    found = json_text.parse(text, nan=nan)
  except json.JSONDecodeError as error:
    raise Damaged(file, f"not JSON ({error.msg} at character {error.pos})", remedy, line=number) from error
  except UnicodeDecodeError as error:
    raise Damaged(file, f"not UTF-8 ({error})", remedy, line=number) from error
  except ValueError as error:
    raise Damaged(file, error, remedy, line=number) from error
  if not isinstance(found, dict):
    raise Damaged(file, f"is {type(found).__name__}, not an object with fields", remedy, line=number)
  return found
