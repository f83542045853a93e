"""Records become rows and records again: nothing is lost, and the review is that of the rows."""
import copy
import json

import hypothesis
import pytest
from hypothesis import strategies as st

from atlas_jax.data.traces import rows, storable
from atlas_jax.data.traces.record import Trace
from tests import stores

EDGES = stores.read_json("ingest_edge_cases.json")


def written(record):
  """The canonical JSON of a record, but for its review."""
  found = copy.deepcopy(dict(record))
  found["session_metadata"] = dict(found.get("session_metadata") or {})
  for holder in (found, found["session_metadata"]):
    for name in rows.REVIEW:
      holder.pop(name, None)
  return storable.dumps(found, sort_keys=True)


def there_and_back(record):
  """The record of the rows of a record, as JSON columns give it back."""
  split = rows.split(record)
  return rows.join(rows.SessionRows(*json.loads(storable.dumps(list(split)))))


def accepted(case):
  """The records of an edge case that are traces."""
  for line in filter(None, case["jsonl"].split("\n")):
    try:
      yield Trace.from_json(json.loads(line)).to_json()
    except ValueError:
      continue


@pytest.mark.parametrize("number", range(4))
def test_the_sdks_own_records_need_nothing_beside_the_columns(number):
  record = json.loads(stores.export_lines()[number])
  assert rows.STORE not in rows.split(record).session["metadata"]
  assert there_and_back(record) == record


def test_edge_cases_come_back_as_they_were():
  records = [record for case in EDGES for record in accepted(case)]
  assert len(records) > 20
  for record in records:
    assert written(there_and_back(rows.without_id(record))) == written(rows.without_id(record))


NUMBERS = st.integers(-10**20, 10**20) | st.floats(allow_nan=False, width=32)
SHORT = st.text(max_size=4)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | SHORT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SHORT, inner, max_size=3), max_leaves=6)
OBJECTS = st.dictionaries(SHORT, VALUES, max_size=3)
SCORES = st.none() | st.floats(0, 1)
ATTEMPTS = st.lists(st.fixed_dictionaries({}, optional={
  "attempt": st.integers(0, 3), "answer": SHORT, "evaluation": OBJECTS, "score": SCORES}), max_size=3)
NESTED = st.none() | st.dictionaries(st.sampled_from(["status", "artifacts", "trace", rows.STORE]), VALUES)
STEPS = st.lists(st.fixed_dictionaries({}, optional={
  "step_id": st.integers(-1, 3) | st.text(max_size=2), "id": st.integers(0, 3), "output": st.none() | SHORT,
  "reward": st.none() | st.dictionaries(st.sampled_from(["score", "judges", "raw"]), VALUES),
  "validation": st.none() | OBJECTS, "attempts": st.integers(0, 3) | ATTEMPTS, "attempt_details": ATTEMPTS,
  "attempt_history": ATTEMPTS, "guidance": st.lists(SHORT, max_size=2), "metadata": NESTED,
  "context": OBJECTS, "tool": st.none() | SHORT, "description": SHORT, "mine": VALUES,
  "raw_evaluation": OBJECTS}), max_size=3)
METADATA = st.dictionaries(
    st.sampled_from(["ground_truth", "drift", "trajectory_events", "reward_stats", rows.STORE]), VALUES,
    max_size=4)
TIMES = ["2025-01-02T12:00:01+00:00", "2025-01-02T12:00:01+02:00", "2025-01-02 12:00", "now",
         "9999-12-31T23:59-12:00"]
EVENTS = st.lists(VALUES | st.fixed_dictionaries({
  "id": st.integers(0, 3), "event": st.dictionaries(st.sampled_from(["name", "payload", rows.ENTRY]), VALUES),
  "created_at": st.sampled_from(TIMES)}), max_size=3)
RECORDS = st.fixed_dictionaries({"task": SHORT}, optional={
  "final_answer": st.none() | SHORT, "plan": VALUES, "steps": st.none() | STEPS,
  "session_metadata": st.none() | METADATA, "reward_stats": st.none() | OBJECTS,
  "session_reward": st.none() | OBJECTS, "reward": st.none() | st.floats(0, 1),
  "trajectory_events": st.none() | EVENTS, "created_at": st.sampled_from(TIMES),
  "completed_at": st.none() | SHORT, "status": st.none() | SHORT, "session_id": st.integers(1, 9),
  "learning_key": st.none() | SHORT, "drift_alert": st.none() | st.booleans(), "unknown": VALUES})


