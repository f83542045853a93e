"""Reads files of JSON lines while another process writes them: only new bytes, at each look.

The writer of a run may do anything at any time: it has half written its last line, joins numbers to the last
row (which is then another line at the same place), rewrites the file without its later rows when a run is
resumed, or has not begun. A look never fails for any of that: what is not yet a whole line waits for the next
look, and a file that was exchanged is read anew from its start.

A metrics file of some gigabytes cannot be read at once. The first look at a large one reads its newest rows,
rows spread evenly over it, and the newest rows of evaluations; later looks read on from the start, each for a
fraction of a second, and what was spread over the part that is read is forgotten.
"""
import itertools
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from atlas_jax.files import json_lines
from atlas_jax.files.damage import Damaged
from atlas_jax.monitor.columns import STEP, Columns

LOOK_S = 0.08  # Time of one look; what is left waits for the next.
PIECE_BYTES = 4 * 2**20  # Read and parsed at a time.
LARGE_BYTES = 48 * 2**20  # Of a file that is first read in samples.
SAMPLES = 192  # Places of a large file that are read at first,
SAMPLE_BYTES = 64 * 2**10  # each so long.
TAIL_BYTES = 4 * 2**20  # The newest part of a large file, read at first as a whole.
EVALUATION = b"val/"  # In the names of what evaluations measure, "val/..." and "eval/...".
EVALUATIONS = 2_000  # The newest rows of evaluations, read at first; none of a file that has more than those
SCAN_S = 0.3  # within the time that looking for them may take.


class Piece(NamedTuple):
  """Whole lines of a file that a look has found."""

  data: bytes
  start: int  # bytes before it
  anew: bool  # The file is another than at the last look: what was read of it is void.
  again: bool  # The first line stands for the last one of the look before.


class Tail:
  """A file, its identity, and how much of it was read."""

  def __init__(self, path):
    """Takes the path of a file that need not exist yet."""
    self.path = pathlib.Path(path)
    self.size = 0  # Bytes at the last look.
    self._forget()

  def _forget(self) -> None:
    self._identity: tuple[int, int] | None = None
    self._last = 0  # Where the last line read begins,
    self._line = b""  # and the line, with its end.

  @property
  def place(self) -> int:
    """Returns how many bytes were read."""
    return self._last + len(self._line)

  def look(self, most: int = PIECE_BYTES) -> Piece | None:
    """Reads lines that are new since the last look.

    Args:
      most: bytes to read at most; a line that is longer is read as a whole.

    Returns:
      At least one line, or none if there is nothing new. An empty piece with `anew` tells that the file has
      gone, or is now without a whole line.
    """
    try:
      with self.path.open("rb") as file:
        return self._read(file, most)
    except FileNotFoundError:
      was_read = self._identity is not None
      self.size = 0
      self._forget()
      return Piece(b"", 0, True, False) if was_read else None

  def _read(self, file, most: int) -> Piece | None:
    status = os.fstat(file.fileno())
    self.size = status.st_size
    anew = self._identity not in (None, (status.st_dev, status.st_ino)) or self.size < self._last
    again = False
    if not anew and self._line:
      file.seek(self._last)
      found = file.read(len(self._line))
      # A line in another state: its writer has taken it back to join numbers to it. That of another step is
      # of another file that was written over this one.
      again = found != self._line
      anew = again and found.split(b",", 1)[0] != self._line.split(b",", 1)[0]
    if anew:
      self._forget()
    self._identity = status.st_dev, status.st_ino
    start = 0 if anew else self._last if again else self.place
    data = _whole_lines(file, start, most)
    if data:
      self._line = data[data.rfind(b"\n", 0, len(data) - 1) + 1:]
      self._last = start + len(data) - len(self._line)
    elif again:  # Taken back, and not yet written again: it stays as it was until it is.
      return None
    return Piece(data, start, anew, again and not anew) if data or anew else None


def _whole_lines(file, start: int, most: int) -> bytes:
  """Returns the lines from a place on that have an end, of `most` bytes, or one longer line."""
  file.seek(start)
  data = file.read(most)
  end = data.rfind(b"\n") + 1
  while not end and len(data) >= most:
    more = file.read(most)
    if not more:
      break
    end = len(data) + more.find(b"\n") + 1 if b"\n" in more else 0
    data += more
  return data[:end]


