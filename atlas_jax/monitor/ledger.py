"""The ledger of a run's time: every second since its first start belongs to one kind.

`workdir/time.json` keeps the totals, so that kills and waits between starts are accounted for, too: what was
worked since the checkpoint that a start goes on from is lost, and the time between the last word of one start
and the next start is stopped. The kinds sum to the wall-clock time since the first start.
"""
import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging

from atlas_jax.files import json_file, write

KINDS = ("start", "compile", "input", "step", "evaluation", "checkpoint", "lost", "stopped")
WORK = ("input", "step", "evaluation", "checkpoint")  # Kinds that are lost with the work since a checkpoint.


class Ledger:
  """Counts the seconds of a run by kind; one kind at a time.

  Kinds: start (reading, building, restoring), compile (the first update, and what evaluations compile), input
  (waiting for a batch), step, evaluation, checkpoint (the loop waits for a save), lost, stopped.

  Args:
    path: the file that keeps the totals; None: nowhere.
    began_s: when this start began, as `time.time`; None: now.
  """

  def __init__(self, path: Path | None = None, *, began_s: float | None = None):
    self.path = path
    # The heartbeat of the lock writes the file from a thread of its own, and JAX reports compilations from
    # the thread that compiles.
    self._guard = threading.Lock()
    self._totals = dict.fromkeys(KINDS, 0.0)
    self._kind = "start"
    # Spans are measured by the monotonic clock, which nobody sets; only what lies between two processes needs
    # the time of day.
    self._since = time.monotonic() - max(0.0, time.time() - (began_s or time.time()))
    self._compiled_s = 0.0

  def resume(self, saved: Mapping | None) -> None:
    """Adds the time of the earlier starts of the run.

    Args:
      saved: what `saved` gave for the checkpoint that this start goes on from; None: it begins anew.
    """
    file = _read(self.path)
    work = saved["totals"] if saved else {}
    last = file or saved
    if last is None:
      return
    # The file is written at every heartbeat, so it is newer than the checkpoint, unless it could not be
    # written or was not copied along.
    if saved and (file is None or file["wall_s"] < saved["wall_s"]):
      last = saved
    totals = dict(last["totals"])
    clean = bool(last.get("clean"))
    # What the file counts beyond the checkpoint will be done again: it moves to lost. Nothing is taken away,
    # so the kinds still sum to the time since the first start. Starting and compiling are spent either way.
    if not clean:
      for kind in WORK:
        lost = max(0.0, totals[kind] - work.get(kind, 0.0))
        totals[kind] -= lost
        totals["lost"] += lost
    with self._guard:
      began_s = time.time() - (time.monotonic() - self._since)
      # Not below 0, should the time of day have been set back in between.
      totals["stopped"] += max(0.0, began_s - last["wall_s"])
      for kind in KINDS:
        self._totals[kind] += totals[kind]

  def switch(self, kind: str) -> str:
    """Counts what comes as another kind; returns the one before."""
    with self._guard:
      before = self._kind
      self._count()
      self._kind = kind
    return before

  @contextlib.contextmanager
  def at(self, kind: str) -> Iterator[None]:
    """Counts a block as a kind of its own."""
    before = self.switch(kind)
    try:
      yield
    finally:
      self.switch(before)

  @property
  def kind(self) -> str:
    """Returns the kind at work."""
    return self._kind

  def add_compilation(self, seconds: float) -> None:
    """Counts seconds of the kind at work as compilation."""
    with self._guard:
      self._compiled_s += seconds

  def totals(self) -> dict[str, float]:
    """Returns the seconds of each kind up to now."""
    with self._guard:
      self._count()
      return dict(self._totals)

  def saved(self) -> dict:
    """Returns what a checkpoint keeps for `resume`, and writes the file."""
    # False: work goes on behind this checkpoint. Only the end of a run is clean.
    record = self._record(clean=False)
    self.write()
    return record

  def write(self, *, clean: bool = False) -> None:
    """Writes the file; `clean` says that the run ends here, and with all of its work saved."""
    if self.path is None:
      return
    write.json(self.path, self._record(clean=clean), indent=None)

  def row(self) -> dict[str, float]:
    """Returns perf/time_KIND_s, since the first start, and perf/goodput_frac, the fraction of steps."""
    totals = self.totals()
    named = {f"perf/time_{kind}_s": seconds for kind, seconds in totals.items()}
    return {**named, "perf/goodput_frac": totals["step"] / max(sum(totals.values()), 1e-9)}

  def _record(self, *, clean: bool) -> dict:
    return {"totals": self.totals(), "wall_s": time.time(), "clean": clean}

  def _count(self) -> None:
    now = time.monotonic()
    passed = now - self._since
    # JAX reports a compilation when it is over, whatever kind was at work: its seconds move from that kind to
    # compile, and never more of them than have passed.
    compiled = min(self._compiled_s, passed)
    self._totals[self._kind] += passed - compiled
    self._totals["compile"] += compiled
    self._since = now
    self._compiled_s = 0.0


_COMPILATION = "/jax/core/compile/backend_compile_duration"
_counting: list[Ledger] = []


@contextlib.contextmanager
def counting_compilation(ledger: Ledger) -> Iterator[None]:
  """Adds to a ledger what JAX says of its compilations while the block runs."""
  if not _listening:
    jax.monitoring.register_event_duration_secs_listener(_heard)
    _listening.append(True)
  _counting.append(ledger)
  try:
    yield
  finally:
    _counting.remove(ledger)


# JAX gets one listener for good, which hears for the ledger at work: one for each run would count twice.
_listening: list[bool] = []


def _heard(event: str, duration_secs: float, **_: Any) -> None:
  if event == _COMPILATION and _counting:
    _counting[-1].add_compilation(duration_secs)


def _read(path: Path | None) -> dict | None:
  """Reads a file of totals; warns and returns None if it is damaged."""
  if path is None or not path.exists():
    return None
  try:
    found = json_file.read(path)
    totals = found["totals"]
    # A file of another version, with other kinds, is no base for sums: as if it were damaged.
    if set(totals) == set(KINDS) and all(0 <= seconds < 1e12 for seconds in totals.values()):
      return {"totals": totals, "wall_s": float(found["wall_s"]), "clean": bool(found["clean"])}
    problem = "it names other kinds of time"
  except (OSError, ValueError, KeyError, TypeError) as error:
    problem = f"{type(error).__name__}: {error}"
  logging.warning("%s cannot be read (%s): times of the run count from its checkpoint on", path, problem)
  return None


def process_began_s() -> float:
  """Returns when this process began, as `time.time`; now where the system does not tell."""
  try:
    with open("/proc/self/stat", encoding="utf-8") as stream:
      # The twentieth field behind the name is the start, in clock ticks from that of the machine on.
      ticks = int(stream.read().rpartition(")")[2].split()[19])
    with open("/proc/uptime", encoding="utf-8") as stream:
      up_s = float(stream.read().split()[0])
    return time.time() - max(0.0, up_s - ticks / os.sysconf("SC_CLK_TCK"))
  except (OSError, ValueError, IndexError):
    return time.time()
