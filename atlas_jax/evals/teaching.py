"""Measures of a teacher: what guidance does to a student's answers to the same questions.

A question has a score without guidance and one with it, each in [0, 1], and the tokens of the guidance.
Source: the names are those of Arc's ATLAS: LR, NDR, LES (later TES); intervals and tests are ours.
"""
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from atlas_jax.evals import bootstrap

SUCCESS_TARGET = 0.10  # By which distillation is meant to raise the rate of success,
TOKEN_TARGET_PCT = 30.0  # and to lower the tokens of an answer.
FEW_GRADED = 30  # Questions, below which a gain is hardly known.
SILENT_LIMIT = 0.1  # Fraction of questions that may go without a word of guidance.


def measures(without_B, with_B, tokens_B, completed_B=None, *, without_tokens_B=None, with_tokens_B=None
             ) -> dict[str, float | None]:
  """Returns the measures of paired answers by name; None for one that has no value.

  Args:
    without_B, with_B: scores of the same questions, without NaN.
    tokens_B: of each guidance.
    completed_B: whether the guided answer came to its end; None: all did.
    without_tokens_B, with_tokens_B: lengths of the answers; None: not known.

  Returns:
    learning_rate (LR, the mean change), non_degradation_rate (NDR, the fraction that did not get worse),
    degradation_rate, improvement_rate, degradation_severity (the mean loss of those that did),
    recovery_rate (the fraction of wrong answers that became right), completion_rate,
    learning_efficiency_per_token (LES, the change per token of guidance), learning_efficiency_per_1k,
    teaching_efficiency_score (TES, the mean change times the completion rate per 1,000 tokens of guidance),
    and token_efficiency (1 - tokens of guided answers over those of the others).
  """
  without_B, with_B, tokens_B = (np.asarray(column, np.float64) for column in (without_B, with_B, tokens_B))
  rows = _checked(without_B, with_B, tokens_B)
  change_B = with_B - without_B
  worse_B = change_B < 0
  tokens = tokens_B.sum()
  completion = None if not rows else 1.0 if completed_B is None else float(np.mean(completed_B))
  found: dict[str, float | None] = {
      "learning_rate": _mean(change_B), "non_degradation_rate": _mean(change_B >= 0),
      "degradation_rate": _mean(worse_B), "improvement_rate": _mean(change_B > 0),
      "degradation_severity": float(-change_B[worse_B].mean()) if worse_B.any() else 0.0,
      "recovery_rate": _mean(with_B[without_B < 1] >= 1), "completion_rate": completion,
      "learning_efficiency_per_token": None, "learning_efficiency_per_1k": None,
      "teaching_efficiency_score": None, "token_efficiency": None}
  if tokens > 0:
    per_token = float(change_B.sum() / tokens)
    found |= {"learning_efficiency_per_token": per_token, "learning_efficiency_per_1k": 1000 * per_token,
              "teaching_efficiency_score": float(change_B.mean()) * float(completion or 0.0)
              / (float(tokens_B.mean()) / 1000)}
  if without_tokens_B is not None and with_tokens_B is not None and np.sum(without_tokens_B) > 0:
    found["token_efficiency"] = float(1 - np.sum(with_tokens_B) / np.sum(without_tokens_B))
  return found


def intervals(without_B, with_B, *, seed: int = 0) -> dict[str, tuple[float, float] | None]:
  """Returns intervals of 95% over questions: of both accuracies, the mean change and the NDR."""
  without_B, with_B = (np.asarray(column, np.float64) for column in (without_B, with_B))
  ones_B = np.ones(len(without_B))
  columns = {"without": without_B, "with": with_B, "learning_rate": with_B - without_B,
             "non_degradation_rate": (with_B >= without_B).astype(np.float64)}
  return {name: bootstrap.interval_of_mean(column_B, ones_B, seed=seed)
          for name, column_B in columns.items()}


