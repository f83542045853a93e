"""Metrics as columns: one growing NumPy array per metric, filled from whole JSON lines.

A row may lack any metric. A number that was not finite is null in the file and NaN here; a metric that a row
lacks has no point at all. Lines are parsed by `pyarrow` where it is installed, about eight times as fast as
by Python; what it refuses, and all lines without it, Python parses one by one. Both give the same points.
"""
import json
import math
from typing import Any, NamedTuple

import numpy as np
from absl import logging

STEP = "step"
_LOST = -1.7976931348623157e308  # Stands for null while pyarrow parses: there a missing number is null, too.
_LOST_TEXT = str(_LOST).encode()
_NOT_FINITE = (b"null", b"NaN", b"-Infinity", b"Infinity")
_FIRST = 1_024  # Room of a new array, doubled whenever it is full.
_STRETCH = 4_096  # Values looked at together for the newest finite one.


class Points(NamedTuple):
  """One metric: where it was measured, and its values."""

  row: np.ndarray  # int64, numbers of rows, rising
  value: np.ndarray  # float64, NaN where a number was not finite


class Parsed(NamedTuple):
  """The rows of a piece of a file, in its order."""

  rows: int  # how many
  points: dict[str, Points]  # by metric, the step among them; rows from 0
  damaged: int  # lines that are no row, which are left out


class _Column:
  """One metric; while no row since the first lacks it, rows are not stored."""

  def __init__(self, first: int):
    self.first, self.size = first, 0
    self._value = np.empty(_FIRST, np.float64)
    self._row: np.ndarray | None = None  # None: first, first + 1, ...

  def add(self, row: np.ndarray, value: np.ndarray) -> None:
    new = self.size + len(value)
    dense = self._row is None and row[0] == self.first + self.size and row[-1] - row[0] == len(row) - 1
    if not dense and self._row is None:
      self._row = np.arange(self.first, self.first + len(self._value))
    self._value = _grown(self._value, new)
    self._value[self.size:new] = value
    if self._row is not None:
      self._row = _grown(self._row, len(self._value))
      self._row[self.size:new] = row
    self.size = new

  def drop(self, row: int) -> None:
    """Forgets the last point if it is of this row."""
    last = self.first + self.size - 1 if self._row is None else self._row[self.size - 1]
    if self.size and last == row:
      self.size -= 1

  @property
  def is_dense(self) -> bool:
    return self._row is None

  @property
  def values(self) -> np.ndarray:
    return self._value[:self.size]

  def place_of(self, row: int) -> int:
    """Returns which point is the first of a row or of a later one."""
    if self._row is None:
      return min(self.size, max(0, row - self.first))
    return int(np.searchsorted(self._row[:self.size], row))

  def points(self) -> Points:
    row = np.arange(self.first, self.first + self.size) if self._row is None else self._row[:self.size]
    return Points(row, self._value[:self.size])


