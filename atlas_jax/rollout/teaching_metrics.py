"""Numbers of a rollout of a teacher: what its guidance did to the student's answers."""
from collections.abc import Callable, Sequence

import numpy as np

from atlas_jax.rollout.lessons import Taught
from atlas_jax.rollout.teacher_rewards import verdicts


def of_rollout(taught: Sequence[Taught], reward_B, *, count_tokens: Callable) -> dict[str, float]:
  """Returns metrics by name; those without a value are left out.

  Args:
    taught: all of the rollout.
    reward_B: their rewards, NaN where masked.
    count_tokens: text -> tokens by the teacher's tokenizer.

  Source: the names and definitions are those of the original's trainer, its token_efficiency included.
  """
  before_B = np.array([one.lesson.baseline_score for one in taught])
  after_B = np.array([one.guided_score for one in taught])
  change_B = after_B - before_B
  length_B = np.array([count_tokens(one.teaching.guidance or "") for one in taught], np.float64)
  reward_B = np.asarray(reward_B, np.float64)
  approach_B = np.array([np.nan if one.lesson.approach is None or one.lesson.approach.tokens is None
                         else one.lesson.approach.tokens for one in taught], np.float64)
  reliance_B = np.array([np.nan if one.reliance_nats is None else one.reliance_nats for one in taught])
  paired_B = change_B[~np.isnan(change_B)]
  # Accuracies of the same rows, those that have both grades: their difference is the delta.
  found = {
      "student_accuracy": _mean(after_B[~np.isnan(change_B)]),
      "baseline_accuracy": _mean(before_B[~np.isnan(change_B)]),
      "accuracy_delta": _mean(paired_B), "improvement_rate": _mean(paired_B > 0),
      "degradation_rate": _mean(paired_B < 0),
      "teaching_length_mean_tokens": _mean(length_B), "teaching_length_std_tokens": float(np.std(length_B)),
      "approach_length_mean_tokens": _mean(approach_B),
      "token_efficiency": (_mean(reward_B) / (_mean(length_B) / 100)) if length_B.any() else np.nan,
      "leaked_frac": _mean([one.leak is not None for one in taught]),
      "masked_frac": _mean(np.isnan(reward_B)),
      "malformed_frac": _mean([one.teaching.problem is not None for one in taught]),
      "silent_frac": _mean([one.teaching.guidance is None for one in taught]),
      "failed_frac": _mean([one.guided.failed or one.lesson.baseline.failed for one in taught]),
      "verdict_accuracy": _mean(verdicts(taught)), "reliance_nats": _mean(reliance_B)}
  return {f"teacher/{name}": float(value) for name, value in found.items() if not np.isnan(value)}


def _mean(values) -> float:
  column = np.asarray(values, np.float64)
  known = column[~np.isnan(column)]
  return float(known.mean()) if len(known) else np.nan
