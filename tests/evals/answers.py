"""Answers handed to evaluations and pictures in place of a model's."""

import numpy as np

from atlas_jax.puzzles import solver


def answer(input_T, labels_T, prediction_T, *, example=0, id_=0, halt_logit=0.0, steps=3, calls=1, **metrics):
  """A Result with metrics that follow from the tokens, unless they are given."""
  input_T, labels_T, prediction_T = map(np.asarray, (input_T, labels_T, prediction_T))
  scored = labels_T != -100
  right = float(np.mean(labels_T[scored] == prediction_T[scored])) if scored.any() else 0.0
  found = dict.fromkeys(solver.MEANS, 0.0) | {"accuracy": right, "exact_accuracy": float(right == 1)}
  found |= {"steps": float(steps)} | metrics
  return solver.Result(
    example, input_T, labels_T, id_, prediction_T, halt_logit, found, bool(scored.any()), calls)  # fmt: skip
