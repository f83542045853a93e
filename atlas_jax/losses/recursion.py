"""The loss of one supervision step of a recursive model: tokens, and whether the answer is right already."""
import jax
import jax.numpy as jnp

from atlas_jax.losses import stablemax

HALT_WEIGHT = 0.5  # Of both halting losses, as in the sources of recipes/trm.py.
TOKEN_LOSSES = ("stablemax", "softmax")


def recursion_loss(logits_BTV, halt_logit_B, labels_BT, *, halted_B, steps_B, token_loss: str = "stablemax",
                   dtype: str = "float32", skip_unlabelled: bool = False, continue_logit_B=None,
                   continue_target_B=None):
  """Adds up the loss and the metrics of all slots.

  A row is right when all its scored tokens are; the halting logit learns to say so. A row without labels
  counts as right, unless it is skipped.

  Args:
    logits_BTV, halt_logit_B: what the step gave.
    labels_BT: int32, -100 where nothing is scored.
    halted_B: slots that finish with this step; metrics are taken of those that have labels.
    steps_B: steps made, this one counted.
    token_loss: "stablemax" or "softmax".
    dtype: of the token loss.
    skip_unlabelled: keeps rows without labels out of the halting losses.
    continue_logit_B, continue_target_B: trained too where both are given, see `act.continue_target`.

  Returns:
    (loss, metrics): sums over rows, not means. The loss is lm_loss + 0.5 * (q_halt_loss + q_continue_loss),
    and lm_loss has the mean over a row's scored tokens. Metrics, float32: count (slots that finished),
    accuracy, exact_accuracy, q_halt_accuracy and steps over these; lm_loss, q_halt_loss (and q_continue_loss)
    over all slots.

  Raises:
    ValueError: if the token loss is unknown.
  """
  tokens_BT = _token_loss(logits_BTV, labels_BT, token_loss, dtype)
  each = of_each(logits_BTV, halt_logit_B, labels_BT, steps_B=steps_B)
  labelled_B = each.pop("labelled")
  right_B = each["exact_accuracy"]
  # The mean over a row's own tokens, then sums over rows: a puzzle with many blanks weighs as much as one
  # with few. The caller divides by the number of slots.
  divisor_B = jnp.maximum(jnp.sum(labels_BT != stablemax.NOT_SCORED, axis=-1), 1)
  lm_loss = jnp.sum(jnp.sum(tokens_BT, axis=-1) / divisor_B.astype(tokens_BT.dtype))
  # A row without labels is right by the count, 0 of 0, and would train the model to halt on padding.
  counted_B = labelled_B if skip_unlabelled else jnp.ones_like(labelled_B)
  halt_loss = jnp.sum(jnp.where(counted_B, binary_loss(halt_logit_B, right_B), 0))
  loss = lm_loss + HALT_WEIGHT * halt_loss.astype(lm_loss.dtype)
  metrics = {"lm_loss": lm_loss, "q_halt_loss": halt_loss}
  if continue_logit_B is not None and continue_target_B is not None:
    metrics["q_continue_loss"] = jnp.sum(
        jnp.where(counted_B, binary_loss(continue_logit_B, continue_target_B), 0))
    loss = loss + HALT_WEIGHT * metrics["q_continue_loss"].astype(loss.dtype)
  # Accuracy is that of final answers: a slot still at work is judged only once it finishes.
  done_B = halted_B & labelled_B
  metrics |= {"count": jnp.sum(done_B)}
  metrics |= {name: jnp.sum(jnp.where(done_B, value_B, 0)) for name, value_B in each.items()}
  return loss, jax.tree.map(lambda x: jax.lax.stop_gradient(x).astype(jnp.float32), metrics)


def of_each(logits_BTV, halt_logit_B, labels_BT, *, steps_B) -> dict:
  """Returns what `recursion_loss` adds up, for each row.

  Returns:
    Name -> [B]: accuracy (fraction of scored tokens that are right; 0 without any), exact_accuracy (1 where
    all are), q_halt_accuracy (1 where the halting logit's sign says so) and steps, float32; and labelled,
    bool.
  """
  scored_BT = labels_BT != stablemax.NOT_SCORED
  scored_B = jnp.sum(scored_BT, axis=-1)
  correct_B = jnp.sum(scored_BT & (jnp.argmax(logits_BTV, axis=-1) == labels_BT), axis=-1)
  right_B = correct_B == scored_B
  full = lambda x_B: x_B.astype(jnp.float32)
  return {"accuracy": full(correct_B) / full(jnp.maximum(scored_B, 1)), "exact_accuracy": full(right_B),
          "q_halt_accuracy": full((halt_logit_B >= 0) == right_B), "steps": full(steps_B),
          "labelled": scored_B > 0}


def binary_loss(logit_B, target_B):
  """Returns the cross entropy of logits with targets in [0, 1], in nats, without overflow."""
  # log(1 + exp(x)) - x t with max(x, 0) taken out, so that exp only sees numbers up to 0.
  missed_B = jnp.maximum(logit_B, 0) - logit_B * target_B.astype(logit_B.dtype)
  return missed_B + jnp.log1p(jnp.exp(-jnp.abs(logit_B)))


def _token_loss(logits_BTV, labels_BT, token_loss: str, dtype: str):
  if token_loss == "stablemax":
    return stablemax.stablemax_loss(logits_BTV, labels_BT, dtype)
  if token_loss == "softmax":
    return stablemax.pick_loss(jax.nn.log_softmax(logits_BTV.astype(dtype), axis=-1), labels_BT)
  raise ValueError(f"config.supervision.token_loss={token_loss!r} is not known; choose one of "
                   f"{', '.join(TOKEN_LOSSES)}")
