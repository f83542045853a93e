"""Ranked responses: recorded answers to a prompt, some better than others.

B counts prompts and G their responses; groups may be ragged, and valid_BG says which responses are there.
"""
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from atlas_jax.losses.advantages import EPSILON, group_advantages

CHOICES = {
  "objective": ("ranked", "group_relative"),
  "preference": ("weighted_nll", "listnet"),
  "reduction": ("mean", "sum"),
  "pair_weighting": ("equal", "gap"),
}


@dataclasses.dataclass(frozen=True)
class RankedSettings:
  """Settings of a ranked loss; the fields of config.ranked.

  Raises:
    ValueError: if a name is unknown or a number out of range.
  """

  objective: str = "ranked"  # "ranked": preference and pairs; "group_relative": advantages and KL.
  preference: str = "weighted_nll"  # "listnet" does not make the worst response likelier too.
  reduction: str = "mean"  # Of a response's log-probabilities; "sum" favours short ones.
  score_scale: float = 1.0  # Multiplies scores before their softmax: more is sharper.
  margin_scale: float = 1.0  # Multiplies log-probabilities compared; for "sum" about 1 / length.
  pair_weight: float = 0.5  # Of the pairwise term.
  pair_weighting: str = "equal"  # "gap": pairs weigh by how far apart their scores are.
  min_preference: float | None = None  # Preferences below it are dropped and the others scaled up.
  anchored: bool = False  # Pairs compare log-probabilities minus the reference's.
  kl_weight: float = 0.0  # Of the KL to the reference, in "group_relative".

  def __post_init__(self):
    for field, known in CHOICES.items():
      if getattr(self, field) not in known:
        raise ValueError(f"config.ranked.{field}={getattr(self, field)!r} is not known; choose one of "
                         f"{', '.join(known)}")
    for field in ("score_scale", "margin_scale"):
      if getattr(self, field) <= 0:
        raise ValueError(f"config.ranked.{field}={getattr(self, field)} would turn the order round or lose "
                         "it; set it above 0")
    for field in ("pair_weight", "kl_weight"):
      if getattr(self, field) < 0:
        raise ValueError(f"config.ranked.{field}={getattr(self, field)} is negative; set 0 or more")
    if self.min_preference is not None and not 0 <= self.min_preference < 1:
      raise ValueError(f"config.ranked.min_preference={self.min_preference} is outside [0, 1); set None to "
                       "keep all responses")


class RankedOut(NamedTuple):
  """A loss and how much it weighs: pieces of a batch, averaged by weight, give the whole batch's."""

  loss: Any  # [] mean over prompts.
  weight: Any  # [] prompts with a response.
  metrics: dict  # name -> [], means over prompts.
  parts: dict  # name -> one per prompt, and per response for some.


def scores_of(rank_BG, valid_BG, score_BG=None):
  """Turns ranks into scores, of which more is better.

  Args:
    rank_BG: from 1 for the best; equal ranks are ties.
    valid_BG: which responses are there.
    score_BG: raw scores, NaN where there is none; they win over ranks.

  Returns:
    score_BG: the group's number of responses minus the rank; 0 where there is no response.
  """
  rank_BG = jnp.asarray(rank_BG)
  valid_BG = jnp.asarray(valid_BG).astype(bool)
  dtype = jnp.float32 if score_BG is None else jnp.asarray(score_BG).dtype
  from_rank_BG = (jnp.sum(valid_BG, axis=1, keepdims=True) - rank_BG).astype(dtype)
  if score_BG is not None:
    from_rank_BG = jnp.where(jnp.isnan(score_BG), from_rank_BG, score_BG)
  return jnp.where(valid_BG, from_rank_BG, 0)


def preferences(score_BG, valid_BG, *, scale: float = 1.0, minimum: float | None = None):
  """Returns softmax(scale * scores) over the responses that are there; 0 for the others."""
  target_BG = _softmax(scale * score_BG, valid_BG)
  if minimum is not None:
    best_BG = target_BG == jnp.max(target_BG, axis=1, keepdims=True)  # Else a high minimum leaves none.
    target_BG = jnp.where((target_BG >= minimum) | best_BG, target_BG, 0)
    target_BG = target_BG / jnp.maximum(jnp.sum(target_BG, axis=1, keepdims=True), 1e-30)
  return target_BG


