"""Trackers beside TensorBoard: Weights & Biases and trackio, behind `writer.MetricsWriter`.

Each has a thread of its own, which opens it and hands it one row after another. A tracker that fails is
reported once and then left out; a dead network neither slows nor stops a run. workdir/trackers.json keeps the
name of the run, so that a run that goes on is the same one there; rows of steps that are made again then come
twice. What the packages read from the environment holds here: WANDB_MODE=offline, WANDB_PROJECT, TRACKIO_DIR,
TRACKIO_SPACE_ID and so on. Without TRACKIO_SPACE_ID or TRACKIO_SERVER_URL trackio writes to a local database.
"""
import functools
import importlib.util
import math
import os
import queue
import secrets
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from atlas_jax.defaults.bounds import names_of
from atlas_jax.files import json_file, write
from atlas_jax.workdir import TRACKERS

PROJECT = "atlas_jax"  # Where the environment names none.
QUEUED = 10_000  # Rows that wait for a slow tracker; later ones are left out.
CLOSE_S = 60.0  # Seconds that the end of a run waits for what is not sent yet.


def check(settings) -> None:
  """Refuses trackers whose package is missing; `settings` is config.monitor.

  Raises:
    ModuleNotFoundError: names it and the extra.
  """
  for name in names_of(settings.trackers or ""):
    if importlib.util.find_spec(name) is None:
      raise ModuleNotFoundError(f"config.monitor.trackers names {name!r}, whose package is missing: pip "
                                "install 'atlas_jax[trackers]', or leave it out")


def opened(config, workdir) -> list["Tracker"]:
  """Returns the trackers of a config, which open in threads of their own; `workdir` names the run."""
  names = names_of(config.monitor.trackers or "")
  if not names:
    return []
  workdir = Path(workdir)
  run = run_name(workdir)
  makers: dict[str, Callable] = {"wandb": open_wandb, "trackio": open_trackio}
  shown = config.to_dict()
  return [Tracker(name, functools.partial(makers[name], workdir, run, shown)) for name in names]


def run_name(workdir: Path) -> str:
  """Returns the name that trackers know a run by: drawn at its first start, and kept in workdir."""
  file = workdir / TRACKERS
  if file.exists():
    return str(json_file.read(file, remedy="delete it: trackers then show another run")["run"])
  workdir.mkdir(parents=True, exist_ok=True)
  name = f"{workdir.resolve().name}-{secrets.token_hex(4)}"
  write.json(file, {"run": name})
  return name


class Tracker:
  """Hands rows to a tracker in a thread.

  Args:
    name: for messages.
    make: () -> (log, finish), called in the thread; log(step, row) and finish() are the tracker's.
  """

  def __init__(self, name: str, make: Callable):
    self._name = name
    self._make = make
    self._rows: queue.Queue = queue.Queue(QUEUED)
    self._failed = False
    self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
    self._thread.start()

  def write(self, step: int, row: Mapping[str, float | int | None]) -> None:
    """Hands on a row, and returns at once."""
    if self._failed:
      return
    try:
      self._rows.put_nowait((step, dict(row)))
    except queue.Full:
      self._fail(f"{QUEUED} rows wait for it")

  def close(self) -> None:
    """Waits until all rows are handed on, but no longer than `CLOSE_S`."""
    if self._failed:
      return
    try:
      self._rows.put_nowait(None)
    except queue.Full:
      self._fail(f"{QUEUED} rows wait for it")
      return
    self._thread.join(CLOSE_S)
    if self._thread.is_alive():
      self._fail(f"it has not taken all rows {CLOSE_S:.0f} s after the end")

  def _run(self) -> None:
    try:
      log, finish = self._make()
      while (found := self._rows.get()) is not None and not self._failed:
        step, row = found
        # NaN says that there was a number, and none that is finite, as in TensorBoard.
        log(step, {name: math.nan if value is None else value for name, value in row.items()})
      finish()
    except Exception as error:  # Whatever a library or a network comes up with: the run does not need it.
      self._fail(f"{type(error).__name__}: {error}")

  def _fail(self, why: str) -> None:
    if not self._failed:
      self._failed = True
      logging.warning("the tracker %s takes no more metrics of this run: %s; metrics.jsonl has them all",
                      self._name, why)


def open_wandb(workdir: Path, run: str, config: Mapping[str, Any]):
  """Opens a run at Weights & Biases, or below workdir with WANDB_MODE=offline; returns (log, finish)."""
  import wandb

  # What it measures of the machine is among the metrics already, and the terminal is the program's own.
  settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
  opened_run = wandb.init(project=os.environ.get("WANDB_PROJECT", PROJECT), id=run, name=run, resume="allow",
                          dir=str(workdir), config=dict(config), settings=settings)
  # By a metric of ours: the step of W&B never goes back, as a run does that goes on from its checkpoint.
  opened_run.define_metric("*", step_metric="step")

  def log(step, row):
    opened_run.log({"step": step, **row})

  return log, opened_run.finish


def open_trackio(workdir: Path, run: str, config: Mapping[str, Any]):
  """Opens a run in trackio; returns (log, finish)."""
  del workdir
  import trackio

  # What it measures of the machine is among the metrics already.
  opened_run = trackio.init(project=os.environ.get("TRACKIO_PROJECT", PROJECT), name=run, resume="allow",
                            config=dict(config), embed=False, auto_log_gpu=False, auto_log_cpu=False)

  def log(step, row):
    opened_run.log(row, step=step)

  return log, opened_run.finish