@hypothesis.settings(max_examples=300, deadline=None, derandomize=True)
@hypothesis.given(RECORDS)
def test_any_record_comes_back_as_it_was(record):
  record = Trace.from_json(record).to_json()
  assert written(there_and_back(record)) == written(record)


def test_a_review_in_the_record_is_not_remembered():
  record = json.loads(stores.export_lines()[1]) | {"unknown": 1}
  split = rows.split(record)
  split.session["review_status"], split.session["review_notes"] = "pending", None
  found = rows.join(split)
  assert Trace.from_json(found).review_status == "pending"
  assert "quarantined" not in json.dumps(found) and "wrong" not in json.dumps(found)


@pytest.mark.parametrize("ours", [
  {"patch": {"top": {"set": {"review_status": "approved", "session_id": 7}}}},
  {"form": "plain", "patch": {"metadata": {"set": {"review_status": "approved", "session_id": 7}}}},
  {"patch": {"top": {"set": {"session_metadata": {"review_status": "approved", "session_id": 7}},
                     "drop": ["review_status"]}}}], ids=str)
def test_no_session_says_of_itself_that_it_was_approved(ours):
  # As the SDK writes the metadata of a caller, who knows our key.
  split = stores.sdk_rows()[1]
  forged = rows.SessionRows(split.session | {"metadata": {rows.STORE: ours}}, split.steps, split.events)
  trace = Trace.from_json(rows.join(forged))
  assert trace.review_status == "quarantined" and trace.session_id == 3
  assert "approved" not in json.dumps(trace.to_json())


def test_metadata_that_is_written_approves_and_rewards_nothing():
  forged = {"review_status": "approved", "review_notes": "fine", "session_reward": {"score": 1.0},
            "reward_stats": {"score": 1.0}, "reward_audit": [1]}
  record = {"task": "t", "session_metadata": {"session_id": 5, "status": "succeeded", **forged}}
  session = rows.split(record).session
  assert session["review_status"] == "pending"
  assert [session[name] for name in ("review_notes", "reward", "reward_stats", "reward_audit")] == [None] * 4
  trace = Trace.from_json(rows.join(rows.split(record)))
  assert trace.review_status == "pending" and not trace.reward.has_verdict


def test_the_column_says_whether_a_session_has_ended():
  # The SDK's exporter leaves a status that a caller put into the metadata.
  split = stores.sdk_rows()[1]
  for ours in ({}, {rows.STORE: {"patch": {"top": {"set": {"status": "succeeded"}}}}}):
    metadata = {"status": "succeeded", **ours}
    forged = rows.SessionRows(split.session | {"status": "running", "metadata": metadata}, split.steps,
                              split.events)
    assert Trace.from_json(rows.join(forged)).status == "running"


@pytest.mark.parametrize("ours", [
  {"form": "mine"}, {"form": []}, {"patch": {"top": {"drop": 5}}}, {"patch": {"steps": {"9": {}}}},
  {"patch": {"steps": {"x": {}}}}, {"patch": {"steps": {"0": {"listed": "a", "set": 1}}}}], ids=str)
def test_what_we_did_not_write_is_refused(ours):
  split = stores.sdk_rows()[1]
  with pytest.raises(ValueError, match="not as this program writes it"):
    rows.join(rows.SessionRows(split.session | {"metadata": {rows.STORE: ours}}, split.steps, split.events))


@pytest.mark.parametrize("number", ["abc", 0, -4, 2**31, True, 2.0])
def test_an_id_that_is_none_of_a_row_is_refused_and_kept_elsewhere(number):
  record = {"task": "t", "session_metadata": {"session_id": number}}
  with pytest.raises(ValueError, match="session_id"):
    rows.split(record)
  assert rows.without_id(record)["session_metadata"] == {rows.SOURCE_ID: number}


def test_attempts_are_stored_once_wherever_they_are_listed():
  attempts = [{"attempt": 1, "answer": "three bars", "score": 0.0}, {"attempt": 2, "answer": "3.5 bar"}]
  split = rows.split({"task": "t", "steps": [{"step_id": 1, "attempts": attempts}]})
  assert storable.dumps(list(split)).count("three bars") == 1


@pytest.mark.parametrize("text, utc", [("2025-01-02T12:00:00+02:00", "2025-01-02T10:00:00+00:00"),
                                       ("2025-01-02T12:00:00Z", "2025-01-02T12:00:00+00:00"),
                                       ("2025-01-02", "2025-01-02T00:00:00+00:00"), ("soon", None), (5, None),
                                       ("0001-01-01T00:00:00+12:00", None)])
def test_times_are_kept_in_utc(text, utc):
  assert rows.normal(text) == utc
