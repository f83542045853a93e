"""The store of the runtime: both databases, many sessions in one transaction, a spool while it is down."""
import asyncio
import json
import pathlib
import sqlite3

import pytest

from atlas_jax.data.traces.connections import StoreError, UnreachableStore
from atlas_jax.data.traces.query import SessionQuery
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.store import open_store
from atlas_jax.runtime.events import EventLog
from atlas_jax.runtime.spool import Spool, StoreFull
from atlas_jax.runtime.store import RuntimeStore, StoreSettings
from tests.runtime.parts import Script, parts, verdict
from tests.runtime.runs import through


def settings(url, tmp_path, **more):
  return StoreSettings(url=url, spool=str(tmp_path / "spool"), **more)


def with_store(url, tmp_path, work, *, owner=None, create=True, **more):
  async def main():
    store = RuntimeStore(settings(url, tmp_path, **more), owner=owner)
    await store.open(create=create)
    try:
      return await work(store)
    finally:
      await store.close()

  return asyncio.run(main())


def of(trace):
  return Trace.from_json({"task": "2+2", "final_answer": trace, "session_metadata": {"status": "succeeded"}})


def test_a_session_is_begun_once_finished_and_read(store_url, tmp_path):
  async def work(store):
    number, new = await store.begin("a", "2+2", {"tenant_id": "t"})
    assert new and (await store.begin("a", "2+2", {})) == (number, False)
    log = EventLog("a", store.append)
    for _ in range(3):
      log.emit("session", "POINT", span=0)
    await store.flush("a")
    found = await store.load("a")
    assert (found.id, found.status, [one["seq"] for one in found.events]) == (number, "running", [0, 1, 2])
    for _ in range(2):  # Replaying changes nothing.
      assert await store.finish("a", of("4")) == (number, "stored")
    assert (await store.load("a")).status == "succeeded"
    assert [one["seq"] for one in await store.events("a", after=1)] == [2]
    assert (await store.record(number)).final_answer == "4"
    assert await store.load("none") is None

  with_store(store_url, tmp_path, work)


def test_runs_are_stored_as_traces_that_review_holds_back(store_url, tmp_path):
  made = parts(Script("3", "4"), Script(verdict(False, "Carry."), verdict(True)))
  result = with_store(store_url, tmp_path, lambda store: through(store, made, "a", metadata={"mine": 1}))
  assert result.storage_status == "stored" and result.session_id
  with open_store(store_url) as store:
    assert list(store.traces()) == []
    ((_, trace),) = store.traces(SessionQuery(review_statuses=("pending",)))
    stored = store.session(result.session_id)
  assert (trace.task, trace.final_answer, trace.verified, trace.reward.value) == ("2+2", "4", True, 1.0)
  assert trace.session_metadata["mine"] == 1 and stored.review_status == "pending"
  assert [one.answer for one in trace.steps[0].attempts] == ["3", "4"] and trace.guidance == ("Carry.",)


def test_a_session_costs_few_statements_and_bytes(tmp_path):
  url = f"sqlite:///{tmp_path}/t.db"
  made = parts(Script("3", "4"), Script(verdict(False, "Carry."), verdict(True)))

  async def work(store):
    await through(store, made, "a")
    return store.statements

  assert 0 < with_store(url, tmp_path, work) <= 8  # Each counted that a transaction runs.
  with sqlite3.connect(tmp_path / "t.db") as connection:
    size = 0
    for table in ("sessions", "plans", "step_results", "step_attempts", "guidance_notes", "session_events",
                  "session_keys"):
      for row in connection.execute(f"SELECT * FROM {table}"):
        size += sum(len(str(cell)) for cell in row if cell is not None)
  assert size <= 9_000


def test_leases_expire_and_are_claimed_by_one(store_url, tmp_path):
  lease = {"lease_s": 0.2, "heartbeat_s": 0.1}

  async def begin(store):
    for key in "abc":
      await store.begin(key, "t", {})
    await store.finish("c", of("4"))

  def alive(store):
    return store.claim_expired()

  with_store(store_url, tmp_path, begin, owner="first", **lease)

  async def claim(store):
    await asyncio.sleep(0.3)
    other = RuntimeStore(settings(store_url, tmp_path, **lease), owner="third")
    await other.open()
    found = [await one.claim_expired() for one in (store, other)]
    await other.close()
    return found

  mine, theirs = with_store(store_url, tmp_path, claim, owner="second", create=False, lease_s=60.0)
  assert sorted(one.key for one in mine) == ["a", "b"] and theirs == []


def test_a_heartbeat_keeps_the_lease(store_url, tmp_path):
  async def work(store):
    await store.begin("a", "t", {})
    await asyncio.sleep(0.5)
    return await store.claim_expired()

  assert with_store(store_url, tmp_path, work, lease_s=0.3, heartbeat_s=0.1) == []


