"""The router of a process: what counts as history, what a probe is shown, and audits by chance."""
import asyncio
import json
import pathlib

import pytest

from atlas_jax.data.traces.query import SessionQuery
from atlas_jax.data.traces.review import decide
from atlas_jax.data.traces.store import open_store
from atlas_jax.runtime import fingerprint
from atlas_jax.runtime.chat_models import FunctionModel
from atlas_jax.runtime.pool import SessionPool
from atlas_jax.runtime.route import Dossier, RoutePolicy
from atlas_jax.runtime.routing import HistoryRouter, Strictest
from atlas_jax.runtime.session import FixedLane, SessionSpec
from atlas_jax.runtime.store import RuntimeStore, StoreSettings
from tests.runtime.parts import Script, parts, verdict

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures/runtime/persona_memory.json"


def run(url, tmp_path, make, specs, versions=None):
  """Runs sessions one after another with a router that `make` makes of the store; returns their results."""
  async def main():
    store = RuntimeStore(StoreSettings(url=url, spool=str(tmp_path / "spool")))
    await store.open(create=True)
    given = parts(Script("4"), Script(verdict(True)), router=make(store),
                  versions=versions or {"student": "1"})
    pool = SessionPool(given, store)
    try:
      return [await pool.run(one) for one in specs]
    finally:
      await store.close()

  return asyncio.run(main())


def of(count, *, start=0, truth="4", key="t/f", **more):
  return [SessionSpec(f"{key}{number}", "2+2", ground_truth=truth, learning_key=key, **more)
          for number in range(start, start + count)]


def clocked(**more):
  ticks = iter(range(0, 100_000, 1_000))  # What is known is read anew each time.
  return lambda store: HistoryRouter(store=store, clock=lambda: next(ticks), **more)


def test_graded_sessions_of_the_same_versions_lead_to_auto(tmp_path):
  url = f"sqlite:///{tmp_path}/t.db"
  lanes = [one.lane for one in run(url, tmp_path, clocked(), of(9))]
  assert lanes == ["paired"] * 6 + ["auto"] * 3
  (other,) = run(url, tmp_path, clocked(), of(1, start=20), versions={"student": "2"})
  assert other.lane == "paired"
  (stranger,) = run(url, tmp_path, clocked(), of(1, key="t/g"))
  assert stranger.lane == "paired"


def test_what_review_has_not_let_pass_is_no_history(tmp_path):
  """Without a grade only approved sessions count, and a quarantined one counts not even with one."""
  url = f"sqlite:///{tmp_path}/t.db"
  run(url, tmp_path, clocked(), of(8, truth=None))
  assert run(url, tmp_path, clocked(), of(1, start=20, truth=None))[0].lane == "paired"
  with open_store(url, writable=True) as store:
    ids = [one.id for page in store.pages(SessionQuery(review_statuses=None)) for one in page]
    for number in ids:
      decide(store, number, "approved", who="ada")
  assert run(url, tmp_path, clocked(), of(1, start=30, truth=None))[0].lane == "auto"
  with open_store(url, writable=True) as store:
    for number in ids:
      decide(store, number, "quarantined", who="ada", note="planted")
  assert run(url, tmp_path, clocked(), of(1, start=40, truth=None))[0].lane == "paired"


def test_auto_does_not_prove_itself(tmp_path):
  url = f"sqlite:///{tmp_path}/t.db"
  run(url, tmp_path, lambda store: FixedLane("auto"), of(9, truth=None))
  with open_store(url, writable=True) as store:
    for page in store.pages(SessionQuery(review_statuses=None)):
      for one in page:
        decide(store, one.id, "approved", who="ada")
  assert run(url, tmp_path, clocked(), of(1, start=20, truth=None))[0].lane == "paired"


def test_audits_are_a_share_by_the_key():
  async def routes(fraction):
    router = HistoryRouter(RoutePolicy(audit_fraction=fraction, least=1, auto_lower=0.0, coach_below=0.0,
                                       escalate_below=0.0))

    class Work:
      pass

    found = []
    for number in range(400):
      work = Work()
      work.spec = SessionSpec(f"k{number}", "t")
      router._evidence = lambda _: _evidence()
      found.append((await router.decide(work))["audit"])
    return sum(found)

  async def _evidence():
    from atlas_jax.runtime.evidence import Evidence
    return Evidence((True,) * 9)

  assert asyncio.run(routes(0.0)) == 0 and asyncio.run(routes(1.0)) == 400
  assert 8 <= asyncio.run(routes(0.05)) <= 35


@pytest.mark.parametrize("reply, lane", [
    ({"mode": None, "confidence": 0.1}, "escalate"), ({"mode": "coach", "confidence": 1}, "coach"),
    ("no json", "paired"), (RuntimeError("down"), "paired")])
def test_a_probe_is_asked_and_its_failure_is_told(tmp_path, reply, lane):
  probe = Script(json.dumps(reply) if isinstance(reply, dict) else reply)
  (found,) = run(f"sqlite:///{tmp_path}/t.db", tmp_path, clocked(probe=FunctionModel(probe)), of(1))
  assert found.lane == lane and "probe" in found.tokens or isinstance(reply, RuntimeError)
  assert json.loads(probe.asked[0][1]["content"]) == {"task": "2+2", "outcomes": {"right": 0, "n": 0}}


def test_triage_that_fails_is_of_high_risk_and_metadata_can_only_be_stricter(tmp_path):
  url = f"sqlite:///{tmp_path}/t.db"
  run(url, tmp_path, clocked(), of(9))

  def broken(task, metadata):
    raise RuntimeError("boom")

  def critical(task, metadata):
    return Dossier("pump", ({"severity": "critical"},))

  lanes = [run(url, tmp_path, clocked(triage=one), of(1, start=start))[0].lane
           for start, one in ((20, broken), (30, critical), (40, lambda task, metadata: Dossier()))]
  assert lanes == ["paired", "escalate", "auto"]
  (found,) = run(url, tmp_path, clocked(), of(1, start=50, metadata={"risks": [{"severity": "critical"}]}))
  assert found.lane == "escalate"


def test_a_least_lane_holds(tmp_path):
  url = f"sqlite:///{tmp_path}/t.db"
  run(url, tmp_path, clocked(), of(9))
  (found,) = run(url, tmp_path, lambda store: Strictest(clocked()(store), "coach"), of(1, start=20))
  assert found.lane == "coach"


def test_fingerprints_change_with_what_they_are_of():
  for case in json.loads(FIXTURE.read_text())["fingerprints"]:
    given = case["inputs"]
    assert fingerprint.fingerprint_v0(given["agent_name"], given["tenant_id"], given["tools"],
                                      given["task_tags"]) == case["sha256"]
  same = {"student_version": "1", "prompt_sha": "p", "tools_sha": "t"}
  first = fingerprint.fingerprint("a", "t", ["x", "y"], ["b"], **same)
  assert first == fingerprint.fingerprint("a", "t", ["y", "x"], ["b"], **same)
  others = {fingerprint.fingerprint("a", "t", ["x"], ["b"], **{**same, name: "other"}) for name in same}
  assert len(others | {first}) == 4
