"""Advantages: how much better a completion is than the others of its prompt.

Completions of a prompt are adjacent rows. A reward that is missing is NaN: it counts in no mean and no
deviation, and a completion without any reward has advantage 0. Rewards may be as large as their type can
hold, and all alike but for their last digits: they are scaled by powers of two, and centred twice.
"""
from collections.abc import Mapping

import jax.numpy as jnp

KINDS = ("normalized", "batch", "centered", "leave_one_out", "ranked")
DEVIATIONS = {"sample": 1, "population": 0}
BEST = 2.0  # Advantage of the best of a ranked group; the worst has its negative.
EPSILON = 1e-4  # TRL's; at a deviation of 1e-4 it halves the advantages.


def combine_rewards(rewards: Mapping, weights: Mapping):
  """Adds up several rewards.

  Args:
    rewards: name -> reward_B, NaN where it is missing.
    weights: name -> weight, the same names.

  Returns:
    reward_B: the weighted sum of what is there; NaN where every reward is missing.

  Raises:
    ValueError: if a reward has no weight, or a weight no reward.
  """
  known_BE, weight_E = _stack(rewards, weights)
  missing_BE = jnp.isnan(known_BE)
  total_B = jnp.sum(jnp.where(missing_BE, 0, known_BE) * weight_E[None, :], axis=1)
  return jnp.where(jnp.all(missing_BE, axis=1), jnp.nan, total_B)


def group_advantages(reward_B, *, group_size: int, kind: str, deviation: str = "sample",
                     epsilon: float = EPSILON):
  """Turns rewards into advantages by comparing completions of one prompt.

  Args:
    reward_B: one reward per completion, NaN where it is missing.
    group_size: completions per prompt; groups of one have advantage 0.
    kind: "normalized" (centred, over the group's deviation), "batch" (centred, over the deviation of all
      rewards), "centered", "leave_one_out" (minus the mean of the others), or "ranked" (from 2 for the best
      to -2 for the worst in equal steps, whatever the distances; ties share the mean of their ranks).
    deviation: "sample" (divides by n - 1) or "population" (by n).
    epsilon: added to the deviation.

  Returns:
    advantage_B, float32 or wider, mean zero in every group; zeros for a group of equal rewards.

  Raises:
    ValueError: if B is not a multiple of group_size, or a name is unknown.

  Source: "normalized": Shao et al. 2024, arXiv:2402.03300; "centered": Liu et al. 2025, arXiv:2503.20783;
  "leave_one_out": Ahmadian et al. 2024, arXiv:2402.14740; "ranked": arXiv:2602.03876, and ties are ours.
  """
  check(kind=kind, deviation=deviation, group_size=group_size)
  reward_BG = _groups(reward_B, group_size)
  known_BG = ~jnp.isnan(reward_BG)
  count_BG = jnp.sum(known_BG, axis=1, keepdims=True, dtype=reward_BG.dtype)
  over = (1, -1) if kind == "batch" else reward_BG.shape  # Rewards that have one scale and one deviation.
  # Rewards up to the largest float32 are allowed, and their squares would overflow. A power of two only
  # changes exponents, so the scaled rewards keep every digit of their differences.
  power = _power(reward_BG.reshape(over), known_BG.reshape(over))
  scaled_BG = jnp.ldexp(reward_BG, -power)
  if kind == "ranked":
    advantage_BG = _ranked(reward_BG, known_BG, count_BG)
  else:
    advantage_BG = centre(scaled_BG, known_BG)
  # R_i minus the mean of the other n - 1 is n / (n - 1) times R_i minus the mean of all n.
  if kind == "leave_one_out":
    advantage_BG = advantage_BG * count_BG / jnp.maximum(count_BG - 1, 1)
  if kind in ("normalized", "batch"):
    # Numerator, deviation and epsilon are all in scaled units, which cancel in the quotient.
    spread = _deviation(scaled_BG.reshape(over), known_BG.reshape(over), DEVIATIONS[deviation])
    advantage_BG = advantage_BG / (spread + jnp.ldexp(jnp.asarray(epsilon, spread.dtype), -power))
  elif kind != "ranked":
    advantage_BG = jnp.ldexp(advantage_BG, power)
  flat_BG = _flat(reward_BG, known_BG)
  # Rounding of the mean must not make a group of equal rewards differ.
  return jnp.where(known_BG & ~flat_BG, advantage_BG, 0).reshape(-1)


def separate_advantages(rewards: Mapping, weights: Mapping, *, group_size: int, epsilon: float = EPSILON):
  """Normalises each reward in its groups, adds them up, and normalises the sum over the batch.

  A reward with large values does not drown the others.

  Args:
    rewards, weights: as in `combine_rewards`.
    group_size: completions per prompt.
    epsilon: added to both deviations.

  Returns:
    advantage_B, float32 or wider, mean zero over the batch.

  Raises:
    ValueError: if B is not a multiple of group_size, or names differ.

  Source: GDPO, arXiv:2601.05242.
  """
  known_BE, weight_E = _stack(rewards, weights)
  # Each reward is normalised before the weights apply (GDPO); a missing one has advantage 0 and adds nothing.
  each = [group_advantages(known_BE[:, e], group_size=group_size, kind="normalized", epsilon=epsilon)
          for e in range(known_BE.shape[1])]
  sum_B = jnp.sum(jnp.stack(each, axis=1) * weight_E[None, :], axis=1)
  # A completion without any reward has summed to 0, which would count in the batch's mean and deviation. NaN
  # leaves it out there. One group as large as the batch makes the second normalisation.
  some_B = ~jnp.all(jnp.isnan(known_BE), axis=1)
  whole = jnp.where(some_B, sum_B, jnp.nan)
  return group_advantages(whole, group_size=whole.shape[0], kind="normalized", epsilon=epsilon)


