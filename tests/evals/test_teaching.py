"""Measures of a teacher: the definitions of the original, and what they leave open."""
import math

import numpy as np
import pytest

from atlas_jax.evals import teaching
from tests import post_training_fixture as fixture

CASES = fixture.text("arc_atlas/eval_metrics")["cases"]
COMPARED = fixture.text("arc_atlas/gkd_baseline_metrics")


@pytest.mark.parametrize("number", range(len(CASES)))
def test_measures_are_those_of_the_definitions(number):
  case = CASES[number]
  found = teaching.measures(case["without"], case["with_"], case["tokens"], case["completed"])
  for name, value in case["out"].items():
    assert found[name] == (None if value is None else pytest.approx(value, rel=1e-10)), name


def test_accuracies_and_degradations_are_those_of_the_originals_helper_but_for_the_sign_of_savings():
  theirs = fixture.text("arc_atlas/legacy_eval_utils")
  rows = theirs["math"]["detailed_results"]
  before, after = ([float(row[f"{name}_correct"]) for row in rows] for name in ("baseline", "guided"))
  tokens = [len(text.split()) for text in theirs["guidance"]]
  lengths = [[len(text.split()) for text in theirs[name]] for name in ("baseline", "guided")]
  found = teaching.measures(before, after, tokens, without_tokens_B=lengths[0], with_tokens_B=lengths[1])
  assert found["non_degradation_rate"] == theirs["math"]["non_degradation_rate"]
  assert found["learning_rate"] == theirs["math"]["accuracy_improvement"]
  assert np.mean(tokens) == theirs["tokens"]["avg_guidance_tokens"]
  # Guided answers are longer, which theirs, with the tokens of the guidance, calls an improvement of 47%.
  assert found["token_efficiency"] == pytest.approx(1 - 2.75 / 2.5)


@pytest.mark.parametrize("number", range(len(COMPARED)))
def test_the_comparison_with_a_baseline_is_the_originals(number):
  case = COMPARED[number]
  now = case["metrics"]
  found = teaching.baseline_comparison(
      now.get("eval_success_rate", 0.0), now.get("eval_avg_tokens"), slack=0.0,
      baseline_success=case["baseline_success"], baseline_tokens=case["baseline_tokens"])
  assert found == pytest.approx(case["summary"])


def test_a_target_is_not_missed_by_rounding():
  assert teaching.baseline_comparison(0.85, None, baseline_success=0.75,
                                      baseline_tokens=None)["meets_success_target"]


def test_recovery_counts_wrong_answers_alone():
  found = teaching.measures([0, 0, 1, 0.5], [1, 0, 0, 1], [1, 1, 1, 1])
  assert found["recovery_rate"] == pytest.approx(2 / 3) and found["degradation_severity"] == 1.0


@pytest.mark.parametrize(("better", "worse", "expected"), [
    (0, 0, 1.0), (5, 5, 1.0), (6, 0, 2 / 64), (0, 6, 2 / 64), (8, 2, 2 * (1 + 10 + 45) / 1024)])
def test_mcnemar_is_exact(better, worse, expected):
  assert teaching.mcnemar_p(better, worse) == pytest.approx(expected)


def test_mcnemar_of_thousands_of_pairs_is_a_number():
  assert 0 < teaching.mcnemar_p(2600, 2400) < 0.01


def test_the_paired_test_uses_the_deviation_of_the_changes():
  before, after = np.array([0.1, 0.4, 0.5, 0.9]), np.array([0.3, 0.5, 0.9, 0.9])
  change = after - before
  found = teaching.paired_tests(before, after)
  assert found["cohens_d"] == pytest.approx(change.mean() / change.std(ddof=1))
  # Of t with 3 degrees of freedom, from its closed form.
  t = found["cohens_d"] * 2
  tail = 0.5 - (math.atan(t / math.sqrt(3)) + t / math.sqrt(3) / (1 + t * t / 3)) / math.pi
  assert found["t_p"] == pytest.approx(2 * tail) and found["mcnemar_p"] is None


def test_without_a_change_there_is_no_effect_to_test():
  assert teaching.paired_tests([1, 0], [1, 0]) == {"mcnemar_p": 1.0, "t_p": None, "cohens_d": None}


def test_intervals_hold_their_mean_and_narrow_with_questions():
  draw = np.random.default_rng(0)
  before, after = draw.integers(0, 2, 400), draw.integers(0, 2, 400)
  few, many = (teaching.intervals(before[:count], after[:count]) for count in (40, 400))
  for name in few:
    assert np.ptp(many[name]) < np.ptp(few[name])
  low, high = many["learning_rate"]
  assert low < (after - before).mean() < high


def test_the_worst_degradations_come_first_and_others_not_at_all():
  rows = [{"question": name} for name in "abcd"]
  found = teaching.worst(rows, [1, 1, 0, 0.5], [0.5, 0, 1, 0.5], 3)
  assert [row["question"] for row in found] == ["b", "a"] and found[0]["without"] == 1.0


def test_questions_that_were_not_graded_twice_are_refused():
  with pytest.raises(ValueError, match="have NaN; leave out questions"):
    teaching.measures([1, math.nan], [1, 1], [1, 1])
  with pytest.raises(ValueError, match="cannot be paired"):
    teaching.measures([1], [1, 1], [1, 1])


def test_few_questions_and_empty_guidance_are_caveats():
  assert teaching.caveats({"graded_count": 30.0, "silent_frac": 0.1, "learning_rate": 0.2}) == []
  assert teaching.caveats({}) == []
  few, silent = teaching.caveats({"graded_count": 8.0, "silent_frac": 0.5, "learning_rate": 0.2,
                                  "learning_rate_low": -0.1, "learning_rate_high": 0.5})
  assert few == ("Only 8 held-out questions were graded, fewer than 30; the gain, +0.20, may be anything "
                 "from -0.10 to +0.50.")
  assert silent.startswith("The guidance of 50% of the held-out questions was empty")
