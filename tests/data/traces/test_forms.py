"""The two forms of a record mean the same, and each is made from the other."""
import json

import pytest

from atlas_jax.data.traces import forms, rows
from atlas_jax.data.traces.record import Trace
from tests import stores

OF_TRACE = ("task", "final_answer", "reward", "session_reward", "lane", "learning_key", "status",
            "review_status", "ground_truth", "guidance", "created", "session_id")
OF_STEP = ("step_id", "description", "reward", "answer", "validation", "tool", "tool_params", "guidance",
           "attempt_count")


@pytest.mark.parametrize("number", range(4))
def test_leaving_out_copies_is_undone(number):
  record = json.loads(stores.export_lines()[number])
  plain = forms.without_copies(record)
  assert forms.expand(plain) == record
  assert forms.without_copies(plain) == plain
  assert forms.expand(record) == record


@pytest.mark.parametrize("number", range(4))
def test_both_forms_mean_the_same(number):
  one = stores.exported()[number]
  other = Trace.from_json(forms.without_copies(one.to_json()))
  assert [getattr(one, name) for name in OF_TRACE] == [getattr(other, name) for name in OF_TRACE]
  for left, right in zip(one.steps, other.steps, strict=True):
    assert [getattr(left, name) for name in OF_STEP] == [getattr(right, name) for name in OF_STEP]
    assert [attempt.score for attempt in left.attempts] == [attempt.score for attempt in right.attempts]


def test_four_sessions_take_less_than_half():
  lines = stores.export_lines()
  plain = [json.dumps(forms.without_copies(json.loads(line)), separators=(",", ":")) for line in lines]
  assert sum(map(len, plain)) < 0.45 * sum(map(len, lines))


def test_values_that_differ_are_no_copies():
  record = {"task": "t", "status": "failed", "session_metadata": {"status": "succeeded", "task": "t"},
            "steps": [{"step_id": 1, "attempts": 1, "metadata": {"attempts": 1.0}}]}
  plain = forms.without_copies(record)
  assert plain["session_metadata"] == {"status": "succeeded"}
  assert plain["steps"] == [{"step_id": 1, "attempts": 1, "metadata": {"attempts": 1.0}}]


def test_the_sdks_form_keeps_fields_that_the_sdk_has_not_and_none_of_our_marks():
  attempts = [{"attempt": 1, "answer": "a", "score": None}]
  record = {"task": "t", "session_metadata": {"session_id": 3}, "verified": True,
            "trajectory_events": ["odd"], "steps": [{"step_id": 1, "attempts": attempts}]}
  found = forms.sdk_form(rows.split(record))
  assert found["verified"] is True
  evaluation = {"answer": "a", "score": None}
  assert found["steps"][0]["attempt_details"] == [{"attempt": 1, "evaluation": evaluation}]
  text = json.dumps(found)
  assert not any(mark in text for mark in (rows.STORE, rows.FLAT, rows.ENTRY))
