"""Rewards of a teacher's replies: gains, leaks, replies that cannot be used, verdicts, and others."""
import numpy as np
import pytest

from atlas_jax.rollout.students import StudentReply
from atlas_jax.rollout.teacher_rewards import LeakRule
from atlas_jax.rollout.teaching import PLAIN, Teaching
from atlas_jax.rollout.teaching_reward import TeachingReward
from tests.helpers import assert_close
from tests.rollout import lessons as built

HERE = "tests.rollout.test_teacher_rewards."


def helped(completion, guidance, baseline, guided_score, level=1):
  """Reads what a lesson was."""
  return None if guidance is None else len(guidance) + 10 * guided_score + level


def scored(replies, wanted, **changes):
  """Rewards of replies to 47+85=, which the student gets wrong, but right from the second on."""
  lessons, _ = built.lessons()
  found = built.problems()
  begun = lessons.begin([found[0], *[found[1]] * (len(replies) - 1)], seed=0)
  taught = [one._replace(**changes) for one in lessons.finish(begun, replies, seed=0)]
  prompts = [lessons.teacher_problem(one) for one in begun]
  return wanted.score(taught, replies, [list(text.encode()) for text in replies], prompts=prompts, step=0)


def test_a_gain_earns_more_than_what_stays_right_and_harm_nothing():
  bonus = 1 + 100 / 101
  out = scored(["c", "c", "x", ""], built.teacher_rewards())
  assert_close(out.reward_B, np.array([bonus, 0.5 * bonus, 0, 1.0], np.float32), tolerance=1e-6)
  assert out.columns["guidance"] == ["c", "c", "x", None]
  penalty = built.teacher_rewards(reward=TeachingReward(preset="r2"))
  assert scored(["c", "c", "x"], penalty).reward_B[2] == -2


def test_the_whole_text_counts_where_the_preset_says_so():
  tags = PLAIN._replace(reply="tags")
  lessons, _ = built.lessons(templates=tags)
  begun = lessons.begin(built.problems()[:1], seed=0)
  replies = ["<thinking>" + "?" * 50 + "</thinking><teaching>c</teaching>"]
  taught = lessons.finish(begun, replies, seed=0)
  for preset, tokens in (("r0", len(replies[0])), ("r3", 1)):
    wanted = built.teacher_rewards(reward=TeachingReward(preset=preset))
    out = wanted.score(taught, replies, [[0]], prompts=[begun[0].problem], step=0)
    assert out.reward_B[0] == pytest.approx(1 + 100 / (100 + tokens), rel=1e-6)
  r4 = built.teacher_rewards(reward=TeachingReward(preset="r4"))
  assert r4.score(taught, replies, [[0]], prompts=[begun[0].problem], step=0).reward_B[0] == 1
  unknown = [taught[0]._replace(guided=StudentReply("132"))]
  with pytest.raises(ValueError, match="needs the lengths of the student's answers"):
    r4.score(unknown, replies, [[0]], prompts=[begun[0].problem], step=0)


@pytest.mark.parametrize(("rule", "expected"), [
    (LeakRule("zero"), 0.0), (LeakRule("mask"), np.nan), (LeakRule("penalty", 0.25), -0.25)])
def test_a_leak_never_pays(rule, expected):
  out = scored(["c132", "c"], built.teacher_rewards(rule=rule))
  np.testing.assert_array_equal(out.reward_B[0], np.float32(expected))
  assert out.reward_B[1] > 0


def test_a_reply_that_cannot_be_used_does_not_earn_what_the_student_can_do_alone():
  lessons, _ = built.lessons()
  begun = lessons.begin(built.problems()[1:2], seed=0)
  broken = lessons.finish_with(begun, [Teaching(problem="no JSON")], seed=0)
  silent = lessons.finish_with(begun, [Teaching(valid=True)], seed=0)
  wanted = built.teacher_rewards()
  earned = [wanted.score(one, ["?"], [[0]], prompts=[begun[0].problem], step=0).reward_B[0]
            for one in (broken, silent)]
  assert earned == [0, 1]
  shaped = built.teacher_rewards("teaching,letters=0.5")
  given = dict(prompts=[begun[0].problem], step=0)
  assert shaped.score(broken, ["no JSON"], [[0]], **given).reward_B[0] == pytest.approx(0.5 * 6 / 7)


def test_verdicts_on_an_attempt_are_rewarded_and_reliance_costs():
  lessons, _ = built.lessons(shown="attempt")
  begun = lessons.begin(built.problems()[:2], seed=0)  # Wrong, then right.
  given = [Teaching("c", valid=False), Teaching("c", valid=False)]
  taught = [one._replace(reliance_nats=nats)
            for one, nats in zip(lessons.finish_with(begun, given, seed=0), (0.5, -3.0))]
  wanted = built.teacher_rewards(verdict_weight=0.5, reliance_weight=0.2)
  out = wanted.score(taught, ["", ""], [[0], [0]], prompts=[one.problem for one in begun], step=0)
  plain = built.teacher_rewards().score(taught, ["", ""], [[0], [0]], prompts=[], step=0)
  # An answer that guidance makes less likely costs nothing, and earns nothing either.
  assert_close(out.reward_B - plain.reward_B, np.array([0.5 - 0.1, 0], np.float32), tolerance=1e-6)
  assert out.each["verdict"].tolist() == [1, 0] and wanted.weights["reliance"] == -0.2


def test_without_a_grade_a_verdict_is_not_enough():
  lessons, _ = built.lessons(shown="attempt")
  begun = lessons.begin([one._replace(answer=None) for one in built.problems()[:1]], seed=0)
  taught = lessons.finish_with(begun, [Teaching("c", valid=False)], seed=0)
  wanted = built.teacher_rewards(verdict_weight=0.5, reliance_weight=0.0)
  out = wanted.score([taught[0]._replace(reliance_nats=1.0)], [""], [[0]], prompts=[], step=0)
  assert np.isnan(out.reward_B).all()


def test_rewards_of_ones_own_read_the_lesson():
  wanted = built.teacher_rewards(f"teaching=0,{HERE}helped=2")
  wanted.check_columns(built.problems())
  assert scored(["c", "c"], wanted).reward_B.tolist() == [2 * (1 + 10 + 1)] * 2
  alone = built.teacher_rewards(f"{HERE}helped")
  assert scored(["", "cc"], alone).each[f"{HERE}helped"].tolist()[1] == 2 + 10 + 1
  assert np.isnan(scored(["", "cc"], alone).reward_B[0])


@pytest.mark.parametrize(("names", "message"), [
    ("", "is empty"), ("teaching,nothing", "'nothing', which is unknown"),
    ("verdict=1", "which config.teacher.verdict_weight sets")])
def test_names_that_cannot_be_are_refused(names, message):
  with pytest.raises(ValueError, match=message):
    built.teacher_rewards(names)
