"""The verdicts on a run from its directory alone: from its rows, as live, and from signs of its files.

Rows say all that they said live. Files say what a dead trainer cannot: that its heartbeat is old, that it
ended without being finished, that the disk is full.
"""
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from absl import logging

from atlas_jax import config as configs
from atlas_jax.defaults.bounds import names_of
from atlas_jax.files import json_file, json_lines
from atlas_jax.files.damage import Damaged
from atlas_jax.lock import SILENT_S
from atlas_jax.monitor.alerts import journal, rules
from atlas_jax.monitor.alerts.engine import FIRING, RECOVERED, AlertEngine, Event, Status
from atlas_jax.workdir import ALERTS, CONFIG, LEDGER, METRICS, OWNER, SUMMARY

GIB = 2**30
SILENT_BEATS = 2  # A heartbeat this many times later than the owner may be counts as none.


class Verdict(NamedTuple):
  """The verdict on a run."""

  run: pathlib.Path
  recipe: str
  step: int | None  # of its last row
  events: list[Event]  # of rows, and of files
  states: dict[str, Status]  # of each rule
  unknown: dict[str, str]  # rules that say nothing, and why
  recorded: list[dict]  # events of alerts.jsonl
  problem: str  # its files have, "" for none

  @property
  def alarms(self) -> list[Event]:
    """Returns the events by which something is or was wrong."""
    return [event for event in self.events if event.state == FIRING and event.severity in rules.ALARMS]

  def as_json(self) -> dict[str, Any]:
    """Returns it as JSON holds it."""
    events = [{key: value for key, value in event.record(0.0).items() if key != "time"}
              for event in self.events]
    return {"run": str(self.run), "recipe": self.recipe, "step": self.step,
            "alarms": [event for event in events if event["state"] == FIRING
                       and event["severity"] in rules.ALARMS],
            "events": events,
            "rules": {name: {"state": status.state, "since_step": status.step, "value": status.value,
                             "metric": status.metric} for name, status in self.states.items()},
            "unknown": self.unknown, "recorded": len(self.recorded), "problem": self.problem}