class Lines:
  """The objects of a small file of JSON lines, such as alerts.jsonl.

  Attributes:
    rows: so far, in the file's order.
    damaged: lines that were no object, and were left out.
  """

  def __init__(self, path):
    """Takes the path of a file that need not exist yet; nothing is read before the first look."""
    self._tail = Tail(path)
    self._forget()

  def _forget(self) -> None:
    self.rows: list[dict[str, Any]] = []
    self.damaged = 0

  def look(self) -> bool:
    """Reads what is new; returns whether anything was."""
    changed = False
    while (piece := self._tail.look()) is not None:
      changed = True
      if piece.anew:
        self._forget()
      elif piece.again and self.rows:
        self.rows.pop()
      for line in filter(bytes.strip, piece.data.split(b"\n")):
        try:
          self.rows.append(json_lines.parse(self._tail.path, 0, line, nan=True))
        except Damaged:  # One line that is no object must not hide the others; the reader says how many.
          self.damaged += 1
      if not piece.data:
        break
    return changed


class Metrics:
  """The rows of metrics.jsonl, by metric; see the module for what the first looks at a large file hold."""

  def __init__(self, path, *, large: int = LARGE_BYTES):
    """Takes the path of a file that need not exist yet; one of `large` bytes is first read in samples."""
    self._tail = Tail(path)
    self._large = large
    self._rows = Columns()
    self._sample: Sample | None = None

  @property
  def count(self) -> int:
    """Returns how many rows were read, without those of a sample."""
    return self._rows.count

  @property
  def damaged(self) -> int:
    """Returns how many lines were no row, and were left out."""
    return self._rows.damaged

  @property
  def fraction(self) -> float:
    """Returns which fraction of the file was read as a whole; 1 of one that is not there."""
    return self._tail.place / self._tail.size if self._sample is not None and self._tail.size else 1.0

  @property
  def names(self) -> tuple[str, ...]:
    """Returns the metrics that any row has, sorted."""
    more = () if self._sample is None else self._sample.rows.names
    return tuple(sorted({*self._rows.names, *more}))

  def look(self, seconds: float = LOOK_S) -> bool:
    """Reads what is new, for so many seconds at most; returns whether anything was."""
    ends = time.perf_counter() + seconds
    changed = False
    while (piece := self._tail.look()) is not None:
      changed = True
      if piece.anew:
        self._rows, self._sample = Columns(), None
      elif piece.again:
        self._rows.drop_last()
      self._rows.add(piece.data)
      if piece.start == 0 and self._tail.size >= self._large:
        self._sample = read_sample(self._tail.path, self._tail.place, self._tail.size)
        return True
      if not piece.data or time.perf_counter() > ends:
        break
    if self._sample is not None:
      self._read_sample_on()
    return changed

  def _read_sample_on(self) -> None:
    assert self._sample is not None
    if self._tail.place >= self._sample.end:
      self._sample = None  # All that it stood for is read, and its newest rows.
    else:
      self._sample.look(self._tail.path)

  def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (step, value) of a metric, float64 [points] each; NaN where it was not finite."""
    step, value = self._rows.series(name)
    if self._sample is None:
      return step, value
    more_step, more = self._sample.after(self._tail.place, name)
    return np.concatenate([step, more_step]), np.concatenate([value, more])

  def last(self, name: str) -> float | None:
    """Returns the newest finite value; None if there is none."""
    sampled = None if self._sample is None else self._sample.rows.newest(name)
    return self._rows.newest(name) if sampled is None else sampled

  def row(self, number: int = -1) -> dict[str, float]:
    """Returns one of the rows read as a whole, the last by default; {} if there is none."""
    if not self._rows.count:
      return {}
    number %= self._rows.count
    found = {}
    for name in (STEP, *self._rows.names):
      points = self._rows.points(name)
      at = int(np.searchsorted(points.row, number))
      if at < len(points.row) and points.row[at] == number:
        found[name] = float(points.value[at])
    return found


class Sample:
  """Rows of a large file before all of it is read, and its newest rows as they come.

  Attributes:
    rows: in the order of the file.
    end: bytes of the file up to which its newest rows are among them.
  """

  def __init__(self, end: int):
    """Starts without a row, of a file of so many bytes."""
    self.rows = Columns()
    self.end = end
    self._places: list[int] = []  # Where in the file each row lies, about.

  def add(self, lines: Mapping[int, bytes]) -> None:
    """Adds whole lines by their places in the file, which must rise."""
    if self.rows.add(b"".join(lines.values())) == len(lines):
      self._places += lines
    else:  # Which of them are no rows is known to nobody: the sample does without.
      self.rows, self._places = Columns(), []

  def look(self, path: pathlib.Path) -> None:
    """Reads rows that were written behind the sample."""
    with path.open("rb") as file:
      data = _whole_lines(file, self.end, PIECE_BYTES)
    # The last line may still change: it is read when the next one is there.
    data = data[:data.rfind(b"\n", 0, len(data) - 1) + 1]
    self.add(_by_place(data, self.end))
    self.end += len(data)

  def after(self, place: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (step, value) of a metric in the rows that lie at a place or behind it."""
    first = int(np.searchsorted(self._places, place))
    return self.rows.series(name, first)