def test_six_writers_of_a_playbook_lose_nothing(store_url, tmp_path):
  async def work(store):
    async def add(name):
      while True:
        version, entries = await store.read_playbook("k")
        if await store.write_playbook("k", version, [*entries, {"id": name}]):
          return

    await asyncio.gather(*map(add, "abcdef"))
    return await store.read_playbook("k")

  version, entries = with_store(store_url, tmp_path, work)
  assert version == 6 and sorted(one["id"] for one in entries) == list("abcdef")


def test_deployments_are_moved_from_where_they_are_alone(store_url, tmp_path):
  async def work(store):
    number = await store.add_deployment(role="teacher", version="v", url="http://x", fraction=0.1,
                                        state="canary", metadata={"a": 1})
    await store.move_deployment(number, "canary", "active", fraction=1.0)
    with pytest.raises(StoreError, match="no longer canary"):
      await store.move_deployment(number, "canary", "active", fraction=1.0)
    await store.begin("a", "t", {})
    await store.add_uses("k", "a", ["one"], ["two"])
    found = sorted((entry, shown) for entry, shown, _ in await store.uses("k"))
    assert found == [("one", True), ("two", False)]
    return await store.deployments("teacher")

  (found,) = with_store(store_url, tmp_path, work)
  assert (found.state, found.fraction, found.metadata) == ("active", 1.0, {"a": 1})


def test_to_forget_reaches_events_lessons_and_spool(store_url, tmp_path):
  async def work(store):
    for key, tenant in (("a", "x"), ("b", "x"), ("c", "y")):
      await store.begin(key, "t", {"tenant_id": tenant})
    (number,) = {(await store.load("c")).id}
    await store.write_playbook("y/f", 0, [{"id": "l", "provenance": {"session_id": number}}, {"id": "m"}])
    await store.write_playbook("x/f", 0, [{"id": "n"}])
    store.spool.put("d", [{"op": "begin", "task": "t", "metadata": {"tenant_id": "x"}}])
    assert await store.forget(session_key="c") == (1, 1)
    assert await store.forget(tenant="x") == (2, 1)
    assert [await store.load(key) for key in "abc"] == [None] * 3 and len(store.spool) == 0
    return await store.read_playbook("y/f"), await store.read_playbook("x/f")

  kept, gone = with_store(store_url, tmp_path, work)
  assert kept[1] == [{"id": "m"}] and gone == (0, [])


class Down:
  """A database that does not answer, until it does."""

  def __init__(self, database):
    self.database, self.is_down, self.name = database, True, database.name

  def writing(self, **given):
    if self.is_down:
      raise UnreachableStore("down")
    return self.database.writing(**given)

  def __getattr__(self, name):
    return getattr(self.database, name)


def test_while_the_store_is_down_sessions_go_on_and_are_stored_later(store_url, tmp_path):
  made = parts(Script("3", "4"), Script(verdict(False, "Carry."), verdict(True)))

  async def work(store):
    down = Down(store._store.database)
    store._store.database = down
    results = await asyncio.gather(*(through(store, made, key) for key in "ab"))
    assert [one.storage_status for one in results] == ["spooled"] * 2 and len(store.spool) == 2 and store.down
    assert [one.answer for one in results] == ["4", "4"] or all(one.answer for one in results)
    down.is_down = False
    assert await store.drain() == 0 and await store.drain() == 0
    found = [await store.load(key) for key in "ab"]
    return [one.status for one in found], [len(one.events) for one in found]

  statuses, counts = with_store(store_url, tmp_path, work, retry_s=0.05)
  assert statuses == ["succeeded"] * 2 and min(counts) > 5


def test_no_session_is_begun_where_nothing_takes_it(tmp_path):
  blocked = tmp_path / "spool"
  blocked.write_text("a file where the folder should be")

  async def work(store):
    store._store.database = Down(store._store.database)
    with pytest.raises(StoreFull, match="no session is begun"):
      await store.begin("a", "t", {})
    store._store.database = store._store.database.database

  with_store(f"sqlite:///{tmp_path}/t.db", tmp_path, work)


def test_a_line_of_the_spool_that_a_crash_cut_off_is_none(tmp_path):
  spool = Spool(tmp_path)
  spool.put("a", [{"op": "begin", "task": "t", "metadata": {}}])
  (file,) = pathlib.Path(tmp_path).glob("*.jsonl")
  with file.open("a") as out:
    out.write(json.dumps({"op": "ev"})[:5])
  assert [one["op"] for one in spool.operations("a")] == ["begin"] and spool.waiting() == ["a"]


@pytest.mark.parametrize("changed, said", [({"batch_s": 0}, "store.batch_s=0"), (
    {"heartbeat_s": 20.0}, "store.heartbeat_s=20.0 must be at most half of store.lease_s=30.0")])
def test_settings_that_cannot_be_are_refused(changed, said):
  with pytest.raises(ValueError, match=said):
    StoreSettings(**changed)
