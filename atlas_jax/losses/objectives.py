"""Objectives of policy losses, per token, before they are added up.

Every objective takes Terms and `policy.PolicySettings`, and returns each_BT.
"""
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from atlas_jax.losses import importance

SIGMOID_TAU = (1.0, 1.05)  # Where the advantage is positive, and elsewhere.
GAMMA = ((2.0, 3.0), (3.0, 2.0))  # Power and rate of the weight, for advantages from 0 up, and below.
GAMMA_RANGE = (1e-8, 20.0)  # Least weight of a row, and largest logarithm of it.


class Terms(NamedTuple):
  """Inputs of the objectives."""

  logprob_BT: Any  # Of the policy being trained; it alone has a gradient, and what is made of it.
  old_logprob_BT: Any  # Of the policy that made the batch.
  ratio_BT: Any  # exp of `importance.log_ratio`.
  advantage_BT: Any  # One number per row, repeated.
  counted_BT: Any  # bool.
  sampler_BT: Any  # `importance.sampler_ratio`, or None.


def clip(terms: Terms, settings):
  """Stops where the ratio leaves [1 - clip_low, 1 + clip_high] on the side the advantage pushes to.

  Source: Schulman et al. 2017, arXiv:1707.06347; clip_max, which bounds the other side too: Ye et al. 2020,
  arXiv:1912.09729.
  """
  # PPO, equation 7. For A < 0 the minimum below takes the larger of the two, which grows without bound with
  # the ratio: one token can then dominate a batch, unless clip_max cuts it (dual clip).
  clipped_BT = jnp.clip(terms.ratio_BT, 1 - settings.clip_low, 1 + settings.clip_high)
  ratio_BT = terms.ratio_BT
  if settings.clip_max is not None:
    ratio_BT = jnp.minimum(ratio_BT, settings.clip_max)
  return -jnp.minimum(ratio_BT * terms.advantage_BT, clipped_BT * terms.advantage_BT)


def cispo(terms: Terms, settings):
  """Weighs log-probabilities by the ratio, clipped from above at clip_high: every token has a gradient.

  Source: MiniMax-M1 2025, arXiv:2506.13585.
  """
  # The bound acts on a weight without gradient, so a token beyond it still learns; in `clip` it would not.
  weight_BT = jax.lax.stop_gradient(jnp.minimum(terms.ratio_BT, settings.clip_high))
  return -weight_BT * terms.advantage_BT * terms.logprob_BT


def sapo(terms: Terms, settings):
  """Fades out smoothly, by a sigmoid, as the ratio leaves 1.

  Source: Gao et al. 2025, arXiv:2511.20347.
  """
  del settings
  # 4 / tau makes the derivative with respect to the ratio -A at a ratio of 1, as in `clip`.
  tau_BT = jnp.where(terms.advantage_BT > 0, *SIGMOID_TAU).astype(terms.ratio_BT.dtype)
  return -4 / tau_BT * jax.nn.sigmoid(tau_BT * (terms.ratio_BT - 1)) * terms.advantage_BT


def vespo(terms: Terms, settings):
  """Weighs a row by a gamma density of its whole ratio, sampler's part included.

  The weight is 1 where the ratio is 1.
  """
  del settings
  limit = importance.LIMIT
  log_BT = jnp.clip(terms.logprob_BT - terms.old_logprob_BT, -limit, limit)
  log_B = jnp.sum(jnp.where(terms.counted_BT, log_BT, 0), axis=1)
  if terms.sampler_BT is not None:
    part_BT = jnp.clip(jnp.log(jnp.maximum(terms.sampler_BT, importance.TINY)), -limit, limit)
    log_B = log_B + jnp.sum(jnp.where(terms.counted_BT, part_BT, 0), axis=1)
  # Also bounded as a whole: the sum over a long row would under- or overflow exp below.
  low, high = GAMMA_RANGE
  log_BT = jnp.clip(log_B, math.log(low), high)[:, None]
  (power, rate), (power_below, rate_below) = GAMMA
  above_BT = terms.advantage_BT >= 0
  power_BT = jnp.where(above_BT, power, power_below).astype(log_BT.dtype)
  rate_BT = jnp.where(above_BT, rate, rate_below).astype(log_BT.dtype)
  # w^power exp(rate (1 - w)) of the row's ratio w, computed from log w.
  weight_BT = jnp.exp(rate_BT + power_BT * log_BT - rate_BT * jnp.exp(log_BT))
  return -jax.lax.stop_gradient(weight_BT) * terms.advantage_BT * terms.logprob_BT


def gmpo(terms: Terms, settings):
  """Takes the geometric mean of a row's ratios, each clipped to exp of [-clip_low, clip_high] first.

  Source: Zhao et al. 2025, arXiv:2507.20673.
  """
  limit = importance.LIMIT
  apart_BT = jnp.clip(terms.logprob_BT - terms.old_logprob_BT, -limit, limit)
  clipped_BT = jnp.clip(apart_BT, -settings.clip_low, settings.clip_high)
  # The pessimistic side of each token, as PPO's minimum chooses it; then one ratio for the row.
  worse_BT = jnp.where(terms.advantage_BT > 0, jnp.minimum(apart_BT, clipped_BT),
                       jnp.maximum(apart_BT, clipped_BT))
  mean_B = importance.row_mean(worse_BT, terms.counted_BT)
  return -jnp.exp(mean_B)[:, None] * terms.advantage_BT


OBJECTIVES: dict[str, Callable] = {
  "clip": clip, "cispo": cispo, "sapo": sapo, "vespo": vespo, "gmpo": gmpo}
