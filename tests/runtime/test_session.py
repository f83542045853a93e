"""Sessions: every lane to its end, answers that nothing takes away, and records that training reads."""
import asyncio
import json

import pytest

from atlas_jax.rollout import teaching
from atlas_jax.runtime import session as sessions
from atlas_jax.runtime import states
from atlas_jax.runtime.budget import BudgetSettings
from atlas_jax.runtime.events import EventLog
from atlas_jax.runtime.session import SessionSettings, SessionSpec
from tests.runtime.parts import Script, parts, plan, review, run, verdict

BROKEN = [RuntimeError("boom"), 7, ["4"], "no json", '{"valid": "false", "guidance": null}', "\x00",
          '{"valid": NaN, "guidance": null}', '["valid"]', ""]


class Kept:
  """A store that keeps traces in memory; `failing` raises."""

  def __init__(self, failing=False):
    self.failing = failing
    self.traces = []

  async def flush(self, key):
    del key
    if self.failing:
      raise OSError("no store")

  async def finish(self, key, trace):
    del key
    if self.failing:
      raise OSError("no store")
    self.traces.append(trace)
    return len(self.traces), "stored"


def balanced(events):
  """Checks that each START has one END behind it, and returns the folded state."""
  begun = [one.span for one in events if one.kind == "START"]
  ended = [one.span for one in events if one.kind == "END"]
  assert sorted(begun) == sorted(ended) and len(set(begun)) == len(begun)
  assert [one.seq for one in events] == list(range(len(events)))
  return states.replay(events)


def test_auto_is_one_answer_and_nothing_is_claimed_of_it():
  student = Script("4")
  result, events = run(parts(student, Script(verdict(True)), lane="auto"))
  assert (result.answer, result.verified, result.status, result.reward) == ("4", None, "succeeded", 1.0)
  assert [one.status for one in result.attempts] == ["unverified"] and len(student.asked) == 1
  assert not [one for one in events if one.name == "validate"]


def test_paired_validates_every_attempt_the_last_one_too():
  student, teacher = Script("3", "5"), Script(verdict(False, "Carry."), verdict(False, "Look again."))
  result, events = run(parts(student, teacher))
  assert (result.answer, result.verified, result.status, result.reward) == ("5", False, "succeeded", 0.0)
  assert [(one.status, one.guidance) for one in result.attempts] == [
      ("failed", "Carry."), ("failed", "Look again.")]
  assert student.asked[1] == [{"role": "user", "content": "2+2"},
                              {"role": "user", "content": "Carry.", "name": "guidance"}]
  assert len(teacher.asked) == 2 and balanced(events).status == "succeeded"


def test_guidance_helps_and_the_attempts_are_a_pair():
  kept = Kept()
  result, _ = run(parts(Script("3", "4"), Script(verdict(False, "Carry."), verdict(True)), store=kept))
  assert (result.answer, result.verified, result.reward, result.session_id) == ("4", True, 1.0, 1)
  (trace,) = kept.traces
  assert trace.verified is True and trace.lane == "paired" and trace.status == "succeeded"
  (step,) = trace.steps
  assert [(one.answer, one.score.value, one.status) for one in step.attempts] == [("3", 0.0, "failed"),
                                                                               ("4", 1.0, "passed")]


def test_a_retry_needs_guidance_which_is_asked_for_once():
  student, teacher = Script("3", "4"), Script(verdict(False), verdict(False, "Carry."), verdict(True))
  assert run(parts(student, teacher))[0].answer == "4"
  assert "what the student should do differently" in teacher.asked[1][-1]["content"]
  student, teacher = Script("3", "4"), Script(verdict(False), verdict(False))
  result, _ = run(parts(student, teacher))
  assert result.answer == "3" and result.verified is False and len(student.asked) == 1


def test_the_same_answer_again_ends_the_attempts():
  given = parts(Script("3", "3", "4"), Script(verdict(False, "Carry.")), settings={"max_attempts": 3})
  result, events = run(given)
  assert result.answer == "3" and [one.status for one in result.attempts] == ["failed", "failed"]
  assert balanced(events).stubborn == 1


@pytest.mark.parametrize("reply", BROKEN, ids=repr)
@pytest.mark.parametrize("policy, status", [("open", "succeeded"), ("closed", "needs_human")])
def test_a_teacher_without_a_verdict_takes_no_answer_away(reply, policy, status):
  result, events = run(parts(Script("4"), Script(reply), settings={"on_teacher_error": policy}))
  assert (result.answer, result.verified, result.status) == ("4", None, status)
  assert result.attempts[0].status == "unverified" and "teacher" in result.problem
  balanced(events)