def flat_rows(reward_B, *, group_size: int):
  """Says of each completion whether its group teaches nothing: equal rewards, or fewer than two known ones.

  Returns:
    flat_B, bool; its mean is the fraction of flat groups.

  Raises:
    ValueError: if B is not a multiple of group_size.
  """
  reward_BG = _groups(reward_B, group_size)
  known_BG = ~jnp.isnan(reward_BG)
  return jnp.broadcast_to(_flat(reward_BG, known_BG), reward_BG.shape).reshape(-1)


def check(*, kind: str, group_size: int, deviation: str = "sample") -> None:
  """Refuses settings that make no advantages.

  Raises:
    ValueError: names the field and what it may be.
  """
  if kind not in KINDS:
    raise ValueError(f"config.advantage.kind={kind!r} is not known; choose one of {', '.join(KINDS)}")
  if deviation not in DEVIATIONS:
    raise ValueError(f"config.advantage.deviation={deviation!r} is not known; choose one of "
                     f"{', '.join(DEVIATIONS)}")
  if group_size < 1:
    raise ValueError(f"config.data.group_size={group_size} is no number of completions; set 2 or more")


def _groups(reward_B, group_size: int):
  reward_B = _float(reward_B)
  if reward_B.shape[0] % group_size:
    raise ValueError(f"{reward_B.shape[0]} rewards are not a multiple of config.data.group_size="
                     f"{group_size}; give all completions of every prompt")
  return reward_B.reshape(-1, group_size)


def _float(x):
  x = jnp.asarray(x)
  # Half precision would round differences between rewards away, and
  # integers cannot hold NaN for a missing one.
  return x if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize >= 4 else x.astype(jnp.float32)


def _stack(rewards: Mapping, weights: Mapping):
  if set(rewards) != set(weights):
    odd = sorted(set(rewards) ^ set(weights))
    raise ValueError(f"rewards {sorted(rewards)} and the weights of config.rewards {sorted(weights)} differ "
                     f"in {', '.join(odd)}; every reward needs one weight")
  known = [_float(rewards[name]) for name in rewards]
  # The widest dtype of all, by hand: strict promotion, under which tests run, refuses to mix them.
  dtype = max((x.dtype for x in known), key=lambda dtype: dtype.itemsize)
  known_BE = jnp.stack([x.astype(dtype) for x in known], axis=1)
  return known_BE, jnp.asarray([weights[name] for name in rewards], known_BE.dtype)


def centre(value_BG, known_BG):
  """Returns values minus the mean of the known ones of their row, which is then zero but for rounding.

  The mean is rounded to the last digit of the values, an error that is large beside their differences where
  these are small. Centring the differences a second time takes it off.
  """
  count_BG = jnp.maximum(jnp.sum(known_BG, axis=1, keepdims=True), 1).astype(value_BG.dtype)

  def mean(x_BG):
    return jnp.sum(jnp.where(known_BG, x_BG, 0), axis=1, keepdims=True) / count_BG

  once_BG = value_BG - mean(value_BG)
  return once_BG - mean(once_BG)


def _power(reward_BG, known_BG):
  """Returns the power of two just above the largest reward of each row."""
  largest_BG = jnp.max(jnp.where(known_BG, jnp.abs(reward_BG), 0), axis=1, keepdims=True)
  # frexp: largest = m 2^e with m in [0.5, 1), so scaled rewards lie within [-1, 1]; of zeros e is 0.
  return jnp.frexp(largest_BG)[1]


def _deviation(reward_BG, known_BG, missing_degrees: int):
  square_BG = jnp.where(known_BG, jnp.square(centre(reward_BG, known_BG)), 0)
  count_BG = jnp.sum(known_BG, axis=1, keepdims=True, dtype=square_BG.dtype) - missing_degrees
  # One known reward has no degree of freedom left: 0 / 1, where 0 / 0 would be NaN.
  return jnp.sqrt(jnp.sum(square_BG, axis=1, keepdims=True) / jnp.maximum(count_BG, 1))


def _ranked(reward_BG, known_BG, count_BG):
  """With p the mean rank from 1: 2 - 4 (p - 1) / (n - 1), which is 2 (worse - better) / (n - 1)."""
  # Counting pairs, not sorting: G is small, ties come out as mean ranks, and missing rewards are left out.
  both_BGG = known_BG[:, :, None] & known_BG[:, None, :]

  def lead(mine, other):
    return jnp.sum(both_BGG & (mine > other), axis=2, dtype=reward_BG.dtype)

  mine = reward_BG[:, :, None]
  other = reward_BG[:, None, :]
  return BEST * (lead(mine, other) - lead(-mine, -other)) / jnp.maximum(count_BG - 1, 1)


def _flat(reward_BG, known_BG):
  high = jnp.max(jnp.where(known_BG, reward_BG, -jnp.inf), axis=1, keepdims=True)
  low = jnp.min(jnp.where(known_BG, reward_BG, jnp.inf), axis=1, keepdims=True)
  # Not ==: without any known reward high is -inf and low is inf, and the group is flat as well.
  return high <= low
