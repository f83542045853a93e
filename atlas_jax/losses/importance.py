"""Distances of the policy in training from those that made, scored or anchor the batch.

In every function counted_BT, bool, says which tokens count, and arrays are 0 elsewhere.
"""
import jax
import jax.numpy as jnp

RATIOS = ("token", "sequence", "sequence_token")
ESTIMATORS = ("k1", "k2", "k3")
CORRECTIONS = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
LIMIT = 20.0  # Of a log ratio: exp of more than 88 would make the gradient of a clipped token NaN in float32.
TINY = 1e-10  # Stands for a ratio of 0 in logarithms.


def row_mean(value_BT, counted_BT):
  """Averages over counted tokens of each row; 0 where none counts."""
  count_B = jnp.maximum(jnp.sum(counted_BT, axis=1), 1).astype(value_BT.dtype)
  return jnp.sum(jnp.where(counted_BT, value_BT, 0), axis=1) / count_B


def log_ratio(logprob_BT, old_logprob_BT, counted_BT, *, ratio: str):
  """Returns the logarithm of how much likelier the new policy finds what the old one did.

  Args:
    logprob_BT, old_logprob_BT: of the tokens; the old ones fixed.
    ratio: "token", "sequence" (the mean over a row's tokens, the same for all of them), or "sequence_token"
      (that value, with the gradient of each token's own).

  Returns:
    log_ratio_BT.

  Source: "sequence" and "sequence_token": Zheng et al. 2025, arXiv:2507.18071, equations 7 and 14.
  """
  # Outside the limit clip has gradient 0, so a token e^20 times
  # likelier or rarer than before teaches nothing.
  apart_BT = jnp.clip(logprob_BT - old_logprob_BT, -LIMIT, LIMIT)
  if ratio == "token":
    return apart_BT
  # GSPO, equation 7: the mean makes ratios of rows of different lengths comparable.
  whole_BT = jnp.broadcast_to(row_mean(apart_BT, counted_BT)[:, None], apart_BT.shape)
  if ratio == "sequence":
    return whole_BT
  # Equation 14: the value of the row's ratio, but each token's own gradient. With one advantage per row the
  # loss and its gradient equal those of "sequence"; advantages per token would need this form.
  return logprob_BT - jax.lax.stop_gradient(logprob_BT) + jax.lax.stop_gradient(whole_BT)


def kl_estimate(logprob_BT, ref_logprob_BT, *, estimator: str):
  """Estimates KL(policy || reference) from the tokens drawn.

  Args:
    estimator: with u = reference - policy: "k1" (-u; without bias, but its gradient is zero on average, so it
      does not hold the policy back), "k2" (u^2 / 2; its gradient is the one of the KL) or "k3"
      (exp(u) - u - 1; never negative).

  Returns:
    kl_BT in nats.

  Source: Schulman 2020, "Approximating KL divergence".
  """
  u_BT = ref_logprob_BT - logprob_BT
  if estimator == "k1":
    return -u_BT
  if estimator == "k2":
    return jnp.square(u_BT) / 2
  # k1 plus exp(u) - 1, whose mean under the policy is 0: unbiased like k1, with less variance. expm1, because
  # exp(u) - 1 has no correct digit left in float32 once the models agree to 1e-7.
  return jnp.expm1(u_BT) - u_BT


def sampler_ratio(old_logprob_BT, sampler_logprob_BT, counted_BT, *, correction: str, low: float | None,
                  high: float | None):
  """Returns weights that make up for a sampler whose probabilities are not the trainer's; without gradient.

  Args:
    old_logprob_BT: the trainer's own log-probabilities of what was sampled.
    sampler_logprob_BT: those that the sampler reported.
    correction: "token_..." (a ratio per token) or "sequence_..." (one per row, of the summed
      log-probabilities); "..._truncate" (clips it to the bounds) or "..._mask" (0 outside them).
    low, high: the bounds; None: no bound.

  Returns:
    weight_BT, of mean about 1.
  """
  apart_BT = jnp.where(counted_BT, old_logprob_BT - sampler_logprob_BT, 0)
  if correction.startswith("sequence"):
    # A sum, not a mean as in `log_ratio`: the likelihood ratio of the whole completion. Of long completions
    # it soon leaves any bounds, which ratios of single tokens do not.
    apart_BT = jnp.broadcast_to(jnp.sum(apart_BT, axis=1, keepdims=True), apart_BT.shape)
  weight_BT = jax.lax.stop_gradient(jnp.exp(jnp.clip(apart_BT, -LIMIT, LIMIT)))
  low = 0.0 if low is None else low
  high = jnp.inf if high is None else high
  if correction.endswith("truncate"):
    return jnp.clip(weight_BT, low, high)
  # Dropped from the sum but not from the divisor: a masked token or row
  # counts, with a loss of 0 but for its KL.
  return jnp.where((weight_BT >= low) & (weight_BT <= high), weight_BT, 0)


def stale_rows(logprob_BT, behaviour_logprob_BT, advantage_B, counted_BT, *, threshold: float):
  """Finds completions that were worse than others and that the policy would hardly write any more.

  Args:
    behaviour_logprob_BT: of the policy that wrote them.
    threshold: nats per token by which the policy may find them less likely.

  Returns:
    stale_B, bool.

  Source: DeepSeek-V3.2, arXiv:2512.02556, off-policy sequence masking.
  """
  # Completions with an advantage of 0 or more stay in however old they are, as in the source.
  gap_B = row_mean(behaviour_logprob_BT - jax.lax.stop_gradient(logprob_BT), counted_BT)
  return (advantage_B < 0) & (gap_B > threshold)


def entropy_floor(entropy_BT, counted_BT, *, top_frac: float):
  """Returns the entropy that a fraction of the counted tokens reaches: [], NaN if no token counts.

  Args:
    entropy_BT: of the distribution each token was drawn from.
    top_frac: the fraction, in (0, 1].

  Source: Wang et al. 2025, arXiv:2506.01939.
  """
  known_BT = jnp.where(counted_BT, entropy_BT, jnp.nan)
  # NaN compares false with everything: without counted tokens no token is at or above the floor.
  return jax.lax.stop_gradient(jnp.nanquantile(known_BT, 1 - top_frac))
