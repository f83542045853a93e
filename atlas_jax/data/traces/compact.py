"""The compact form of a file of traces: nothing that was written before is written again.

Traces repeat themselves: judgements stand flat and nested, events and audits in the record and in its
metadata, and the sessions of one family share prompts and plans. Here every list, object and text of at least
LEAST characters of JSON is written once within the last WINDOW such values of a file, and later named by its
number; the names of an object's fields are written once as a shape. The first line is HEADER. Every further
line is the value of one trace:

  a number, true, false, null, a text      itself
  [0, items...]                            a list
  [1, name, ..., [values...]]              an object whose shape is new; the shape takes the next number
  [n, values...], n >= 2                   an object of the shape number n - 2
  [-n], n >= 1                             the value number n - 1, counted in the order of their ends

Reading a line needs those before it. No information is lost, the order of fields included. With ".gz" behind
the name of a file, what is left is packed as usual.
"""
import collections
import gzip
import json
import pathlib
from collections.abc import Iterable
from typing import Any

from atlas_jax.data.traces import storable
from atlas_jax.files import write

HEADER = {"format": "atlas_jax.traces.compact", "version": 1}
LEAST = 16        # A reference takes up to 8 characters; shorter values are written again.
WINDOW = 2**18    # Values that can be referred to: bounds the memory of both sides.
SHAPES = 2**12    # Shapes, likewise; an object of a shape beyond them is written with its names.
MOST_CHARS = 64 * 2**20  # Of the JSON of one trace.
LIST, SHAPE = 0, 1


def is_header(line: bytes) -> bool:
  """Returns whether a line is the first of a compact file.

  Raises:
    ValueError: if it is that of a file of another version.
  """
  try:
    found = json.loads(line)
  except (RecursionError, ValueError):  # A line that nests too deep is no header; whoever reads it says why.
    return False
  if not isinstance(found, dict) or found.get("format") != HEADER["format"]:
    return False
  if found.get("version") != HEADER["version"]:
    raise ValueError(f"is a compact file of version {found.get('version')!r}, and this program reads "
                     f"{HEADER['version']}; install the atlas_jax that wrote it, or export it anew")
  return True


class CompactEncoder:
  """Writes values with references to those before them; one for each file."""

  def __init__(self) -> None:
    """Starts without any value."""
    self._numbers: collections.OrderedDict[str, int] = collections.OrderedDict()
    self._count = 0
    self._shapes: dict[tuple[str, ...], int] = {}

  def encode(self, value: Any) -> Any:
    """Returns the compact form of a value of JSON's types."""
    return self._encode(value)[0]

  def _encode(self, value: Any) -> tuple[Any, str]:
    """Returns (compact form, JSON of the value)."""
    if not isinstance(value, dict | list | str):
      return value, json.dumps(value)
    if isinstance(value, str):
      text = json.dumps(value, ensure_ascii=False)
      return (self._reference(text) or self._registered(text, value)), text
    # The JSON first: a value that is known as a whole must not register its parts again.
    text = json.dumps(value, ensure_ascii=False)
    known = self._reference(text)
    if known is not None:
      return known, text
    if isinstance(value, list):
      found = [LIST, *(self._encode(one)[0] for one in value)]
    else:
      found = self._shaped(tuple(value), value)
    return self._registered(text, found), text

  def _shaped(self, names: tuple[str, ...], value: dict) -> list:
    number = self._shapes.get(names)
    if number is None and len(self._shapes) < SHAPES:
      self._shapes[names] = len(self._shapes)
    # The shape is known before the values are written: an object in it may have the same one.
    values = [self._encode(one)[0] for one in value.values()]
    return [SHAPE, *names, values] if number is None else [number + 2, *values]

  def _reference(self, text: str) -> list[int] | None:
    number = self._numbers.get(text)
    return None if number is None else [-1 - number]

  def _registered(self, text: str, found: Any) -> Any:
    if len(text) >= LEAST:
      self._numbers[text] = self._count
      self._count += 1
      if len(self._numbers) > WINDOW:
        self._numbers.popitem(last=False)
    return found


