"""The runtime in Python: one task, many, and what watches them."""
import asyncio
import json
import urllib.request

import pytest

from atlas_jax.runtime import Runtime, arun, run
from atlas_jax.runtime import settings as runtime_settings
from atlas_jax.runtime.store import RuntimeStore
from tests.pages import ROOT

ARITHMETIC = f"{ROOT}/configs/runtime.py:arithmetic"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)


def config(**telemetry):
  made = runtime_settings.read(ARITHMETIC)
  made.telemetry.update(telemetry)
  return made


def test_one_task_is_run_and_its_events_are_published(capsys):
  seen = []
  result = run("12+34=", ARITHMETIC, {"mine": 1}, stream_progress=True, publisher=seen.append)
  assert (result.answer, result.status, result.lane) == ("46", "succeeded", "paired")
  assert result.storage_status == "stored"
  assert [one.name for one in seen][:2] == ["session", "route"] and seen[-1].kind == "END"
  assert "agent_call" in capsys.readouterr().err


def test_a_publisher_that_raises_fails_no_session():
  def publish(event):
    raise RuntimeError("boom")

  assert run("12+34=", ARITHMETIC, publisher=publish).answer == "46"


def test_inside_a_loop_the_remedy_is_named():
  async def main():
    with pytest.raises(RuntimeError, match="await arun"):
      run("1+1=", ARITHMETIC)
    return await arun("1+1=", ARITHMETIC)

  assert asyncio.run(main()).answer == "2"


def test_many_are_watched(tmp_path):
  async def main():
    given = config(events_file=str(tmp_path / "events.jsonl"), folder=str(tmp_path / "run"), every_s=0.05)
    async with Runtime(given) as runtime:
      results = await asyncio.gather(*(runtime.run(f"1{n}+23=", ground_truth=str(33 + n)) for n in range(8)))
      await asyncio.sleep(0.15)
    return results

  results = asyncio.run(main())
  assert {one.reward for one in results} <= {0.0, 1.0}
  rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
  assert rows[-1]["step"] == rows[-1]["runtime/sessions"] == 8 and "runtime/verified_share" in rows[-1]
  events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
  assert len({one["session_key"] for one in events}) == 8


@pytest.mark.parametrize(("reap_s", "key", "ends"), [
    (0.05, None, "succeeded"), (0.05, "default/of-another-agent", "abandoned"), (None, None, "running")])
def test_sessions_whose_process_is_gone_are_taken_up_meanwhile(tmp_path, caplog, reap_s, key, ends):
  given = config()
  given.store.update(lease_s=0.1, heartbeat_s=0.05, reap_s=reap_s)
  settings = runtime_settings.of_config(given)

  async def main():
    gone = RuntimeStore(settings.store)
    await gone.open(create=True)
    of = {} if key is None else {"learning_key": key}
    await gone.begin("cut", "12+34=", {"tenant_id": "default", "ground_truth": "46", **of})
    gone.let_go("cut")  # Nobody works at it, as after a kill.
    await gone.close()
    async with Runtime(settings) as runtime:
      store = runtime._assembly.store
      for _ in range(400):
        found = await store.load("cut")
        if found.status != "running" or reap_s is None:
          break
        await asyncio.sleep(0.05)
      return found.status, await store.record(found.id)

  status, trace = asyncio.run(main())
  # Without looks `atlas run` takes it up at its start, or `atlas resume`.
  assert status == ends and ("1 sessions whose process is gone" in caplog.text) == (reap_s is not None)
  assert ends == "running" or trace.final_answer == ("46" if key is None else "")


def test_a_store_that_is_down_does_not_end_the_looks_for_sessions(tmp_path, caplog):
  given = config()
  given.store.reap_s = 0.02

  async def main():
    async with Runtime(given) as runtime:
      store, asked = runtime._assembly.store, []

      async def claim(most):
        asked.append(most)
        raise OSError("down")

      store.claim_expired = claim
      for _ in range(200):
        if len(asked) > 1:
          break
        await asyncio.sleep(0.02)
      return len(asked)

  assert asyncio.run(main()) > 1 and "cannot be looked for: down" in caplog.text


def test_events_are_served_from_any_number_on(tmp_path):
  pytest.importorskip("starlette")
  import socket

  with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]

  def read(key, after):
    url = f"http://127.0.0.1:{port}/sessions/{key}/events?after={after}"
    with urllib.request.urlopen(url, timeout=20) as answer:
      lines = answer.read().decode().splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]

  async def main():
    async with Runtime(config(port=port)) as runtime:
      await runtime.run("12+34=", key="a")
      for _ in range(100):
        try:
          return [await asyncio.to_thread(read, "a", after) for after in (-1, 3)]
        except OSError:
          await asyncio.sleep(0.1)

  whole, rest = asyncio.run(main())
  assert [one["seq"] for one in whole] == list(range(len(whole))) and rest == whole[4:]


@pytest.mark.parametrize("changed, said", [
    ({"proxy.token_variable": "NO_SUCH"}, "config.proxy.token_variable=NO_SUCH"),
    ({"redaction.environment": "NO_SUCH"}, "NO_SUCH, so that it cannot be looked for"),
    ({"learner.kind": "function", "learner.function": "a:b"}, "config.lessons.on=False"),
    ({"store.reap_s": "0"}, "config.store.reap_s=0.0 must be above 0"),
    ({"telemetry.port": "70000"}, "config.telemetry.port=70000"),
    ({"telemetri.port": "1"}, "telemetri.port")])
def test_settings_that_cannot_be_are_refused(changed, said):
  with pytest.raises(ValueError, match=said):
    Runtime(ARITHMETIC, overrides=changed)


def test_a_config_of_training_is_none_of_the_runtime():
  with pytest.raises(ValueError, match="is a config of training"):
    run("1+1=", f"{ROOT}/configs/sft.py:cpu")