def test_a_reply_is_repaired_once():
  teacher = Script("It is fine.", verdict(True))
  assert run(parts(Script("4"), teacher))[0].verified is True
  assert "could not be used" in teacher.asked[1][-1]["content"]


def test_an_answer_stays_whatever_store_judge_and_grader_do():
  class Judges:
    async def judge(self, case):
      raise RuntimeError("no judge")

  kept = Kept(failing=True)
  result, events = run(parts(Script("4"), Script(verdict(True)), judges=Judges(), store=kept), truth=None)
  assert (result.answer, result.status, result.reward) == ("4", "succeeded", None)
  assert result.reward_status == "no_verdict"
  assert "no judge" in result.reward_reason and "storing failed" in result.problem
  balanced(events)


def test_coach_reviews_the_plan_and_gives_it_to_the_student():
  student = Script(plan((1, "Add the ones."), (2, "Add the tens.", 1)), "4")
  teacher = Script(review(concerns=["short"]), verdict(True))
  result, events = run(parts(student, teacher, lane="coach"))
  assert result.verified is True and "1. Add the ones." in student.asked[1][0]["content"]
  (reviewed,) = [one for one in events if one.name == "review" and one.kind == "END"]
  assert reviewed.data["concerns"] == ["short"]


def test_escalate_has_every_step_pass_and_the_whole():
  student = Script(plan((1, "a"), (2, "b"), (3, "c", 1, 2)), "A", "B", "C", "ABC")
  teacher = Script(review(), verdict(True))
  result, events = run(parts(student, teacher, lane="escalate"), truth=None)
  assert (result.answer, result.verified, result.status) == ("ABC", True, "succeeded")
  assert "Result of step 1: A\nResult of step 2: B" in student.asked[3][0]["content"]
  assert len(teacher.asked) == 5 and balanced(events).is_answered


def test_a_failed_step_blocks_those_behind_it_alone_and_a_person_decides():
  def answer(messages):
    text = messages[0]["content"]
    return plan((1, "first"), (2, "second"), (3, "third", 1)) if "Write a plan" in text else text[-9:]

  def check(messages):
    if "review" in messages[0]["content"]:
      return review()
    return verdict("first" not in messages[-1]["content"], "x")

  result, events = run(parts(Script(answer), Script(check), lane="escalate"))
  assert (result.status, result.verified) == ("needs_human", False) and "[1, 3]" in result.problem
  settled = balanced(events).settled
  assert settled[2].status == "passed" and settled[1].status == "failed" and 3 not in settled


@pytest.mark.parametrize("text", ["no plan", plan((1, "a", 2), (2, "b", 1)), plan((1, "a", 9)),
                                  plan(*((number, "x") for number in range(1, 20)))])
def test_a_plan_that_cannot_be_is_asked_for_again_and_then_is_the_task(text):
  student = Script(text, text, "4")
  result, events = run(parts(student, Script(review(), verdict(True)), lane="coach"))
  assert result.verified is True and student.asked[2] == [{"role": "user", "content": "2+2"}]
  (planned,) = [one for one in events if one.name == "plan" and one.kind == "END"]
  assert planned.data["problem"].startswith("no plan:")


def test_an_agent_that_fails_is_tried_again_and_said_to_have_failed():
  result, _ = run(parts(Script(RuntimeError("boom"), "4"), Script(verdict(True))))
  assert result.answer == "4" and [one.status for one in result.attempts] == ["errored", "passed"]
  result, events = run(parts(Script(RuntimeError("boom")), Script(verdict(True)), store=(kept := Kept())))
  assert (result.answer, result.status) == (None, "failed") and "boom" in result.problem
  assert balanced(events).status == kept.traces[0].status == "failed"


def test_deadlines_hold_and_keep_what_was_answered():
  async def hang(messages):
    await asyncio.sleep(60)

  bounds = {"call_s": 0.05, "step_s": 0.2, "session_s": 0.3}
  result, events = run(parts(Script("4"), Script(hang), settings=bounds))
  assert (result.answer, result.verified, result.status) == ("4", None, "succeeded")
  assert "time" in result.problem
  balanced(events)
  result, events = run(parts(Script(hang), Script(verdict(True)), settings=bounds))
  assert result.answer is None and result.status in ("failed", "timed_out")
  balanced(events)
  whole = {"call_s": 0.2, "step_s": 0.2, "session_s": 0.2}
  result, _ = run(parts(Script("4"), Script(hang), settings=whole))
  assert result.answer == "4" and result.status == "succeeded"


