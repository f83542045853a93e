"""Pairs: only attempts that were both graded and differ, everything else is refused and counted."""

from collections import Counter

import pytest

from atlas_jax.data import responses
from atlas_jax.data.traces import pairs
from atlas_jax.data.traces.jsonl import FoundTrace
from atlas_jax.data.traces.record import Trace
from tests.data.traces import sessions
from tests.data.traces.sessions import attempt

JUDGED = {"score": 0.4, "judges": [{"samples": []}]}


def groups(row, **how):
  refused = Counter()
  return list(pairs.groups([FoundTrace("f:1", Trace.from_json(row))], refused, **how)), refused


def tried(*attempts):
  row = sessions.session(learning_key="k")
  row["steps"][0]["attempt_details"] = list(attempts)
  return row


def test_two_graded_attempts_are_a_worse_and_a_better_response():
  (one,), refused = groups(sessions.session(learning_key="k"))
  assert one.where == "f:1#1" and one.prompt == "Add 14 and 17 1" and not refused
  assert one.responses == (("21", 2, 0.0), ("31", 1, 1.0))
  assert one.meta == {"session_id": 1, "step_id": 1, "learning_key": "k"}
  assert responses.counts([one])["pairs"] == 1
  assert responses.parse_row("again", responses.as_row(one)).responses == one.responses


def test_all_scored_attempts_of_a_step_are_one_group():
  (one,), _ = groups(tried(attempt(1, "a", 0.1), attempt(2, "b", 0.5, source="judge"), attempt(3, "c", None),
                           attempt(4, "d", 0.5), attempt(5, "a", 0.1)))
  assert [(each.text, each.rank, each.score) for each in one.responses] == [
      ("a", 3, 0.1), ("b", 1, 0.5), ("d", 1, 0.5)]


@pytest.mark.parametrize("attempts, why", [
    ([], "one_attempt"),
    ([attempt(1, "a", 0.1)], "one_attempt"),
    ([attempt(1, "a", 0.1), attempt(2, "b", None)], "unchecked"),
    ([attempt(1, "a", 0.1), attempt(2, "b", 1.0, source=None)], "unchecked"),
    ([attempt(1, "a", 0.1), attempt(2, "b", float("nan"))], "unchecked"),
    ([attempt(1, "a", 0.1), attempt(2, "b", 7.0)], "unchecked"),
    ([attempt(1, None, 0.1), attempt(2, "b", 1.0)], "no_text"),
    ([attempt(1, "a", 0.1), attempt(2, " ", 1.0)], "no_text"),
    ([attempt(1, "a", 0.1), attempt(2, "a", 0.1)], "same_text"),
    ([attempt(1, "a", 0.1), attempt(2, "a", 1.0)], "contradiction"),
    ([attempt(1, "a", 0.1), attempt(2, "b", 0.1)], "equal_scores"),
])
def test_what_is_no_pair_is_refused_with_the_reason(attempts, why):
  found, refused = groups(tried(*attempts))
  assert not found and refused == {why: 1} and why in pairs.REASONS


def test_an_old_trace_gives_no_pair():
  # Its last attempt passed unchecked, or both were judged and the first one's text was not kept.
  found, refused = groups(sessions.exported()[3])
  assert not found and refused == {"one_attempt": 1, "no_text": 1}
  unchecked = [{"attempt": number, "evaluation": {"validation": {"valid": number == 2}, "reward": {
      "score": 0.0, "judges": [], "rationale": "deferred"}}} for number in (1, 2)]
  assert groups(tried(*unchecked)) == ([], {"unchecked": 1})
  judged = {"attempt": 1, "answer": "a", "evaluation": {"reward": JUDGED}}
  assert groups(tried(judged, attempt(2, "b", 1.0)))[1] == {}


def test_a_step_of_several_is_asked_with_all_that_was_known():
  row = sessions.session()
  row["steps"].append(dict(row["steps"][0], step_id=2))
  found, _ = groups(row)
  assert [one.where for one in found] == ["f:1#1", "f:1#2"]
  assert "Step ID: 2" in found[1].prompt and "Task: Add 14 and 17 1" in found[1].prompt
