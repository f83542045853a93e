"""Run directories as pictures and the dashboard read them: their files, and how each run stands."""
import json
import math
import os
import pathlib
import re
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from atlas_jax.files import json_file
from atlas_jax.monitor import thinning
from atlas_jax.monitor.streams import Lines, Metrics
from atlas_jax.workdir import (
  ACKNOWLEDGED,
  ALERTS,
  COMPLETIONS,
  CONFIG,
  EVALS,
  METRICS,
  OWNER,
  STEPS,
  SUMMARY,
)

DEPTH = 3  # Folders below the runs folder that are looked into.
SILENT_S = 30.0  # As of `lock`: an owner without a heartbeat for so long counts as dead.
AXES = ("step", "tokens", "hours")
SEEN = re.compile(r"train/(\w+)_seen$")
TIME = re.compile(r"perf/time_(\w+)_s$")
KINDS = ("start", "compile", "input", "step", "evaluation", "checkpoint", "lost",
         "stopped")  # As of `ledger`.
HOUR_POINTS = 4_000  # Steps between which hours are interpolated.
SPEED_POINTS = 50  # Newest of them that the time left is told from.


class RunState(NamedTuple):
  """The state of a run."""

  kind: str  # "waiting", "running", "silent", "stopped" or "finished"
  words: str


def find(root) -> list[pathlib.Path]:
  """Returns the run directories in a folder, or the folder itself if it is one; sorted by path."""
  return sorted(_runs_in(pathlib.Path(root), DEPTH))


def _runs_in(folder: pathlib.Path, depth: int) -> Iterator[pathlib.Path]:
  try:
    entries = list(os.scandir(folder))
  except OSError:  # A folder that is not there yet, was just removed, or is closed to this user.
    return
  if any(entry.name in (METRICS, CONFIG) for entry in entries):
    yield folder
  elif depth:
    for entry in entries:
      if not entry.name.startswith(".") and entry.is_dir():
        yield from _runs_in(folder / entry.name, depth - 1)


