"""Rollouts of a teacher: groups of what its guidance is worth, what is masked, counted and written down."""
import dataclasses
import json
import math

import numpy as np
import pytest

from atlas_jax.data import chats
from atlas_jax.data import tokenizer as tokenizers
from atlas_jax.data.problems import Problem
from atlas_jax.rollout import ask, teaching, teaching_metrics
from atlas_jax.rollout.groups import Scoring
from atlas_jax.rollout.students import StudentReply
from atlas_jax.rollout.teacher_rewards import LeakRule
from atlas_jax.rollout.toy_student import ToyStudent
from atlas_jax.state import Trained
from tests import hf_fixture
from tests.helpers import assert_close
from tests.rollout import lessons as built
from tests.rollout.rollouts import same, written


def test_a_batch_has_the_teachers_prompts_and_advantages_of_its_students_gains():
  source, student = built.made()
  batch = source.next(Trained(None))
  texts = written(batch)
  assert [prompt for prompt, _ in texts] == [texts[0][0]] * 3 + [texts[3][0]] * 3
  assert {texts[0][0], texts[3][0]} < set(built.SUMS)
  reward_BG = np.concatenate([[_worth(*text) for text in texts]]).reshape(2, 3)
  centred = reward_BG - reward_BG.mean(1, keepdims=True)
  assert_close(batch["advantage_B"], (centred / (reward_BG.std(1, ddof=1, keepdims=True) + 1e-4)).reshape(-1),
               tolerance=1e-4)
  # Two questions alone, and six with guidance.
  assert (student.calls, student.rows) == (2, 2 + 6)


def _worth(prompt, reply):
  """The reward of preset r3, by hand."""
  left, right = (int(one) for one in prompt.strip("=").split("+"))
  alone = str(left + right) == built.SUMS[prompt] and not _carries(left, right)
  guided = "x" not in reply and ("c" in reply or alone)
  bonus = 1 + 100 / (100 + len(reply))
  return 0.0 if not guided else bonus * (0.5 if alone else 1.0)


def _carries(left, right):
  return any(int(a) + int(b) > 9 for a, b in zip(str(left), str(right)))


def test_metrics_say_what_guidance_did():
  source, _ = built.made(words=["c"], n=2, batch_rows=8)
  source.next(Trained(None))
  found = source.metrics().scalars
  assert found["teacher/baseline_accuracy"] == 0.5 and found["teacher/student_accuracy"] == 1
  assert found["teacher/accuracy_delta"] == found["teacher/improvement_rate"] == 0.5
  assert found["teacher/degradation_rate"] == found["teacher/masked_frac"] == 0
  assert found["teacher/leaked_frac"] == 0
  assert found["teacher/teaching_length_mean_tokens"] == 1
  assert found["teacher/teaching_length_std_tokens"] == 0
  assert found["teacher/token_efficiency"] == pytest.approx(found["rollout/reward_mean"] * 100)
  assert found["rollout/skipped_prompts"] == 0 and "teacher/approach_length_mean_tokens" not in found


def test_rows_show_question_guidance_and_both_answers():
  source, _ = built.made(words=["c"])
  source.next(Trained(None))
  rows = json.loads(json.dumps(source.metrics().text)) and source._taught
  logged = rows[0].columns
  assert logged["guided"] == built.SUMS[logged["question"]] and logged["guided_score"] == 1.0
  assert "reward" in source.metrics().text and logged["question"] in source.metrics().text


def test_a_question_without_a_truth_is_masked_and_trains_nothing():
  found = [*built.problems()[:1], Problem("f.jsonl:9", "10+11=")]
  source, _ = built.made(found, words=["c", "no"])
  batch = source.next(Trained(None))
  scalars = source.metrics().scalars
  assert scalars["teacher/masked_frac"] == scalars["rollout/unrewarded_frac"] == 0.5
  unknown_B = np.array([prompt == "10+11=" for prompt, _ in written(batch)])
  assert (batch["advantage_B"][unknown_B] == 0).all() and np.isfinite(batch["advantage_B"]).all()
  assert scalars["teacher/student_accuracy"] <= 1 and scalars["rollout/learnable_frac"] <= 0.5


def test_leaks_are_counted_and_left_out_where_the_rule_says_so():
  found = built.problems({"47+85=": "132"})
  source, _ = built.made(found, words=["c132", "no"], n=4, batch_rows=4,
                         wanted=built.teacher_rewards(rule=LeakRule("mask")))
  batch = source.next(Trained(None))
  leaked_B = np.array(["132" in reply for _, reply in written(batch)])
  assert 0 < leaked_B.sum() < 4
  assert source.metrics().scalars["teacher/leaked_frac"] == leaked_B.mean()
  assert (batch["advantage_B"] == 0).all()


class Flaky(ToyStudent):
  """Does not answer every fifth of the questions with guidance."""

  def answer(self, asked, **given):
    """Answers as far as it can."""
    found = super().answer(asked, **given)
    return [StudentReply("", reason="abort") if len(found) > 2 and at % 5 == 4 else one
            for at, one in enumerate(found)]