def read_sample(path: pathlib.Path, start: int, end: int) -> Sample:
  """Reads rows spread over a part of a file, the newest ones, and the newest of evaluations.

  Args:
    path: of the file.
    start: bytes that are read already.
    end: bytes of the file.
  """
  newest = max(start, end - TAIL_BYTES)
  stride = max(SAMPLE_BYTES, (newest - start) // SAMPLES)
  found: dict[int, bytes] = {}  # Lines by place; a line that is found twice is there once.
  with path.open("rb") as file:
    for place in range(start, newest, stride):
      found |= _lines_at(file, place, min(SAMPLE_BYTES, newest - place))
    found |= _evaluations(file, start, newest)
    found |= _lines_at(file, newest, end - newest)
  sample = Sample(end)
  sample.add({place: found[place] for place in sorted(found)})
  return sample


def _lines_at(file, place: int, size: int) -> dict[int, bytes]:
  """Returns the whole lines within a stretch of a file, by place; the one it begins in is left out."""
  file.seek(max(0, place - 1))
  data = file.read(size + (place > 0))
  begin = data.find(b"\n") + 1 if place else 0
  end = data.rfind(b"\n") + 1
  whole = data[begin:end] if begin < end and (begin or not place) else b""
  return _by_place(whole, max(0, place - 1) + begin)


def _by_place(data: bytes, place: int) -> dict[int, bytes]:
  """Returns whole lines by their places, of which the first is given."""
  lines = [line + b"\n" for line in data.split(b"\n")[:-1]]
  return {at: line for at, line in zip(itertools.accumulate(map(len, lines), initial=place), lines)
          if line.strip()}


def _evaluations(file, start: int, end: int) -> dict[int, bytes]:
  """Returns the newest lines with evaluations, by place; none where they are no exception."""
  ends = time.perf_counter() + SCAN_S
  found: dict[int, bytes] = {}
  while end > start and len(found) < EVALUATIONS and time.perf_counter() < ends:
    begin = max(start, end - PIECE_BYTES)
    file.seek(begin)
    data = file.read(end - begin)
    first = data.find(b"\n") + 1 if begin > start else 0
    place = first
    while (at := data.find(EVALUATION, place)) >= 0 and len(found) < EVALUATIONS:
      line, place = data.rfind(b"\n", 0, at) + 1, data.find(b"\n", at) + 1
      if not place:
        break
      found[begin + line] = data[line:place]
    end = begin + first if first else begin
  return found if len(found) < EVALUATIONS else {}


def state_of(path) -> Mapping[str, float] | None:
  """Returns {"size", "changed_s"} of a file; None if there is none."""
  try:
    status = os.stat(path)
  except FileNotFoundError:
    return None
  return {"size": float(status.st_size), "changed_s": status.st_mtime}
