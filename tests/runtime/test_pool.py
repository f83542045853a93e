"""Many sessions at once: none lost, equal keys joined, limits held, and what a crash cut off taken up."""
import asyncio
import dataclasses
import os
import signal
import subprocess
import sys

import pytest

from atlas_jax.runtime import session as sessions
from atlas_jax.runtime.events import EventLog
from atlas_jax.runtime.pool import Pool, PoolSettings, QueueFull
from atlas_jax.runtime.session import SessionSpec
from atlas_jax.runtime.store import RuntimeStore, StoreSettings
from tests.runtime.parts import Script, agent_of, parts, verdict


def teacher(messages):
  return verdict(messages[-1]["content"].rstrip().endswith("4"), "Carry.")


def student(messages):
  return "4" if len(messages) > 1 else "3"


def with_pool(url, tmp_path, work, *, given=None, pool=None, **more):
  async def main():
    store = RuntimeStore(StoreSettings(url=url, spool=str(tmp_path / "spool"), **more))
    await store.open(create=True)
    made = Pool(given or parts(Script(student), Script(teacher)), store, settings=pool)
    try:
      return await work(made, store)
    finally:
      await made.close()
      await store.close()

  return asyncio.run(main())


def test_five_hundred_sessions_at_once_end_and_are_stored(store_url, tmp_path):
  async def work(pool, store):
    found = [pool.submit(SessionSpec(f"s{number}", "2+2", ground_truth="4")) for number in range(500)]
    results = [await one.result() for one in found]
    assert {(one.answer, one.verified, one.status, one.storage_status) for one in results} == {
        ("4", True, "succeeded", "stored")}
    assert len({one.session_id for one in results}) == 500 and store.transactions < 500
    return [(await store.load(f"s{number}")).status for number in (0, 250, 499)]

  assert with_pool(store_url, tmp_path, work, pool=PoolSettings(tenant=500)) == ["succeeded"] * 3


def test_a_key_that_runs_is_joined_and_one_that_ended_is_read(tmp_path):
  script = Script(student)

  async def work(pool, store):
    spec = SessionSpec("a", "2+2", ground_truth="4")
    first, second = await asyncio.gather(pool.run(spec), pool.run(spec))
    again = await pool.run(spec)
    return first, second, again

  first, second, again = with_pool(f"sqlite:///{tmp_path}/t.db", tmp_path, work,
                                   given=parts(script, Script(teacher)))
  assert first == second and len(script.asked) == 2 and again.resumed
  assert (again.answer, again.verified, again.reward, again.session_id) == ("4", True, 1.0, first.session_id)
  assert [one.answer for one in again.attempts] == ["3", "4"]


def test_limits_hold_and_a_full_queue_is_refused(tmp_path):
  running = []

  async def slow(messages):
    running.append(1)
    peak.append(len(running))
    await asyncio.sleep(0.01)
    running.pop()
    return "4"

  peak: list[int] = []

  async def work(pool, store):
    specs = [SessionSpec(f"s{number}", "2+2", tenant="ab"[number % 2]) for number in range(12)]
    submitted = [pool.submit(one) for one in specs[:8]]
    with pytest.raises(QueueFull, match="pool.queue=8"):
      pool.submit(specs[9])
    return [await one.result() for one in submitted]

  with_pool(f"sqlite:///{tmp_path}/t.db", tmp_path, work, given=parts(Script(slow), lane="auto"),
            pool=PoolSettings(sessions=3, tenant=2, queue=8))
  assert max(peak) <= 3


def test_the_answer_is_there_before_the_reward(tmp_path):
  held = asyncio.Event()

  class Judges:
    async def judge(self, case):
      await held.wait()
      raise RuntimeError("no judge")

  async def work(pool, store):
    one = pool.submit(SessionSpec("a", "2+2"))
    answer = await one.answer()
    held.set()
    return answer, await one.result()

  answer, end = with_pool(f"sqlite:///{tmp_path}/t.db", tmp_path, work,
                          given=parts(Script("4"), Script(verdict(True)), judges=Judges()))
  assert (answer.answer, answer.reward_status) == ("4", "pending") and end.reward_status == "no_verdict"


def test_cancelled_sessions_are_recorded(tmp_path):
  async def hang(messages):
    await asyncio.sleep(60)

  async def work(pool, store):
    task = asyncio.create_task(pool.run(SessionSpec("a", "2+2")))
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return (await store.load("a")).status

  assert with_pool(f"sqlite:///{tmp_path}/t.db", tmp_path, work, given=parts(Script(hang))) == "cancelled"


def test_parts_are_chosen_for_each_session(tmp_path):
  def choose(spec):
    return parts(Script(spec.key), lane="auto", versions={"student": spec.key})

  async def work(pool, store):
    return [await pool.run(SessionSpec(key, "2+2")) for key in "ab"]

  found = with_pool(f"sqlite:///{tmp_path}/t.db", tmp_path, work, given=choose)
  assert [(one.answer, one.versions["student"]) for one in found] == [("a", "a"), ("b", "b")]


CUT = [("answered", "succeeded", "4"), ("validate", "abandoned", None), ("agent_call", "abandoned", None)]


