"""Trials of lessons."""
import pytest

from atlas_jax.runtime import lesson_trials
from atlas_jax.runtime.lesson_trials import Use


def _uses(shown, withheld):
  return [Use(f"{half}{place}", half, score) for half, scores in ((True, shown), (False, withheld))
          for place, score in enumerate(scores)]


def test_half_of_the_sessions_are_shown_a_lesson_and_each_lesson_has_its_own_half():
  keys = [str(number) for number in range(2000)]
  first, second = ([lesson_trials.is_shown(key, entry) for key in keys] for entry in "ab")
  assert 900 < sum(first) < 1100
  assert 900 < sum(one == other for one, other in zip(first, second)) < 1100
  assert first == [lesson_trials.is_shown(key, "a") for key in keys]


@pytest.mark.parametrize("shown, withheld, state", [
    ([1.0] * 8, [0.0] * 8, "active"), ([0.0] * 8, [1.0] * 8, "retired"), ([1.0] * 2, [0.0], "trial"),
    ([], [], "trial"), ([1.0] * 50, [], "trial"),
    ([1.0] * 11 + [0.0] * 9, [1.0] * 10 + [0.0] * 10, "active"),   # 40 sessions, .05 better.
    ([1.0] * 11 + [0.0] * 9, [1.0] * 10 + [0.0] * 9, "trial"),     # 39 of them.
    ([1.0] * 10 + [0.0] * 10, [1.0] * 10 + [0.0] * 10, "trial")])
def test_a_lesson_is_judged_by_the_difference_of_its_halves(shown, withheld, state):
  finding = lesson_trials.judge(_uses(shown, withheld), "w")
  assert (finding.state, finding.n) == (state, len(shown) + len(withheld))


def test_the_session_that_wrote_a_lesson_is_never_its_evidence():
  uses = _uses([1.0] * 3, [0.0] * 3)
  assert lesson_trials.judge([*uses, Use("w", True, 1.0)], "w") == lesson_trials.judge(uses, "w")


@pytest.mark.parametrize("score", [1.5, -0.1, float("nan")])
def test_a_score_that_is_none_is_refused(score):
  with pytest.raises(ValueError, match="must be from 0 to 1"):
    lesson_trials.judge([Use("s", True, score)], "w")
