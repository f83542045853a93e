"""The teaching reward: the five recorded revisions, and properties over all performances."""
import json
import pathlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from atlas_jax.rollout.teaching_reward import PRESETS, TeachingReward, teaching_reward

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "arc_atlas" / "adaptive_rewards.json"
REVISIONS = {"r0": "r0_partial_credit", "r1": "r1_penalty_full_text", "r2": "r2_penalty_teaching_only",
             "r3": "r3_zero_on_degradation", "r4": "r4_student_length"}
SETTINGS = strategies.one_of(
  strategies.just(TeachingReward()),
  strategies.builds(
    TeachingReward, preset=strategies.sampled_from(["r0", "r1", "r2", "r3"]),
    degradation=strategies.sampled_from(["zero", "penalty", None]),
    efficiency_weight=strategies.floats(0, 4), keep_correct_value=strategies.floats(0, 1),
    efficiency_tokens=strategies.floats(1, 1000)))
PERFORMANCE = strategies.floats(0, 1)
MAYBE = PERFORMANCE | strategies.just(np.nan)
TOKENS = strategies.integers(0, 10_000)


def graded(answer: str, truth: str, preset: str) -> float:
  """Grades as a revision did: its own mistakes included, which are no part of the package."""
  answer, truth = answer.strip().lower(), truth.strip().lower()
  if preset == "r0" and answer != truth:
    return 0.5 * (truth in answer)
  if preset in ("r3", "r4"):
    try:
      return float(round(float(answer), 2) == round(float(truth), 2))
    except ValueError:
      pass
  return float(answer == truth)


def taught(teacher: str) -> str:
  """Returns the guidance in a reply of the fixture."""
  _, found, rest = teacher.partition("<teaching>")
  return rest.partition("</teaching>")[0] if found else teacher


def reward(baseline, guided, tokens, settings=None) -> float:
  """Returns the reward of one sample."""
  return float(teaching_reward([baseline], [guided], [tokens], settings)[0])


@pytest.mark.parametrize("case", json.loads(FIXTURE.read_text())["cases"], ids=lambda case: case["baseline"])
@pytest.mark.parametrize("preset", sorted(REVISIONS))
@pytest.mark.parametrize(("multiplier", "weight"), [(2.0, 1.0), (3.0, 0.5)])
def test_presets_are_the_recorded_revisions(case, preset, multiplier, weight):
  recorded = case["out"][f"{REVISIONS[preset]}|dm={multiplier}|ew={weight}"]
  settings = TeachingReward(
    preset, degradation_penalty_multiplier=multiplier if preset in ("r0", "r1", "r2") else None,
    efficiency_weight=None if preset == "r4" else weight)
  truth = case["ground_truth"]
  # Where there is no truth a revision gave 0 or dropped the row; here the sample is masked.
  performance = [graded(case[name], truth, preset) if truth else np.nan for name in ("baseline", "solution")]
  text = case["teacher"] if settings.counts_whole_text else taught(case["teacher"])
  lengths = {"baseline_length_B": [len(case["baseline"].split())],
             "guided_length_B": [len(case["solution"].split())]} if settings.needs_answer_lengths else {}
  given_B = teaching_reward([performance[0]], [performance[1]], [len(text.split())], settings, **lengths)
  assert given_B.dtype == np.float32
  np.testing.assert_allclose(given_B, [recorded if truth else np.nan], rtol=1e-6)


@hypothesis.given(PERFORMANCE, PERFORMANCE, PERFORMANCE, TOKENS, SETTINGS)
def test_better_answers_never_earn_less(baseline, one, other, tokens, settings):
  low, high = sorted((one, other))
  assert reward(baseline, low, tokens, settings) <= reward(baseline, high, tokens, settings) + 1e-6


@hypothesis.given(PERFORMANCE, PERFORMANCE, TOKENS, TOKENS, SETTINGS)
def test_longer_guidance_never_earns_more(baseline, guided, one, other, settings):
  short, long = sorted((one, other))
  assert reward(baseline, guided, long, settings) <= reward(baseline, guided, short, settings) + 1e-6


@hypothesis.given(PERFORMANCE, PERFORMANCE, TOKENS, SETTINGS)
def test_degradation_earns_zero_or_costs_and_nothing_else_costs(baseline, guided, tokens, settings):
  given = reward(baseline, guided, tokens, settings)
  if guided < baseline:
    assert given == pytest.approx(settings.penalty_multiplier * (guided - baseline))
  else:
    assert given >= 0
  if settings == TeachingReward():
    assert given >= 0 and np.signbit(given) == np.False_


@hypothesis.given(strategies.lists(
  strategies.tuples(MAYBE, MAYBE, TOKENS), min_size=1, max_size=5))
def test_samples_without_a_verdict_are_masked_and_change_no_other(rows):
  baseline_B, guided_B, tokens_B = (np.array(column, float) for column in zip(*rows, strict=True))
  given_B = teaching_reward(baseline_B, guided_B, tokens_B)
  known_B = ~(np.isnan(baseline_B) | np.isnan(guided_B))
  np.testing.assert_array_equal(~np.isnan(given_B), known_B)
  alone_B = teaching_reward(baseline_B[known_B], guided_B[known_B], tokens_B[known_B])
  np.testing.assert_array_equal(given_B[known_B], alone_B)


def test_a_shorter_answer_is_the_bonus_of_the_last_revision():
  lengths = {"baseline_length_B": [0, 4, 4, 4], "guided_length_B": [1, 8, 1, 1]}
  given_B = teaching_reward([1, 1, 0.5, 1], [1, 1, 1, 0], [0] * 4, TeachingReward("r4"), **lengths)
  np.testing.assert_allclose(given_B, [0, 0, 0.5 * 1.75 + 0.5 * 0.75, -1])


@pytest.mark.parametrize(("field", "value", "preset"), [
  ("preset", "r5", None), ("degradation", "none", "r3"), ("degradation_penalty_multiplier", -1.0, "r0"),
  ("degradation_penalty_multiplier", 2.0, "r3"), ("efficiency_weight", float("nan"), "r3"),
  ("efficiency_weight", 1.0, "r4"), ("keep_correct_value", 1.5, "r3"), ("efficiency_tokens", 0.0, "r3")])
def test_a_setting_that_cannot_be_or_is_not_read_is_refused(field, value, preset):
  with pytest.raises(ValueError, match=field):
    TeachingReward(**{**({"preset": preset} if preset else {}), field: value})


def test_a_penalty_can_be_had_with_the_default():
  assert reward(1, 0, 5, TeachingReward(degradation="penalty")) == -2
  assert reward(1, 0, 5, TeachingReward(degradation="penalty", degradation_penalty_multiplier=0.5)) == -0.5
  assert reward(1, 0, 5, TeachingReward("r0", degradation="zero")) == 0
  assert set(PRESETS) == set(REVISIONS)


@pytest.mark.parametrize(("arguments", "named"), [
  (([1.1], [0], [0]), "baseline_B"), (([0], [-0.1], [0]), "guided_B"),
  (([0], [0], [-1]), "guidance_tokens_B"),
  (([0], [0], [np.nan]), "guidance_tokens_B"), (([0, 1], [0], [0]), "differ in length"),
  (([0], [0], [[1]]), "shape"), (([0], [0], [0], TeachingReward("r4")), "baseline_length_B")])
def test_numbers_that_cannot_be_are_refused(arguments, named):
  with pytest.raises(ValueError, match=named):
    teaching_reward(*arguments)
  with pytest.raises(ValueError, match="does not read"):
    teaching_reward([0], [0], [0], baseline_length_B=[1])
