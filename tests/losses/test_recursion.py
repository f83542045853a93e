"""The loss of a supervision step adds up over slots; the parity tests compare it with the original's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.losses import recursion, stablemax
from tests.helpers import assert_close

LABELS = [[1, 2, -100], [-100, -100, -100], [0, 1, 2], [2, 2, 2]]
PREDICTED = [[1, 2, 0], [0, 0, 0], [0, 1, 1], [2, 2, 2]]  # Rows 0, 1 and 3 are right.
HALT = [3.0, -2.0, 1.0, -1.0]
DONE, STEPS = [True, True, True, False], [4, 5, 6, 7]


def loss(**more):
  logits_BTV = jnp.asarray(np.eye(3)[np.array(PREDICTED)] * 4 - 1, jnp.float32)
  labels_BT = jnp.asarray(LABELS, jnp.int32)
  done_B, steps_B = jnp.asarray(DONE), jnp.asarray(STEPS, jnp.int32)
  @jax.jit
  def compiled(logits_BTV):
    return recursion.recursion_loss(logits_BTV, jnp.asarray(HALT), labels_BT, halted_B=done_B,
                                    steps_B=steps_B, **more)  # fmt: skip

  total, metrics = compiled(logits_BTV)
  return total, metrics, stablemax.stablemax_loss(logits_BTV, labels_BT), logits_BTV


def bce(logits, targets):
  """Binary cross entropy from its definition."""
  p = 1 / (1 + np.exp(-np.asarray(logits)))
  return -np.sum(np.where(targets, np.log(p), np.log(1 - p)))


def test_metrics_are_sums_over_slots_that_finished_and_have_labels():
  _, metrics, *_ = loss()
  expected = dict(count=2, accuracy=1 + 2 / 3, exact_accuracy=1, q_halt_accuracy=1, steps=4 + 6)
  assert_close({key: metrics[key] for key in expected},
               {key: np.float32(value) for key, value in expected.items()})  # fmt: skip


def test_the_loss_is_of_all_slots_and_a_row_counts_once_however_many_tokens_are_scored():
  total, metrics, token_BT, _ = loss()
  lm = token_BT[0].sum() / 2 + token_BT[2].mean() + token_BT[3].mean()
  halting = np.float32(bce(HALT, [True, True, False, True]))
  assert_close((metrics["lm_loss"], metrics["q_halt_loss"]), (lm, halting))
  assert_close(total, lm + 0.5 * halting)


def test_rows_without_labels_can_be_kept_out_of_the_halting_loss():
  _, metrics, *_ = loss(skip_unlabelled=True)
  assert_close(metrics["q_halt_loss"], np.float32(bce([3.0, 1.0, -1.0], [True, False, True])))


def test_the_continue_logit_is_trained_where_it_has_a_target():
  without, *_ = loss()
  target_B = jnp.asarray([0.5, 1.0, 0.0, 0.25])
  total, metrics, *_ = loss(continue_logit_B=jnp.asarray([0.0, 2.0, -1.0, 50.0]), continue_target_B=target_B)
  p = 1 / (1 + np.exp(-np.asarray([0.0, 2.0, -1.0])))
  expected = np.log(2) - np.log(p[1]) - np.log(1 - p[2]) + 0.75 * 50
  assert_close(metrics["q_continue_loss"], np.float32(expected))
  assert_close(total - without, np.float32(0.5 * expected))


def test_softmax_is_there_too_and_other_names_are_not():
  _, metrics, _, logits_BTV = loss(token_loss="softmax")
  log_BTV = np.asarray(jax.nn.log_softmax(logits_BTV))
  picked = [np.mean([-log_BTV[b, t, v] for t, v in enumerate(row) if v >= 0] or [0])
            for b, row in enumerate(LABELS)]  # fmt: skip
  assert_close(metrics["lm_loss"], np.float32(sum(picked)))
  with pytest.raises(ValueError, match="config.supervision.token_loss='nix' is not known; choose one"):
    loss(token_loss="nix")


def test_what_is_added_up_is_there_for_each_row():
  labels_BT, steps_B = jnp.asarray(LABELS, jnp.int32), jnp.asarray(STEPS, jnp.int32)
  *_, logits_BTV = loss()
  each = recursion.of_each(logits_BTV, jnp.asarray(HALT), labels_BT, steps_B=steps_B)
  expected = dict(accuracy=[1, 0, 2 / 3, 1], exact_accuracy=[1, 1, 0, 1], q_halt_accuracy=[1, 0, 0, 0],
                  steps=STEPS)  # fmt: skip
  np.testing.assert_array_equal(each.pop("labelled"), [True, False, True, True])
  assert_close(each, {name: np.float32(values) for name, values in expected.items()})
