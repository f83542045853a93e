"""Decisions on new versions, as a function of pairs; and the moves of a deployment."""
import itertools

import pytest

from atlas_jax.runtime import canary
from atlas_jax.runtime.canary import CanaryPair, decide
from atlas_jax.runtime.settings import DeploySettings

SETTINGS = DeploySettings()


@pytest.mark.parametrize(("pairs", "what", "words"), [
  ([], "wait", "nothing"),
  ([CanaryPair(1, 0)] * 39, "wait", "39 of 40"),
  ([CanaryPair(1, 0)] * 40, "promote", "not worse"),
  ([CanaryPair(1, 1)] * 40, "promote", "not worse"),
  ([CanaryPair(0, 1)] * 10, "roll_back", "upper bound"),
  ([CanaryPair(0, 1)] * 9, "wait", "9 of 40"),
  ([CanaryPair(0, 1)] * 2 + [CanaryPair(1, 0)] * 38, "roll_back", "5.0% of the tasks became worse"),
  ([CanaryPair(0, 1)] + [CanaryPair(1, 0)] * 39, "promote", "not worse"),
  ([CanaryPair(1, 1)] * 39 + [CanaryPair(0, 1)], "roll_back", "lower bound"),
  ([CanaryPair(1, 1, True)] * 10, "roll_back", "no usable reply"),
  ([CanaryPair(None, 1)] * 80, "roll_back", "only 0 of 80"),
  ([CanaryPair(None, 1)] * 79, "wait", "nothing"),
])  # fmt: skip
def test_decisions(pairs, what, words):
  found = decide(pairs, SETTINGS)
  assert found.what == what and words in found.why


def test_a_version_that_is_always_wrong_is_out_within_forty_sessions():
  for right in (0.1, 0.2, 0.5, 0.9):
    old = [1.0 if number < 40 * right else 0.0 for number in range(40)]
    assert decide([CanaryPair(0.0, one) for one in old], SETTINGS).what == "roll_back"


def test_the_share_is_kept_and_a_key_always_falls_alike():
  keys = [f"k{number}" for number in range(2_000)]
  fraction = sum(canary.is_canary(key, 0.1) for key in keys) / len(keys)
  assert 0.07 < fraction < 0.13
  assert all(canary.is_canary(key, 0.5) for key in keys if canary.is_canary(key, 0.1))
  assert all(canary.is_canary(key, 1.0) for key in keys)


def test_moves_that_there_are_not_are_refused():
  for before, after in itertools.product(canary.MOVES, repeat=2):
    if after in canary.MOVES[before]:
      canary.check_move(before, after)
    else:
      with pytest.raises(ValueError, match=f"is {before} cannot become {after}"):
        canary.check_move(before, after)
