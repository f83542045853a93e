"""Metrics to `workdir/metrics.jsonl`, the record everything else reads, and to TensorBoard beside it.

A row is one JSON object, {"step": 20, "train/loss_nats": 2.31, ...}; steps rise and none comes twice.
What is not finite is written as null, because JSON has no NaN; a reader takes null as NaN.
"""
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from atlas_jax.files import json_file, json_lines, write
from atlas_jax.workdir import EVENTS, METRICS

VERSION_NAME = "metrics_version"


class MetricsWriter:
  """Writes one row of numbers per step; only process 0 writes, the others' calls do nothing.

  Args:
    workdir: the run directory.
    tensorboard: whether event files are written to workdir/tensorboard too.
    resume_step: the step of the checkpoint a run goes on from; rows of later steps are dropped. A run
      that starts anew gives 0, so that no row of an earlier attempt is left.
    version: of the metrics' schema, which the first row names as "metrics_version", and the first one of a
      start with another version than the rows before; None: no row does.
    trackers: those with write(step, row), which must return at once, and close(); see `trackers`.
  """

  def __init__(self, workdir, tensorboard: bool = True, *, resume_step: int = 0, version: int | None = None,
               trackers: Sequence[Any] = ()):
    self._file: Any = None
    self._events: Any = None
    self._trackers = trackers
    if jax.process_index() != 0:
      return
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    # The last row, {} if there is none, and where it begins: numbers of its step may still join it.
    self._last_row, self._last_place = drop_rows_after(workdir / METRICS, resume_step)
    self._metrics = workdir / METRICS
    known = version is None or version == schema_version(self._metrics)
    self._versions = {} if known else {VERSION_NAME: version}
    self._folder = workdir / EVENTS
    # Not "a": appending ignores `seek`, and a row that others join is written over.
    self._file = self._metrics.open("r+", encoding="utf-8")
    self._file.seek(0, os.SEEK_END)
    if tensorboard:
      import tensorboardX  # Here, so that a run without it does not pay for the import.
      # The purge hides events of later steps from an earlier attempt. File names have whole seconds: the
      # suffix keeps a quick restart from writing into the file of the attempt before.
      self._events = tensorboardX.SummaryWriter(
          str(self._folder), purge_step=resume_step + 1,
          filename_suffix=f".from_{resume_step}")

  def write(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Writes a step's row, or joins numbers to the last row if it is of the same step.

    Args:
      step: not before the last one written.
      scalars: Python, NumPy or jax numbers by name.

    Raises:
      ValueError: if the step comes before the last one.
    """
    if self._file is None:
      return
    step = int(step)
    row = {name: _number(value) for name, value in scalars.items()}
    self._write_row(step, row)
    if self._events is not None:
      with write.naming(self._folder):
        for name, value in row.items():
          # TensorBoard has no null: NaN is its way to show that there was a number, and none that is finite.
          self._events.add_scalar(name, math.nan if value is None else value, step)
        self._events.flush()
    for tracker in self._trackers:
      tracker.write(step, row)

  def _write_row(self, step: int, row: dict) -> None:
    last_step = self._last_row.get("step", -1)
    if step < last_step:
      raise ValueError(f"metrics of step {step} come after those of step {last_step}; steps must rise")
    # An evaluation comes after the step it is of, and a reader wants one row per step: the last row is
    # written again.
    if step == last_step:
      row = {**self._last_row, **row}
      self._file.seek(self._last_place)
      self._file.truncate()
    else:
      row = {**self._versions, **row}
      self._versions = {}
    # All that is written is ASCII, so `tell` counts bytes as `drop_rows_after` counts characters.
    self._last_place = self._file.tell()
    self._last_row = {"step": step, **row}
    with write.naming(self._metrics):
      self._file.write(json.dumps(self._last_row, allow_nan=False) + "\n")
      # At every row: a report can follow the run, and a kill of this process loses none.
      self._file.flush()

  def write_text(self, step: int, name: str, text: str) -> None:
    """Shows a text in TensorBoard, as it is."""
    if self._events is not None:
      self._events.add_text(name, f"<pre>{text.replace('<', '&lt;')}</pre>", int(step))

  def write_image(self, step: int, name: str, image) -> None:
    """Shows an image in TensorBoard: uint8 or float in [0, 1], height x width x 3."""
    if self._events is not None:
      self._events.add_image(name, np.asarray(image), int(step), dataformats="HWC")

  def close(self) -> None:
    """Closes the files; calling it twice does nothing more."""
    if self._file is not None:
      self._file.close()
    if self._events is not None:
      self._events.close()
    for tracker in self._trackers:
      tracker.close()
    self._file = self._events = None
    self._trackers = ()

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()


def read_rows(path) -> Iterator[dict]:
  """Yields the rows of a metrics file; a last line cut off by a crash is left out.

  Raises:
    ValueError: for any other line that is no JSON object, with file and line.
  """
  yield from json_lines.read(path, torn="drop")


def schema_version(path) -> int | None:
  """Returns the version of the metrics' schema that the last rows of a file are of; None: none is named.

  A row that names a version stands for those after it, too.
  """
  found = [row[VERSION_NAME] for row in read_rows(path) if VERSION_NAME in row]
  return found[-1] if found else None


def drop_rows_after(path, step: int) -> tuple[dict, int]:
  """Rewrites a metrics file without rows of later steps, wholly or not at all; makes it if there is none.

  Returns:
    The last row left, {} if there is none, and the place in the file where it begins.
  """
  path = Path(path)
  rows = list(read_rows(path)) if path.exists() else []
  for row in rows:
    json_file.field(path, row, "step", json_file.is_int, "whole in every row", remedy=json_lines.MEND)
  # A run goes on from this step and makes the later ones again, so that their rows would come twice. The file
  # is exchanged as a whole: a kill leaves the old rows or the new ones.
  kept = [row for row in rows if row["step"] <= step]
  lines = [json.dumps(row) + "\n" for row in kept]
  write.whole(path, "".join(lines))
  return (kept[-1], sum(map(len, lines[:-1]))) if kept else ({}, 0)


def _number(value):
  if isinstance(value, bool | int):
    return int(value)
  number = np.asarray(value)
  if number.size != 1:
    raise TypeError(f"a metric is one number, this one has shape {number.shape}")
  if np.issubdtype(number.dtype, np.integer) or number.dtype == bool:
    return int(number.reshape(()))
  number = float(number.reshape(()))
  return number if math.isfinite(number) else None