def pair_loss(margin_BG, score_BG, valid_BG, *, scale: float = 1.0, weighting: str = "equal"):
  """Averages -log sigmoid(scale * (better - worse)) over pairs of responses with different scores.

  Args:
    margin_BG: what is compared, such as mean log-probabilities.
    score_BG, valid_BG: ties, and responses that are not there, make no pair.
    scale: of the difference.
    weighting: "equal", or "gap" (by the difference of scores).

  Returns:
    (loss_B, count_B, right_B): 0 without pairs, how many there are, and the fraction in the right order.
  """
  apart_BGG = margin_BG[:, :, None] - margin_BG[:, None, :]
  gap_BGG = score_BG[:, :, None] - score_BG[:, None, :]
  pair_BGG = valid_BG[:, :, None] & valid_BG[:, None, :] & (gap_BGG > 0)
  weight_BGG = jnp.where(pair_BGG, gap_BGG if weighting == "gap" else jnp.ones_like(gap_BGG), 0)
  total_B = jnp.sum(weight_BGG, axis=(1, 2))

  def mean(x_BGG):
    return jnp.sum(weight_BGG * x_BGG, axis=(1, 2)) / jnp.where(total_B > 0, total_B, 1)

  count_B = jnp.sum(pair_BGG, axis=(1, 2), dtype=margin_BG.dtype)
  right_B = jnp.sum(pair_BGG & (apart_BGG > 0), axis=(1, 2), dtype=margin_BG.dtype) / jnp.maximum(count_B, 1)
  # softplus(-x) is -log sigmoid(x), and stays finite for pairs far in the wrong order.
  return mean(jax.nn.softplus(-scale * apart_BGG)), count_B, right_B


def group_relative(score_BG, valid_BG, *, epsilon: float = EPSILON):
  """Returns (score - mean) / (deviation + epsilon) over each group, with the population's deviation."""
  known_BG = jnp.where(valid_BG, score_BG, jnp.nan)
  return group_advantages(known_BG.reshape(-1), group_size=score_BG.shape[1], kind="normalized",
                          deviation="population", epsilon=epsilon).reshape(score_BG.shape)


def ranked_loss(logprob_BGT, mask_BGT, score_BG, valid_BG, settings: RankedSettings, *,
                ref_logprob_BGT=None) -> RankedOut:
  """Averages over prompts how badly the model's likelihoods follow the scores.

  With p = `preferences` and l a response's log-probability, "ranked" is the preference term plus pair_weight
  times `pair_loss`; that term is -sum p l ("weighted_nll") or -sum p log softmax(margin_scale l) ("listnet").
  "group_relative" is -sum A l + kl_weight KL, with A = `group_relative` and KL summed over the responses.

  Args:
    logprob_BGT: log-probabilities of the responses' tokens.
    mask_BGT: 1 or True where a response has a token.
    score_BG: more is better, see `scores_of`.
    valid_BG: which responses are there.
    settings: see there.
    ref_logprob_BGT: of the reference, if the settings need it.

  Returns:
    RankedOut.

  Raises:
    ValueError: if the settings need a reference that is not given.
  """
  if ref_logprob_BGT is None and (settings.anchored or settings.kl_weight):
    raise ValueError(f"config.ranked.anchored={settings.anchored} with config.ranked.kl_weight="
                     f"{settings.kl_weight} needs ref_logprob_BGT; give it, or set them False and 0.0")
  valid_BG = valid_BG.astype(bool)
  mask_BGT = mask_BGT.astype(bool)
  logprob_BGT = jnp.where(mask_BGT, logprob_BGT, 0)
  sequence_BG = _reduce(logprob_BGT, mask_BGT, settings.reduction)
  anchor_BGT = None
  if ref_logprob_BGT is not None:
    anchor_BGT = jax.lax.stop_gradient(jnp.where(mask_BGT, ref_logprob_BGT, 0))
  make = _ranked if settings.objective == "ranked" else _group_relative
  loss_B, parts = make(logprob_BGT, mask_BGT, sequence_BG, score_BG, valid_BG, settings, anchor_BGT)
  there_B = jnp.any(valid_BG, axis=1)
  weight = jnp.sum(there_B, dtype=loss_B.dtype)

  def mean(x_B):
    return jnp.sum(jnp.where(there_B, x_B, 0)) / jnp.maximum(weight, 1)

  metrics = {f"ranked/{name}": mean(x) for name, x in parts.items() if x.ndim == 1}
  return RankedOut(mean(loss_B), weight, jax.lax.stop_gradient(metrics), {**parts, "logprob": sequence_BG})