def test_a_cancelled_session_ends_and_is_recorded():
  kept, events = Kept(), []

  async def hang(messages):
    await asyncio.sleep(60)

  async def main():
    made = parts(Script(hang), Script(verdict(True)), store=kept)
    running = sessions.run_session(SessionSpec("key", "2+2"), made, EventLog("key", events.append))
    task = asyncio.create_task(running)
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
      await task

  asyncio.run(main())
  assert balanced(events).status == "cancelled" and kept.traces[0].status == "cancelled"


def test_a_session_goes_on_from_the_answer_that_was_given():
  events = []
  first, _ = run(parts(Script("4"), Script(verdict(True))), events=events)
  cut = [one for one in events if one.seq <= next(e.seq for e in events if e.name == "answered")]
  student, teacher = Script("5"), Script(verdict(False, "x"))
  result, more = run(parts(student, teacher), state=states.replay(cut), events=list(cut))
  assert result.resumed and (result.answer, result.reward, result.verified) == ("4", 1.0, True)
  assert not student.asked and not teacher.asked and balanced(more).status == first.status


def test_budgets_leave_out_the_judge_first_and_end_the_attempts():
  class Judges:
    async def judge(self, case):
      raise AssertionError("must not be asked")

  student, teacher = Script("3", "5"), Script(verdict(False, "x"))
  settings = {"budget": BudgetSettings(calls=2), "max_attempts": 9}
  result, _ = run(parts(student, teacher, judges=Judges(), settings=settings), truth=None)
  assert result.answer is not None and result.reward is None
  assert result.reward_status == "skipped" or "budget" in (result.reward_reason or "")


def test_what_is_shown_is_short_and_never_the_answer():
  student, teacher = Script("123", "321"), Script(verdict(False, "Turn it round."), verdict(True))
  truth = "gold-7f3a"
  for lane in ("auto", "paired", "coach", "escalate"):
    run(parts(student, teacher, lane=lane), task="2+2", truth=truth)
  assert truth not in json.dumps(student.asked) and truth not in json.dumps(teacher.asked)
  paired = Script("123", "321"), Script(verdict(False, "Turn it round."), verdict(True))
  run(parts(*paired))
  sizes = [max(len(json.dumps(one)) for one in script.asked) for script in paired]
  assert sizes[0] <= 500 and sizes[1] <= 900


def test_an_audit_is_recorded_and_not_applied():
  class Audited:
    async def decide(self, work):
      return {"lane": "auto", "rule": "history", "inputs": {}, "audit": True}

  kept = Kept()
  result, events = run(parts(Script("5"), Script(verdict(False, "No.")), router=Audited(), store=kept))
  assert (result.answer, result.verified, result.status) == ("5", None, "succeeded")
  assert kept.traces[0].session_metadata["audit"]["valid"] is False
  balanced(events)


def test_what_a_caller_writes_into_metadata_decides_nothing():
  kept = Kept()
  planted = {"learning_key": "other", "tenant_id": "other", "review_status": "approved", "verified": True,
             "mine": 1}
  run(parts(Script("5"), Script(verdict(False, "x"), verdict(False, "y")), store=kept), metadata=planted)
  (trace,) = kept.traces
  assert trace.learning_key is None and trace.review_status is None and trace.verified is False
  assert trace.session_metadata["tenant_id"] == "default" and trace.session_metadata["mine"] == 1


@pytest.mark.parametrize("changed, said", [
    ({"call_s": 0}, "call_s=0"), ({"step_s": 700.0}, "session_s=600.0"),
    ({"max_attempts": 0}, "max_attempts=0"),
    ({"on_failed": "best"}, "on_failed='best' must be one of last, first, raise"),
    ({"on_teacher_error": "x"}, "on_teacher_error='x'")])
def test_settings_that_cannot_be_are_refused(changed, said):
  with pytest.raises(ValueError, match=said):
    SessionSettings(**changed)


def test_a_teacher_may_be_shown_how_the_student_would_begin():
  student, teacher = Script("I add.", "3", "4"), Script(verdict(False, "Carry."), verdict(True))
  given = parts(student, teacher, settings={"approach": True}, templates=teaching.CHAT)
  result, events = run(given)
  assert result.answer == "4" and "Do not solve this yet" in student.asked[0][0]["content"]
  assert "I add." in json.dumps(teacher.asked[0]) and balanced(events).is_answered
  student = Script("4")
  given = parts(student, Script(verdict(True)), lane="auto", settings={"approach": True},
                templates=teaching.CHAT)
  run(given)
  assert len(student.asked) == 1
