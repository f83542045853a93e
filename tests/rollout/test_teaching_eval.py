"""The evaluation of a teacher: what guidance does beside no guidance, a placebo and one hint for all."""
import json

import jax
import numpy as np
import pytest

from atlas_jax import config as configs
from atlas_jax.data.problems import Problem
from atlas_jax.language.decoding.sampler import ScriptedSampler
from atlas_jax.language.initial_model import load_initial_model
from atlas_jax.rollout import teaching, teaching_eval
from atlas_jax.state import Trained
from configs import teacher_rcl
from tests import runs
from tests.rollout import lessons as built

HINTS = {"47+85=": "c", "12+34=": "n", "28+31=": "x", "77+77=": "n"}


def evaluated(script=HINTS.get, *, student=None, settings=None, rows=None, **changes):
  """Runs the evaluation of four sums with a teacher that writes from a script."""
  config = teacher_rcl.get_config("cpu")
  config.data.update(name="files", files="none.jsonl", options={})
  config.eval.update(batch_rows=3, max_problems=None)
  config = runs.changed(config, changes)
  lessons, student = built.lessons(student, **(settings or {}))
  sampler = ScriptedSampler(built.BYTES, lambda text, params: [script(text.removeprefix("\n"))])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(teaching_eval.prompts, "listed", lambda config, split: rows or built.problems())
    run = teaching_eval.make(config, load_initial_model(config), lessons, sampler)
  return run(Trained({}, ()), step=3), student


def test_measures_and_controls_of_the_same_questions():
  out, student = evaluated(teacher__fixed_hint="c")
  found = {name.removeprefix("eval/teaching_"): value for name, value in out.scalars.items()}
  # Alone two are right; guidance mends one and spoils one.
  assert found["baseline_accuracy"] == found["accuracy"] == 0.5
  assert found["learning_rate"] == 0 and found["non_degradation_rate"] == 0.75
  assert found["degradation_severity"] == 1 and found["recovery_rate"] == 0.5
  assert found["fixed_accuracy"] == 1 and found["over_fixed"] == -0.5
  assert found["silent_frac"] == 0
  assert found["graded_count"] == 4 and found["completion_rate"] == 1 and found["mcnemar_p"] == 1
  assert found["learning_rate_low"] < 0 < found["learning_rate_high"] and found["guidance_tokens"] == 1
  # Four sets of answers, each in two parts of three rows, the second filled up: as many shapes as one.
  assert (student.calls, student.rows) == (8, 24)
  assert [row["question"] for row in out.rows] == ["28+31="] and json.dumps(out.rows)
  assert "'47+85='" in out.text and "told 'c'" in out.text


def test_a_placebo_is_the_guidance_of_another_question():
  out, _ = evaluated()
  lessons, _ = built.lessons()
  begun = lessons.begin(built.problems(), seed=0)
  taught = lessons.finish(begun, list(HINTS.values()), seed=0)
  told = [one.guidance for one in teaching_eval.placebos(taught, seed=0)]
  assert sorted(told) == sorted(HINTS.values()) and told[0] != "c" and told[2] != "x"
  assert out.scalars["eval/teaching_placebo_accuracy"] < 1
  assert "eval/teaching_over_placebo" in out.scalars


def test_a_placebo_is_of_a_question_with_another_answer():
  lessons, _ = built.lessons()
  same = [Problem(f"s:{row}", f"{row}+{5 - row}=", "5") for row in range(3)]
  taught = lessons.finish(lessons.begin([*same, Problem("o", "9+9=", "18")], seed=0), list("abcd"), seed=0)
  told = [one.guidance for one in teaching_eval.placebos(taught, seed=1)]
  assert told[:3] == ["d"] * 3 and told[3] in "abc"
  assert teaching_eval.placebos(taught[:1], seed=0)[0].guidance == "a"  # There is no other.


def test_questions_without_a_truth_are_left_out():
  rows = [*built.problems()[:2], Problem("f:9", "1+1=")]
  out, _ = evaluated(lambda text: "n", rows=rows)
  assert out.scalars["eval/teaching_graded_count"] == 2


def test_without_a_fixed_hint_there_is_no_such_control():
  out, _ = evaluated(teacher__fixed_hint=None)
  assert not any("fixed" in name for name in out.scalars)


def test_prompts_that_show_the_answer_are_counted_and_named(caplog):
  shown = teaching.PLAIN._replace(baseline=(("user", "the answer is not 46: {question}"),))
  out, _ = evaluated(settings={"templates": shown})
  assert out.scalars["eval/teaching_contaminated_frac"] == 0.25
  chat = [{"role": "assistant", "content": "it is 132"}, {"role": "user", "content": "47+85="}]
  lessons, _ = built.lessons()
  assert teaching_eval.contamination([Problem("c:1", chat, "132")], lessons) == ["c:1 (number)"]


def test_questions_that_cannot_be_graded_are_refused():
  rows = [Problem("f:9", "1+1=")]
  with pytest.raises(ValueError, match="none of the 1 held-out questions has one; give answers"):
    evaluated(rows=rows)
  with pytest.raises(ValueError, match="none of the 1 held-out questions is asked and graded"):
    evaluated(lambda text: "n", rows=rows, teacher__grader="letters")


def test_the_same_numbers_come_again():
  first, second = (evaluated()[0].scalars for _ in range(2))
  assert first == second and all(np.isfinite(list(first.values())))
  assert configs.resolve(teacher_rcl.get_config("cpu")).teacher.temperature == 0.0
  assert jax.tree.leaves(first)
