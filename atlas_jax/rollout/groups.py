"""Groups of completions: what a sampler wrote for each prompt, scored, compared and counted."""
import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from atlas_jax.data.problems import Problem
from atlas_jax.language.decoding.sampler import Rollout, SamplingOptions
from atlas_jax.losses import advantages
from atlas_jax.rollout import ask
from atlas_jax.rollout.judges import group_reward
from atlas_jax.rollout.judges import reward as judge_reward
from atlas_jax.rollout.rewards import Rewards, RewardScores, combine

OVERLONG = "overlong"  # Stands among the rewards for what a long completion costs.
FLAT = ("keep", "skip", "resample")
TRUNCATED = ("keep", "mask", "drop")
# Compiled as a whole: one by one, their operations would take twenty compilations.
_GROUP = jax.jit(advantages.group_advantages, static_argnames=("group_size", "kind", "deviation", "epsilon"))
_SEPARATE = jax.jit(advantages.separate_advantages, static_argnames=("group_size", "epsilon"))


@dataclasses.dataclass(frozen=True)
class Scoring:
  """Settings of the comparison within groups.

  Raises:
    ValueError: for a value that cannot be, naming its field.
  """

  kind: str = "normalized"          # see `advantages.group_advantages`
  deviation: str = "sample"
  epsilon: float = advantages.EPSILON
  per_reward: bool = False          # see `advantages.separate_advantages`
  truncated: str = "keep"           # completions without an end: "mask" trains no token of them, and with
                                    # "drop" their rewards do not count in means either
  overlong_tokens: int | None = None  # the last so many of max_tokens cost up to 1 of reward; None: nothing

  def __post_init__(self):
    advantages.check(kind=self.kind, deviation=self.deviation, group_size=1)
    if self.truncated not in TRUNCATED:
      raise ValueError(f"config.rollout.truncated={self.truncated!r} must be one of {', '.join(TRUNCATED)}")


class CompletionGroup(NamedTuple):
  """All completions of one prompt; lists have G entries."""

  problem: Problem
  prompt: Any                     # ids
  tokens: list                    # ids of each
  logprobs: list                  # of these ids, in the tempered distribution over all ids
  reasons: list[str]
  texts: list[str]
  version: int                    # of the weights that wrote them, the oldest
  each: Mapping[str, np.ndarray]  # name of a reward -> reward_G, NaN where it has nothing to say
  reward_G: np.ndarray            # their weighted sum; NaN where none has
  flat: bool = False              # whether it teaches nothing
  logged: Mapping[str, float] = MappingProxyType({})  # numbers that rewards logged when they scored it
  columns: Mapping[str, list] = MappingProxyType({})  # what they logged of each completion

  @property
  def truncated_G(self) -> np.ndarray:
    """Returns which completions have no end."""
    return np.array([reason in ("length", "abort") for reason in self.reasons])


def overlong_penalty(length_B, *, max_tokens: int, overlong_tokens: int):
  """Returns what completions cost for their length: 0, falling to -1 over the last tokens there is room for.

  Args:
    length_B: tokens of each completion.
    max_tokens: of a completion at most.
    overlong_tokens: how many of them cost; the last one costs 1.

  Source: Yu et al. 2025, arXiv:2503.14476, equation 13, in tokens.
  """
  over_B = np.asarray(length_B, np.float32) - (max_tokens - overlong_tokens)
  return -np.clip(over_B / overlong_tokens, 0, 1).astype(np.float32)


