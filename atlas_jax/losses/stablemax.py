"""Stablemax: a softmax with a rational function in place of the exponential, so that logits stay small.

Source: Prieto et al. 2025, arXiv:2501.04697.
"""
import jax
import jax.numpy as jnp

NOT_SCORED = -100
TINY = 1e-30  # As in the original; the denominator is 1 or more, so it changes no digit.


def stablemax(x):
  """Returns x + 1 above 0 and 1 / (1 - x) below."""
  below = x < 0
  # Each side sees only its own numbers: the other one's gradient could be infinite there.
  return jnp.where(below, 1 / (1 - jnp.where(below, x, 0) + TINY), jnp.where(below, 0, x) + 1)


def log_stablemax(logits_BTV):
  """Returns log-probabilities over the last axis, in the logits' dtype."""
  score_BTV = stablemax(logits_BTV)
  return jnp.log(score_BTV / jnp.sum(score_BTV, axis=-1, keepdims=True))


def stablemax_loss(logits_BTV, labels_BT, dtype="float32"):
  """Returns each token's surprise.

  Args:
    logits_BTV: one score per token of the vocabulary.
    labels_BT: int32, the right token, or -100 where nothing is scored.
    dtype: of the arithmetic; "float64" needs jax's 64-bit mode.

  Returns:
    loss_BT in nats, in `dtype`; 0 where nothing is scored.

  Raises:
    ValueError: if 64-bit arithmetic is asked for and switched off.
  """
  if jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
    raise ValueError(f"config.supervision.loss_dtype={dtype!r} needs jax's 64-bit mode; "
                     "set JAX_ENABLE_X64=1, or take 'float32', which agrees with it to 1e-6")
  log_BTV = log_stablemax(logits_BTV.astype(dtype))
  return pick_loss(log_BTV, labels_BT)


def pick_loss(log_BTV, labels_BT):
  """Returns minus the log-probability of each label; 0 where nothing is scored."""
  scored_BT = labels_BT != NOT_SCORED
  # -100 is no index: those places read token 0, and the selection below drops them with their gradient.
  picked_BT = jnp.take_along_axis(log_BTV, jnp.where(scored_BT, labels_BT, 0)[..., None], axis=-1)[..., 0]
  return jnp.where(scored_BT, -picked_BT, 0)
