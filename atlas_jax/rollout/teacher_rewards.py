"""Rewards of a teacher's replies: the gain of its student, and rewards of one's own beside it."""
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from atlas_jax.data.problems import Problem
from atlas_jax.rollout import rewards
from atlas_jax.rollout.lessons import COLUMNS, Taught
from atlas_jax.rollout.rewards import Rewards, RewardScores
from atlas_jax.rollout.teaching_reward import TeachingReward, teaching_reward

TEACHING = "teaching"
VERDICT = "verdict"    # Stands among the rewards for a right verdict on the attempt that was shown,
RELIANCE = "reliance"  # and for how much the student relies on guidance.


@dataclasses.dataclass(frozen=True)
class LeakRule:
  """Reward of a reply whose guidance contains the answer; fields as in config.teacher."""

  leak: str = "zero"
  leak_penalty: float = 1.0


class TeacherRewards:
  """Several rewards with weights.

  Attributes:
    weights: name -> weight, those for verdicts and reliance included.
    count_tokens: text -> tokens by the teacher's tokenizer.
  """

  def __init__(self, names: str, settings: TeachingReward, rule: LeakRule, *, count_tokens: Callable,
               verdict_weight: float = 0.0, reliance_weight: float | None = None,
               max_steps: int | None = None, rim=None):
    """Finds rewards.

    Args:
      names: names and weights, as config.teacher.rewards has them.
      settings: of the reward called "teaching".
      rule: for guidance that contains the answer.
      count_tokens: text -> tokens by the teacher's tokenizer.
      verdict_weight, reliance_weight: as in config.teacher.
      max_steps: updates of the run.
      rim: config.rim, for the reward of judges.

    Raises:
      ValueError: if there is none, or one is not found.
    """
    weights = rewards.parse_weights(names)
    if not weights:
      raise ValueError("config.teacher.rewards is empty; give at least one with a weight, such as teaching")
    others = {name: weight for name, weight in weights.items() if name != TEACHING}
    if taken := {VERDICT, RELIANCE} & set(others):
      raise ValueError(f"config.teacher.rewards names {', '.join(sorted(taken))}, which config.teacher."
                       f"{sorted(taken)[0]}_weight sets; leave it out")
    self.weights = weights
    if verdict_weight:
      self.weights = {**self.weights, VERDICT: verdict_weight}
    if reliance_weight:
      self.weights = {**self.weights, RELIANCE: -reliance_weight}
    self._others = Rewards(others, max_steps=max_steps, rim=rim) if others else None
    self._masks = frozenset() if self._others is None else self._others.masks
    self._settings = settings
    self._rule = rule
    self.count_tokens = count_tokens

  def check_columns(self, found: Sequence[Problem]) -> None:
    """Refuses rewards of one's own that ask for a column which no row has; see `Rewards.check_columns`."""
    if self._others is not None:
      known = dict.fromkeys((*COLUMNS, "trajectory"))
      self._others.check_columns(one._replace(extra={**one.extra, **known}) for one in found)

  def score(self, taught: Sequence[Taught], texts: Sequence[str], tokens: Sequence[Sequence[int]], *,
            prompts: Sequence[Problem], step: int) -> RewardScores:
    """Scores replies.

    Args:
      taught: of each of B replies.
      texts, tokens: the replies.
      prompts: what the teacher was asked for each.
      step: updates made so far.
    """
    each: dict[str, np.ndarray] = {}
    logged: Mapping[str, float] = {}
    columns = {name: [one.columns[name] for one in taught] for name in COLUMNS}
    if TEACHING in self.weights:
      each[TEACHING] = self._gains(taught, texts)
    if VERDICT in self.weights:
      each[VERDICT] = verdicts(taught)
    if RELIANCE in self.weights:
      each[RELIANCE] = np.array([np.nan if one.reliance_nats is None else max(0.0, one.reliance_nats)
                                 for one in taught], np.float32)
    if self._others is not None:
      # What came of the guidance is the course of events that judges are shown, see `judges.case`.
      rows = [problem._replace(extra={**problem.extra, **one.columns, "trajectory": one.guided.text})
              for problem, one in zip(prompts, taught, strict=True)]
      scores = self._others.score(rows, texts, tokens=tokens, step=step)
      each |= scores.each
      logged = scores.logged
      columns |= scores.columns
    return RewardScores(self._settled(taught, each), each, self.weights, logged, columns)

  def _gains(self, taught: Sequence[Taught], texts: Sequence[str]) -> np.ndarray:
    counted = texts if self._settings.counts_whole_text else [one.teaching.guidance or "" for one in taught]
    lengths: dict[str, Any] = {}
    if self._settings.needs_answer_lengths:
      lengths = {"baseline_length_B": [_length(one.lesson.baseline) for one in taught],
                 "guided_length_B": [_length(one.guided) for one in taught]}
    gain_B = teaching_reward([one.lesson.baseline_score for one in taught],
                             [one.guided_score for one in taught],
                             [self.count_tokens(text) for text in counted], self._settings, **lengths)
    # A reply that cannot be used leaves the student alone, and must not earn what keeping it right does.
    # Other rewards stand, such as one that teaches the form of replies.
    broken_B = np.array([one.teaching.problem is not None for one in taught])
    return np.where(broken_B, np.minimum(gain_B, 0), gain_B)

  def _settled(self, taught: Sequence[Taught], each: Mapping[str, np.ndarray]) -> np.ndarray:
    """Adds up rewards, and settles what replies earn that leak."""
    reward_B = rewards.combine(each, self.weights, masks=self._masks)
    # What the student's gain has nothing to say of, such as without a truth, is not made up for by a verdict
    # or a length: only other rewards speak for such a reply.
    known = [each[name] for name in each if name not in (VERDICT, RELIANCE)]
    silent_B = np.all([np.isnan(column_B) for column_B in known], axis=0)
    leaked_B = np.array([one.leak is not None for one in taught])
    settled = {"zero": np.minimum(reward_B, 0), "mask": np.full_like(reward_B, np.nan),
               "penalty": np.full_like(reward_B, -self._rule.leak_penalty)}[self._rule.leak]
    reward_B = np.where(leaked_B, settled, reward_B)
    return np.where(silent_B, np.nan, reward_B).astype(np.float32)


def verdicts(taught: Sequence[Taught]) -> np.ndarray:
  """Returns 1 where the teacher judges the attempt rightly, else 0; NaN where either is not known."""
  return np.array([np.nan if one.teaching.valid is None or np.isnan(one.lesson.baseline_score)
                   else float(one.teaching.valid == (one.lesson.baseline_score >= 1))
                   for one in taught], np.float32)


def _length(answer) -> int:
  if answer.tokens is None:
    raise ValueError("config.teacher.reward.preset='r4' needs the lengths of the student's answers, and the "
                     "student does not give them; take preset r3")
  return answer.tokens