def score(found: Sequence[Problem], prompts: Sequence[Any], rollout: Rollout, options: SamplingOptions,
          rewards: Rewards, scoring: Scoring, *, step: int = 0) -> list[CompletionGroup]:
  """Returns the group of each prompt.

  Args:
    found: the problems.
    prompts: ids of each.
    rollout: what a sampler wrote, checked.
    options: what it was asked.
    rewards: score the completions.
    scoring: how.
    step: updates made so far.

  Raises:
    ValueError: if a reward raises, or gives what is no number; see `Rewards.score`.
  """
  n = options.n
  rows = [problem for problem in found for _ in range(n)]
  tokens = [rollout.tokens_BT[row, :size].tolist() for row, size in enumerate(rollout.length_B)]
  scores = rewards.score(rows, list(rollout.text_B), tokens=tokens, step=step)
  if (cost_B := overlong_costs(scores.reward_B, rollout, options, scoring)) is not None:
    each = {**scores.each, OVERLONG: cost_B}
    weights = {**scores.weights, OVERLONG: 1.0}
    scores = scores._replace(each=each, reward_B=combine(each, weights, masks=scores.masks))
  return of_scores(found, prompts, rollout, options, scores, scoring)


def overlong_costs(reward_B, rollout: Rollout, options: SamplingOptions, scoring: Scoring):
  """Returns what completions cost for their length, NaN where they have no reward; None: nothing."""
  if scoring.overlong_tokens is None:
    return None
  cost_B = overlong_penalty(rollout.length_B, max_tokens=options.max_tokens,
                            overlong_tokens=scoring.overlong_tokens)
  # A penalty alone is no reward: where nothing scored a completion it stays unscored.
  return np.where(np.isnan(reward_B), np.nan, cost_B).astype(np.float32)


def of_scores(found: Sequence[Problem], prompts: Sequence[Any], rollout: Rollout, options: SamplingOptions,
              scores: RewardScores, scoring: Scoring) -> list[CompletionGroup]:
  """Returns the group of each prompt, from the scores of all completions; arguments as of `score`."""
  n = options.n
  tokens = [rollout.tokens_BT[row, :size].tolist() for row, size in enumerate(rollout.length_B)]
  groups = []
  for number, (problem, prompt) in enumerate(zip(found, prompts, strict=True)):
    at = slice(number * n, (number + 1) * n)
    logprobs = [rollout.full_logprob_BT[row, :rollout.length_B[row]] for row in range(at.start, at.stop)]
    group = CompletionGroup(
        problem, prompt, tokens[at], logprobs, list(rollout.reason_B[at]), list(rollout.text_B[at]),
        int(rollout.version_B[at].min()), {name: column[at] for name, column in scores.each.items()},
        scores.reward_B[at],
        logged=scores.logged, columns={name: column[at] for name, column in scores.columns.items()})
    groups.append(group._replace(flat=_is_flat(group, scoring)))
  return groups


