"""Sinks of events: lines on a terminal, and events.jsonl."""
import datetime
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from atlas_jax.data.traces.review import shown
from atlas_jax.files import write
from atlas_jax.runtime.events import SessionEvent
from atlas_jax.runtime.telemetry import ThreadedSink

SHOWN = 80  # Letters of a text on a line,
FIELDS = 6  # and fields of an event's data.


class Console(ThreadedSink):
  """One line for each event, as text or as JSON; chunks are left out of texts."""

  name = "console"

  def __init__(self, stream: TextIO | None = None, *, as_json: bool = False):
    """Takes where to."""
    super().__init__()
    self._stream = stream or sys.stdout
    self._as_json = as_json

  def write(self, events: Sequence[SessionEvent]) -> None:
    """Prints events."""
    for one in events:
      if self._as_json:
        print(json.dumps(one.to_json(), allow_nan=False), file=self._stream)
      elif one.kind != "CHUNK":
        print(line(one), file=self._stream)
    self._stream.flush()


class EventsFile(ThreadedSink):
  """Events as lines of a file, behind those that are there; `files.json_lines` reads it with torn="drop"."""

  name = "events.jsonl"

  def __init__(self, path):
    """Opens the file, and makes its folder.

    Raises:
      OSError: of the system.
    """
    super().__init__()
    self._path = pathlib.Path(path)
    self._path.parent.mkdir(parents=True, exist_ok=True)
    # Unbuffered, and each batch in one write: whole lines also where two processes write.
    self._file = self._path.open("ab", buffering=0)
    if self._path.stat().st_size and not _ends_whole(self._path):
      self._file.write(b"\n")  # Behind a line that a kill has cut off.

  def write(self, events: Sequence[SessionEvent]) -> None:
    """Adds events."""
    with write.naming(self._path):
      self._file.write(b"".join(write.json_line(one.to_json()) for one in events))

  async def close(self) -> None:
    """Closes the file."""
    await super().close()
    self._file.close()


def _ends_whole(path: pathlib.Path) -> bool:
  with path.open("rb") as file:
    file.seek(-1, 2)
    return file.read(1) == b"\n"


def line(event: SessionEvent) -> str:
  """Returns an event as one line: time, session, number, what, who, and the beginnings of its data."""
  at = datetime.datetime.fromtimestamp(event.at, datetime.UTC).strftime("%H:%M:%S.%f")[:-3]
  place = "" if event.step is None else f" step {event.step}"
  place += "" if event.attempt is None else f" attempt {event.attempt}"
  data = [f"{name}={_short(value)}" for name, value in list(event.data.items())[:FIELDS]]
  more = [] if len(event.data) <= FIELDS else [f"and {len(event.data) - FIELDS} more"]
  head = f"{at} {shown(event.session_key)[:12]} {event.seq:>3} {event.name} {event.kind} {event.actor}{place}"
  return " ".join([head, *data, *more])


def _short(value: Any) -> str:
  text = shown(value if isinstance(value, str) else json.dumps(value, default=str))
  return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
