"""Lessons: what a student is asked, how often, and what a teacher is shown of it."""
import math

import pytest

from atlas_jax.data.problems import Problem
from atlas_jax.rollout import teaching
from atlas_jax.rollout.students import StudentReply
from atlas_jax.rollout.teaching import Teaching
from tests.rollout import lessons as built


class Noting:
  """Notes what it is asked, and repeats the last of it."""

  def __init__(self):
    self.asked = []

  def answer(self, asked, *, max_tokens, temperature, seed):
    """Answers all."""
    self.asked.append(([one[-1]["content"] for one in asked], max_tokens, temperature, seed))
    return [StudentReply(one[-1]["content"][:max_tokens], max_tokens) for one in asked]


def test_a_question_costs_two_answers_and_two_for_each_guidance():
  student = Noting()
  lessons, _ = built.lessons(student, probe_tokens=50, max_tokens=9)
  begun = lessons.begin(built.problems(), seed=1)
  assert [(len(texts), most) for texts, most, *_ in student.asked] == [(4, 9), (4, 50)]
  lessons.finish([one for one in begun for _ in range(3)], ["c"] * 12, seed=1)
  # With the teacher's own three: 2 + 2 G generations of a question, not 4 G.
  assert sum(len(texts) for texts, *_ in student.asked) + 12 == 4 * (2 + 2 * 3)


def test_answers_of_one_question_are_drawn_alike_with_guidance_and_without():
  student = Noting()
  lessons, _ = built.lessons(student, temperature=0.7)
  begun = lessons.begin(built.problems(), seed=5)
  lessons.finish(begun, ["c"] * 4, seed=5)
  (_, _, heat, first), (_, _, again, second) = student.asked
  assert first == second and heat == again == 0.7
  lessons.begin(built.problems(), seed=6)
  assert student.asked[-1][3] != first


def test_guidance_changes_what_is_answered_and_its_grade():
  lessons, _ = built.lessons()
  begun = lessons.begin(built.problems(), seed=0)
  assert [one.baseline_score for one in begun] == [0, 1, 1, 0] and begun[0].baseline.text == "22"
  taught = lessons.finish(begun, ["carry", "x", "nothing", ""], seed=0)
  assert [one.guided_score for one in taught] == [1, 0, 1, 0]
  assert taught[0].columns == {
      "question": "47+85=", "approach": None, "guidance": "carry", "baseline": "22", "guided": "132",
      "baseline_score": 0.0, "guided_score": 1.0, "leak": None}
  assert taught[3].teaching == Teaching() and taught[3].guided is begun[3].baseline


def test_the_teacher_is_shown_the_probe_or_the_attempt():
  for shown, probe, expected in (("probe", 5, "47+85=47+85"), ("attempt", 5, "47+85=22"),
                                 ("probe", 0, "47+85=")):
    lessons, _ = built.lessons(shown=shown, probe_tokens=probe)
    problem = built.problems()[0]
    begun = lessons.begin([problem], seed=0)
    approach = begun[0].approach and begun[0]._replace(approach=StudentReply("47+85", 5))
    asked = lessons.teacher_problem(approach or begun[0])
    assert asked.prompt == expected and (asked.answer, asked.where) == (problem.answer, problem.where)


def test_chats_are_shown_as_messages():
  lessons, _ = built.lessons(templates=teaching.CHAT)
  asked = lessons.teacher_problem(lessons.begin(built.problems()[:1], seed=0)[0])
  assert [one["role"] for one in asked.prompt] == ["system", "user"] and asked.solution is None


def test_guidance_that_contains_the_answer_is_marked():
  lessons, _ = built.lessons()
  begun = lessons.begin(built.problems()[:2], seed=0)
  assert [one.leak for one in lessons.finish(begun, ["it is 132", "c"], seed=0)] == ["number", None]


def test_without_a_truth_or_an_answer_there_is_no_grade():
  lessons, _ = built.lessons()
  begun = lessons.begin([Problem("a", "1+1=")], seed=0)
  assert math.isnan(begun[0].baseline_score) and begun[0].baseline.text == "2"
  assert lessons.finish(begun, ["2"], seed=0)[0].leak is None

  class Broken(Noting):
    """Never answers."""

    def answer(self, asked, **given):
      """Fails."""
      return [StudentReply("132", reason="abort")] * len(asked)

  broken, _ = built.lessons(Broken())
  assert math.isnan(broken.begin(built.problems()[:1], seed=0)[0].baseline_score)


def test_grades_beyond_one_and_lost_answers_are_refused():
  lessons, student = built.lessons()
  lessons._grade = lambda found, texts, *, step: [2.0] * len(texts)
  with pytest.raises(ValueError, match="config.teacher.grader gives 2 to 2; grades must be from 0 to 1"):
    lessons.begin(built.problems(), seed=0)
  student.answer = lambda asked, **given: []
  with pytest.raises(ValueError, match="the student gave 0 answers to 4 questions"):
    lessons.begin(built.problems(), seed=0)
