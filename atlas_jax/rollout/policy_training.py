"""Training of a policy on completions with advantages, as far as recipes share it: settings, scores, loss.

The weight of a loss counts completion tokens where every token weighs the same (config.policy.aggregation
"token_mean"), else completions; so pieces of a batch add up to the whole. What a run has seen counts those
too that the loss leaves out, such as tokens of masked completions.
"""
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from atlas_jax.language import first_params
from atlas_jax.language.initial_model import InitialModel, merge_frozen
from atlas_jax.losses import policy, policy_metrics
from atlas_jax.losses.policy import PolicySettings
from atlas_jax.losses.token_logprobs import token_logprobs, token_logprobs_and_entropies
from atlas_jax.models.language import read_completions
from atlas_jax.models.layer_metrics import layer_metrics
from atlas_jax.parallel import hosts
from atlas_jax.parallel import mesh as meshes
from atlas_jax.rollout.groups import Scoring
from atlas_jax.rollout.source import RolloutPlan

OLD = ("tokens_BS", "doc_BS", "start_B", "completion_BT")  # What is read to score completions.


class BatchLoss(NamedTuple):
  """The loss of a batch, as `recipes.LossOut` has it."""

  loss: jax.Array
  weight: jax.Array
  metrics: dict
  seen: jax.Array


def settings_of(config) -> PolicySettings:
  """Returns the loss of a config: its preset, with the fields that are set.

  Raises:
    ValueError: if they do not go together, or do not go with the rest of the config.
  """
  names = {field.name for field in dataclasses.fields(PolicySettings)} & set(config.policy)
  # A field of None is as the preset has it. sampler_high is no such field: its None takes a bound away.
  changes = {name: config.policy[name] for name in names if config.policy[name] is not None}
  changes |= {"sampler_high": config.policy.sampler_high,
              "max_completion_tokens": config.sampler.max_tokens}  # The divisor of "constant".
  settings = policy.preset(config.policy.preset, **changes)
  for name in policy.unread_bounds(settings):
    if name in changes:
      raise ValueError(f"config.policy.{name}={changes[name]} is not read: the objective of this loss is "
                       f"{settings.objective!r}, which has no such bound; leave it out")
  if settings.top_entropy_frac is not None and config.train.accumulate_steps > 1:
    raise ValueError(f"config.policy.top_entropy_frac={settings.top_entropy_frac} compares the tokens of a "
                     "whole batch; set config.train.accumulate_steps=1, or top_entropy_frac=None")
  if config.policy.reference_every_steps is not None and not settings.kl_weight:
    raise ValueError("config.policy.reference_every_steps moves a reference that config.policy.kl_weight=0 "
                     "does not use; set kl_weight, or reference_every_steps=None")
  return settings


def unit_of(settings: PolicySettings) -> str:
  """Names what is counted; see the module."""
  return "completion_tokens" if settings.aggregation == "token_mean" else "completions"


def plan_of(config, start: InitialModel) -> RolloutPlan:
  """Returns how rollouts become batches."""
  data = config.data
  how = config.rollout
  return RolloutPlan(
      batch_rows=data.batch_rows, batches_per_rollout=how.batches_per_rollout,
      updates_per_batch=how.updates_per_batch, zero_std_groups=how.zero_std_groups,
      max_resamples=how.max_resamples, pad_tokens=how.pad_tokens, align_tokens=start.language.align_tokens,
      max_staleness=how.max_staleness, table_rows=how.table_rows)


def scoring_of(config) -> Scoring:
  """Returns how the completions of a group are compared."""
  how = config.rollout
  return Scoring(truncated=how.truncated, overlong_tokens=how.overlong_tokens, **config.advantage)


def old_logprobs_of(config, start: InitialModel, mesh) -> Callable:
  """Makes the trainer's own scoring of a rollout, with the parameters that wrote it; see `RolloutSource`."""
  # The trainer's own forward pass, not the sampler's numbers: two engines differ in rounding by more than a
  # small update changes a ratio. Replicated, because every process keeps the old values of the whole batch.
  score = score_of(config, start, entropies=False)
  compiled: Any = jax.jit(lambda *given: score(*given)[0], out_shardings=meshes.replicated(mesh))

  def old_logprobs(params, frozen, mine) -> np.ndarray:
    batch = hosts.global_batch(mesh, {name: mine[name] for name in OLD})
    return np.asarray(compiled(params, batch, frozen))

  return old_logprobs


