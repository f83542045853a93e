"""Policy losses: completions better than others of their prompt become likelier, within bounds.

Source of the presets: grpo arXiv:2402.03300, dr_grpo arXiv:2503.20783, dapo arXiv:2503.14476, gspo and
gspo_token arXiv:2507.18071, luspo arXiv:2602.05261; of the others see `objectives`. "bnpo" is dapo with equal
bounds: both average over the tokens of the whole batch, in however many pieces it comes.
"""
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from atlas_jax.losses import importance, policy_metrics
from atlas_jax.losses.objectives import OBJECTIVES, Terms

AGGREGATIONS = ("token_mean", "sequence_mean", "sequence_sum", "constant")


@dataclasses.dataclass(frozen=True)
class PolicySettings:
  """Settings of a policy loss; the fields of config.policy.

  Raises:
    ValueError: if a name is unknown, a number out of range, or two fields do not go together.
  """

  objective: str = "clip"  # See `objectives`.
  ratio: str = "token"  # "token", "sequence" or "sequence_token", see `importance.log_ratio`.
  aggregation: str = "token_mean"  # See `policy_loss`.
  clip_low: float = 0.2  # A ratio below 1 - clip_low is not lowered further.
  clip_high: float = 0.28  # A ratio above 1 + clip_high is not raised further; cispo: the bound itself.
  clip_max: float | None = None  # Bounds the ratio also where the advantage is negative.
  kl_weight: float = 0.0  # Of the KL to the reference; 0 needs no reference.
  kl_estimator: str = "k3"  # "k1", "k2" or "k3", see `importance.kl_estimate`.
  kl_ratio: bool = False  # Multiplies the KL by the ratio: right for completions of an older policy.
  entropy_weight: float = 0.0  # Of the entropy bonus.
  top_entropy_frac: float | None = None  # Trains on this fraction of tokens, those of highest entropy.
  sampler_correction: str | None = None  # See `importance.sampler_ratio`.
  sampler_low: float | None = None  # Its bounds; None: no bound.
  sampler_high: float | None = 3.0
  stale_nats: float | None = None  # Leaves out rows as `importance.stale_rows` says.
  max_completion_tokens: int | None = None  # Divisor of "constant".

  def __post_init__(self):
    for field, known in (("objective", tuple(OBJECTIVES)), ("ratio", importance.RATIOS),
                         ("aggregation", AGGREGATIONS), ("kl_estimator", importance.ESTIMATORS),
                         ("sampler_correction", (None, *importance.CORRECTIONS))):
      if getattr(self, field) not in known:
        raise ValueError(f"{self._say(field)} is not known; choose one of {', '.join(map(str, known))}")
    for field, low, high, need in (
        ("clip_low", 0.0, 1.0, "between 0 and 1"), ("clip_high", 0.0, None, "0 or more"),
        ("kl_weight", 0.0, None, "0 or more"), ("top_entropy_frac", 1e-9, 1.0, "above 0 and at most 1"),
        ("sampler_low", 0.0, None, "0 or more, or None"), ("max_completion_tokens", 1, None, "1 or more"),
        ("sampler_high", self.sampler_low or 0.0, None, "no less than config.policy.sampler_low, or None")):
      value = getattr(self, field)
      if value is not None and (value < low or high is not None and value > high):
        raise ValueError(f"{self._say(field)} is out of range; set it {need}")
    self._check_pairs()

  def _check_pairs(self) -> None:
    if self.objective == "cispo" and self.clip_high < 1:
      raise ValueError(f"{self._say('clip_high')} cuts every ratio down, since config.policy.objective="
                       "'cispo' takes it as the bound itself; set 1 or more, such as 5")
    if self.clip_max is not None and (self.objective != "clip" or self.clip_max <= 1 + self.clip_high):
      raise ValueError(f"{self._say('clip_max')} needs config.policy.objective='clip' and a value above "
                       f"1 + config.policy.clip_high={1 + self.clip_high}; change it, or set None")
    if self.objective in ("vespo", "gmpo") and self.ratio != "token":
      raise ValueError(f"{self._say('ratio')} does not go with config.policy.objective={self.objective!r}, "
                       "which makes one ratio of a row itself; set 'token'")
    if self.objective == "vespo" and str(self.sampler_correction).startswith("sequence"):
      raise ValueError(f"{self._say('sampler_correction')} does not go with config.policy.objective='vespo', "
                       "which adds up the ratios of tokens itself; set 'token_truncate' or 'token_mask'")
    if self.aggregation == "constant" and self.max_completion_tokens is None:
      raise ValueError("config.policy.aggregation='constant' divides by the longest completion, "
                       "max_completion_tokens, which is None; hand it over (config.sampler.max_tokens)")

  def _say(self, field: str) -> str:
    return f"config.policy.{field}={getattr(self, field)!r}"


