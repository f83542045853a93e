"""Rollouts of a teacher: its replies earn what their guidance does to the answers of a student.

The policy is trained on the teacher's replies after exactly the prompts that they were sampled from: each
holds what the student said of its question. Everything else is as of `RolloutSource`.
"""
import time
from typing import NamedTuple

import numpy as np

from atlas_jax.data.problems import Problem, StableRandom
from atlas_jax.data.prompts import PromptSource
from atlas_jax.language.decoding.sampler import Rollout
from atlas_jax.rollout import groups, prompted, teaching_metrics
from atlas_jax.rollout.groups import CompletionGroup
from atlas_jax.rollout.lessons import Lesson, Lessons, Taught
from atlas_jax.rollout.source import RolloutSource
from atlas_jax.rollout.teacher_rewards import TeacherRewards
from atlas_jax.state import Trained

STUDENT = 7  # A word that tells the student's seeds from the teacher's.


class Shown(NamedTuple):
  """A question as the teacher is shown it."""

  lesson: Lesson
  problem: Problem  # what the teacher is asked


class TeacherSource(RolloutSource):
  """Batches of a teacher's replies with advantages; see the module."""

  def __init__(self, prompts: PromptSource, writer, wanted: TeacherRewards, *, lessons: Lessons,
               measure_reliance: bool = False, **given):
    """Takes all parts.

    Args:
      prompts, writer: as of `RolloutSource`; the writer is the teacher's.
      wanted: scores replies.
      lessons: has questions answered.
      measure_reliance: whether the student's log-probabilities with and without guidance are compared.
      **given: what `RolloutSource` takes besides; `encode` is given what the teacher is asked.
    """
    super().__init__(prompts, writer, wanted, **given)  # Of rewards it reads the weights alone.
    self._wanted = wanted
    self._lessons = lessons
    self._measure_reliance = measure_reliance
    self._student_s = 0.0
    self._passed = 0
    self._seen = 0
    self._taught: list[Taught] = []

  def _sample(self, trained: Trained):
    self._lessons.load(trained)
    self._student_s = 0.0
    self._passed = 0
    self._seen = 0
    self._taught = []
    return super()._sample(trained)

  def _questions(self, count: int) -> tuple[list, list[list[int]]]:
    """Returns the next questions with the student's work, and the ids of the teacher's prompts."""
    found: list[Shown] = []
    ids: list[list[int]] = []
    for _ in range(-(-prompted.MOST_SKIPPED // count)):
      place = self._prompts.step
      problems = [self._prompts.next()["problems"][0] for _ in range(count)]
      began = time.perf_counter()
      begun = self._lessons.begin(problems, seed=self._student_seed(place), step=self.step)
      self._student_s += time.perf_counter() - began
      for at, lesson in enumerate(begun):
        asked = self._lessons.teacher_problem(lesson)
        solved = self._lessons.settings.shown == "failure" and not lesson.baseline_score < 1
        prompt = None if solved else self._encode(asked)
        self._seen += 1
        self._passed += solved
        if prompt is None:
          continue
        found.append(Shown(lesson, asked))
        ids.append(prompt.tolist())
        if len(found) == count:
          # As many are asked at a time as are wanted, for the sake of shapes; those behind the last one that
          # is used come again.
          self._prompts.step = place + at + 1
          return found, ids
    raise ValueError(f"of {prompted.MOST_SKIPPED} questions in a row not {count} could be used: prompts "
                     "of the teacher are longer than config.data.max_prompt_tokens, or with "
                     "config.teacher.shown='failure' the student fails in none that has an answer")

  def _scored(self, found: list, ids: list[list[int]], rollout: Rollout, place: int
              ) -> list[CompletionGroup]:
    """Has the questions answered with each guidance, and makes groups of what that is worth."""
    n = self._options.n
    began = time.perf_counter()
    shown = [one for one in found for _ in range(n)]
    taught = self._lessons.finish([one.lesson for one in shown], list(rollout.text_B),
                                  seed=self._student_seed(place), step=self.step)
    if self._measure_reliance:
      taught = self._lessons.reliance(taught)
    self._student_s += time.perf_counter() - began
    self._taught += taught
    tokens = [rollout.tokens_BT[row, :size].tolist() for row, size in enumerate(rollout.length_B)]
    scores = self._wanted.score(taught, rollout.text_B, tokens, prompts=[one.problem for one in shown],
                                step=self.step)
    cost_B = groups.overlong_costs(scores.reward_B, rollout, self._options, self._scoring)
    if cost_B is not None:
      scores = scores._replace(each={**scores.each, groups.OVERLONG: cost_B},
                               reward_B=scores.reward_B + cost_B)
    return groups.of_scores([one.problem for one in found], ids, rollout, self._options, scores,
                            self._scoring)

  def _student_seed(self, place: int) -> int:
    return StableRandom(self._seed, place, STUDENT).below(2**31)

  def _more_metrics(self, asked: list[CompletionGroup]) -> dict[str, float]:
    reward_B = np.concatenate([group.reward_G for group in asked])
    found = teaching_metrics.of_rollout(self._taught, reward_B, count_tokens=self._wanted.count_tokens)
    # Questions that the student can answer were passed over on purpose.
    skipped = {"rollout/skipped_prompts": float(self._seen - self._passed - len(asked))}
    return {**found, **skipped, "teacher/student_s": self._student_s,
            "teacher/passed_frac": self._passed / max(1, self._seen)}
