"""Scoring: graders first, then judges; what is no score is None with a reason."""
import asyncio
import math
import types

import pytest

from atlas_jax.runtime.result import AttemptRecord
from atlas_jax.runtime.scoring import GraderAndJudges, Unscored

MADE = (AttemptRecord(1, 1, "3", "failed", guidance="Carry."), AttemptRecord(1, 2, "4", "passed"))


def judged(score):
  class Judges:
    async def judge(self, case):
      if isinstance(score, Exception):
        raise score
      asked.append(case)
      extra = {"tokens": 9, "calls": 3, "no_verdict": {}}
      return types.SimpleNamespace(score=score, breakdown={}, extra=extra)

  asked: list = []
  return asyncio.run(GraderAndJudges(None, Judges()).judge("2+2", "4", None, MADE, None)), asked


# The rows of lanes.json that name judges: the original keeps 0.0, 1.0 and 7.0 of these, or says nothing.
@pytest.mark.parametrize("score", [None, True, [0.9], 7, -0.1, math.nan, math.inf, "1", RuntimeError("500")],
                         ids=repr)
def test_what_is_no_score_is_no_verdict_with_a_reason(score):
  found, _ = judged(score)
  assert found.value is None and found.reason and "judges" in found.reason

  def grader(**given):
    if isinstance(score, Exception):
      raise score
    return score

  found = GraderAndJudges(grader).grade("2+2", "4", "4", MADE)
  assert found.value is None and "grader" in found.reason


def test_judges_see_every_attempt_with_its_guidance():
  found, (case,) = judged(0.5)
  assert (found.value, found.source, found.tokens.calls) == (0.5, "judge", 3)
  assert [(one["answer"], one["guidance"], one["status"]) for one in case.attempts] == [
      ("3", "Carry.", "failed"), ("4", None, "passed")]


def test_a_grader_scores_each_attempt_of_the_one_step():
  scorer = GraderAndJudges(lambda *, prompt, completion, answer: float(completion == answer))
  found = scorer.grade("q", "4", "4", MADE)
  assert found.value == 1.0 and found.attempts == {"1/1": 0.0, "1/2": 1.0}


def test_without_what_scores_the_reason_says_so():
  assert "no grader" in Unscored().grade("2+2", "4", "4", MADE).reason
  assert "ground_truth" in GraderAndJudges(lambda **given: 1.0).grade("2+2", "4", None, MADE).reason
