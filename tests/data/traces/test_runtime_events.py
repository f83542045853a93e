"""Events of the runtime in the SDK's form, and in exports."""
import json

import pytest

from atlas_jax.data.traces import export, runtime_events, runtime_rows
from atlas_jax.data.traces.query import SessionQuery
from atlas_jax.data.traces.store import open_store
from atlas_jax.runtime.events import ACTORS, KINDS, NAMES, EventLog
from tests.stores import read_json

EVENTS = [("session", "START", {"lane": "auto"}), ("route", "POINT", {"lane": "auto"}), ("step", "START", {}),
          ("agent_call", "START", {"messages": 1}), ("agent_call", "CHUNK", {"text": "4"}),
          ("agent_call", "END", {"answer": "4"}), ("validate", "END", {"valid": True, "guidance": "Good."}),
          ("session", "END", {"status": "succeeded"})]


def written():
  found = []
  log = EventLog("a", found.append, clock=lambda: 1_700_000_000.0)
  for name, kind, data in EVENTS:
    is_step = name in ("step", "agent_call", "validate")
    log.emit(name, kind, actor="student" if is_step else "runtime", span=log.span(), parent=0,
             step=1 if is_step else None, attempt=1 if name == "agent_call" else None, data=data)
  return [{name: value for name, value in one.to_json().items() if name != "session_key"} for one in found]


def test_events_have_the_names_and_the_shape_of_the_sdk():
  found = runtime_events.rendered(written(), task="2+2", answer="4")
  assert [(one["event"]["payload"]["event_type"], one["event"]["payload"]["name"]) for one in found] == [
      ("WORKFLOW_START", "orchestration"), ("CUSTOM_END", "adaptive_route"), ("TASK_START", "step_1"),
      ("TASK_START", "agent"), ("SPAN_CHUNK", "agent"), ("TASK_END", "agent"), ("CUSTOM_END", "validation"),
      ("WORKFLOW_END", "orchestration")]
  first, last = (found[place]["event"]["payload"] for place in (0, -1))
  assert first["data"]["input"]["task"] == "2+2" and last["data"]["output"]["final_answer"] == "4"
  assert found[5]["event"]["payload"]["metadata"] == {"actor": "student", "step": 1, "attempt": 1}
  assert [one["id"] for one in found] == list(range(1, len(EVENTS) + 1))
  recorded = json.loads(read_json("store_rows.json")["fetch_trajectory_events"]["1"][0]["event"])
  assert set(found[0]["event"]) <= set(recorded) and set(first) <= set(recorded["payload"])
  assert set(first["data"]) == set(recorded["payload"]["data"])


def test_every_event_of_the_runtime_has_a_form():
  for name in NAMES:
    for kind in KINDS:
      for actor in ACTORS:
        event = {"seq": 0, "at": 0.0, "name": name, "kind": kind, "actor": actor, "span": 0, "step": 2}
        (found,) = runtime_events.rendered([event], task="t", answer=None)
        payload = found["event"]["payload"]
        assert payload["event_type"].rpartition("_")[2] in ("START", "END", "CHUNK") and payload["name"]


@pytest.mark.parametrize("most, count", [(None, len(EVENTS)), (3, 3), (0, 0)])
def test_an_export_has_the_events_of_the_runtime(store_url, tmp_path, most, count):
  with open_store(store_url, writable=True, create=True) as store:
    with store.database.writing() as transaction:
      now = runtime_rows.now()
      number, _ = runtime_rows.begin(transaction, "a", "2+2", {}, owner="o", until=now)
      runtime_rows.put_events(transaction, [(number, one["seq"], one) for one in written()])
    query = SessionQuery(review_statuses=None, most_events=most)
    for form in ("plain", "sdk"):
      export.export(store, tmp_path / form, query, form=form)
    (trace,) = [json.loads(line) for line in (tmp_path / "plain").read_text().splitlines()]
    assert len(trace.get("trajectory_events") or []) == count
    if most == 3:
      assert [one["id"] for one in trace["trajectory_events"]] == [6, 7, 8]
    assert "trajectory_events" not in store.session(number).record()  # What training reads has them once.
