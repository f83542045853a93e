"""Telemetry: sinks side by side, none of which holds up a session or another sink."""
import asyncio

import pytest

from atlas_jax.runtime.events import EventLog
from atlas_jax.runtime.redaction import REDACTED
from atlas_jax.runtime.telemetry import Callback, Telemetry, TelemetrySettings


class Kept:
  def __init__(self, name="kept"):
    self.name = name
    self.events = []
    self.gate = asyncio.Event()
    self.gate.set()
    self.closed = False

  async def take(self, events):
    await self.gate.wait()
    self.events += events

  async def close(self):
    self.closed = True


def numbers(sink, key="a"):
  return [one.seq for one in sink.events if one.session_key == key]


async def turns(count=20):
  for _ in range(count):
    await asyncio.sleep(0)


def test_a_slow_sink_drops_chunks_first_and_holds_up_nobody(caplog):
  async def main():
    slow, fast = Kept("slow"), Kept("fast")
    telemetry = Telemetry([slow, fast], settings=TelemetrySettings(queue=4, batch=1))
    log, other = EventLog("a", telemetry), EventLog("b", telemetry)
    slow.gate.clear()
    kinds = ["POINT", "CHUNK", "POINT", "CHUNK", "POINT", "POINT", "POINT", "CHUNK", "POINT"]
    for kind in kinds:
      log.emit("session", kind, span=0)
      await turns()  # The first one is in the hands of the slow sink.
    other.emit("session", "POINT", span=0)
    await turns()
    assert numbers(fast) == list(range(9)) and numbers(slow) == []
    slow.gate.set()
    await telemetry.close()
    # Both chunks went for points, then the new ones, and another session has a queue of its own.
    assert numbers(slow) == [0, 2, 4, 5, 6] and numbers(slow, "b") == [0]
    assert telemetry.dropped() == {"slow": {"CHUNK": 3, "POINT": 1}} and slow.closed

  asyncio.run(main())
  assert "slow was too slow: 4 events of session a were dropped" in caplog.text
  assert "slow dropped 3 CHUNK, 1 POINT" in caplog.text


@pytest.mark.parametrize("is_async", [False, True])
def test_a_raising_callback_is_detached_and_reported(is_async, caplog):
  seen = []

  def callback(event):
    seen.append(event.seq)
    raise KeyError("no such thing")

  async def later(event):
    callback(event)

  async def main():
    kept = Kept()
    telemetry = Telemetry([Callback(later if is_async else callback, "mine"), kept])
    log = EventLog("a", telemetry)
    log.emit("session", "START", span=0)
    await telemetry._feeds[0]._task
    log.emit("session", "END", span=0)
    await telemetry.close()
    assert seen == [0] and numbers(kept) == [0, 1]
    assert [name for name, _ in telemetry.problems] == ["mine"]
    assert "no such thing" in telemetry.problems[0][1]

  asyncio.run(main())
  assert "mine is detached" in caplog.text


def test_secrets_reach_no_sink():
  async def main():
    kept, heard = Kept(), []
    telemetry = Telemetry([kept, Callback(heard.append)])
    EventLog("a", telemetry).emit("tool", "POINT", span=0, data={"api_key": "abcdefgh"})
    await telemetry.close()
    assert [one.data for one in (*kept.events, *heard)] == [{"api_key": REDACTED}] * 2

  asyncio.run(main())


def test_the_end_waits_for_no_sink_that_hangs(caplog):
  async def main():
    slow = Kept("hung")
    slow.gate.clear()
    telemetry = Telemetry([slow], settings=TelemetrySettings(close_s=0.02, batch=1))
    log = EventLog("a", telemetry)
    for _ in range(3):
      log.emit("session", "POINT", span=0)
    await turns()
    await telemetry.close()
    assert telemetry.dropped()["hung"]["POINT"] == 2

  asyncio.run(main())
  assert "hung did not take its last 3 events" in caplog.text


def test_settings_that_cannot_be_are_named():
  with pytest.raises(ValueError, match=r"telemetry\.queue=0"):
    TelemetrySettings(queue=0)
