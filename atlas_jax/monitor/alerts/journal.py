"""The file of events of a run, `workdir/alerts.jsonl`: one JSON object a line, appended as they happen."""
import json
import pathlib
import time

from absl import logging

from atlas_jax.files import json_lines
from atlas_jax.files.damage import Damaged
from atlas_jax.monitor.alerts.engine import Event
from atlas_jax.workdir import ALERTS

Key = tuple[str, str, int]  # Rule, state and step: an event comes once.


class Journal:
  """Appends events to the file of a run; a disk that is full costs a line of the log, and no run."""

  def __init__(self, workdir):
    """Takes a run directory."""
    self._file = pathlib.Path(workdir) / ALERTS
    self.unwritten = 0

  def keys(self) -> set[Key]:
    """Returns the keys of all events that the file holds."""
    return {(row["rule"], row["state"], row["step"]) for row in self.events()}

  def events(self) -> list[dict]:
    """Returns the events of the file, without lines that cannot be read; warns of those."""
    if not self._file.exists():
      return []
    found = []
    damaged = 0
    for number, line in enumerate(json_lines.lines(self._file), start=1):
      try:
        row = json_lines.parse(self._file, number, line)
        # Looked up here, where a line that lacks one can be passed over.
        row["rule"], row["state"], row["step"], row["severity"]
        found.append(row)
      except (Damaged, KeyError):
        damaged += bool(line.strip())
    if damaged:
      logging.warning("%s has %d lines that are no events, as a kill may leave one", self._file, damaged)
    return found

  def write(self, event: Event, *, text: str) -> None:
    """Appends an event.

    Args:
      event: what happened.
      text: of it, with secrets taken out.
    """
    record = {**event.record(time.time()), "text": text}
    try:
      # Its own line also behind one that a kill has cut.
      torn = self._file.exists() and self._file.stat().st_size and not _ends_line(self._file)
      with self._file.open("a", encoding="utf-8") as out:
        out.write(("\n" if torn else "") + json.dumps(record, allow_nan=False) + "\n")
    except OSError as error:
      self.unwritten += 1
      if self.unwritten == 1:
        logging.warning("%s cannot be written (%s): alerts are sent all the same", self._file, error)


def _ends_line(file: pathlib.Path) -> bool:
  with file.open("rb") as opened:
    opened.seek(-1, 2)
    return opened.read(1) == b"\n"
