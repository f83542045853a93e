"""Tracing: what a model answers after every supervision step, as the solver would."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.losses import recursion
from atlas_jax.puzzles import tracing
from tests.helpers import quick_compilation
from tests.puzzles import test_solver as solving

N_STEPS = solving.N_SUPERVISION


@functools.cache
def traced(token_loss="stablemax"):
  model, params, table, reset = solving.tiny()
  with quick_compilation():
    options = dict(n_supervision=N_STEPS, tables={"puzzles": table}, token_loss=token_loss)
    return tracing.trace(model, params, solving.examples(), reset, **options)


def example(prediction_NBT, halt=0.5):
  prediction_NBT = np.asarray(prediction_NBT)
  halt_NB = np.full(prediction_NBT.shape[:2], halt)
  return tracing.SolvingTrace(prediction_NBT, np.ones(prediction_NBT.shape), halt_NB)


def test_a_trace_has_the_answers_of_every_step():
  trace = traced()
  assert trace.prediction_NBT.shape == (N_STEPS, solving.N_EXAMPLES, solving.tiny()[0].seq_len)
  for row in (0, solving.N_EXAMPLES - 1):
    for step, out in enumerate(solving.alone(row, N_STEPS)):
      np.testing.assert_array_equal(trace.prediction_NBT[step, row], np.argmax(out.logits_BTV[0], axis=-1))
      # Rounding of another batch, passed on through some steps of recursion.
      halt = 1 / (1 + np.exp(-float(out.halt_logit_B[0])))
      np.testing.assert_allclose(trace.halt_NB[step, row], halt, rtol=1e-4, atol=1e-4)


def test_the_last_step_is_the_answer_of_an_evaluation():
  for result in solving.solved():
    np.testing.assert_array_equal(traced().prediction_NBT[-1, result.example], result.prediction_T)
    np.testing.assert_allclose(traced().halt_NB[-1, result.example], result.q, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("token_loss", recursion.TOKEN_LOSSES)
def test_chances_are_those_of_the_loss(token_loss):
  trace, out = traced(token_loss), solving.alone(0, 1)[0]
  chosen_BT = jnp.asarray(trace.prediction_NBT[:1, 0]).repeat(solving.SLOTS, axis=0)
  loss_BT = recursion._token_loss(out.logits_BTV, chosen_BT, token_loss, "float32")
  np.testing.assert_allclose(trace.chance_NBT[0, 0], np.exp(-loss_BT[0]), rtol=1e-5)


def test_changed_tokens_are_those_that_differ_from_the_step_before():
  trace = example([[[1, 2]], [[1, 3]], [[1, 3]]])
  np.testing.assert_array_equal(trace.changed(), [[[False, False]], [[False, True]], [[False, False]]])


def test_a_puzzle_is_solved_when_every_scored_token_is_right():
  trace = example([[[1, 2], [1, 2]], [[1, 3], [2, 2]]])
  np.testing.assert_array_equal(trace.solved([[-100, 3], [1, 2]]), [[False, True], [True, False]])


def test_what_a_trace_cannot_do_without_is_named():
  model, params, _, reset = solving.tiny()
  with pytest.raises(ValueError, match="needs a table of puzzles"):
    tracing.trace(model, params, solving.examples(), reset, n_supervision=1)
  with pytest.raises(ValueError, match="token_loss='hinge' is not known; choose one of stablemax, softmax"):
    tracing.trace(model, params, {}, reset, n_supervision=1, token_loss="hinge")