class Follower:
  """Reads the rows of a run as they come; each call of `look` reads only what is new.

  Args:
    run: the run directory.
    now_s: time of day, as `time.time`.
    free_gib: folder -> free space of its disk, in GiB.
  """

  def __init__(self, run, *, now_s: Callable[[], float] = time.time,
               free_gib: Callable[[Any], float] = lambda place: shutil.disk_usage(place).free / GIB):
    self.run = pathlib.Path(run)
    self._now_s = now_s
    self._free_gib = free_gib
    self.config = _config_of(self.run)
    self._rules = rules.read(self.config.alerts)
    self._off = names_of(self.config.alerts.off)
    self._recorded: list[dict] = []
    self._recorded_bytes = 0
    self._stood: dict[str, int] = {}  # Signs of files that stand, and the step they were seen at.
    self._begin()

  def _begin(self) -> None:
    self._engine = AlertEngine(rules.judged(self.config.alerts, self.config.recipe), self.config)
    self.events: list[Event] = []
    self.step: int | None = None
    self._place = 0  # Where the last row begins: others may join their numbers to it.
    self._last = b""
    self._file_id: tuple | None = None
    self._number = 0

  def look(self) -> list[Event]:
    """Reads what is new; returns the events in it.

    Raises:
      Damaged: for a line that is no row, with file and line.
    """
    found = [*self._rows(), *self._files()]
    self.events += found
    return found

  def verdict(self, problem: str = "") -> Verdict:
    """Returns the verdict on all that was read."""
    return Verdict(self.run, self.config.recipe, self.step, list(self.events), self._engine.statuses(),
                   self._engine.unknown(), self._recorded, problem)

  def _rows(self) -> list[Event]:
    file = self.run / METRICS
    if not file.exists():
      return []
    found: list[Event] = []
    with file.open("rb") as opened:
      stat = file.stat()
      opened.seek(self._place)
      # A start that goes on with the run writes the file anew, without the rows that it makes again.
      if self._file_id not in (None, (stat.st_ino, stat.st_dev)) or stat.st_size < self._place or \
          not _joins(self._last, opened.readline()):
        self._begin()
      self._file_id = (stat.st_ino, stat.st_dev)
      opened.seek(self._place)
      first = True
      while (line := opened.readline()).endswith(b"\n"):
        if not (first and line == self._last):
          found += self._row(file, line, joins=first and bool(self._last))
        place, first = opened.tell() - len(line), False
        self._place, self._last = place, line
    return found

  def _row(self, file: pathlib.Path, line: bytes, *, joins: bool) -> list[Event]:
    self._number += not joins
    if not line.strip():
      return []
    row = json_lines.parse(file, self._number, line)
    json_file.field(file, row, "step", json_file.is_int, "whole in every row", remedy=json_lines.MEND)
    self.step = row["step"]
    return self._engine.observe(row["step"], row)

  def _files(self) -> list[Event]:
    """Returns signs of files that have come or gone since the last look."""
    found = []
    failure = self._failure()
    silence = "" if failure else self._silence()
    for name, sign in (("failed", failure), ("silent", silence), ("disk", self._disk())):
      if name in self._off:
        continue
      if sign and name not in self._stood:
        self._stood[name] = self.step or 0
        found.append(self._event(name, FIRING, sign))
      elif not sign and name in self._stood:
        del self._stood[name]
        found.append(self._event(name, RECOVERED, ""))
    return found

  def _event(self, name: str, state: str, sign: str) -> Event:
    rule = self._rules[name]
    remedy = f"; {rule.remedy}" if rule.remedy else ""
    text = f"{rule.message}: {sign}{remedy}" if state == FIRING else rule.recovery
    return Event(self.step or 0, name, rule.severity, state, None, "", text, rule.send, rule.quiet)

  def _failure(self) -> str:
    """Returns the error that the run ended by, if that is the last that it told; "" if not."""
    file = self.run / ALERTS
    size = file.stat().st_size if file.exists() else 0
    if size != self._recorded_bytes:
      self._recorded_bytes = size
      self._recorded = journal.Journal(self.run).events()
    last = self._recorded[-1] if self._recorded else {}
    return str(last.get("text", "")).partition(": ")[2] if last.get("rule") == "failed" else ""

  def _silence(self) -> str:
    """Returns how the process of the run is seen to be gone, "" if it lives or the run is over."""
    if (self.run / SUMMARY).exists() and not (self.run / OWNER).exists():
      return ""
    try:
      silent_s = self._now_s() - (self.run / OWNER).stat().st_mtime
      return "" if silent_s <= SILENT_BEATS * SILENT_S else \
          f"its last heartbeat ({OWNER}) is {silent_s:.0f} s old"
    except FileNotFoundError:
      pass  # Nobody has the run: it was never begun, was stopped, or has failed.
    try:
      clean = json_file.read(self.run / LEDGER)["clean"]
    except FileNotFoundError:
      return ""  # Without the account of time nothing says how the run ended.
    except (OSError, ValueError, KeyError) as error:
      logging.warning("%s cannot be read, so nothing says how the run ended: %s", self.run / LEDGER, error)
      return ""
    return "" if clean else "it ended, and neither finished nor was stopped"

  def _disk(self) -> str:
    """Returns how full the disk is, where no row says so and nobody has finished the run."""
    rule = self._rules["disk"]
    status = self._engine.statuses().get("disk")
    if (self.run / SUMMARY).exists() or status is not None and not status.why:
      return ""
    free_gib = self._free_gib(self.run)
    bound = rule.bound if "disk" not in self._stood or rule.recover is None else rule.recover
    return f"{free_gib:.2f} GiB are free, the bound is {rule.bound:g}" if free_gib < bound else ""


def judge(run, **options) -> Verdict:
  """Returns the verdict on a run; options as of `Follower`.

  Raises:
    ValueError: if its config or its rules cannot be read.
  """
  follower = Follower(run, **options)
  try:
    follower.look()
  except Damaged as error:
    # Rows before it are judged; what comes behind it is not known, and that is said.
    return follower.verdict(str(error))
  return follower.verdict()


def runs_of(folder) -> list[pathlib.Path]:
  """Lists run directories: the folder itself if it is one, or those below it, at most three levels down.

  Raises:
    ValueError: if there is no such folder, or none of it is a run.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise ValueError(f"--runs={folder} is no folder; name a run directory, or a folder of them")
  found = sorted({file.parent for depth in ("", "*/", "*/*/", "*/*/*/") for name in (METRICS, CONFIG)
                  for file in folder.glob(f"{depth}{name}")} - {folder})
  if any((folder / name).exists() for name in (METRICS, CONFIG)):
    found = [folder]  # Folders in a run, such as what it copied, are no runs.
  if not found:
    raise ValueError(f"--runs={folder} holds no run: no {METRICS} and no {CONFIG} in it or in its folders")
  return [run for run in found if not any(other in run.parents for other in found)]


def _config_of(run: pathlib.Path):
  """Returns the config of a run; the default one where it has none, as runs of a program of one's own."""
  if not (run / CONFIG).exists():
    return configs.default()
  # Trusted: it is read for names and numbers, and nothing it names is imported.
  return configs.load(run, trusted=True)


def _joins(last: bytes, now: bytes) -> bool:
  """Returns whether a line is the last one read, or that with more numbers."""
  if not last or now == last:
    return True
  old, new = _parsed(last), _parsed(now)
  return new is not None and old is not None and old.get("step") == new.get("step")


def _parsed(line: bytes) -> Mapping[str, Any] | None:
  try:
    found = json.loads(line)
  except ValueError:
    return None
  return found if isinstance(found, dict) else None
