"""Trials of lessons."""
import numpy as np
import pytest

from atlas_jax.runtime import lesson_trials
from atlas_jax.runtime.lesson_trials import Use

N_SIMULATED = 300


def _uses(shown, withheld):
  return [Use(f"{half}{place}", half, score) for half, scores in ((True, shown), (False, withheld))
          for place, score in enumerate(scores)]


def _states(effect, rule):
  """Returns how lessons of an effect on a chance of .5 end, looked at after each of 160 sessions."""
  draws = np.random.default_rng(7)
  found = []
  for _ in range(N_SIMULATED):
    shown_B = draws.random(160) < 0.5
    score_B = (draws.random(160) < 0.5 + effect * shown_B).astype(float)
    uses = [Use(place, bool(shown), float(score)) for place, (shown, score)
            in enumerate(zip(shown_B, score_B))]
    looks, finding = 0, None
    for n in lesson_trials.LOOKS if rule == "looks" else range(2, 161):
      finding = lesson_trials.judge(uses[:n], None, looks=looks, rule=rule)
      looks = finding.looks
      if finding.state != "trial":
        break
    found.append(finding.state)
  return {name: found.count(name) / N_SIMULATED for name in ("active", "retired", "trial")}


def test_half_of_the_sessions_are_shown_a_lesson_and_each_lesson_has_its_own_half():
  keys = [str(number) for number in range(2000)]
  first, second = ([lesson_trials.is_shown(key, entry) for key in keys] for entry in "ab")
  assert 900 < sum(first) < 1100
  assert 900 < sum(one == other for one, other in zip(first, second)) < 1100
  assert first == [lesson_trials.is_shown(key, "a") for key in keys]


def test_few_useless_lessons_ever_become_active_and_most_useful_ones_do():
  useless = _states(0.0, "looks")
  assert useless["active"] <= 0.1 and useless["trial"] == 0
  assert _states(0.2, "looks")["active"] > 0.7
  assert _states(-0.2, "looks")["active"] < 0.02


def test_by_the_rule_of_the_specification_most_useless_lessons_become_active():
  assert _states(0.0, "spec")["active"] > 0.5


@pytest.mark.parametrize("shown, withheld, state", [
    ([1.0] * 10, [0.0] * 10, "active"), ([0.0] * 10, [1.0] * 10, "retired"),
    ([1.0] * 10, [0.0] * 9, "trial"),  # 19 sessions: no look yet.
    ([], [], "trial"), ([1.0] * 50, [], "trial"), ([1.0] * 160, [], "retired"),
    ([1.0] * 11 + [0.0] * 9, [1.0] * 10 + [0.0] * 10, "trial"),
    ([1.0, 0.0] * 40, [1.0, 0.0] * 40, "retired")])
def test_a_lesson_is_judged_by_the_difference_of_its_halves(shown, withheld, state):
  finding = lesson_trials.judge(_uses(shown, withheld), "w")
  assert (finding.state, finding.n) == (state, len(shown) + len(withheld))


def test_no_look_is_taken_twice():
  even = _uses([1.0, 0.0] * 5, [1.0, 0.0] * 5)
  finding = lesson_trials.judge(even, "w")
  assert (finding.state, finding.looks) == ("trial", 1)
  better = _uses([1.0] * 15, [0.0] * 15)
  assert lesson_trials.judge(better, "w", looks=1).state == "trial"
  assert lesson_trials.judge(better, "w").state == "active"
  assert [lesson_trials.missing(n, looks) for n, looks in ((0, 0), (25, 1), (60, 1), (160, 4))] == \
      [20, 15, 0, None]


@pytest.mark.parametrize("shown, withheld, state", [
    ([1.0] * 8, [0.0] * 8, "active"), ([0.0] * 8, [1.0] * 8, "retired"), ([1.0] * 2, [0.0], "trial"),
    ([1.0] * 11 + [0.0] * 9, [1.0] * 10 + [0.0] * 10, "active"),   # 40 sessions, .05 better.
    ([1.0] * 11 + [0.0] * 9, [1.0] * 10 + [0.0] * 9, "trial"),     # 39 of them.
    ([1.0] * 10 + [0.0] * 10, [1.0] * 10 + [0.0] * 10, "trial")])
def test_the_rule_of_the_specification_is_kept(shown, withheld, state):
  assert lesson_trials.judge(_uses(shown, withheld), "w", rule="spec").state == state


def test_the_session_that_wrote_a_lesson_is_never_its_evidence():
  uses = _uses([1.0] * 3, [0.0] * 3)
  assert lesson_trials.judge([*uses, Use("w", True, 1.0)], "w") == lesson_trials.judge(uses, "w")


@pytest.mark.parametrize("score", [1.5, -0.1, float("nan")])
def test_a_score_that_is_none_is_refused(score):
  with pytest.raises(ValueError, match="must be from 0 to 1"):
    lesson_trials.judge([Use("s", True, score)], "w")


def test_a_rule_that_is_none_is_refused():
  with pytest.raises(ValueError, match="lessons.rule='fixed'"):
    lesson_trials.judge([], "w", rule="fixed")
