"""The study of the adaptive teacher: its arms run, its controls are what they say, its table is written."""

import json

import numpy as np
import pytest

from atlas_jax.data.convention import FORMATS, in_format
from atlas_jax.rollout import teaching
from experiments import arms
from experiments.adaptive_teacher import analysis, config, measure, run
from tests import program


def execute(flags):
  """Runs the program in this process."""
  done = program.run(*flags)
  assert done.code == 0, done.err


def test_an_unknown_stage_is_refused():
  with pytest.raises(ValueError, match="stage='pupil' is unknown; known stages: student"):
    config.get_config("stage=pupil")


def test_models_are_tuned_on_the_texts_of_the_teacher_protocol():
  given = config.teacher(0).teacher
  templates = teaching.load(given.templates, given.formats.to_dict())
  question, said = "K 47+85=", {"guidance": "echo", "approach": "sum K"}
  messages = {
    "baseline": teaching.baseline_messages(question, templates),
    "probe": teaching.probe_messages(question, templates),
    "guided": teaching.guided_messages(question, "echo", templates),
    "teacher": teaching.teacher_messages(question, approach="sum K", templates=templates)}
  for kind, found in messages.items():
    assert [one["content"] for one in found] == [in_format(FORMATS, kind, question, **said)]
  reply = in_format(FORMATS, "reply", question, **said)
  assert teaching.parse_reply(reply, templates).guidance == "echo"


def test_a_placebo_has_the_same_hints_and_none_for_its_own_question():
  hints = [str(number) for number in range(50)]
  others = measure.of_others(hints, 3)
  assert sorted(others) == sorted(hints)
  assert all(one != other for one, other in zip(hints, others, strict=True))
  assert others == measure.of_others(hints, 3) != measure.of_others(hints, 4)


def test_a_row_says_what_changed():
  before = measure.Asked(np.array([True, True, False, False]), np.zeros(4, np.int32))
  after = measure.Asked(np.array([True, False, True, True]), np.array([5, 5, 7, 7], np.int32))
  row = measure.row(before, after)
  assert (row["accuracy_before"], row["accuracy"]) == (0.5, 0.75)
  assert row["lift"] == 0.25 and row["ndr"] == 0.75 and row["hint_tokens"] == 6
  assert row["lift_per_1000_tokens"] == round(250 / 6, 2) and row["right"] == "1011"
  np.testing.assert_array_equal(analysis.changes([row, row]), [0, -1, 1, 1] * 2)


@pytest.mark.parametrize("gained, lost, p", [(26, 13, 0.053), (38, 18, 0.010), (0, 0, 1.0), (51, 13, 2e-6)])
def test_the_paired_test_is_exact(gained, lost, p):
  change_N = np.array([1] * gained + [-1] * lost + [0] * 9)
  assert analysis.mcnemar(change_N) == pytest.approx(p, rel=0.2)


def test_arms_run_and_are_not_run_again(tmp_path):
  out = tmp_path / "results.json"
  asked = [f"--workdir={tmp_path}", f"--out={out}", "--smoke", "--seeds=1", "--arms=right,start"]
  run.main(asked, execute)
  found = arms.read(out)
  assert set(found) == {"right/1", "start/1"}
  assert len(found["right/1"]["right"]) == 16 and found["right/1"]["hint_tokens"] >= len("last")
  run.main(asked, lambda flags: pytest.fail(f"ran {flags} again"))
  assert arms.read(out) == found


def test_the_table_has_the_best_fixed_hint_and_stands_in_the_readme(tmp_path):
  def row(arm, right, **more):
    before = "1100" * 8
    bits = np.array([int(digit) for digit in right])
    return {"arm": arm, "accuracy_before": 0.5, "accuracy": bits.mean(), "right_before": before,
            "right": right, "lift": bits.mean() - 0.5, "hint_tokens": 4.0, **more}

  found = {"fixed_echo/0": row("fixed", "0000" * 8), "fixed_plain/0": row("fixed", "1100" * 8)}
  curve = {"curve": {"val/x": {"5": 0.5}}}
  for seed in range(2):
    found[f"teacher/{seed}"] = row("teacher", "1111" * 8, cpu_s=9.0, **curve)
  (tmp_path / "results.json").write_text(json.dumps(found))
  (tmp_path / "README.md").write_text("\n".join(["before", *analysis.MARKS, "after"]))
  analysis.main(tmp_path / "results.json")
  text = (tmp_path / "README.md").read_text()
  assert "| 1 | 50.0% | 50.0% | +0.0 (+0.0 to +0.0) |" in text
  assert "| 2 | 50.0% | 100.0% | +50.0 (" in text and text.startswith("before") and text.endswith("after")
  assert (tmp_path / "curves.png").stat().st_size > 1_000
