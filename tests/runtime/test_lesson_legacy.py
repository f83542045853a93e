"""Lessons kept by the rules of the Atlas SDK."""
from atlas_jax.data.traces.record import Trace
from atlas_jax.runtime import lesson_legacy


def trace(score, *, attempts=1, review="pending", **metadata):
  return Trace.from_json({
      "task": "t", "review_status": review, "execution_mode": "paired", "reward_status": "ok",
      "session_metadata": metadata, "session_reward": {"score": score},
      "reward_stats": {"score": score, "source": "grader"},
      "steps": [{"step_id": 1, "attempt_details": [{"attempt": place} for place in range(attempts)]}]})


def entry(name="a", state="candidate", **more):
  return {"id": name, "state": state, "audience": "student", "action": f"do {name}",
          "provenance": {"session_id": 1}, **more}


def states(entries, used, sessions):
  return [(one["state"], one.get("reason")) for one in lesson_legacy.moved(entries, used, sessions)]


def test_two_uses_promote_a_lesson_that_scores_better_than_its_session():
  sessions = {1: trace(0.2), 2: trace(0.9), 3: trace(0.9)}
  assert states([entry()], {"a": {2, 3}}, sessions) == [("active", None)]
  assert states([entry()], {"a": {2}}, sessions) == [("candidate", None)]
  assert states([entry()], {"a": {1, 2}}, sessions) == [("candidate", None)]  # Its own is no use.
  held = {**sessions, 3: trace(0.9, review="quarantined")}
  assert states([entry()], {"a": {2, 3}}, held) == [("candidate", None)]


def test_fewer_retries_promote_a_lesson_though_the_score_falls():
  sessions = {1: trace(0.9, attempts=2), 2: trace(0.2), 3: trace(0.2)}
  assert states([entry()], {"a": {2, 3}}, sessions) == [("active", None)]


def test_the_sixth_lesson_and_the_same_text_are_replaced():
  sessions = {1: trace(0.5)}
  found = states([entry(str(place), "active") for place in range(6)], {}, sessions)
  assert sorted(found) == sorted([("active", None)] * 5 + [("retired", "replaced")])
  twice = states([entry("a", "active"), entry("b", "active", action="do a")], {}, sessions)
  assert sorted(twice) == [("active", None), ("retired", "replaced")]


def test_lessons_are_dropped_by_their_impact():
  few = {number: trace(1.0) for number in range(1, 32)}
  assert states([entry(state="active")], {"a": {2}}, few) == [("retired", "too_specific")]
  harmful = {number: trace(0.0 if number < 8 else 1.0) for number in range(1, 16)}
  assert states([entry(state="active")], {"a": {2, 3, 4, 5, 6}}, harmful) == [("retired", "harmful")]
  helpful = {number: trace(1.0 if number < 20 else 0.0) for number in range(1, 32)}
  assert states([entry(state="active")], {"a": set(range(2, 20))}, helpful) == [("retired", "no_transfer")]
  named = {number: trace(1.0 if number < 20 else 0.0, incident_id=number % 3) for number in range(1, 32)}
  assert states([entry(state="active")], {"a": set(range(2, 20))}, named) == [("active", None)]