def score_of(config, start: InitialModel, *, entropies: bool):
  """Makes (params, batch, frozen) -> (logprob_BT, entropy_BT or None, statistics of the layers)."""
  language = start.language
  # At the temperature of sampling: ratios compare with the distribution that completions were drawn from.
  how = {"temperature": config.sampler.temperature, "block_tokens": config.loss.block_tokens}

  def score(params, batch, frozen):
    params = merge_frozen(params, frozen)
    hidden_BTD, stats = read_completions(language, params, batch)
    given = hidden_BTD, language.head(params), batch["completion_BT"]
    if not entropies:
      return token_logprobs(*given, **how), None, stats
    return *token_logprobs_and_entropies(*given, **how), stats

  return score


def loss_of(config, start: InitialModel, settings: PolicySettings) -> Callable:
  """Makes (params, batch, frozen) -> `BatchLoss` of a batch as `RolloutSource` describes it."""
  # An entropy needs the whole distribution of each token, in time and memory; so only where it is used.
  entropies = bool(settings.entropy_weight) or settings.top_entropy_frac is not None
  score, refer = (score_of(config, start, entropies=wanted) for wanted in (entropies, False))

  def loss(params, batch, frozen) -> BatchLoss:
    logprob_BT, entropy_BT, stats = score(params, batch, frozen)
    ref_BT = None
    if settings.kl_weight:
      # Where adapters are trained the reference is a copy of them, and `score` joins it with the same base.
      ref_BT = refer(jax.lax.stop_gradient(frozen[first_params.REFERENCE]), batch, frozen)[0]
    counted_BT = policy.loss_mask(
        batch["completion_mask_BT"],
        # With "drop" their rewards were left out of the means already;
        # their tokens are left out here for both.
        truncated_B=None if config.rollout.truncated == "keep" else batch["truncated_B"])
    out = policy.policy_loss(
        logprob_BT, batch["advantage_B"], counted_BT, settings,
        old_logprob_BT=batch["old_logprob_BT"] if "old_logprob_BT" in batch else None,
        sampler_logprob_BT=batch["sampler_logprob_BT"], ref_logprob_BT=ref_BT, entropy_BT=entropy_BT,
        # The source has put the same number into every row, so the largest
        # is that number for any piece of a batch.
        row_mask_B=batch["row_mask_B"], tokens_per_row=jnp.max(batch["tokens_per_row_B"]))
    mask_BT = batch["completion_mask_BT"]
    # Counts also tokens of rows that the loss masks: they were written and read, and cost their time.
    seen = jnp.sum(mask_BT) if unit_of(settings) == "completion_tokens" else jnp.asarray(mask_BT.shape[0])
    return BatchLoss(out.loss, out.weight, {"policy": out.metrics, "layers": layer_metrics(stats)},
                     seen.astype(jnp.float32))

  return loss


def finish(means: dict) -> dict:
  """Turns averaged metrics of the loss into metrics by name; see `recipes.Accounting`."""
  return {**policy_metrics.finish(means["policy"]), **means["layers"]}


def has_fixed_reference(settings: PolicySettings, config) -> bool:
  """Returns whether a reference is used that stays what the run started from."""
  return bool(settings.kl_weight) and config.policy.reference_every_steps is None


def reference_moves(settings: PolicySettings, config) -> tuple[int, float] | None:
  """Returns (updates between moves of the reference, weight of the policy in it), None where it stays."""
  if not settings.kl_weight or config.policy.reference_every_steps is None:
    return None
  return config.policy.reference_every_steps, config.policy.reference_share


def backward_frac(settings: PolicySettings, start: InitialModel) -> float:
  """Returns the fraction of the forward pass that has a backward pass; a reference is only read."""
  return start.backward_frac / (2 if settings.kl_weight else 1)
