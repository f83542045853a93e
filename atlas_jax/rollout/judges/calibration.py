"""Calibration: scores compared with what is known to be right."""
from collections.abc import Sequence
from typing import Any

import numpy as np


def calibrated(scores: Sequence[float | None], right: Sequence[bool | None]) -> dict[str, Any]:
  """Returns how scores compare with the truth, over the answers that have both.

  Args:
    scores: in [0, 1]; None: no verdict.
    right: whether each answer is right; None: not known.

  Returns:
    count; agreement, the fraction where a score of at least one half goes with a right answer; brier, the
    mean squared distance, lower is better; auc, the probability that a right answer scores above a wrong one,
    ties counting half; mean_right and mean_wrong. None where there is nothing to compute it from.
  """
  pairs = [(score, truth) for score, truth in zip(scores, right, strict=True)
           if score is not None and truth is not None]
  if not pairs:
    return {"count": 0, **dict.fromkeys(("agreement", "brier", "auc", "mean_right", "mean_wrong"))}
  score_B = np.array([score for score, _ in pairs], np.float64)
  right_B = np.array([truth for _, truth in pairs], bool)
  good_B, bad_B = score_B[right_B], score_B[~right_B]
  return {"count": len(pairs), "agreement": float(np.mean((score_B >= 0.5) == right_B)),
          "brier": float(np.mean((score_B - right_B) ** 2)), "auc": _auc(good_B, bad_B),
          "mean_right": float(good_B.mean()) if len(good_B) else None,
          "mean_wrong": float(bad_B.mean()) if len(bad_B) else None}


def _auc(good_B: np.ndarray, bad_B: np.ndarray) -> float | None:
  """Returns the area under the curve of true against false positives, by ranks."""
  if not len(good_B) or not len(bad_B):
    return None
  ordered_B = np.sort(bad_B)
  below = np.searchsorted(ordered_B, good_B, "left").sum()
  ties = np.searchsorted(ordered_B, good_B, "right").sum() - below
  return float((below + ties / 2) / (len(good_B) * len(bad_B)))
