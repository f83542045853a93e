"""Calibration of scores against what is right."""
import numpy as np
import pytest

from atlas_jax.rollout.judges.calibration import calibrated


def test_calibration_is_of_answers_with_a_score_and_a_truth():
  found = calibrated([0.9, 0.6, 0.6, 0.1, None, 0.5], [True, True, False, False, True, None])
  assert found == pytest.approx({"count": 4, "agreement": 0.75, "brier": np.mean([0.01, 0.16, 0.36, 0.01]),
                                 "auc": 3.5 / 4, "mean_right": 0.75, "mean_wrong": 0.35})
  assert calibrated([0.9], [True])["auc"] is None and calibrated([None], [True])["count"] == 0