class CompactDecoder:
  """Reads what an `CompactEncoder` wrote; one for each file, and all of its lines in order."""

  def __init__(self) -> None:
    """Starts without any value."""
    self._values: dict[int, Any] = {}
    self._count = 0
    self._shapes: list[tuple[str, ...]] = []

  def decode(self, found: Any) -> Any:
    """Returns the value of a compact form.

    Raises:
      ValueError: if it refers to what was not written.
    """
    return self._decode(found)[0]

  def _decode(self, found: Any) -> tuple[Any, str]:
    if isinstance(found, dict):
      raise ValueError("is an object, which the compact form has not")
    if isinstance(found, str):
      return self._registered(found, json.dumps(found, ensure_ascii=False))
    if not isinstance(found, list):
      return found, json.dumps(found)
    if not found or type(found[0]) is not int:
      raise ValueError("has a list of the compact form without its number")
    if found[0] < 0:
      number = -1 - found[0]
      if len(found) > 1 or number not in self._values:
        raise ValueError(f"refers to the value {number}, which is not among those before it")
      return self._values[number]
    if found[0] == LIST:
      items = [self._decode(one) for one in found[1:]]
      return self._registered([one for one, _ in items], f"[{', '.join(text for _, text in items)}]")
    return self._object(found)

  def _object(self, found: list) -> tuple[Any, str]:
    if found[0] == SHAPE:
      names, values = tuple(found[1:-1]), found[-1]
      if not isinstance(values, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("has an object of the compact form without names or values")
      if len(self._shapes) < SHAPES:
        self._shapes.append(names)
    else:
      if found[0] - 2 >= len(self._shapes):
        raise ValueError(f"has an object of the shape {found[0] - 2}, which is not among those before it")
      names, values = self._shapes[found[0] - 2], found[1:]
    if len(names) != len(values):
      raise ValueError(f"has an object of {len(names)} names with {len(values)} values")
    fields = [self._decode(one) for one in values]
    text = ", ".join(f"{json.dumps(name, ensure_ascii=False)}: {text}"
                     for name, (_, text) in zip(names, fields, strict=True))
    return self._registered(dict(zip(names, (one for one, _ in fields), strict=True)), f"{{{text}}}")

  def _registered(self, value: Any, text: str) -> tuple[Any, str]:
    # References to references double a text with every level: a line of a kilobyte could fill any memory.
    if len(text) > MOST_CHARS:
      raise ValueError(f"has a value of more than {MOST_CHARS} characters")
    # By the length of the JSON, which both sides can count.
    if len(text) >= LEAST:
      self._values[self._count] = value, text
      self._values.pop(self._count - WINDOW, None)
      self._count += 1
    return value, text


def pack(rows: Iterable[dict], file: str | pathlib.Path) -> int:
  """Writes records in the compact form; returns how many.

  Args:
    rows: records, as `Trace.to_json` returns them.
    file: to write, packed where it ends in ".gz".
  """
  encoder = CompactEncoder()
  lines = (storable.dumps(encoder.encode(row)) for row in rows)
  return _write(lines, file, first=storable.dumps(HEADER))


def unpack(rows: Iterable[dict], file: str | pathlib.Path) -> int:
  """Writes records as plain JSON lines, packed where the file ends in ".gz"; returns how many."""
  return _write((json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows), file)


def _write(lines: Iterable[str], file: str | pathlib.Path, first: str | None = None) -> int:
  count = 0
  with write.opened(file) as out:
    # Without a time and a name in its head, equal records make equal files.
    packed = gzip.GzipFile("", "wb", 6, out, 0) if str(file).endswith(".gz") else out
    if first is not None:
      packed.write(first.encode() + b"\n")
    for line in lines:
      packed.write(line.encode() + b"\n")
      count += 1
    if packed is not out:
      packed.close()
  return count
