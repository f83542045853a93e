"""Figures over all tasks of episodes, by hand."""
import pytest

from atlas_jax.evals.recall import episodes


def row(name, condition, accuracy, *, answers=4, distance=256, items=1, least=300, chance=0.1):
  return {"eval": name, "condition": condition, "accuracy": accuracy, "answers": answers,
          "distance": distance, "items": items, "distance_tokens_least": least, "reach_tokens": 253,
          "chance": chance}


ROWS = [row("a", "as_it_is", 1.0), row("a", "as_it_is", 0.5, answers=12, items=3, distance=1_024),
        row("a", "emptied", 0.25, answers=16), row("b", "as_it_is", 0.2, answers=1, chance=0.0),
        row("b", "emptied", 0.0, answers=1), row("b", "as_it_is", 1.0, distance=64, least=70)]


def test_figures_are_means_over_tasks_of_answers_beyond_the_reach():
  found = episodes.figures(ROWS)
  assert found["eval/recall_accuracy_past_window"] == pytest.approx(((4 + 6) / 16 + 0.2) / 2)
  assert found["eval/recall_accuracy_emptied"] == pytest.approx((0.25 + 0) / 2)
  assert found["eval/recall_chance"] == pytest.approx(0.05)
  assert found["eval/recall_accuracy_by_distance/1024"] == pytest.approx(0.5)
  assert found["eval/recall_accuracy_by_distance/256"] == pytest.approx((1.0 + 0.2) / 2)
  assert "eval/recall_accuracy_by_distance/64" not in found
  assert found["eval/recall_accuracy_by_items/3"] == pytest.approx(0.5)


def test_the_line_says_them():
  line = episodes.line_of(episodes.figures(ROWS))
  assert "past window 0.412, emptied 0.125; chance 0.05" in line
