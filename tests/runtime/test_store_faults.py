"""Faults of the store and of sinks: no answer is lost, and what is said of it is true."""
import asyncio
import contextlib
import sqlite3
import threading
import time

import pytest

from atlas_jax.data.traces.connections import StoreError, UnreachableStore
from atlas_jax.runtime.events import EventLog, SessionEvent
from atlas_jax.runtime.pool import KeyTaken, PoolSettings, SessionPool
from atlas_jax.runtime.session import SessionSpec
from atlas_jax.runtime.spool import Spool, StoreFull
from atlas_jax.runtime.store import RuntimeStore, StoreSettings
from tests.runtime.parts import Script, parts, verdict
from tests.stores import schema_url

FAST = {"retry_s": 0.05, "batch_s": 0.01}


def student(messages):
  return "4" if len(messages) > 1 else "3"


def teacher(messages):
  return verdict(messages[-1]["content"].rstrip().endswith("4"), "Carry.")


@contextlib.asynccontextmanager
async def opened(url, tmp_path, *, given=None, sinks=(), **more):
  store = RuntimeStore(StoreSettings(url=url, spool=str(tmp_path / "spool"), **{**FAST, **more}))
  await store.open(create=True)
  pool = SessionPool(given or parts(Script(student), Script(teacher)), store,
                     settings=PoolSettings(tenant=256), sinks=sinks)
  try:
    yield pool, store
  finally:
    await pool.close()
    await store.close()


def sqlite_url(tmp_path):
  return f"sqlite:///{tmp_path}/t.db"


async def ran(pool, keys):
  return await asyncio.gather(*(pool.run(SessionSpec(key, "2+2", ground_truth="4")) for key in keys))


class Faulty:
  """A database whose next transactions fail, until it is whole."""

  def __init__(self, database, fault):
    self.database, self.fault, self.is_whole, self.name = database, fault, False, database.name

  @contextlib.contextmanager
  def writing(self, **given):
    with self.database.writing(**given) as transaction:
      yield transaction
      if not self.is_whole:  # Undone, with all that was written.
        self.fault()

  def __getattr__(self, name):
    return getattr(self.database, name)


def raising(error):
  def fault():
    raise error
  return fault


FAULTS = {"slow": lambda: time.sleep(0.1), "hang": lambda: time.sleep(0.7),
          "500": raising(UnreachableStore("gone")), "429": raising(UnreachableStore("too many clients")),
          "garbage": raising(StoreError("relation does not exist")), "list": raising(TypeError("a list")),
          "NaN": raising(ValueError("NaN")), "NUL": raising(UnicodeEncodeError("utf-8", "\ud800", 0, 1, "x"))}


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_the_store_does_answers_are_given_and_stored_when_it_is_whole(tmp_path, fault):
  async def main():
    stall = {"stall_s": 0.3} if fault == "hang" else {}
    async with opened(sqlite_url(tmp_path), tmp_path, lease_s=0.4, heartbeat_s=0.1, **stall) as (pool, store):
      submitted = [pool.submit(SessionSpec(key, "2+2", ground_truth="4")) for key in "abc"]
      while store.transactions < 2:  # They have begun.
        await asyncio.sleep(0)
      faulty = store._store.database = Faulty(store._store.database, FAULTS[fault])
      results = [await one.result() for one in submitted]
      assert {(one.answer, one.verified, one.status) for one in results} == {("4", True, "succeeded")}
      said = {one.storage_status for one in results}
      assert said == {"stored"} if fault == "slow" else said <= {"spooled", "failed"}
      assert said <= {"spooled", "stored"} if fault in ("429", "500", "hang") else "spooled" not in said
      faulty.is_whole = True
      await asyncio.sleep(0.5)  # A lease.
      await store.drain()
      await pool.resume()
      found = [await store.load(key) for key in "abc"]
      assert "running" not in {one.status for one in found} and len(store.spool) == 0
      if fault in ("slow", "hang", "429", "500"):
        assert [(await store.record(one.id)).final_answer for one in found] == ["4"] * 3
        for one in found:
          assert [event["seq"] for event in one.events] == list(range(len(one.events)))
          assert sum(event["name"] == "session" and event["kind"] == "END" for event in one.events) == 1

  asyncio.run(main())


def test_a_server_that_closes_its_connections_costs_nothing(postgres_server, tmp_path):
  import psycopg

  async def main(url):
    async with opened(url, tmp_path) as (pool, store):
      def cut():
        with psycopg.connect(url, autocommit=True) as connection:
          connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> "
                             "pg_backend_pid() AND application_name = 'atlas_jax'")

      results = await ran(pool, "ab")
      await asyncio.to_thread(cut)  # Between transactions: another connection takes its place.
      results += await ran(pool, "cd")
      assert {one.storage_status for one in results} == {"stored"}
      running = asyncio.ensure_future(ran(pool, [f"s{number}" for number in range(40)]))
      for _ in range(3):
        await asyncio.sleep(0.02)
        await asyncio.to_thread(cut)
      results += await running
      assert {(one.answer, one.status) for one in results} == {("4", "succeeded")}
      await asyncio.sleep(0.1)
      assert await store.drain() == 0
      for one in results:
        found = await store.load(one.session_key)
        assert found.status == "succeeded" and len(found.events) == found.events[-1]["seq"] + 1

  with schema_url(postgres_server) as url:
    asyncio.run(main(url))


