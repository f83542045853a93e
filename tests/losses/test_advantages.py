"""Advantages against those of TRL 1.16 and of Arc ATLAS, and what they are by definition."""

import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.losses import advantages
from tests import post_training_fixture as fixture
from tests.helpers import assert_close

TRL = "post_training/advantages"
KINDS = {"group": "normalized", "batch": "batch", "none": "centered"}
G = 4


def of(rewards, kind, *, group_size=G, **more):
  found_B = advantages.group_advantages(jnp.asarray(rewards), group_size=group_size, kind=kind, **more)
  return np.asarray(found_B)


def named(name):
  """The two rewards of a set and their weights."""
  given = fixture.arrays(TRL)
  first, second = given[f"{name}/rewards"].T
  weights = dict(zip(("right", "short"), given["reward_weights"].tolist()))
  return {"right": first, "short": second}, weights


@pytest.mark.parametrize("name", ("full", "holes", "flat_group"))
def test_advantages_are_those_of_the_reference(x64, name):
  expected = fixture.arrays(TRL)
  reward_B = advantages.combine_rewards(*named(name))
  for theirs, ours in KINDS.items():
    assert_close(of(reward_B, ours), expected[f"{name}/{theirs}"], why=theirs, tolerance=1e-12)
  separate_B = advantages.separate_advantages(*named(name), group_size=G)
  assert_close(separate_B, expected[f"{name}/gdpo"], why="gdpo", tolerance=1e-12)


def test_float32_is_close_too():
  rewards, weights = named("holes")
  reward_B = advantages.combine_rewards({k: v.astype(np.float32) for k, v in rewards.items()}, weights)
  found_B = of(reward_B, "normalized")
  assert found_B.dtype == np.float32
  assert_close(found_B, fixture.arrays(TRL)["holes/group"], tolerance=2e-6)


@pytest.mark.parametrize("size", (2, 4, 8))
def test_groups_of_other_sizes_agree_with_arc_atlas(size):
  given = fixture.arrays("arc_atlas/grpo_numeric")
  found_B = of(given["adv_rewards"], "normalized", group_size=size)
  assert_close(found_B, given[f"adv_G{size}"], tolerance=1e-5)  # Stored in float32.


def test_the_weighted_sum_agrees_with_arc_atlas():
  given = fixture.arrays("arc_atlas/grpo_numeric")
  rewards, weights = ({str(k): x for k, x in enumerate(xs)}
                      for xs in (given["multi_rewards"].T, given["multi_weights"]))  # fmt: skip
  assert_close(advantages.combine_rewards(rewards, weights), given["multi_total"], tolerance=1e-6)


def test_leave_one_out_compares_with_the_mean_of_the_others(x64):
  reward_B = np.array([1.0, 0.0, np.nan, 4.0, 2.0, np.nan, np.nan, np.nan])
  assert_close(of(reward_B, "leave_one_out"), np.array([1 - 2, -2.5, 0, 4 - 0.5, 0, 0, 0, 0]))


def test_ranks_take_equal_steps_and_ties_share_their_mean(x64):
  reward_B = np.array([0.1, 100.0, -3.0, 0.2, 5.0, 7.0, 5.0, 1.0])
  assert_close(of(reward_B, "ranked"), np.array([-2 / 3, 2, -2, 2 / 3, 0, 2, 0, -2.0]))


def test_missing_rewards_take_no_rank(x64):
  assert_close(of(np.array([3.0, np.nan, 2.0, 1.0]), "ranked"), np.array([2.0, 0, 0, -2]))


@pytest.mark.parametrize("kind", advantages.KINDS)
def test_equal_rewards_give_exactly_zero_and_every_group_sums_to_zero(kind):
  reward_B = np.array([0.1, 0.1, 0.1, 0.7, 0.2, -3.0], np.float32)  # The mean of three 0.1 is not 0.1.
  found_B = of(reward_B, kind, group_size=3)
  assert not found_B[:3].any()
  assert found_B[3:].any()
  assert_close(found_B[3:].sum(), 0.0, tolerance=1e-5)


