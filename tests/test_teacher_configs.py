"""The stages of a teacher at their smallest: each composes, makes two updates, and goes on bit for bit."""
import pytest

from atlas_jax import command, recipes
from atlas_jax import config as configs
from tests import runs
from tests.helpers import assert_same_bits, quick_compilation

STAGES = {"teacher_sft": {}, "teacher_gkd": {"data__max_problems": 8}}  # test_teacher.py has teacher_rcl.


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


def config_of(stage, **changes):
  """The smallest config of a stage, of two updates."""
  config = command.read_config(f"configs/{stage}.py:smoke")
  fields = {"optim__steps": 2, "optim__warmup_steps": 1, "monitor__tensorboard": False,
            "monitor__report": False, "checkpoint__every_steps": 1, "eval__max_problems": 4,
            "decoder__width": 16, "decoder__ff_width": 24, "decoder__head_dim": 8}
  return runs.changed(config, {**fields, **STAGES[stage], **changes})


def check_goes_on(config, folder, **more):
  """Trains whole and in two parts; the second part makes the second update alone."""
  runs.run_lm(config, folder / "whole", **more)
  runs.run_lm(config, folder / "parts", stop_at=2)
  runs.run_lm(config, folder / "parts", **more)
  recipe = recipes.load(config, runs.one_device(), folder / "whole")
  params = [runs.saved(config, recipe, folder / part).params for part in ("whole", "parts")]
  assert_same_bits(*params)
  assert runs.rows_of(folder / "whole")[-1]["step"] == 2


def test_a_student_learns_from_the_teacher_of_the_warm_up_and_is_compared_with_what_it_was(tmp_path):
  first = config_of("teacher_sft")
  check_goes_on(first, tmp_path / "sft")
  configs.save(first, tmp_path / "sft" / "whole")
  config = config_of("teacher_gkd", distill__teacher=str(tmp_path / "sft" / "whole"))
  check_goes_on(config, tmp_path / "gkd", evals=True)
  last = runs.rows_of(tmp_path / "gkd" / "whole")[-1]
  assert last["eval/baseline_success_delta"] == last["val/accuracy"] - last["eval/baseline_success"]
  assert last["eval/baseline_meets_success_target"] == float(last["eval/baseline_success_delta"] >= 0.1)
  assert (tmp_path / "gkd" / "whole" / "baseline.json").is_file()