_SEQUENCE = {"aggregation": "sequence_mean"}
# From the paper: the mean over a row moves far less than one token's ratio, so the bounds are far tighter.
_GSPO = {**_SEQUENCE, "clip_low": 3e-4, "clip_high": 4e-4}
# What each named loss changes in PolicySettings.
PRESETS: Mapping[str, Mapping[str, Any]] = {
  "grpo": {**_SEQUENCE, "clip_high": 0.2}, "bnpo": {"clip_high": 0.2}, "dapo": {},
  "dr_grpo": {"aggregation": "constant", "clip_high": 0.2},
  "gspo": {**_GSPO, "ratio": "sequence"}, "gspo_token": {**_GSPO, "ratio": "sequence_token"},
  "cispo": {"objective": "cispo", "clip_high": 5.0}, "sapo": {**_SEQUENCE, "objective": "sapo"},
  "luspo": {**_GSPO, "ratio": "sequence", "aggregation": "sequence_sum"}, "vespo": {"objective": "vespo"},
  "gmpo": {**_SEQUENCE, "objective": "gmpo", "clip_low": 0.4, "clip_high": 0.4},
}


# Bounds that objectives read; of those that are not here, both.
BOUNDS = {"cispo": ("clip_high",), "sapo": (), "vespo": ()}


def unread_bounds(settings: PolicySettings) -> list[str]:
  """Lists the bounds of the ratio that the objective of these settings does not read."""
  every = ("clip_low", "clip_high")
  read = BOUNDS[settings.objective] if settings.objective in BOUNDS else every
  return [field for field in every if field not in read]


def preset(name: str, **changes) -> PolicySettings:
  """Returns the settings of a named loss, with some fields changed.

  Raises:
    ValueError: if the name is unknown, or the settings do not go together.
    TypeError: if a field is unknown.
  """
  if name not in PRESETS:
    raise ValueError(f"config.policy has no preset {name!r}; choose one of {', '.join(PRESETS)}")
  return PolicySettings(**{**PRESETS[name], **changes})


class PolicyOut(NamedTuple):
  """A loss and how much it weighs: pieces of a batch, averaged by weight, give the whole batch's."""

  loss: Any  # [] mean.
  weight: Any  # [] its divisor: counted tokens for "token_mean", else rows.
  metrics: dict  # For `policy_metrics.finish`.


def loss_mask(completion_mask_BT, *, own_BT=None, truncated_B=None):
  """Returns which tokens count: the policy's own in the completion, but for truncated rows.

  Args:
    completion_mask_BT: bool or 0 and 1; the end token counts.
    own_BT: 0 where a tool wrote.
    truncated_B: rows cut off at the longest length, before an end token; None: they count too.

  Returns:
    counted_BT, bool.
  """
  counted_BT = completion_mask_BT.astype(bool)
  if own_BT is not None:
    counted_BT = counted_BT & own_BT.astype(bool)
  if truncated_B is not None:
    counted_BT = counted_BT & ~truncated_B.astype(bool)[:, None]
  return counted_BT