SHIFTS = (0.0, 1.0, 1e3, 1e7)
SCALES = (1e-35, 1e-10, 1.0, 1e7, 1e25, 1e30)


def by_definition(reward_B, kind):
  """Advantages of groups of four in float64, whose range and digits are enough for float32 rewards."""
  reward_BG = np.asarray(reward_B, np.float64).reshape(-1, G)
  centred_BG = reward_BG - reward_BG.mean(axis=1, keepdims=True)
  if kind == "leave_one_out":
    return (centred_BG * G / (G - 1)).reshape(-1)
  if kind == "centered":
    return centred_BG.reshape(-1)
  spread = reward_BG.std(axis=1, ddof=1, keepdims=True) if kind == "normalized" else reward_BG.std(ddof=1)
  return (centred_BG / (spread + advantages.EPSILON)).reshape(-1)


@pytest.mark.parametrize("kind", ("normalized", "batch", "centered", "leave_one_out"))
def test_rewards_of_any_size_and_far_from_zero_are_compared_in_float32(kind):
  draw = np.random.default_rng(0)
  for scale in SCALES:
    for shift in SHIFTS:
      reward_B = (scale * (shift + draw.normal(size=6 * G))).astype(np.float32)
      found_B, expected_B = of(reward_B, kind).astype(np.float64), by_definition(reward_B, kind)
      size, what = np.abs(expected_B).max(), f"{scale:g} times {shift:g} and more"
      np.testing.assert_allclose(found_B, expected_B, atol=2e-6 * size, rtol=0, err_msg=what)
      assert np.abs(found_B.reshape(-1, G).mean(axis=1)).max() <= 2e-7 * size, what


@pytest.mark.parametrize("kind", advantages.KINDS)
def test_equal_rewards_of_any_size_give_exactly_zero(kind):
  value_B = np.float32([1e-38, 0.1, 1e7 / 3, 1e30 / 3, -3e38, 3e38])
  assert not of(np.repeat(value_B, 3), kind, group_size=3).any()


def test_the_largest_rewards_that_float32_holds_are_compared():
  found_B = of(np.float32([3.4e38, -3.4e38, -3.4e38, -3.4e38]), "normalized")
  assert_close(found_B, np.float32([1.5, -0.5, -0.5, -0.5]), tolerance=1e-6)


def test_population_deviation_and_its_epsilon_are_on_request(x64):
  reward_B = np.array([1.0, 3.0])
  found_B = of(reward_B, "normalized", group_size=2, deviation="population", epsilon=0.5)
  assert_close(found_B, np.array([-1, 1]) / 1.5)


def test_flat_groups_are_found():
  reward_B = np.array([1, 1, 1, 2, np.nan, 3, np.nan, np.nan, 0.5, np.nan], np.float32)
  found_B = advantages.flat_rows(reward_B, group_size=2)
  np.testing.assert_array_equal(found_B, [True, True, False, False, True, True, True, True, True, True])


@pytest.mark.parametrize("settings, says", (
  (dict(kind="best", group_size=2), "config.advantage.kind='best' is not known; choose one of normalized"),
  (dict(kind="ranked", group_size=2, deviation="x"), "config.advantage.deviation='x' is not known"),
  (dict(kind="ranked", group_size=0), "config.data.group_size=0 is no number"),
  (dict(kind="ranked", group_size=4), "6 rewards are not a multiple of config.data.group_size=4"),
))  # fmt: skip
def test_a_wrong_setting_is_named(settings, says):
  with pytest.raises(ValueError, match=says):
    of(np.zeros(6), **settings)


def test_a_reward_without_a_weight_is_named():
  with pytest.raises(ValueError, match="differ in short; every reward needs one weight"):
    advantages.combine_rewards({"right": np.zeros(2), "short": np.zeros(2)}, {"right": 1.0})
