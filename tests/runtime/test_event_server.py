"""Events over HTTP: from any number on, what was and then what comes, each once."""
import asyncio

import pytest

from atlas_jax.runtime.event_server import EventHub, EventServerSettings, application
from atlas_jax.runtime.events import EventLog

SECRET = {"api_key": "abcdefgh"}


def made(count, key="a"):
  found = []
  log = EventLog(key, found.append)
  for number in range(count):
    last = number == count - 1
    log.emit("session", "END" if last else "POINT", span=0, data=SECRET)
  return found


def test_a_reader_gets_old_and_new_events_once_and_goes_on_behind_its_last():
  events = made(6)

  async def main():
    async def load(key, after):
      return [one.to_json() for one in events[:3] if one.seq > after] if key == "a" else []

    hub = EventHub(load)
    await hub.take(events[1:4])  # The store has the oldest, memory the newest, both some.
    got = []

    async def read(after):
      async for row in hub.stream("a", after):
        got.append(row)

    reading = asyncio.create_task(read(-1))
    for _ in range(10):
      await asyncio.sleep(0)
    await hub.take(events[4:])
    await asyncio.wait_for(reading, 5)
    assert [one["seq"] for one in got] == [0, 1, 2, 3, 4, 5] and "abcdefgh" not in str(got[0])
    got.clear()
    await asyncio.wait_for(read(3), 5)
    assert [one["seq"] for one in got] == [4, 5]

  asyncio.run(main())


def test_a_reader_that_is_too_slow_is_let_go_and_misses_nothing():
  events = made(9)

  async def main():
    hub = EventHub(settings=EventServerSettings(kept=4, alive_s=0.01))
    stream = hub.stream("a")
    assert await anext(stream) is None  # A sign of life; it reads from now on.
    await hub.take(events[:7])
    assert [one["seq"] async for one in stream if one] == [0, 1, 2, 3]
    await hub.take(events[7:])
    assert [one["seq"] async for one in hub.stream("a", 4) if one] == [5, 6, 7, 8]

  asyncio.run(main())


def test_over_http_with_resume_unknown_sessions_and_a_token():
  httpx = pytest.importorskip("httpx")
  pytest.importorskip("starlette")

  async def main():
    hub = EventHub()
    await hub.take(made(3))
    app = application(hub, EventServerSettings(host="0.0.0.0", token="long-token"))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
      assert (await client.get("/health")).status_code == 401
      client.headers["authorization"] = "Bearer long-token"
      assert (await client.get("/health")).json() == {"status": "ok"}
      assert (await client.get("/sessions/none/events")).status_code == 404
      assert (await client.get("/sessions/a/events?after=x")).status_code == 400
      assert (await client.request("GET", "/health", content=b"x" * (2**20 + 1))).status_code == 413
      told = (await client.get("/sessions/a/events", headers={"Last-Event-ID": "0"})).text
      assert [line for line in told.splitlines() if line.startswith("id")] == ["id: 1", "id: 2"]

  asyncio.run(main())
  with pytest.raises(ValueError, match=r"event_server\.token"):
    EventServerSettings(host="0.0.0.0")
