"""Evidence: which sessions count, what certifies, and what undoes it."""
import pytest

from atlas_jax.data.traces.record import Trace
from atlas_jax.runtime import evidence
from atlas_jax.runtime.evidence import Evidence
from atlas_jax.runtime.route import route

VERSIONS = {"student": "1", "teacher": "1"}


def trace(*, score=None, source="grader", verified=None, lane="paired", review="pending", versions=None,
          **more):
  reward = {"reward_status": "no_verdict"} if score is None else {
      "reward_status": "ok", "session_reward": {"score": score},
      "reward_stats": {"score": score, "source": source, "sample_count": 1}}
  return Trace.from_json({"task": "t", "review_status": review, "verified": verified, "execution_mode": lane,
                          "versions": versions or VERSIONS, **reward, **more})


def of(*traces):
  """Returns the evidence of sessions, oldest first."""
  return evidence.of_traces(reversed(traces), VERSIONS)


PASS = trace(score=0.9, verified=True)
WRONG = trace(score=0.1, verified=False)
# Right, and no verified pass.
RIGHT = [trace(score=0.9), trace(score=0.9, verified=False), trace(verified=True, review="approved"),
         trace(score=0.5, source="judge", verified=True, review="approved")]


@pytest.mark.parametrize("sessions, certified", [
    ([PASS] * 3, True), ([PASS] * 2, False), ([WRONG, *[PASS] * 3], True), ([PASS, WRONG, PASS, PASS], False),
    ([*[PASS] * 3, WRONG], True), ([*[PASS] * 3, WRONG, PASS], True),
    ([*[PASS] * 3, WRONG, PASS, WRONG], False),  # Two failures, whatever lies between them.
    ([*[PASS] * 3, WRONG, WRONG, *[PASS] * 3], True), ([PASS, *RIGHT, PASS], False),
    ([PASS, *RIGHT, PASS, PASS], True),
    ([trace(score=0.8, source="judge", verified=True, review="approved")] * 3, True),
    ([trace(score=0.8, source="judge", verified=True)] * 3, False),  # Not reviewed.
    ([trace(score=0.79, verified=True)] * 3, False),
    ([trace(score=1, lane="auto", session_metadata={"audit": {"valid": True}})] * 3, True),
    ([trace(score=1, lane="auto")] * 3, False),
    ([trace(score=1, verified=True, versions={"student": "2", "teacher": "1"})] * 3, False),
    ([trace(score=1, verified=True, versions={"student": "1", "teacher": "2"})] * 3, False),
    ([*[PASS] * 3, trace(score=0.9, verified=True, drift_alert=True)], False)])
def test_verified_passes_certify(sessions, certified):
  assert of(*sessions).certified is certified


def test_outcomes_without_passes_certify_nothing():
  assert not Evidence((True,) * 9).certified


@pytest.mark.parametrize("given, score", [
    (trace(score=0.3), 0.3), (trace(score=0.3, review="quarantined"), None),
    (trace(score=0.7, source="judge"), None), (trace(score=0.7, source="judge", review="approved"), 0.7),
    (trace(verified=True), None), (trace(verified=True, review="approved"), 1.0),
    (trace(verified=False, review="approved"), 0.0), (trace(review="approved"), None),
    (trace(lane="auto", verified=True, review="approved"), None),
    (trace(lane="auto", review="approved", session_metadata={"audit": {"valid": False}}), 0.0)])
def test_only_sessions_that_pass_the_gate_have_a_score(given, score):
  assert evidence.score(given) == score


def test_what_is_withheld_is_counted():
  found = of(trace(score=0.9, source="judge"), trace(score=1, review="quarantined"),
             trace(score=1, versions={"student": "2"}), trace(review="approved"), WRONG, PASS)
  assert found.outcomes == (False, True) and found.withheld == {"gate": 2, "versions": 1, "unchecked": 1}


def test_what_a_teacher_mended_is_no_evidence_for_auto_and_what_it_spoiled_is():
  """An answer that guidance made right is a right outcome of the session, a wrong one of the agent alone."""
  def session(first, last=1.0):
    attempts = [{"attempt": 1, "answer": "3", "score": first, "score_source": "grader"},
                {"attempt": 2, "answer": "4", "score": last, "score_source": "grader"}]
    return Trace.from_json({"task": "t", "execution_mode": "paired", "review_status": "approved",
                            "session_metadata": {"status": "succeeded"}, "reward_status": "ok",
                            "reward_stats": {"score": last, "source": "grader"},
                            "session_reward": {"score": last},
                            "steps": [{"step_id": 1, "attempt_details": attempts}]})

  helped = evidence.of_traces([session(0.0)] * 20, {})
  alone = evidence.of_traces([session(1.0)] * 20, {})
  assert helped.outcomes == alone.outcomes == (True,) * 20
  assert helped.alone == (False,) * 20 and helped.lower < 0.1 < 0.8 < alone.lower
  assert route(helped, None).lane == "paired" and route(alone, None).lane == "auto"
  spoiled = evidence.of_traces([session(1.0, last=0.0)] * 20, {})
  assert spoiled.outcomes == (False,) * 20 and spoiled.alone == (True,) * 20 and spoiled.lower == alone.lower
  assert route(spoiled, None).lane == "auto"  # A worse teacher is no reason for more of it.
