"""Groups of completions: which are trained on, what length costs, how several rewards are compared."""
import numpy as np
import pytest

from atlas_jax.rollout.groups import Scoring
from atlas_jax.state import Trained
from tests.helpers import assert_close
from tests.rollout.rollouts import listed, made, written

FLAT = {"p": ["a"], "qq": ["a", "bb"], "rrr": ["a"], "ssss": ["a", "bb", "ccc"], "t": ["a"]}


def flat_script(text, params):
  """Prompts of one word have groups of equal rewards."""
  return FLAT[text]


def test_flat_groups_are_counted_and_kept_or_skipped():
  kept, _ = made(script=flat_script, batch_rows=15)
  skipped, _ = made(script=flat_script, batch_rows=15, zero_std_groups="skip")
  left, right = kept.next(Trained(None)), skipped.next(Trained(None))
  flat_B = left["advantage_B"].reshape(5, 3).any(1).repeat(3) == 0
  assert set(left["row_mask_B"]) == {1.0} and flat_B.sum() >= 9
  np.testing.assert_array_equal(right["row_mask_B"], ~flat_B)
  for one, masked in ((kept, 0), (skipped, flat_B.sum() / 3)):
    assert one.metrics().scalars["rollout/flat_groups_frac"] == pytest.approx(flat_B.mean())
    assert one.metrics().scalars["rollout/masked_groups"] == masked
  tokens_per_row = right["completion_mask_BT"][~flat_B].sum() / (~flat_B).sum()
  assert_close(right["tokens_per_row_B"][0], tokens_per_row, tolerance=1e-5)


def test_flat_groups_are_resampled_from_the_prompts_that_follow():
  rollouts, writer = made(script=flat_script, batch_rows=9, zero_std_groups="resample", max_resamples=20)
  batch = rollouts.next(Trained(None))
  assert {prompt for prompt, _ in written(batch)} <= {"qq", "ssss"}
  assert set(batch["row_mask_B"]) == {1.0} and batch["advantage_B"].reshape(3, 3).any(1).all()
  scalars = rollouts.metrics().scalars
  assert scalars["rollout/resampled_groups"] == rollouts.state()["prompts"]["step"] - 3 > 0
  assert 0 < scalars["rollout/flat_groups_frac"] < 1 and scalars["rollout/masked_groups"] == 0
  assert writer.calls > 1
  rest = rollouts.next(Trained(None))
  assert rest["row_mask_B"].all()


def test_what_resampling_cannot_fill_is_masked():
  rollouts, writer = made(script=lambda text, params: ["a"], batch_rows=9, zero_std_groups="resample",
                          max_resamples=2)
  batch = rollouts.next(Trained(None))
  assert not batch["row_mask_B"].any() and writer.calls == 3
  scalars = rollouts.metrics().scalars
  assert scalars["rollout/masked_groups"] == 3 and scalars["rollout/resampled_groups"] == 6


@pytest.mark.parametrize("truncated", ["keep", "mask", "drop"])
def test_truncated_completions_may_count_or_not(truncated):
  rollouts, _ = made(batch_rows=15, scoring=Scoring(truncated=truncated, kind="centered"))
  batch = rollouts.next(Trained(None))
  cut_B = batch["truncated_B"]
  assert cut_B.any() and not cut_B.all()
  reward_B = np.array([len(text) for _, text in written(batch)], np.float32)
  counted_BG = np.where(cut_B & (truncated == "drop"), np.nan, reward_B).reshape(5, 3)
  advantage_BG = np.nan_to_num(counted_BG - np.nanmean(counted_BG, axis=1, keepdims=True))
  assert_close(batch["advantage_B"], advantage_BG.reshape(-1), tolerance=1e-5)
  tokens_B = batch["completion_mask_BT"].sum(1) * ~(cut_B & (truncated != "keep"))
  assert_close(batch["tokens_per_row_B"][0], tokens_B.sum() / 15, tolerance=1e-5)
  assert rollouts.metrics().scalars["rollout/reward_mean"] == pytest.approx(reward_B.mean())


