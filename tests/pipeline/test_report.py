"""The report of a pipeline: what it warns of, and how it shows numbers and spoilt answers."""

import pytest

from atlas_jax.pipeline import picture, plan, report
from tests.pipeline import sums
from tests.program import ROOT

DATA = {"let_in": 100, "sessions": 120, "questions": 90, "with_ground_truth": 100, "rejected_lines": 0,
        "left_out": {"review_status": {"sessions": 20, "why": "review has not let it pass"}}}  # fmt: skip
GOOD = {"teaching_accuracy": 0.9, "teaching_accuracy_low": 0.8, "teaching_accuracy_high": 0.95,
        "teaching_baseline_accuracy": 0.4, "teaching_learning_rate_low": 0.3,
        "teaching_non_degradation_rate": 0.99, "teaching_over_placebo": 0.4,
        "teaching_learning_rate": 0.5, "teaching_t_p": 0.01, "teaching_graded_count": 60.0,
        "teaching_silent_frac": 0.1}  # fmt: skip


@pytest.fixture
def resolved(tmp_path, monkeypatch):
  """A plan that is no demonstration."""
  monkeypatch.chdir(ROOT)
  file = sums.write(tmp_path / "traces.jsonl", 2)
  return plan.resolve(plan.PipelineSettings(str(file), None, str(tmp_path / "out"), "configs/teacher_rcl.py"))


def made(metrics, worst=()):
  return {"after": {"step": 3, "metrics": metrics, "worst": list(worst)}}


def test_nothing_is_warned_of_where_all_is_well(resolved):
  assert report.warnings(resolved, DATA, made(GOOD), 0.5) == []


WRONG = [
  ({"teaching_non_degradation_rate": 0.9}, {}, 0.5, "made 10.0% of the answers worse"),
  ({"teaching_learning_rate_low": -0.1}, {}, 0.5, "holds zero: guidance was not shown to help"),
  ({"teaching_over_placebo": 0.0}, {}, 0.5, "Guidance of another question helps as much"),
  ({"teaching_contaminated_frac": 0.02}, {}, 0.5, "2.0% of the held-out prompts show the answer"),
  ({"teaching_silent_frac": 0.25}, {}, 0.5, "The guidance of 25% of the held-out questions was empty"),
  ({"teaching_graded_count": 8.0, "teaching_learning_rate_high": 0.7}, {}, 0.5,
   "Only 8 held-out questions were graded, fewer than 30; the gain, +0.50, may be anything from +0.30 to"),
  ({}, {"questions": 3}, 0.5, "The sessions ask 3 questions, fewer than 20"),
  ({}, {"with_ground_truth": 60}, 0.5, "40 of 100 sessions have no right answer"),
  ({}, {}, 0.0, "No update had anything to learn from"),
]


@pytest.mark.parametrize("metrics, data, learnt, said", WRONG)
def test_what_makes_numbers_doubtful_is_said(resolved, metrics, data, learnt, said):
  one, = report.warnings(resolved, {**DATA, **data}, made({**GOOD, **metrics}), learnt)
  assert said in one


def test_without_an_evaluation_no_number_is_shown(resolved):
  assert "Nothing was evaluated" in report.warnings(resolved, DATA, {}, None)[0]
  found = report.contents(resolved, DATA, {"before": None, "after": None}, [])
  assert "| LR" not in report.text(found) and not picture.draw(found, resolved.output / "x.png")


def test_numbers_have_their_intervals_and_spoilt_answers_are_listed(resolved):
  row = {"question": "1+1=\n|", "baseline": "2", "guidance": "say x", "guided": "x", "without": 1.0,
         "with": 0.0}  # fmt: skip
  before = {"step": 0, "metrics": {"teaching_accuracy": 0.5}, "worst": []}
  found = report.contents(resolved, DATA, {"before": before, **made(GOOD, [row])}, [])
  assert found["change"] == {"teaching_accuracy": pytest.approx(0.4)}
  text = report.text(found)
  assert "| with guidance, accuracy | 0.5 | 0.9 [0.8, 0.95] | +0.4 |" in text
  assert "| 1+1= \\| | 2 (1) | say x | x (0) |" in text
  assert "100 of 120 sessions let in" in text


def test_a_distilled_student_is_compared_with_itself(resolved):
  before = {"step": 0, "metrics": {"val_accuracy": 0.5, "val_length_tokens": 100.0}, "worst": []}
  after = made({"val_accuracy": 0.65, "val_length_tokens": 60.0})
  found = report.contents(resolved, DATA, {"before": before, **after}, [])
  student = found["student_over_itself"]
  assert student["success_delta"] == pytest.approx(0.15)
  assert student["token_reduction_pct"] == pytest.approx(40)
  assert student["meets_all_targets"] is True
  text = report.text(found)
  assert "+15.0 points of accuracy (the target is +10), and an answer has 40.0% fewer tokens" in text
  assert "guidance" not in text.partition("| --- |")[2]
  worse = report.contents(resolved, DATA, {"before": before, **made({"val_accuracy": 0.5})}, [])
  assert worse["warnings"] == ["The model answers no more held-out questions than before."]


def test_the_largest_learnable_fraction_counts():
  assert report.learnable([{}, {"rollout/learnable_frac": 0.0}, {"rollout/learnable_frac": 0.5}]) == 0.5
  assert report.learnable([{"step": 1}]) is None


def test_caveats_stand_on_the_picture(resolved, tmp_path):
  found = report.contents(resolved, DATA, made({**GOOD, "teaching_silent_frac": 0.5}), [])
  assert [line.split()[1] for line in found["caveats"]] == ["guidance"]
  images = []
  for caveats in (found["caveats"], []):
    assert picture.draw({**found, "caveats": caveats}, tmp_path / "x.png")
    images.append((tmp_path / "x.png").read_bytes())
  assert images[0] != images[1]