def policy_loss(logprob_BT, advantage_B, completion_mask_BT, settings: PolicySettings, *, old_logprob_BT=None,
                ref_logprob_BT=None, sampler_logprob_BT=None, entropy_BT=None, entropy_floor=None,
                row_mask_B=None, tokens_per_row=None) -> PolicyOut:
  """Averages an objective over a batch of completions.

  The aggregation is "token_mean" (every token weighs the same), "sequence_mean" (every row does),
  "sequence_sum" (sums over tokens, averaged over rows) or "constant" ("sequence_sum" over
  max_completion_tokens). A row without counted tokens still is a row.

  Args:
    logprob_BT: log-probabilities under the policy being trained, at the sampling temperature.
    advantage_B: see `advantages`.
    completion_mask_BT: bool or 0 and 1, which tokens count, see `loss_mask`.
    settings: see there.
    old_logprob_BT: of the policy that made the batch, computed by the trainer; None: it is the present one.
    ref_logprob_BT: of the reference.
    sampler_logprob_BT: as the sampler reports them, NaN where it does not.
    entropy_BT: of the distributions that logprob_BT is taken from.
    entropy_floor: of the whole batch, where this is a piece of it; None: computed here.
    row_mask_B: 0 for rows that only fill up the batch; None: all count.
    tokens_per_row: counted tokens of the whole batch over its rows, where this is a piece of it; None:
      computed here. It matters to an entropy bonus without "token_mean".

  Returns:
    PolicyOut.

  Raises:
    ValueError: if the settings need an array that is not given.
  """
  _check_given(settings, ref=ref_logprob_BT, sampler=sampler_logprob_BT, entropy=entropy_BT)
  row_B = jnp.ones_like(advantage_B, bool) if row_mask_B is None else row_mask_B.astype(bool)
  # Rows that only fill up are no rows: also the divisor of "sequence_mean" leaves them out.
  counted_BT = completion_mask_BT.astype(bool) & row_B[:, None]
  rows = jnp.sum(row_B, dtype=logprob_BT.dtype)
  terms, ref_BT, sampler_BT = _terms(
      settings, logprob_BT, advantage_B, counted_BT, old_logprob_BT, ref_logprob_BT, sampler_logprob_BT)
  each_BT, kl_BT, stale_B = _each(terms, settings, ref_BT, sampler_BT, entropy_BT, entropy_floor)
  total, divisor = _aggregate(each_BT, counted_BT, rows, settings)
  tokens = jnp.sum(counted_BT, dtype=each_BT.dtype)
  # The bonus is a mean over tokens in every aggregation; where the divisor counts rows, sums are first made
  # means over the tokens of an average row.
  if settings.entropy_weight:
    bonus = settings.entropy_weight * jnp.sum(jnp.where(counted_BT, entropy_BT, 0))
    mean_tokens = tokens / jnp.maximum(rows, 1) if tokens_per_row is None else tokens_per_row
    per_token = 1.0 if settings.aggregation == "token_mean" else 1 / jnp.maximum(mean_tokens, 1e-9)
    total = total - bonus * jnp.asarray(per_token, bonus.dtype)
  metrics = policy_metrics.collect(terms, settings, row_B=row_B, divisor=divisor, kl_BT=kl_BT,
                                   entropy_BT=entropy_BT, sampler_logprob_BT=sampler_BT, stale_B=stale_B)
  return PolicyOut(total / jnp.maximum(divisor, 1), divisor, metrics)


def _check_given(settings: PolicySettings, *, ref, sampler, entropy) -> None:
  for field, array, name in (("kl_weight", ref, "ref_logprob_BT"),
                             ("sampler_correction", sampler, "sampler_logprob_BT"),
                             ("entropy_weight", entropy, "entropy_BT"),
                             ("top_entropy_frac", entropy, "entropy_BT")):
    value = getattr(settings, field)
    if value and array is None:
      off = 0.0 if field.endswith("weight") else None
      raise ValueError(f"config.policy.{field}={value!r} needs {name}; give it, or set {off}")