class RunFolder:
  """One run directory; `look` reads what is new in it.

  Attributes:
    path: of the directory.
    name: by which it is shown.
    metrics: of metrics.jsonl.
    alerts: of alerts.jsonl.
    acknowledged: of alerts_acknowledged.jsonl.
  """

  def __init__(self, path, name: str | None = None):
    """Takes a directory in which there need not be anything yet."""
    self.path = pathlib.Path(path)
    self.name = name or self.path.name
    self.metrics = Metrics(self.path / METRICS)
    self.alerts = Lines(self.path / ALERTS)
    self.acknowledged = Lines(self.path / ACKNOWLEDGED)
    self._objects: dict[str, tuple[float, dict[str, Any]]] = {}
    self._completions: dict[str, Lines] = {}

  def look(self) -> None:
    """Reads what was written since the last look."""
    for each in (self.metrics, self.alerts, self.acknowledged):
      each.look()

  def read_all(self) -> None:
    """Reads all that is there at once, however long that takes."""
    self.metrics = Metrics(self.path / METRICS, large=sys.maxsize)
    self.metrics.look(seconds=math.inf)
    self.look()

  @property
  def config(self) -> dict[str, Any]:
    """Returns config.json, {} while there is none."""
    return self._object(CONFIG)

  @property
  def summary(self) -> dict[str, Any]:
    """Returns summary.json, {} while there is none."""
    return self._object(SUMMARY)

  def _object(self, name: str) -> dict[str, Any]:
    """Returns the object in a file, read again when it has changed; {} if there is none or it is torn."""
    file = self.path / name
    try:
      changed_s = file.stat().st_mtime
      if self._objects.get(name, (None,))[0] != changed_s:
        found = json.loads(file.read_bytes())
        self._objects[name] = changed_s, found if isinstance(found, dict) else {}
    except FileNotFoundError:
      return {}
    except ValueError:  # Of another program: ours are written whole. It is read again when it has changed.
      self._objects[name] = changed_s, {}
    return self._objects[name][1]

  def setting(self, name: str, default=None):
    """Returns a field of the run's config by dotted name; a default if the run has none."""
    found: Any = self.config
    for part in name.split("."):
      if not isinstance(found, dict) or part not in found:
        return default
      found = found[part]
    return found

  def state(self, now: float | None = None) -> RunState:
    """Tells how the run stands, at a time in seconds since 1970."""
    now = time.time() if now is None else now
    if self.summary:
      return RunState("finished", "finished")
    try:
      silent_s = now - (self.path / OWNER).stat().st_mtime
    except FileNotFoundError:
      silent_s = None
    if silent_s is not None:
      if silent_s <= SILENT_S:
        return RunState("running", "running")
      return RunState("silent", f"no sign of life for {duration(silent_s)}")
    if not self.metrics.count and not self.metrics.names:
      return RunState("waiting", "no metrics yet")
    return RunState("stopped", "stopped before its end")

  @property
  def total_steps(self) -> int | None:
    """Returns how many updates the run is to make; None if its config does not say."""
    steps = self.setting("optim.steps")
    return steps if isinstance(steps, int) and steps > 0 else None

  def x(self, step: np.ndarray, axis: str) -> np.ndarray:
    """Returns steps as places on an axis of AXES; NaN where the run did not write what it needs."""
    if axis == "step":
      return step
    at, value = self.seen() if axis == "tokens" else self.hours()
    if not len(at):
      return np.full(len(step), np.nan)
    return np.interp(step, at, value)

  def seen(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns (step, tokens seen), or what else the run counts, such as supervision steps."""
    names = [name for name in self.metrics.names if SEEN.match(name)]
    return thinning.finite(*self.metrics.series(names[0])) if names else (np.empty(0), np.empty(0))

  @property
  def unit(self) -> str:
    """Returns what the run counts, such as "tokens"."""
    names = [found[1] for name in self.metrics.names if (found := SEEN.match(name))]
    return names[0].replace("_", " ") if names else "tokens"

  def hours(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns (step, hours since the first start of the run), from the ledger of its time."""
    names = [name for name in self.metrics.names if TIME.match(name)]
    if not names:
      return np.empty(0), np.empty(0)
    step = thinning.places(self.metrics.series(names[0])[0], HOUR_POINTS)
    total = np.zeros(len(step))
    for name in names:
      at, seconds = self.metrics.series(name)
      # As long as it is, interpolating it at few places takes no time.
      if len(at):
        total += np.interp(step, at, np.nan_to_num(seconds))
    return step, total / 3_600

  def left_s(self) -> float | None:
    """Returns the seconds until the last update, at the speed of the newest rows; None if unknown."""
    step, hours = self.hours()
    if self.total_steps is None or len(step) < 2:
      return None
    first = max(0, len(step) - SPEED_POINTS)
    made, took_h = step[-1] - step[first], hours[-1] - hours[first]
    return (self.total_steps - step[-1]) * 3_600 * took_h / made if made > 0 else None

  def ledger(self) -> dict[str, float]:
    """Returns the seconds of each kind since the first start, {} if the run wrote none."""
    found = {kind: self.metrics.last(f"perf/time_{kind}_s") for kind in KINDS}
    return {kind: seconds for kind, seconds in found.items() if seconds is not None}

  def completion_files(self) -> list[pathlib.Path]:
    """Returns the files of what a policy wrote, oldest first."""
    return sorted((self.path / COMPLETIONS).glob("*.jsonl"))

  def completions(self, file: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows of one of these files so far."""
    lines = self._completions.setdefault(file.name, Lines(file))
    lines.look()
    return lines.rows

  def pictures(self) -> dict[int, list[pathlib.Path]]:
    """Returns the pictures that evaluations left, by step."""
    found: dict[int, list[pathlib.Path]] = {}
    for file in sorted((self.path / EVALS).glob("step_*/*.png")):
      number = file.parent.name.removeprefix("step_")
      if number.isdigit():
        found.setdefault(int(number), []).append(file)
    return found

  def step_answers(self, step: int) -> dict[str, Any] | None:
    """Returns the answers to puzzles that the evaluation of a step traced; None if it traced none.

    Raises:
      Damaged: if their file cannot be read.
    """
    file = self.path / EVALS / f"step_{step:08d}" / STEPS
    return json_file.read(file) if file.exists() else None


def duration(seconds: float) -> str:
  """Writes a time to two digits of its largest units, such as "2h 05m"."""
  if seconds < 60:
    return f"{seconds:.0f}s"
  minutes = int(seconds // 60)
  if minutes < 60:
    return f"{minutes}m {int(seconds % 60):02}s"
  if minutes < 24 * 60:
    return f"{minutes // 60}h {minutes % 60:02}m"
  return f"{minutes // 1_440}d {minutes // 60 % 24:02}h"
