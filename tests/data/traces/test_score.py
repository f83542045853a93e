"""Scores: what is a verdict, what is none, and why."""

import math

import pytest

from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.score import Score

OUTAGE = {"score": 0.0, "judges": [], "raw": {"score": 0.0, "samples": [{"score": 0.0, "uncertainty": 1.0}]}}
LIVE = {"score": 0.0, "judges": [{"samples": [{"score": 0.0, "uncertainty": 0.2}]}]}
STATS = {"score": 0.0, "sample_count": 1, "uncertainty_mean": 1.0}


@pytest.mark.parametrize("value, expected", [
    (0.5, 0.5), (0, 0.0), (1, 1.0), ("0.9", 0.9), (1 + 1e-9, 1.0), (-1e-9, 0.0),
    (None, None), (math.nan, None), (math.inf, None), (True, None), ([0.5], None), ({}, None), ("high", None),
    ("nan", None), (7.0, None), (1.01, None), (-0.5, None), (10**400, None),
])
def test_a_number_of_the_unit_interval_is_a_verdict_and_nothing_else(value, expected):
  found = Score.of(value)
  assert found.value == expected and (found.reason is None) == (expected is not None)


@pytest.mark.parametrize("payload, expected", [
    ({"score": 0.3, "rationale": "x"}, 0.3), ('{"score": 0.5}', 0.5), (0.4, 0.4),
    ({"process": 1.0, "help": 0}, 0.5), (None, None), ({}, None), ("oops", None), ({"rationale": "x"}, None),
    ({"score": None}, None),
    ({"score": 0.0}, 0.0), (LIVE, 0.0), (OUTAGE, None),
    ({"score": 0.0, "judges": [{"samples": [{"score": 0.0, "uncertainty": 1.0}]}]}, None),
    ({"score": 0.0, "judges": [{"samples": [{"score": 0.0, "uncertainty": 1.0}] * 2},
                               {"samples": [{"score": 0.0, "uncertainty": 1.0}]}]}, None),
    ({"score": 0.0, "judges": [{"samples": [{"score": 0.0, "uncertainty": 1.0}, {"score": 0.0}]}]}, 0.0),
    ({"score": 0.0, "judges": [], "rationale": "deferred", "raw": {"skipped": True}}, None),
    ({"score": 0.0, "judges": [], "rationale": "validation_failed"}, None),
    ({"score": 0.7, "raw": {"samples": [{"score": 0.7, "uncertainty": 1.0}]}}, 0.7),
])
def test_a_reward_is_read_and_absent_is_not_zero(payload, expected):
  assert Score.read(payload).value == expected


@pytest.mark.parametrize("row, value, source", [
    ({"session_reward": {"score": 0.8}, "reward_stats": {"score": 0.1}}, 0.8, "session"),
    ({"reward_stats": {"score": 0.1, "sample_count": 3}}, 0.1, "stats"),
    ({"session_metadata": {"reward_stats": {"score": 0.1, "sample_count": 3}}}, None, None),
    ({"session_reward": OUTAGE, "reward_stats": STATS}, None, "session"),
    ({"session_reward": {"score": 0.0}, "reward_stats": STATS}, None, "session"),
    ({"reward_stats": STATS}, None, "stats"),
    ({"session_reward": {"score": 0.0}, "reward_stats": {**STATS, "sample_count": 3}}, None, "session"),
    ({"reward_stats": {**STATS, "sample_count": 3}}, None, "stats"),
    ({"reward_stats": {**STATS, "sample_count": 3, "score_mean": 0.2}}, 0.0, "stats"),
    ({"reward_stats": {**STATS, "sample_count": 3, "uncertainty_mean": 0.9}}, 0.0, "stats"),
    ({"session_reward": {"score": 0.0}}, 0.0, "session"),
    ({"steps": [{"reward": {"score": 0.2}}, {"reward": {"score": 0.6}},
                {"reward": {"score": 0.0, "rationale": "deferred"}}]}, 0.4, "steps"),
    ({"steps": [{"reward": None}, {}]}, None, None),
    ({"session_reward": {"score": 0.8}, "reward_status": "no_verdict"}, None, "session"),
    ({"session_reward": {"score": 0.8}, "reward_status": "ok"}, 0.8, "session"),
    ({"session_metadata": {"session_reward": {"score": 0.3}}}, None, None),
])
def test_a_session_has_its_own_score_else_its_statistics_else_the_mean_of_steps(row, value, source):
  found = Trace.from_json({"task": "t", **row}).reward
  assert found.value == (None if value is None else pytest.approx(value)) and found.source == source
  assert found.has_verdict == (value is not None)


def test_no_verdict_is_written_with_its_reason():
  assert Score.absent("nobody answered", "judge").to_json() == {
      "score": None, "reason": "nobody answered", "source": "judge"}
  assert Score.of(0.5).to_json() == {"score": 0.5}
