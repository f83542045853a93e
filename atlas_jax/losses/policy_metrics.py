"""Metrics of a policy in training: how far it moved, and how much was clipped."""
import jax
import jax.numpy as jnp

TOKENS = "tokens"
ROWS = "rows"


def collect(terms, settings, *, row_B, divisor, kl_BT=None, entropy_BT=None, sampler_logprob_BT=None,
            stale_B=None) -> dict:
  """Adds up the metrics of a batch or a piece of one.

  Args:
    terms: `objectives.Terms`.
    settings: `policy.PolicySettings`.
    row_B: bool, which rows count.
    divisor: the weight of the loss.
    kl_BT: the KL term, multiplied by the ratio where the settings say so.
    entropy_BT, sampler_logprob_BT, stale_B: where there are any.

  Returns:
    {"tokens": ..., "rows": ..., "extremes": ...}: sums over counted tokens with their number "count", sums
    over rows likewise, both over the divisor, so that averages over pieces by weight keep their proportions;
    and extremes as they are, of which such an average is one of the pieces' extremes.
  """
  counted_BT = terms.counted_BT
  ratio_BT = terms.ratio_BT
  per_token = {"count": jnp.ones_like(ratio_BT)}
  of_row = {"count": jnp.ones_like(row_B)}
  moved = {"ratio_mean": ratio_BT, **_clipped(terms, settings)}
  if settings.ratio == "token":
    per_token |= moved
  else:  # One ratio per row, also of rows without tokens.
    of_row |= {name: value_BT[:, 0] for name, value_BT in moved.items()}
  extremes = {"ratio_min": _extreme(jnp.min, ratio_BT, counted_BT, jnp.inf),
              "ratio_max": _extreme(jnp.max, ratio_BT, counted_BT, -jnp.inf)}
  if kl_BT is not None:
    per_token["kl_nats"] = kl_BT
  if entropy_BT is not None:
    per_token["entropy_nats"] = entropy_BT
  if sampler_logprob_BT is not None:
    gap_BT = jnp.abs(terms.old_logprob_BT - sampler_logprob_BT)
    per_token["sampler_gap_nats"] = gap_BT
    extremes["sampler_gap_nats_max"] = jnp.max(jnp.where(counted_BT, gap_BT, 0))
  if terms.sampler_BT is not None:
    per_token["sampler_ratio_mean"] = terms.sampler_BT
  if stale_B is not None:
    of_row["stale_frac"] = stale_B

  # Divided by the weight of the loss: pieces averaged by weight are then the batch's sums over its weight,
  # and `finish` divides by "count", treated alike. Means of pieces would not average to the batch's mean.
  def total(x, counted):
    return jnp.sum(jnp.where(counted, x.astype(ratio_BT.dtype), 0)) / jnp.maximum(divisor, 1)

  sums = {TOKENS: {name: total(x_BT, counted_BT) for name, x_BT in per_token.items()},
          ROWS: {name: total(x_B, row_B) for name, x_B in of_row.items()}}
  return jax.lax.stop_gradient({**sums, "extremes": extremes})


def finish(means: dict) -> dict:
  """Turns what `collect` gives, averaged by weight or not, into metrics by name."""
  found = dict(means["extremes"])
  for unit in (TOKENS, ROWS):
    count = means[unit]["count"]
    found |= {name: x / jnp.where(count > 0, count, 1) for name, x in means[unit].items() if name != "count"}
  return {f"policy/{name}": value for name, value in found.items()}


def _clipped(terms, settings) -> dict:
  """Returns which ratios are outside their bounds on the side where that stops the gradient."""
  ratio_BT = terms.ratio_BT
  advantage_BT = terms.advantage_BT
  if settings.objective == "cispo":
    return {"clip_high_frac": (ratio_BT > settings.clip_high) & (advantage_BT > 0)}
  if settings.objective != "clip":
    return {}
  # Below its bound a ratio has a gradient if A > 0, and above if A < 0: there the minimum of
  # `objectives.clip` takes the unclipped branch, so this does not count as clipped.
  low_BT = (ratio_BT < 1 - settings.clip_low) & (advantage_BT < 0)
  high_BT = (ratio_BT > 1 + settings.clip_high) & (advantage_BT > 0)
  return {"clip_low_frac": low_BT, "clip_high_frac": high_BT, "clip_frac": low_BT | high_BT}


def _extreme(reduce, value_BT, counted_BT, neutral: float):
  """Reduces counted ratios; 1, the ratio of equal policies, if no token counts."""
  found = reduce(jnp.where(counted_BT, value_BT, neutral))
  return jnp.where(jnp.any(counted_BT), found, 1)