def _terms(settings, logprob_BT, advantage_B, counted_BT, old_BT, ref_BT, sampler_BT):
  """Zeroes what does not count, which may be anything, and makes ratios."""

  def clean(x_BT):
    return None if x_BT is None else jnp.where(counted_BT, x_BT, 0)

  def fixed(x_BT):
    return None if x_BT is None else jax.lax.stop_gradient(x_BT)

  # Selected before any arithmetic: a NaN at padding would outlive a multiplication by 0, in gradients too.
  logprob_BT = clean(logprob_BT)
  ref_BT = fixed(clean(ref_BT))
  # Without stored values old is the policy itself: the ratio is 1, its gradient that of the log-probability.
  old_BT = fixed(logprob_BT if old_BT is None else clean(old_BT))
  if sampler_BT is not None:
    sampler_BT = fixed(clean(jnp.where(jnp.isnan(sampler_BT), old_BT, sampler_BT)))
  weight_BT = None
  if settings.sampler_correction is not None:
    weight_BT = importance.sampler_ratio(
        old_BT, sampler_BT, counted_BT, correction=settings.sampler_correction, low=settings.sampler_low,
        high=settings.sampler_high)
  ratio_BT = jnp.exp(importance.log_ratio(logprob_BT, old_BT, counted_BT, ratio=settings.ratio))
  advantage_BT = fixed(jnp.broadcast_to(advantage_B[:, None], ratio_BT.shape).astype(ratio_BT.dtype))
  return Terms(logprob_BT, old_BT, ratio_BT, advantage_BT, counted_BT, weight_BT), ref_BT, sampler_BT


def _each(terms: Terms, settings: PolicySettings, ref_BT, sampler_BT, entropy_BT, floor):
  """Returns each token's loss without entropy bonus, its KL (or None) and which rows are stale (or None)."""
  # The order is TRL's, and its recorded cases fix it: stale rows, entropy, the sampler's weight, then the KL,
  # which neither masks nor the sampler's weight reach.
  each_BT = OBJECTIVES[settings.objective](terms, settings)
  stale_B = kl_BT = None
  if settings.stale_nats is not None:
    wrote_BT = terms.old_logprob_BT if sampler_BT is None else sampler_BT
    stale_B = importance.stale_rows(terms.logprob_BT, wrote_BT, terms.advantage_BT[:, 0], terms.counted_BT,
                                    threshold=settings.stale_nats)
    each_BT = jnp.where(stale_B[:, None], 0, each_BT)
  if settings.top_entropy_frac is not None:
    if floor is None:
      floor = importance.entropy_floor(entropy_BT, terms.counted_BT, top_frac=settings.top_entropy_frac)
    each_BT = jnp.where(entropy_BT >= floor, each_BT, 0)
  if terms.sampler_BT is not None and settings.objective != "vespo":  # It holds the weight already.
    each_BT = each_BT * terms.sampler_BT
  if ref_BT is not None:
    kl_BT = importance.kl_estimate(terms.logprob_BT, ref_BT, estimator=settings.kl_estimator)
    kl_BT = kl_BT * terms.ratio_BT if settings.kl_ratio else kl_BT
    each_BT = each_BT + settings.kl_weight * kl_BT
  return each_BT, kl_BT, stale_B


def _aggregate(each_BT, counted_BT, rows, settings: PolicySettings):
  """Returns (total, divisor), both of which add up over pieces of a batch."""
  # GRPO: every completion weighs the same, so a token of a long one weighs less than one of a short one.
  if settings.aggregation == "sequence_mean":
    return jnp.sum(importance.row_mean(each_BT, counted_BT)), rows
  total = jnp.sum(jnp.where(counted_BT, each_BT, 0))
  if settings.aggregation == "token_mean":
    return total, jnp.sum(counted_BT, dtype=total.dtype)
  # Dr. GRPO: a divisor that no completion's length changes; dividing by lengths favours short good
  # completions and long bad ones.
  if settings.aggregation == "constant":
    assert settings.max_completion_tokens is not None  # PolicySettings checks it.
    total = total / settings.max_completion_tokens
  return total, rows
