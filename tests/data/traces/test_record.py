"""The record: what goes in comes out, the one meaning of keys that stand twice, and what is refused."""

import json
from collections import Counter

import pytest

from atlas_jax.data.traces import record_fields
from atlas_jax.data.traces.conversation import TraceConversation
from atlas_jax.data.traces.record import Trace
from tests.data.traces import sessions

PERSONAS = {"personas_used": [{"persona": "planner"}], "persona_usage": {"planner": {"retries": 1}},
            "persona_updates": {"new_candidates": [], "promotion_result": None}}


@pytest.mark.parametrize("row", sessions.exported() + [sessions.session(), {"task": "", **PERSONAS}])
def test_a_record_comes_out_as_it_went_in(row):
  row = {**row, "a_key_of_tomorrow": {"x": [1, None]}}
  assert json.dumps(Trace.from_json(row).to_json()) == json.dumps(row)


def test_unknown_keys_of_steps_and_attempts_are_kept():
  row = sessions.session()
  row["steps"][0]["new"] = row["steps"][0]["attempt_details"][0]["new"] = [1]
  step = Trace.from_json(row).steps[0]
  assert step.data["new"] == [1] and step.attempts[0].data["new"] == [1]


def test_an_exported_session_is_read():
  failed, quarantined, pending, approved = map(Trace.from_json, sessions.exported())
  assert [one.review_status for one in (failed, quarantined, pending, approved)] == [
      "pending", "quarantined", "pending", "approved"]
  assert (approved.session_id, approved.status, approved.lane) == (1, "succeeded", "coach")
  assert (approved.learning_key, approved.ground_truth, approved.verified) == ("pump-tests", "3.5 bar", None)
  assert approved.created.isoformat() == "2025-01-02T12:01:00+00:00"
  assert approved.has_guidance and approved.guidance == ("State the unit.", "Quote the row you used.")
  assert [step.step_id for step in approved.steps] == [1, 2] and approved.steps[0].tool == "read_csv"
  assert approved.reward.value == 0.88 and failed.reward.value is None
  assert not pending.has_guidance and pending.steps[0].reward.reason == "the reward is a placeholder"


def test_a_session_of_version_two_is_read():
  found = Trace.from_json(sessions.session(versions={"student": "3"}))
  first, last = found.steps[0].attempts
  assert (first.answer, first.score.value, first.score.source) == ("21", 0.0, "grader")
  assert (last.valid, last.guidance, first.guidance) == (True, (), ("Carry the one 1.",))
  assert found.verified is True and found.versions["student"] == "3" and found.steps[0].attempt_count == 2


@pytest.mark.parametrize("row, name, value", [
    ({"review_status": "approved", "session_metadata": {"review_status": "pending"}}, "review_status",
     "approved"),
    ({"review_status": " Quarantined"}, "review_status", "quarantined"),
    # Who starts a session writes its metadata, and cannot approve or verify it.
    ({"session_metadata": {"review_status": "approved"}}, "review_status", None),
    ({"session_metadata": {"verified": True}}, "verified", None),
    ({"session_metadata": {"learning_key": "k"}}, "learning_key", "k"),
    ({"status": "Running"}, "status", "running"),
    ({"execution_mode": "auto", "adaptive_summary": {"adaptive_mode": "coach"}}, "lane", "auto"),
    ({"adaptive_summary": {"adaptive_mode": "escalate"}}, "lane", "escalate"),
    ({"session_metadata": {"ground_truth": 12}}, "ground_truth", "12"),
    ({"steps": [{"metadata": {"ground_truth": "T"}}]}, "ground_truth", "T"),
    ({"steps": [{"metadata": {"ground_truth": "T"}}, {}]}, "ground_truth", None),
    ({"verified": None}, "verified", None),
    ({"teacher_notes": ["a", " ", 3]}, "guidance", ("a",)),
    ({"created_at": "yesterday"}, "created", None),
    ({"plan": None}, "plan", {}),
    ({"final_answer": None, "steps": None}, "final_answer", ""),
])
def test_a_value_has_one_meaning_wherever_its_keys_stand(row, name, value):
  assert getattr(Trace.from_json({"task": "t", **row}), name) == value


def test_a_text_that_is_too_long_to_store_is_read_as_none():
  long = "x" * 300_000
  attempt = {"answer": long, "score": 1.0, "score_source": "grader"}
  step = {"step_id": long, "description": long, "trace": long, "output": long, "attempt_details": [attempt]}
  trace = Trace.from_json({"task": "t", "final_answer": long, "steps": [step]})
  [found] = trace.steps
  assert (trace.final_answer, found.description, found.trace, found.output, found.answer) == ("",) * 5
  assert found.step_id == 1 and found.attempts[0].answer is None and trace.sanitized == 6
  refused = Counter()
  assert not list(TraceConversation("student").problems("f:1", trace, refused))
  assert refused == {"no_answer": 1}


def test_a_time_without_a_zone_is_utc_and_z_is_read():
  times = [Trace.from_json({"task": "", "created_at": f"2025-01-02T03:04:05{end}"}).created
           for end in ("", "Z")]
  assert times[0] == times[1] and times[0].utcoffset().total_seconds() == 0


@pytest.mark.parametrize("row, words", [
    ([1], "is array, not an object"),
    ({}, "has no task"),
    ({"task": 1}, "task is integer; it must be string"),
    ({"task": "a", "steps": ["x"]}, "steps[0] is string; it must be object"),
    ({"task": "a", "steps": [{"reward": [1]}]}, "steps[0].reward is array"),
    ({"task": "a", "steps": [{"attempt_details": [{"answer": 4}]}]},
     "steps[0].attempt_details[0].answer is integer; it must be string or null"),
    ({"task": "a", "session_metadata": [1]}, "session_metadata is array; it must be object or null"),
    ({"task": "a", "session_metadata": {"status": 3}}, "session_metadata.status is integer"),
    ({"task": "a", "verified": "false"}, "verified is string; it must be boolean or null"),
    ({"task": "a", "session_id": True}, "session_id is boolean"),
    ({"task": "a" * 300_000}, "task has 300000 bytes; it must have at most 256000"),
])
def test_a_field_of_a_wrong_type_is_refused_by_name(row, words):
  with pytest.raises(ValueError) as error:
    Trace.from_json(row)
  assert words in str(error.value)


def test_every_field_of_the_tables_says_what_it_means():
  for table, fields in record_fields.TABLES.items():
    for name, field in fields.items():
      assert field.meaning, (table, name)
      assert set(field.types) <= set(record_fields.KINDS.values()), (table, name)


def test_a_field_is_changed_in_a_copy():
  found = Trace.from_json(sessions.session())
  changed = found.changed(review_status="quarantined")
  assert (found.review_status, changed.review_status) == ("approved", "quarantined")
  assert changed.to_json() == {**found.to_json(), "review_status": "quarantined"}