class Columns:
  """The metrics of a run's rows so far.

  Attributes:
    count: rows.
    damaged: lines that were no row, and were left out.
  """

  def __init__(self):
    """Starts without a row."""
    self.count = 0
    self.damaged = 0
    self._columns: dict[str, _Column] = {}

  @property
  def names(self) -> tuple[str, ...]:
    """Returns the metrics that any row has, sorted, without the step."""
    return tuple(sorted(name for name, column in self._columns.items() if column.size and name != STEP))

  def add(self, data: bytes) -> int:
    """Adds whole lines; returns how many rows they held."""
    found = parse(data, self._columns)
    for name, points in found.points.items():
      if len(points.value):
        row = points.row + self.count
        self._columns.setdefault(name, _Column(int(row[0]))).add(row, points.value)
    self.count += found.rows
    self.damaged += found.damaged
    return found.rows

  def drop_last(self) -> None:
    """Forgets the last row: its writer has joined numbers to it, and it is read again."""
    if self.count:
      self.count -= 1
      for column in self._columns.values():
        column.drop(self.count)

  def points(self, name: str) -> Points:
    """Returns a metric; without points if no row has it."""
    if name not in self._columns:
      return Points(np.empty(0, np.int64), np.empty(0))
    return self._columns[name].points()

  def series(self, name: str, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns (step, value) of a metric, float64 [points] each, from a row on; views where that can be."""
    if name not in self._columns:
      return np.empty(0), np.empty(0)
    column, step = self._columns[name], self._columns[STEP].values
    begin = column.place_of(first)
    if column.is_dense:
      return step[column.first + begin:column.first + column.size], column.values[begin:]
    return step[column.points().row[begin:]], column.values[begin:]

  def newest(self, name: str) -> float | None:
    """Returns the newest finite value of a metric; None if there is none."""
    if name not in self._columns:
      return None
    values = self._columns[name].values
    # Backwards, in stretches: the newest is nearly always the last one, of up to millions.
    for end in range(len(values), 0, -_STRETCH):
      part = values[max(0, end - _STRETCH):end]
      finite = np.flatnonzero(np.isfinite(part))
      if len(finite):
        return float(part[finite[-1]])
    return None


def parse(data: bytes, known=()) -> Parsed:
  """Returns the rows of whole lines; lines that are no JSON object with a step are counted as damaged.

  Args:
    data: lines with their ends; empty ones are passed over.
    known: names of metrics whose numbers are taken for floats, which saves pyarrow from guessing.
  """
  found = _by_arrow(data, known) if len(data) > 4_096 else None
  return _by_python(data) if found is None else found


def _by_python(data: bytes) -> Parsed:
  places: dict[str, list[int]] = {}
  values: dict[str, list[float]] = {}
  count = damaged = 0
  for line in data.split(b"\n"):
    if not line.strip():
      continue
    row = _row(line)
    if row is None:
      damaged += 1
      continue
    for name, value in row.items():
      if value is None or isinstance(value, int | float):
        places.setdefault(name, []).append(count)
        values.setdefault(name, []).append(_finite(value))
    count += 1
  points = {name: Points(np.array(places[name], np.int64), np.array(values[name], np.float64))
            for name in places}
  return Parsed(count, points, damaged)


def _row(line: bytes) -> dict[str, Any] | None:
  try:
    row = json.loads(line)
  except (ValueError, RecursionError):  # Not JSON, not UTF-8, or brackets without end.
    return None
  step = row.get(STEP) if isinstance(row, dict) else None
  return row if isinstance(step, int | float) and math.isfinite(step) else None


def _finite(value: int | float | None) -> float:
  if value is None or not math.isfinite(value) or abs(value) > 1e308:
    return math.nan
  return float(value)


def _by_arrow(data: bytes, known) -> Parsed | None:
  """Parses by pyarrow; None where it is not installed or refuses a line."""
  try:
    import pyarrow
    import pyarrow.json
  except ModuleNotFoundError:
    logging.log_first_n(logging.INFO, "rows of metrics are read some ten times slower without the package "
                        "pyarrow; pip install pyarrow", 1)
    return None
  for text in _NOT_FINITE:
    if text in data:
      data = data.replace(b": " + text, b": " + _LOST_TEXT).replace(b":" + text, b":" + _LOST_TEXT)
  schema = pyarrow.schema([(name, pyarrow.float64()) for name in known])
  try:
    table = pyarrow.json.read_json(
        pyarrow.BufferReader(data), read_options=pyarrow.json.ReadOptions(block_size=2**20),
        parse_options=pyarrow.json.ParseOptions(explicit_schema=schema))
  except pyarrow.ArrowInvalid:
    return None
  points = {}
  for name in table.column_names:
    column = table.column(name)
    if (column.null_count < len(column) and
        (pyarrow.types.is_integer(column.type) or pyarrow.types.is_floating(column.type))):
      points[name] = _points_of(column)
  steps = points.get(STEP)
  # Rows without a step would shift those behind them: the slow way leaves them out one by one.
  if steps is None or len(steps.row) != table.num_rows or not np.isfinite(steps.value).all():
    return None
  return Parsed(table.num_rows, points, 0)


def _points_of(column) -> Points:
  values, rows, start = [], [], 0
  for chunk in column.chunks:
    # By its buffers: `to_numpy` imports pandas, which takes as long as reading a hundred megabytes.
    valid, numbers = chunk.buffers()
    value = np.frombuffer(numbers, chunk.type.to_pandas_dtype())[chunk.offset:chunk.offset + len(chunk)]
    row = np.arange(start, start + len(chunk))
    if chunk.null_count:
      bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")
      kept = bits[chunk.offset:chunk.offset + len(chunk)].astype(bool)
      row, value = row[kept], value[kept]
    start += len(chunk)
    rows.append(row)
    values.append(value)
  value = np.concatenate(values).astype(np.float64, copy=False)
  # Not -1.7e308: numbers that large are none of a run, and this one stands for null.
  return Points(np.concatenate(rows), np.where(np.abs(value) < 1e308, value, np.nan))


def _grown(values: np.ndarray, size: int) -> np.ndarray:
  if size <= len(values):
    return values
  larger = np.empty(max(size, 2 * len(values)), values.dtype)
  larger[:len(values)] = values
  return larger