def _ranked(logprob_BGT, mask_BGT, sequence_BG, score_BG, valid_BG, settings, anchor_BGT):
  del logprob_BGT
  target_BG = preferences(score_BG, valid_BG, scale=settings.score_scale, minimum=settings.min_preference)
  log_BG = sequence_BG
  if settings.preference == "listnet":
    # Responses that are not there must not take part in the softmax. A prompt with none of them would have
    # -inf alone, which gives NaN, so its row is 0 and its targets are 0.
    scaled_BG = jnp.where(valid_BG, settings.margin_scale * sequence_BG, -jnp.inf)
    some_BG = jnp.any(valid_BG, axis=1, keepdims=True)
    log_BG = jax.nn.log_softmax(jnp.where(some_BG, scaled_BG, 0), axis=1)
  # An absent response has target 0, and 0 * -inf is NaN.
  preference_B = -jnp.sum(target_BG * jnp.where(valid_BG, log_BG, 0), axis=1)
  margin_BG = sequence_BG
  if settings.anchored:
    margin_BG = sequence_BG - _reduce(anchor_BGT, mask_BGT, settings.reduction)
  pair_B, pairs_B, right_B = pair_loss(margin_BG, score_BG, valid_BG, scale=settings.margin_scale,
                                       weighting=settings.pair_weighting)
  parts = {"preference_nats": preference_B, "pair_nats": pair_B, "pairs": pairs_B,
           "pairs_right_frac": right_B, "target": target_BG}
  return preference_B + settings.pair_weight * pair_B, parts


def _group_relative(logprob_BGT, mask_BGT, sequence_BG, score_BG, valid_BG, settings, anchor_BGT):
  advantage_BG = group_relative(score_BG, valid_BG)
  # A completion's advantage times its mean (or summed) log-probability; no ratio, since one update is made of
  # recorded responses and no old policy wrote them.
  loss_B = -jnp.sum(advantage_BG * sequence_BG, axis=1)
  parts = {"advantage": advantage_BG}
  if anchor_BGT is not None:
    u_BGT = anchor_BGT - logprob_BGT
    # k3 of `importance.kl_estimate`, per token. Recorded text is not drawn from the policy, so this is a
    # penalty of that form and no unbiased estimate of the KL.
    kl_BG = jnp.where(valid_BG, _reduce(jnp.expm1(u_BGT) - u_BGT, mask_BGT, settings.reduction), 0)
    parts["kl_nats"] = jnp.sum(kl_BG, axis=1)
    loss_B = loss_B + settings.kl_weight * parts["kl_nats"]
  return loss_B, parts


def _reduce(value_BGT, mask_BGT, reduction: str):
  total_BG = jnp.sum(jnp.where(mask_BGT, value_BGT, 0), axis=-1)
  if reduction == "sum":
    return total_BG
  return total_BG / jnp.maximum(jnp.sum(mask_BGT, axis=-1), 1).astype(total_BG.dtype)


def _softmax(score_BG, valid_BG):
  high_BG = jnp.max(jnp.where(valid_BG, score_BG, -jnp.inf), axis=1, keepdims=True)
  raised_BG = jnp.where(valid_BG, jnp.exp(jnp.where(valid_BG, score_BG - high_BG, 0)), 0)
  return raised_BG / jnp.maximum(jnp.sum(raised_BG, axis=1, keepdims=True), 1e-30)