def compare(groups: Sequence[CompletionGroup], weights: Mapping[str, float], scoring: Scoring) -> np.ndarray:
  """Returns advantage_B, float32, of the completions of groups.

  Args:
    groups: all of the rollout; each has the same number of completions.
    weights: of the rewards.
    scoring: how.

  Raises:
    ValueError: if rewards lie so far apart that an advantage is beyond float32; it names their prompt.
  """
  size = len(groups[0].tokens)
  if scoring.per_reward:
    each = {name: np.concatenate([_counted(group, group.each[name], scoring) for group in groups])
            for name in groups[0].each}
    given = {**weights, OVERLONG: 1.0} if OVERLONG in each else dict(weights)
    advantage_B = _SEPARATE(each, given, group_size=size, epsilon=scoring.epsilon)
  else:
    reward_B = np.concatenate([_counted(group, group.reward_G, scoring) for group in groups])
    advantage_B = _GROUP(reward_B, group_size=size, kind=scoring.kind, deviation=scoring.deviation,
                         epsilon=scoring.epsilon)
  advantage_B = np.asarray(advantage_B, np.float32)
  # One prompt with rewards far apart would make the whole update's gradient infinite.
  if not np.isfinite(advantage_B).all():
    group = groups[int(np.argmin(np.isfinite(advantage_B))) // size]
    raise ValueError(f"the rewards of {group.problem.where}, {np.nanmin(group.reward_G):g} to "
                     f"{np.nanmax(group.reward_G):g}, lie so far apart that an advantage of "
                     f"config.advantage.kind={scoring.kind!r} is beyond float32; make the weights in "
                     "config.rewards smaller, or set config.advantage.kind=normalized")
  return advantage_B


def _counted(group: CompletionGroup, reward_G: np.ndarray, scoring: Scoring) -> np.ndarray:
  """Returns rewards without those that do not count."""
  return np.where(group.truncated_G & (scoring.truncated == "drop"), np.nan, reward_G).astype(np.float32)


def _is_flat(group: CompletionGroup, scoring: Scoring) -> bool:
  """Returns whether a group teaches nothing; of separate rewards, all must be flat."""
  columns = list(group.each.values()) if scoring.per_reward else [group.reward_G]
  # Completions that are dropped count in no mean, so they make no difference within a group either.
  known = [column_G[~np.isnan(column_G)] for column_G in
           (_counted(group, column_G, scoring) for column_G in columns)]
  return all(not len(values) or values.min() >= values.max() for values in known)


def metrics(groups: Sequence[CompletionGroup], *, options: SamplingOptions) -> dict[str, float]:
  """Returns metrics of the completions of groups by name; those without a value are left out."""
  reward_B = np.concatenate([group.reward_G for group in groups])
  each = {name: np.concatenate([group.each[name] for group in groups]) for name in groups[0].each}
  length_B = np.array([len(ids) for group in groups for ids in group.tokens])
  truncated_B = np.concatenate([group.truncated_G for group in groups])
  found: dict[str, Any] = {
      **_spread("reward", reward_B),
      **{name: value for reward, column_B in each.items()
         for name, value in _spread(f"reward/{reward}", column_B).items()},
      "completion_tokens": length_B.sum(), "length_mean_tokens": length_B.mean(),
      "length_min_tokens": length_B.min(), "length_max_tokens": length_B.max(),
      "truncated_frac": truncated_B.mean(), "terminated_frac": 1 - truncated_B.mean(),
      "unrewarded_frac": np.isnan(reward_B).mean()}
  if not truncated_B.all():
    found["terminated_length_mean_tokens"] = length_B[~truncated_B].mean()
  for name in dict.fromkeys(name for group in groups for name in group.logged):
    # Judges have metrics of their own, by their whole names.
    is_known = name in (*judge_reward.METRICS, *group_reward.METRICS)
    known = name.removeprefix("rollout/") if is_known else f"logged/{name}"
    found[known] = np.mean([group.logged[name] for group in groups if name in group.logged])
  if options.n > 1:
    found["flat_groups_frac"] = np.mean([group.flat for group in groups])
  return {f"rollout/{name}": float(value) for name, value in found.items()}


def _spread(name: str, column_B: np.ndarray) -> dict[str, float]:
  known_B = column_B[~np.isnan(column_B)]
  # In float64: squares of large rewards would overflow, and their mean be rounded to whole numbers.
  known_B = known_B.astype(np.float64)
  return {f"{name}_mean": known_B.mean(), f"{name}_std": known_B.std()} if len(known_B) else {}


def rows(groups: Sequence[CompletionGroup], advantage_B, count: int) -> list[dict[str, Any]]:
  """Returns some completions as JSON objects, taken evenly from all groups."""
  size = len(groups[0].tokens)
  total = len(groups) * size
  picked = []
  for row in sorted({int(at) for at in np.linspace(0, total - 1, min(count, total))}):
    group = groups[row // size]
    number = row % size
    picked.append({
        "where": group.problem.where, "prompt": ask.prompt_text(group.problem),
        "completion": group.texts[number], "answer": group.problem.answer,
        "reward": _or_none(group.reward_G[number]),
        "rewards": {name: _or_none(column_G[number]) for name, column_G in group.each.items()},
        "advantage": float(advantage_B[row]), "reason": group.reasons[number],
        "length_tokens": len(group.tokens[number]), "version": group.version,
        **({"logged": {name: column[number] for name, column in group.columns.items()}}
           if group.columns else {})})
  return picked


def _or_none(value) -> float | None:
  return None if np.isnan(value) else float(value)
