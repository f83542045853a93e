"""Pareto sets per task."""
from atlas_jax.runtime import pareto


def test_what_is_best_at_some_task_stays():
  scores = [{"a": 1.0, "b": 0.0, "c": 0.5}, {"a": 0.0, "b": 1.0, "c": 0.5}, {"a": 0.9, "b": 0.9, "c": 0.4}]
  assert pareto.best_at(scores) == {"a": {0}, "b": {1}, "c": {0, 1}}
  # The best on the average is best at no task.
  assert pareto.front(scores) == {0: 2, 1: 2}


def test_what_others_are_as_good_as_everywhere_is_left_out():
  assert pareto.front([{"a": 1.0, "b": 0.0}, {"a": 1.0, "b": 1.0}]) == {1: 2}
  same = [{"a": 1.0}, {"a": 1.0}]
  assert pareto.front(same) == {0: 1}


def test_a_task_without_a_score_says_nothing():
  assert pareto.front([{"a": 0.5}, {"b": 0.0}]) == {0: 1, 1: 1}
  assert pareto.mean({}) == 0