@pytest.mark.parametrize("last, status, answer", CUT)
def test_a_session_that_was_cut_off_ends_once(tmp_path, last, status, answer):
  """Events up to the last one of a name are stored, and then its process is gone."""
  url = f"sqlite:///{tmp_path}/t.db"

  async def first(pool, store):
    await store.begin("a", "2+2", {"ground_truth": "4", "mine": 1})
    events = []
    given = parts(Script(student), Script(teacher))
    await sessions.run_session(SessionSpec("a", "2+2", ground_truth="4"), given, EventLog("a", events.append))
    stop = max(one.seq for one in events if one.name == last)
    for one in events[:stop + 1]:
      store.append(one)
    await store.flush("a")

  with_pool(url, tmp_path, first, lease_s=0.1, heartbeat_s=0.05)

  async def second(pool, store):
    await asyncio.sleep(0.2)
    found = await pool.resume()
    assert await pool.resume() == []
    return found, await store.load("a")

  script = Script("5")
  (found,), stored = with_pool(url, tmp_path, second, given=parts(script, Script(teacher)))
  assert (found.status, found.answer, stored.status) == (status, answer, status) and not script.asked
  assert found.reward == (1.0 if answer else None) and stored.metadata["mine"] == 1


def test_an_idempotent_agent_is_asked_again(tmp_path):
  url = f"sqlite:///{tmp_path}/t.db"

  async def first(pool, store):
    await store.begin("a", "2+2", {"ground_truth": "4"})
    store.append(EventLog("a", print).emit("session", "START", span=0))
    await store.flush("a")

  with_pool(url, tmp_path, first, lease_s=0.1, heartbeat_s=0.05)

  async def second(pool, store):
    await asyncio.sleep(0.2)
    return await pool.resume()

  given = parts(Script(student), Script(teacher))
  given.agent.idempotent = True
  (found,) = with_pool(url, tmp_path, second, given=given)
  assert (found.answer, found.status, found.reward, found.resumed) == ("4", "succeeded", 1.0, True)


VICTIM = """
import asyncio, sys
from tests.runtime.test_pool import student, teacher
from tests.runtime.parts import Script, parts
from atlas_jax.runtime.pool import Pool
from atlas_jax.runtime.session import SessionSpec
from atlas_jax.runtime.store import RuntimeStore, StoreSettings

async def slow(messages):
  await asyncio.sleep(0.002)
  return student(messages)

async def main():
  store = RuntimeStore(StoreSettings(url=sys.argv[1], spool=sys.argv[2], lease_s=0.2, heartbeat_s=0.1,
                                     batch_s=0.01))
  await store.open(create=True)
  pool = Pool(parts(Script(slow), Script(teacher)), store)
  print("ready", flush=True)

  async def one(number):
    result = pool.submit(SessionSpec(f"s{number}", "2+2", ground_truth="4"))
    found = await result.answer()
    print(found.session_key, found.answer, flush=True)
    await result.result()

  for first in range(0, 100_000, 20):
    await asyncio.gather(*(one(number) for number in range(first, first + 20)))

asyncio.run(main())
"""


@pytest.mark.parametrize("answers", [0, 7, 45])
def test_killed_at_any_moment_every_session_ends_and_no_answer_is_lost(tmp_path, answers):
  """After so many answers were given, which leaves others at any point."""
  url = f"sqlite:///{tmp_path}/t.db"
  environment = {**os.environ, "PYTHONPATH": os.getcwd()}
  with subprocess.Popen([sys.executable, "-c", VICTIM, url, str(tmp_path / "spool")], stdout=subprocess.PIPE,
                        text=True, env=environment) as process:
    lines = [process.stdout.readline() for _ in range(answers + 1)]
    process.send_signal(signal.SIGKILL)
    lines += process.stdout.read().splitlines()
  assert lines[0] == "ready\n"
  told = dict(line.split() for line in lines[1:] if len(line.split()) == 2)

  async def work(pool, store):
    await asyncio.sleep(0.3)
    await pool.resume()
    ended = {}
    for number in range(len(told) + 25):
      found = await store.load(f"s{number}")
      if found is not None:
        ended[f"s{number}"] = found.status, (await store.record(found.id)).final_answer
    return ended

  ended = with_pool(url, tmp_path, work)
  assert len(told) >= answers
  assert {status for status, _ in ended.values()} <= {"succeeded", "abandoned"}
  for key, answer in told.items():
    assert ended[key] == ("succeeded", answer)


def test_secrets_reach_no_store(tmp_path):
  """In task, metadata, answer and guidance; the agent is shown them, for it may need them."""
  secret = "sk-abcdefghijklmnop1234"
  script = Script(f"It is {secret}.", "4")

  async def work(pool, store):
    spec = SessionSpec("a", f"Use {secret}", metadata={"note": f"my {secret}", "api_key": "hunter2hunter2"})
    return await pool.run(spec)

  given = parts(script, Script(verdict(False, f"Not {secret}."), verdict(True)))
  result = with_pool(f"sqlite:///{tmp_path}/t.db", tmp_path, work, given=given)
  assert result.answer == "4" and secret in script.asked[0][0]["content"]
  kept = b"".join(one.read_bytes() for one in tmp_path.rglob("*") if one.is_file())
  assert b"[redacted]" in kept and secret.encode() not in kept and b"hunter2" not in kept


def test_settings_that_cannot_be_are_refused():
  with pytest.raises(ValueError, match="pool.queue=0"):
    PoolSettings(queue=0)
  assert dataclasses.asdict(PoolSettings())["tenant"] == 32 and agent_of(Script("x")).name == "scripted"