def test_on_a_full_disk_what_is_accepted_is_spooled_and_then_nothing_is_accepted(tmp_path):
  async def main():
    async with opened(sqlite_url(tmp_path), tmp_path) as (pool, store):
      (first,) = await ran(pool, "a")
      assert first.storage_status == "stored"

      def limit(pages):
        connection = store._store.database._connection()
        (now,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {now + pages}")

      await store._threaded(lambda: limit(0))
      results = await ran(pool, [f"s{number}" for number in range(30)])
      assert {one.answer for one in results} == {"4"} and "spooled" in {one.storage_status for one in results}
      folder = store.spool.folder
      folder.rename(tmp_path / "kept")
      folder.write_text("no folder")
      await store._threaded(lambda: store._store.database._connection().execute("PRAGMA query_only = ON"))
      with pytest.raises(StoreFull, match="no session is begun"):
        await ran(pool, ["refused"])
      folder.unlink()
      (tmp_path / "kept").rename(folder)
      await store._threaded(lambda: store._store.database._connection().execute("PRAGMA query_only = OFF"))
      await store._threaded(lambda: limit(10_000))
      assert await store.drain() == 0
      for one in results:
        assert (await store.load(one.session_key)).status == "succeeded"
      assert await store.load("refused") is None

  asyncio.run(main())


def test_a_record_that_nothing_takes_is_said_to_have_failed_and_is_made_after_the_lease(tmp_path):
  async def main():
    async with opened(sqlite_url(tmp_path), tmp_path, lease_s=0.3, heartbeat_s=0.1) as (pool, store):
      whole, store.finish = store.finish, None

      async def full(key, trace):
        store.let_go(key)
        raise StoreFull("no room")

      store.finish = full
      (result,) = await ran(pool, "a")
      assert (result.answer, result.status, result.storage_status) == ("4", "succeeded", "failed")
      assert "no room" in result.problem and (await store.load("a")).status == "running"
      store.finish = whole
      await asyncio.sleep(0.5)
      (again,) = await pool.resume()
      assert (again.answer, again.storage_status, again.resumed) == ("4", "stored", True)
      assert (await store.load("a")).status == "succeeded"

  asyncio.run(main())


def test_one_write_that_cannot_be_made_fails_alone(store_url, tmp_path):
  async def main():
    async with opened(store_url, tmp_path) as (pool, store):
      entries = [{"id": "x", "n": float("nan") if number == 5 else 1} for number in range(12)]
      found = await asyncio.gather(*(store.write_playbook(f"k{number}", 0, [one])
                                     for number, one in enumerate(entries)), return_exceptions=True)
      assert [one is True for one in found] == [number != 5 for number in range(12)]
      assert isinstance(found[5], StoreError) and "cannot be stored" in str(found[5])
      await store.begin("a", "t", {})
      store.append(SessionEvent("a", 0, float("nan"), "session", "START", "runtime", 0, None))
      with pytest.raises(StoreFull, match="neither in the store nor in the spool"):
        await store.flush("a")
      assert {one.storage_status for one in await ran(pool, "bc")} == {"stored"}

  asyncio.run(main())


@pytest.mark.parametrize("key, metadata, said", [
    ("", {}, "must be a text of 1 to 200"), ("a\0", {}, "without NUL"), ("a" * 201, {}, "1 to 200"),
    ("a", {"when": object()}, "give values of JSON alone")])
def test_what_cannot_be_stored_is_refused_before_the_agent_is_asked(tmp_path, key, metadata, said):
  script = Script("4")

  async def main():
    async with opened(sqlite_url(tmp_path), tmp_path, given=parts(script, lane="auto")) as (pool, _):
      with pytest.raises(ValueError, match=said):
        await pool.run(SessionSpec(key, "2+2", metadata=metadata))

  asyncio.run(main())
  assert not script.asked


def test_tasks_and_metadata_of_any_text_are_stored(store_url, tmp_path):
  task = "2\0+\ud8002"

  async def main():
    async with opened(store_url, tmp_path, given=parts(Script("4\0"), lane="auto")) as (pool, store):
      spec = SessionSpec("a", task, metadata={"n": float("inf"), "t": "\0"})
      first, again = await pool.run(spec), await pool.run(spec)
      assert first.storage_status == again.storage_status == "stored" and again.resumed
      assert (await store.record(first.session_id)).task == "2\ufffd+\ufffd2"

  asyncio.run(main())


def test_a_key_of_another_tenant_or_task_gives_nothing_away(tmp_path):
  async def main():
    async with opened(sqlite_url(tmp_path), tmp_path) as (pool, _):
      running = pool.submit(SessionSpec("a", "2+2", tenant="x"))
      for other in (SessionSpec("a", "2+2", tenant="y"), SessionSpec("a", "3+3", tenant="x")):
        with pytest.raises(KeyTaken, match="taken by another task or tenant"):
          pool.submit(other)
      await running.result()
      for other in (SessionSpec("a", "2+2", tenant="y"), SessionSpec("a", "3+3", tenant="x")):
        with pytest.raises(KeyTaken, match="taken by another task or tenant"):
          await pool.run(other)

  asyncio.run(main())


def test_a_session_that_is_cancelled_before_it_begins_leaves_its_key_free(tmp_path):
  async def main():
    async with opened(sqlite_url(tmp_path), tmp_path) as (pool, store):
      spec = SessionSpec("a", "2+2", ground_truth="4")
      task = asyncio.ensure_future(pool.run(spec))
      await asyncio.sleep(0)
      task.cancel()
      await asyncio.gather(task, return_exceptions=True)
      assert pool.waiting == 0 and (await pool.run(spec)).status == "cancelled"
      task = asyncio.ensure_future(pool.run(SessionSpec("c", "2+2")))
      task.cancel()  # Before a line of it has run.
      await asyncio.gather(task, return_exceptions=True)
      assert await store.load("c") is None and (await pool.run(SessionSpec("c", "2+2"))).answer == "4"
      held = pool.submit(SessionSpec("b", "2+2", ground_truth="4"))
      joined = asyncio.ensure_future(pool.run(SessionSpec("b", "2+2", ground_truth="4")))
      await asyncio.sleep(0)
      joined.cancel()  # The other one still waits for it.
      assert (await held.result()).answer == "4" and (await store.load("b")).status == "succeeded"

  asyncio.run(main())


def test_a_sink_that_raises_is_taken_off(tmp_path):
  seen: list[SessionEvent] = []

  def broken(event):
    raise RuntimeError("boom")

  async def main():
    async with opened(sqlite_url(tmp_path), tmp_path, sinks=[broken, seen.append]) as (pool, _):
      return await ran(pool, "ab")

  results = asyncio.run(main())
  assert {(one.answer, one.status) for one in results} == {("4", "succeeded")}
  assert {one.session_key for one in seen} == {"a", "b"}


def test_what_is_spooled_while_a_session_is_stored_is_kept(tmp_path):
  spool, other = Spool(tmp_path), Spool(tmp_path)
  spool.put("a", [{"op": "begin"}])
  adds = threading.Thread(target=other.put, args=("a", [{"op": "finish"}]))
  with spool.taken("a") as operations:
    adds.start()  # Of another process, say: it waits for the lock, and finds the file gone.
    adds.join(0.1)
    assert [one["op"] for one in operations] == ["begin"] and adds.is_alive()
  adds.join()
  assert [one["op"] for one in spool.operations("a")] == ["finish"] and spool.waiting() == ["a"]
  with pytest.raises(RuntimeError), spool.taken("a"):
    raise RuntimeError("not stored")
  assert len(spool) == 1
  with spool.taken("b") as operations:
    assert operations == []


def test_a_process_takes_over_with_what_the_dead_one_spooled(tmp_path):
  """The answer of a session stands in the spool alone."""
  async def main():
    async with opened(sqlite_url(tmp_path), tmp_path, lease_s=0.3, heartbeat_s=0.1) as (_, store):
      await store.begin("a", "2+2", {"ground_truth": "4"})
    found: list[SessionEvent] = []
    log = EventLog("a", found.append)
    log.emit("session", "START", span=log.span())
    log.emit("route", "POINT", span=log.span(), data={"lane": "auto"})
    log.emit("answered", "POINT", span=log.span(), data={"answer": "4", "verified": None,
                                                         "status": "succeeded"})
    rows = [{name: value for name, value in one.to_json().items() if name != "session_key"} for one in found]
    Spool(tmp_path / "spool").put("a", [{"op": "events", "events": rows}])
    await asyncio.sleep(0.4)
    async with opened(sqlite_url(tmp_path), tmp_path) as (pool, store):
      (result,) = await pool.resume()
      assert (result.answer, result.status, result.reward, len(store.spool)) == ("4", "succeeded", 1.0, 0)

  asyncio.run(main())


def test_to_forget_a_tenant_reaches_the_spool_of_sessions_that_began_in_the_store(tmp_path):
  async def main():
    async with opened(sqlite_url(tmp_path), tmp_path) as (_, store):
      await store.begin("a", "secret task", {"tenant_id": "x"})
      store.spool.put("a", [{"op": "events", "events": []}])
      assert await store.forget(tenant="x") == (1, 0) and len(store.spool) == 0
      await store.begin("b", "other", {"tenant_id": "y"})

  asyncio.run(main())
  for file in tmp_path.glob("t.db*"):
    assert b"secret task" not in file.read_bytes(), file
  with sqlite3.connect(tmp_path / "t.db") as connection:
    assert connection.execute("SELECT COUNT(*) FROM sessions").fetchone() == (1,)