def paired_tests(without_B, with_B) -> dict[str, float | None]:
  """Returns tests of whether guidance changes the answers to the same questions.

  Returns:
    mcnemar_p: exact and two-sided, of answers that are right (1) or not; None where scores lie between.
    t_p: of the paired t-test, two-sided. cohens_d: the mean change over the deviation of the changes (of the
    pairs, not the average of two variances). None for fewer than two questions or equal changes.
  """
  without_B, with_B = (np.asarray(column, np.float64) for column in (without_B, with_B))
  change_B = with_B - without_B
  found: dict[str, float | None] = {"mcnemar_p": None, "t_p": None, "cohens_d": None}
  if len(change_B) and np.isin(without_B, (0, 1)).all() and np.isin(with_B, (0, 1)).all():
    found["mcnemar_p"] = mcnemar_p(int((change_B > 0).sum()), int((change_B < 0).sum()))
  if len(change_B) > 1 and (deviation := float(change_B.std(ddof=1))) > 0:
    from scipy import special  # See `bootstrap.widening`.

    effect = float(change_B.mean()) / deviation
    t = effect * math.sqrt(len(change_B))
    found |= {"cohens_d": effect, "t_p": float(2 * special.stdtr(len(change_B) - 1, -abs(t)))}
  return found


def mcnemar_p(better: int, worse: int) -> float:
  """Returns the exact two-sided probability of a split of changed pairs at least as uneven as this one.

  Source: McNemar 1947, doi:10.1007/BF02295996, by the binomial distribution at one half.
  """
  changed = better + worse
  tail = sum(math.comb(changed, count) for count in range(min(better, worse) + 1))
  # Whole numbers up to the end: of thousands of pairs 2**changed is beyond a float.
  return min(1.0, 2 * tail / 2**changed)


def caveats(found: Mapping[str, float]) -> list[str]:
  """Returns what a reader of an evaluation of guidance must know: few questions, or guidance that is empty.

  Args:
    found: its metrics, without "eval/teaching_"; those that are not known may be left out.
  """
  lines = []
  graded = found.get("graded_count")
  if graded is not None and graded < FEW_GRADED:
    ends = [found.get(f"learning_rate_{end}") for end in ("low", "high")]
    between = "" if None in ends else (f"; the gain, {found['learning_rate']:+.2f}, may be anything from "
                                       f"{ends[0]:+.2f} to {ends[1]:+.2f}")
    lines.append(f"Only {graded:.0f} held-out questions were graded, fewer than {FEW_GRADED}{between}.")
  silent = found.get("silent_frac", 0.0)
  if silent > SILENT_LIMIT:
    lines.append(f"The guidance of {silent:.0%} of the held-out questions was empty: their answers are those "
                 "of the student alone.")
  return lines


def worst(rows: Sequence[Mapping[str, Any]], without_B, with_B, count: int) -> list[Mapping[str, Any]]:
  """Returns the rows whose score fell most, the worst first, with both scores; none whose score did not."""
  pairs = list(zip(without_B, with_B, strict=True))
  order = sorted(range(len(rows)), key=lambda at: (pairs[at][1] - pairs[at][0], at))
  return [{**rows[at], "without": float(pairs[at][0]), "with": float(pairs[at][1])}
          for at in order[:count] if pairs[at][1] < pairs[at][0]]


def baseline_comparison(success: float, tokens: float | None, *, baseline_success: float,
                        baseline_tokens: float | None, slack: float = 1e-9) -> dict[str, float | bool | None]:
  """Returns what distillation gained over the student before it.

  Args:
    success: fraction of right answers now.
    tokens: mean length of an answer now; None: not known.
    baseline_success, baseline_tokens: of the student before.
    slack: by which a target may be missed: 0.85 - 0.75 is below 0.1 in floating point.

  Returns:
    success_delta, success_relative (to the baseline; 0 where that is 0), meets_success_target (0.10),
    token_reduction_pct, meets_token_target (30), and meets_all_targets, of those that are known.
  """
  delta = success - baseline_success
  reduction = None
  if tokens is not None and baseline_tokens:
    reduction = 100 * (baseline_tokens - tokens) / baseline_tokens
  meets = delta >= SUCCESS_TARGET - slack
  saves = None if reduction is None else reduction >= TOKEN_TARGET_PCT - slack
  return {"success_delta": delta, "success_relative": delta / baseline_success if baseline_success else 0.0,
          "meets_success_target": meets, "token_reduction_pct": reduction, "meets_token_target": saves,
          "meets_all_targets": meets and saves is not False}


def _checked(without_B, with_B, tokens_B) -> int:
  sizes = {len(column) for column in (without_B, with_B, tokens_B)}
  if len(sizes) > 1:
    raise ValueError(f"columns of {sorted(sizes)} rows cannot be paired; give one of each per question")
  if np.isnan(without_B).any() or np.isnan(with_B).any():
    raise ValueError("scores have NaN; leave out questions that were not graded both times")
  return sizes.pop()


def _mean(column) -> float | None:
  return float(np.mean(column)) if len(column) else None
