"""Conversations: what is learnt is the assistant's: a verified answer, or guidance that did no harm."""

from collections import Counter

import pytest

from atlas_jax.data import chats
from atlas_jax.data.traces import conversation, step_prompts
from atlas_jax.data.traces.conversation import TraceConversation
from atlas_jax.data.traces.record import Trace
from tests.data.traces import sessions

OLD = Trace.from_json(sessions.exported()[3])
QUESTION = {"role": "user", "content": "Add 14 and 17 1"}


def problems(row, **how):
  refused = Counter()
  trace = row if isinstance(row, Trace) else Trace.from_json(row)
  return list(TraceConversation(**how).problems("f:1", trace, refused)), refused


def test_a_student_learns_its_verified_answer():
  (one,), refused = problems(sessions.session(learning_key="k"))
  assert (one.where, one.prompt, one.answer, one.solution) == ("f:1", "Add 14 and 17 1", "31", "31")
  assert one.extra == {"session_id": 1, "learning_key": "k", "lane": "paired", "reward": 0.9} and not refused
  assert list(chats.reply_of(one)) == [{"role": "assistant", "content": "31"}]


def test_a_student_learns_behind_its_earlier_attempts_where_they_are_shown():
  (one,), _ = problems(sessions.session(), shown="attempts")
  assert one.prompt == [QUESTION, {"role": "assistant", "content": "21"},
                        {"role": "user", "content": "Carry the one 1."}]
  assert one.solution == "31"


@pytest.mark.parametrize("row, reward, is_learnt", [
    (sessions.session(), None, True),
    (sessions.session(verified=False), 0.5, False),
    (sessions.session(verified=None), None, True),  # Equals the right answer.
    (sessions.session(verified=None, final_answer=" 31\n"), None, True),
    (sessions.session(verified=None, final_answer="32"), None, False),
    (sessions.session(verified=None, final_answer="32"), 0.9, True),
    (sessions.session(verified=None, final_answer="32"), 0.95, False),
    (sessions.session(verified=None, final_answer="32", session_reward=None), 0.0, False),
])
def test_an_answer_that_nobody_verified_is_not_learnt(row, reward, is_learnt):
  found, refused = problems(row, verified_reward=reward)
  assert bool(found) == is_learnt and refused == ({} if is_learnt else {"unverified": 1})


def test_a_session_without_an_answer_gives_none_and_a_single_step_has_it():
  row = sessions.session(final_answer="")
  assert problems(row)[0][0].solution == "31"
  row["steps"] = []
  assert problems(row) == ([], {"no_answer": 1})


def test_prompts_alone_need_no_verified_answer():
  (one,), refused = problems(sessions.session(verified=False, final_answer=""), target="none")
  assert (one.prompt, one.answer, one.solution) == ("Add 14 and 17 1", "31", None) and not refused


def test_a_teacher_learns_its_guidance_behind_question_and_attempt():
  (one,), refused = problems(sessions.session(), target="teacher")
  assert one.where == "f:1#1.1" and one.solution == "Carry the one 1." and one.answer is None and not refused
  assert [message["role"] for message in one.prompt] == ["system", "user"]
  assert one.prompt[1]["content"] == "Add 14 and 17 1\n\nStudent's attempt:\n21"
  assert one.extra["teaching_turn"] == {
      "question": "Add 14 and 17 1", "attempts": ("21",), "earlier": (), "guidance": "Carry the one 1.",
      "valid": False}
  assert "31" not in str(one.prompt)  # Neither the right answer nor a later attempt.


def test_old_guidance_stands_without_the_attempt_whose_text_was_lost():
  found, refused = problems(OLD, target="teacher")
  assert [one.solution for one in found] == ["State the unit.", "Quote the row you used."] and not refused
  assert all("attempt" not in one.prompt[1]["content"] for one in found)
  assert found[1].prompt[1]["content"].endswith("Guidance so far:\n- State the unit.")
  assert found[0].prompt[1]["content"].startswith(
      "Report the stall pressure of pump P-7\n\nStep 2: Find the stall pressure")


def test_guidance_that_harmed_is_not_learnt_and_its_absence_is_counted():
  row = sessions.session()
  row["steps"][0]["attempt_details"][1]["score"] = 0.0
  assert len(problems(row, target="teacher")[0]) == 1
  row["steps"][0]["attempt_details"][0]["score"] = 0.5
  assert problems(row, target="teacher") == ([], {"harmful": 1})
  assert problems(sessions.exported()[2], target="teacher") == ([], {"no_guidance": 1})


def test_a_lesson_may_be_written_in_another_form():
  def lesson(turn):
    return [{"role": "user", "content": f"Q: {turn.question}"}], f"<{turn.guidance}>"

  (one,), _ = problems(sessions.session(), target="teacher", lesson=lesson)
  assert one.prompt == [{"role": "user", "content": "Q: Add 14 and 17 1"}]
  assert one.solution == "<Carry the one 1.>"


def test_steps_are_laid_out_and_one_id_counts_once():
  found, _ = problems(OLD, target="none", prompt="step")
  assert [one.where for one in found] == ["f:1#1", "f:1#2"]
  assert found[0].prompt.splitlines()[:7] == [
      step_prompts.DEFAULT_SYSTEM, "", "Task: Report the stall pressure of pump P-7", "Step ID: 1",
      "Description: Load the test log", "Tool: read_csv", 'Tool Parameters: {"path": "p7.csv"}']
  row = sessions.session()
  row["steps"].append(dict(row["steps"][0], output="other"))
  found, refused = problems(row, target="none", prompt="step")
  assert len(found) == 1 and refused == {"step_twice": 1}
  row["session_metadata"]["executor_system_prompt"] = "Be brief."
  assert problems(row, target="none", prompt="step")[0][0].prompt.startswith("Be brief.\n\nTask: ")


def test_a_step_of_several_is_no_answer_to_the_task():
  trace = Trace.from_json(sessions.session())
  assert step_prompts.of_step(trace, trace.steps[0]) == trace.task
  assert step_prompts.of_step(OLD, OLD.steps[1]) == step_prompts.laid_out(OLD, OLD.steps[1])
  with pytest.raises(ValueError, match="config.traces.prompt='plan'"):
    step_prompts.of_step(OLD, OLD.steps[0], "plan")


def test_every_reason_has_words():
  assert set(conversation.REASONS) == {"step_twice", "no_guidance", "harmful", "no_answer", "unverified"}