def test_long_completions_cost_in_tokens():
  rollouts, _ = made(batch_rows=15, scoring=Scoring(overlong_tokens=2, kind="centered"))
  batch = rollouts.next(Trained(None))
  size_B = batch["completion_mask_BT"].sum(1)
  text_B = np.array([len(text) for _, text in written(batch)])
  reward_BG = (text_B - np.clip((size_B - 2) / 2, 0, 1)).reshape(5, 3)
  centred_BG = reward_BG - reward_BG.mean(1, keepdims=True)
  assert_close(batch["advantage_B"], centred_BG.reshape(-1), tolerance=1e-5)
  assert rollouts.metrics().scalars["rollout/reward/overlong_mean"] < 0


def test_separate_rewards_are_normalised_each():
  names = {"tests.rollout.rollouts.size": 1.0, "tests.rollout.rollouts.vowels": 2.0}
  rollouts, _ = made(batch_rows=15, rewards=names, scoring=Scoring(per_reward=True))
  batch = rollouts.next(Trained(None))
  texts = [text for _, text in written(batch)]
  total_B = 0
  for weight, column in ((1, [len(text) for text in texts]), (2, ["a" in text for text in texts])):
    reward_BG = np.array(column, np.float32).reshape(5, 3)
    centred = reward_BG - reward_BG.mean(1, keepdims=True)
    total_B = total_B + weight * (centred / (reward_BG.std(1, ddof=1, keepdims=True) + 1e-4)).reshape(-1)
  expected_B = (total_B - total_B.mean()) / (total_B.std(ddof=1) + 1e-4)
  assert_close(batch["advantage_B"], expected_B, tolerance=1e-4)


def test_rewards_that_have_nothing_to_say_count_nowhere():
  rollouts, _ = made(listed("silence", "speak"), batch_rows=6)
  batch = rollouts.next(Trained(None))
  quiet_B = np.array([prompt == "silence" for prompt, _ in written(batch)])
  assert not batch["advantage_B"][quiet_B].any() and batch["advantage_B"][~quiet_B].any()
  assert np.isfinite(list(rollouts.metrics().scalars.values())).all()


def vast(prompt, completion, answer):
  """Earns as much as float32 holds, or owes it."""
  return 3e38 if completion == "a" else -3e38


def large(prompt, completion, answer):
  """Earns ten million, and what is said besides."""
  return 1e7 + len(completion)


def test_advantages_beyond_float32_are_refused_with_the_place():
  names = {"tests.rollout.test_groups.vast": 1.0}
  rollouts, _ = made(batch_rows=15, rewards=names, scoring=Scoring(kind="leave_one_out"),
                     script=lambda text, params: ["a", "b"])
  with pytest.raises(ValueError, match=r"rewards of f.jsonl:\d, -3e\+38 to 3e\+38, .*config.advantage.kind="
                                       "'leave_one_out' is beyond float32"):
    rollouts.next(Trained(None))
  rollouts, _ = made(batch_rows=15, rewards=names, script=lambda text, params: ["a", "b"])
  assert np.isfinite(rollouts.next(Trained(None))["advantage_B"]).all()


def test_large_rewards_teach_what_their_differences_do():
  names = {"tests.rollout.test_groups.large": 1.0}
  (near, _), (far, _) = made(batch_rows=15), made(batch_rows=15, rewards=names)
  near_B, far_B = near.next(Trained(None))["advantage_B"], far.next(Trained(None))["advantage_B"]
  assert near_B.any()
  assert_close(far_B, near_B, tolerance=1e-5)
  spread = "rollout/reward_std"
  assert far.metrics().scalars[spread] == pytest.approx(near.metrics().scalars[spread], rel=1e-6)


@pytest.mark.parametrize("fields, message", [
    (dict(truncated="cut"), "config.rollout.truncated='cut' must be one of keep, mask, drop"),
    (dict(kind="best"), "config.advantage.kind='best'"), (dict(overlong_tokens=5), "is more than config.sam"),
])
def test_scoring_that_cannot_be_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    made(scoring=Scoring(**fields))
