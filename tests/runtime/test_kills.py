"""Kill -9 at random events: every session ends once, and no answer that was given is lost or doubled."""
import asyncio
import collections
import os
import subprocess
import sys

from atlas_jax.data.traces.store import open_store
from atlas_jax.runtime.pool import SessionPool
from atlas_jax.runtime.store import RuntimeStore, StoreSettings
from tests.runtime import kills

KILLS = {"sqlite": 50, "postgresql": 8}


def test_sessions_that_were_cut_off_anywhere_end_once(store_url, tmp_path):
  open_store(store_url, writable=True, create=True).close()
  count = KILLS[store_url.partition(":")[0]]
  spool, answers = str(tmp_path / "spool"), tmp_path / "answers"
  call = [sys.executable, "-m", "tests.runtime.kills", store_url, spool, str(answers), str(count), "7"]
  subprocess.run(call, check=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
  given = dict(line.split() for line in answers.read_text().splitlines())

  async def main():
    store = RuntimeStore(StoreSettings(url=store_url, spool=spool))
    await store.open()
    pool = SessionPool(kills.given(), store)
    await asyncio.sleep(0.25)  # The leases of the dead.
    resumed = await pool.resume()
    assert await pool.resume() == []
    keys = [f"{number}-{place}" for number in range(count) for place in range(kills.SESSIONS)]
    stored = {key: await store.load(key) for key in keys}
    records = {key: await store.record(found.id) for key, found in stored.items() if found}
    await pool.close()
    await store.close()
    return resumed, {key: found for key, found in stored.items() if found}, records

  resumed, stored, records = asyncio.run(main())
  statuses = collections.Counter(found.status for found in stored.values())
  assert set(statuses) == {"succeeded", "abandoned"} and len(given) > count // 4, statuses
  for key, answer in given.items():
    assert (stored[key].status, records[key].final_answer) == ("succeeded", answer) == ("succeeded", "4"), key
  for key, found in stored.items():
    assert [one["seq"] for one in found.events] == list(range(len(found.events))), key
    ends = [one for one in found.events if one["name"] == "session" and one["kind"] == "END"]
    assert len(ends) == 1 and ends[0]["data"]["status"] == found.status == records[key].status, key
    made = [one.number for step in records[key].steps for one in step.attempts]
    assert made == sorted(set(made)) and bool(records[key].final_answer) == (found.status == "succeeded"), key
  ended = {one.status for one in resumed}  # Between an answer and the end a kill in eight falls.
  both = {"succeeded", "abandoned"}
  assert ended == both if count == KILLS["sqlite"] else ended <= both
  assert {one.reward for one in resumed if one.status == "succeeded"} <= {1.0}
  assert len(stored) == len({one.id for one in stored.values()})
