"""Lines on a terminal, and events.jsonl."""
import asyncio
import io
import json

from atlas_jax.files import json_lines
from atlas_jax.runtime.events import EventLog
from atlas_jax.runtime.sinks import Console, EventsFile
from atlas_jax.runtime.telemetry import Telemetry


def emit(*sinks):
  async def main():
    telemetry = Telemetry(sinks)
    log = EventLog("abc", telemetry, clock=lambda: 0.0)
    log.emit("session", "START", span=0, data={"task": "2+2\x1b[31m\n" + "x" * 200})
    log.emit("agent_call", "CHUNK", actor="student", span=1, parent=0, step=1, attempt=2, data={"text": "4"})
    log.emit("session", "END", span=0)
    await telemetry.close()
    assert telemetry.problems == []

  asyncio.run(main())


def test_the_console_has_one_line_an_event_which_moves_no_terminal():
  text, as_json = io.StringIO(), io.StringIO()
  emit(Console(text), Console(as_json, as_json=True))
  first, last = text.getvalue().splitlines()
  assert first.startswith("00:00:00.000 abc   0 session START runtime task=2+2?[31m xxx")
  assert len(first) < 150 and last == "00:00:00.000 abc   2 session END runtime"
  assert [json.loads(line)["seq"] for line in as_json.getvalue().splitlines()] == [0, 1, 2]


def test_the_file_goes_on_behind_what_it_has_and_behind_a_torn_line(tmp_path):
  path = tmp_path / "new" / "events.jsonl"
  emit(EventsFile(path))
  assert [row["seq"] for row in json_lines.read(path)] == [0, 1, 2]
  with path.open("a") as file:
    file.write('{"torn": ')
  emit(EventsFile(path))
  rows = path.read_text().splitlines()
  assert len(rows) == 7 and json.loads(rows[-1])["name"] == "session"