def test_answers_that_cannot_be_had_are_masked_and_counted():
  source, _ = built.made(words=["c", "x"], student=Flaky(), n=4, batch_rows=8)
  batch = source.next(Trained(None))
  metrics = source.metrics().scalars
  assert metrics["teacher/masked_frac"] == metrics["teacher/failed_frac"] == 1 / 8
  assert metrics["rollout/unrewarded_frac"] == 1 / 8 and batch["advantage_B"][4] == 0
  assert np.isfinite(batch["advantage_B"]).all() and batch["advantage_B"].any()


def test_chats_are_asked_by_the_teachers_own_template_and_replies_are_read_as_json():
  pytest.importorskip("jinja2", reason="needs the extra hf")
  folder = str(hf_fixture.FOLDER / "byte_tokenizer")
  template = chats.load(folder)
  seen = []

  def encode(problem):
    seen.append(chats.prompt_ids(problem, tokenizers.load(folder), template))
    return ask.encoder(built.BYTES)(problem._replace(prompt="q"))

  given = teaching.CHAT._replace(baseline=teaching.PLAIN.baseline, guided=teaching.PLAIN.guided)
  replies = ['{"valid": false, "guidance": "c"}', '{"valid": true}', "no"]
  source, _ = built.made(words=replies, n=4, batch_rows=8, encode=encode, settings={"templates": given})
  source._options = dataclasses.replace(source._options, max_tokens=60)
  source.next(Trained(None))
  text = tokenizers.load(folder).decode(seen[0])
  assert "Never state the answer" in text and "Reply with the JSON object." in text
  by_reply = {one.teaching for one in source._taught}
  assert {one.guidance for one in by_reply} == {"c", None}
  scalars = source.metrics().scalars
  assert 0 < scalars["teacher/malformed_frac"] < scalars["teacher/silent_frac"] < 1


def test_failures_alone_are_shown_and_every_one_of_them():
  source, _ = built.made(settings={"shown": "failure"}, n=2, batch_rows=2)
  asked = [written(source.next(Trained(None)))[0][0] for _ in range(4)]
  # What the student wrote stands behind the question, and the two sums that it can do never come.
  assert sorted(asked) == ["47+85=22"] * 2 + ["77+77=44"] * 2
  assert source.metrics().scalars["teacher/passed_frac"] > 0
  assert source.metrics().scalars["rollout/skipped_prompts"] == 0


def test_where_there_is_no_failure_to_show_it_is_said(monkeypatch):
  monkeypatch.setattr("atlas_jax.rollout.prompted.MOST_SKIPPED", 20)
  source, _ = built.made(built.problems({"12+34=": "46"}), settings={"shown": "failure"})
  with pytest.raises(ValueError, match="of 20 questions in a row not 2 .* the student fails in none"):
    source.next(Trained(None))


def test_a_source_goes_on_from_its_state_and_two_processes_have_its_halves():
  source, _ = built.made(settings={"shown": "failure"}, batches_per_rollout=2)
  halves = [built.made(settings={"shown": "failure"}, batches_per_rollout=2, place=(number, 2))[0]
            for number in range(2)]
  for step in range(3):
    if step == 1:
      state = json.loads(json.dumps(source.state()))
    batch = source.next(Trained(None))
    parts = [half.next(Trained(None)) for half in halves]
    width = {name: max(part[name].shape[1:] for part in parts) for name in batch}
    assert all(batch[name].shape[1:] == width[name] for name in batch)
    same(batch, {name: np.concatenate([part[name] for part in parts]) for name in batch})
  again, _ = built.made(settings={"shown": "failure"}, batches_per_rollout=2)
  again.restore(state)
  again.next(Trained(None))
  same(again.next(Trained(None)), batch)


def test_long_replies_cost_beside_what_they_earn():
  source, _ = built.made(built.problems({"47+85=": "132"}), words=["c", "c" * 19], n=4, batch_rows=4,
                         scoring=Scoring(overlong_tokens=10))
  batch = source.next(Trained(None))
  long_B = np.array([len(reply) > 5 for _, reply in written(batch)])
  assert 0 < long_B.sum() < 4 and (batch["advantage_B"][long_B] < 0).all()


def test_numbers_of_a_rollout_are_means_of_what_is_known():
  lessons, _ = built.lessons(shown="attempt")
  begun = lessons.begin(built.problems(), seed=0)
  taught = lessons.finish(begun, ["c", "x", "it is 59", ""], seed=0)
  found = teaching_metrics.of_rollout(taught, [1, 0, math.nan, 0.5], count_tokens=len)
  assert found["teacher/improvement_rate"] == found["teacher/degradation_rate"] == 0.25
  assert found["teacher/leaked_frac"] == found["teacher/masked_frac"] == found["teacher/silent_frac"] == 0.25
  assert found["teacher/token_efficiency"] == pytest.approx(0.5 / (10 / 4 / 100))
  assert "teacher/verdict_accuracy" not in found
