"""Faults of every part of a session but the store's: no answer is lost, and what is said of it is true."""
import asyncio
import dataclasses
import json
import types

import pytest

from atlas_jax.rollout.endpoint import EndpointError
from atlas_jax.runtime import routing
from atlas_jax.runtime.chat_models import FunctionModel
from atlas_jax.runtime.pool import Pool
from atlas_jax.runtime.result import STATUSES
from atlas_jax.runtime.routing import HistoryRouter
from atlas_jax.runtime.session import SessionSpec
from atlas_jax.runtime.store import RuntimeStore, StoreSettings
from tests.runtime.parts import Script, parts, verdict


async def hang(messages):
  await asyncio.sleep(60)


FAULTS = {"slow": None, "429": EndpointError("status", 429, 3, "busy"),
          "500": EndpointError("status", 500, 3, "broken"), "hang": hang, "garbage": "\x07 {{ no json ]",
          "NUL": "4\x00", "NaN": '{"valid": NaN, "guidance": null, "confidence": NaN}', "list": ["4"]}
PARTS = ("agent", "teacher", "probe", "judge", "learner")


def faulty(fault, good):
  """A script that replies with a fault; a slow one is right, but late."""
  async def late(messages):
    await asyncio.sleep(0.02)
    return good

  return Script(late if fault == "slow" else FAULTS[fault])


def given_parts(part, fault):
  student = faulty(fault, "4") if part == "agent" else Script("4")
  teacher = faulty(fault, verdict(True)) if part == "teacher" else Script(verdict(True))
  more = {"settings": {"session_s": 10.0, "step_s": 2.0, "call_s": 1.0}}
  if part == "probe":
    more["router"] = HistoryRouter(probe=FunctionModel(faulty(fault, json.dumps({"confidence": 0.99}))))
  if part == "judge":
    script = faulty(fault, types.SimpleNamespace(score=1.0, breakdown={}, extra={}))

    async def judge(case):
      return await script([{"content": case.response}])

    more |= {"grader": None, "judges": types.SimpleNamespace(judge=judge)}
  made = parts(student, teacher, **more)
  if part == "learner":
    script = faulty(fault, None)

    async def call(work):
      return await script([])

    made = dataclasses.replace(made, lessons=types.SimpleNamespace(shown=call, learn=call))
  return made


def run_all(tmp_path, part):
  """Runs a session with each fault of a part, all at once; returns (result, stored, events) by fault."""
  async def main():
    store = RuntimeStore(StoreSettings(url=f"sqlite:///{tmp_path}/t.db", spool=str(tmp_path / "spool")))
    await store.open(create=True)
    pool = Pool(lambda spec: given_parts(part, spec.key), store)
    specs = [SessionSpec(fault, "2+2", ground_truth="4") for fault in FAULTS]
    results = await asyncio.gather(*map(pool.run, specs))
    found = {one.session_key: (one, await store.record(one.session_id), await store.load(one.session_key))
             for one in results}
    await pool.close()
    await store.close()
    return found

  return asyncio.run(main())


@pytest.mark.parametrize("part", PARTS)
def test_no_fault_of_a_part_loses_an_answer(tmp_path, part, monkeypatch):
  monkeypatch.setattr(routing, "PROBE_S", 1.0)
  for fault, (result, trace, stored) in run_all(tmp_path, part).items():
    case = f"{part} {fault}: {result}"
    assert result.status in STATUSES and result.storage_status == "stored", case
    assert trace.status == stored.status == result.status, case
    assert trace.final_answer == (result.answer or ""), case
    starts = [one["span"] for one in stored.events if one["kind"] == "START"]
    assert sorted(starts) == sorted(one["span"] for one in stored.events if one["kind"] == "END"), case
    assert [one["seq"] for one in stored.events] == list(range(len(stored.events))), case
    check = {"agent": agent_said, "teacher": teacher_said, "judge": judge_said}.get(part, others_said)
    check(part, fault, result, case)


def agent_said(part, fault, result, case):
  if fault in ("429", "500", "hang"):
    assert (result.answer, result.verified, result.status) == (None, None, "failed") and result.problem, case
    assert {one.status for one in result.attempts} == {"errored"} and result.reward is None, case
  else:  # Whatever it says is its answer.
    assert result.answer is not None and "\x00" not in result.answer and result.status == "succeeded", case
    assert result.reward == 1.0 if fault == "slow" else result.reward in (0.0, 1.0), case


def teacher_said(part, fault, result, case):
  assert (result.answer, result.status, result.reward) == ("4", "succeeded", 1.0), case
  assert result.verified is (True if fault == "slow" else None), case
  assert {one.status for one in result.attempts} == {"passed" if fault == "slow" else "unverified"}, case
  assert fault == "slow" or all(one.problem for one in result.attempts), case


def judge_said(part, fault, result, case):
  assert (result.answer, result.status, result.verified) == ("4", "succeeded", True), case
  if fault == "slow":
    assert (result.reward, result.reward_status) == (1.0, "ok"), case
  else:  # An outage is no score of 0.
    assert (result.reward, result.reward_status) == (None, "no_verdict") and result.reward_reason, case


def others_said(part, fault, result, case):
  assert (result.answer, result.status, result.verified, result.reward) == ("4", "succeeded", True, 1.0), case
  if part == "probe":  # Nothing is known of this agent: no word of a model lets it go unsupervised.
    assert result.lane == "paired", case
  elif fault in ("429", "500", "hang"):
    assert "learning failed" in result.problem, case
