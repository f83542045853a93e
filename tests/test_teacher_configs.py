"""The stages of a teacher at their smallest: each composes, makes two updates, and goes on bit for bit."""
import math

import pytest

from atlas_jax import command, recipes
from atlas_jax import config as configs
from tests import post_training_fixture as fixture
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
  recipes.load(first, runs.one_device()).assets.save(tmp_path / "sft" / "whole")
  config = config_of("teacher_gkd", distill__teacher=str(tmp_path / "sft" / "whole"))
  check_goes_on(config, tmp_path / "gkd", evals=True)
  last = runs.rows_of(tmp_path / "gkd" / "whole")[-1]
  assert last["eval/baseline_success_delta"] == last["val/accuracy"] - last["eval/baseline_success"]
  assert last["eval/baseline_meets_success_target"] == float(last["eval/baseline_success_delta"] >= 0.1)
  assert (tmp_path / "gkd" / "whole" / "baseline.json").is_file()


def test_the_settings_are_the_originals_where_it_has_the_same_ones():
  theirs = fixture.text("arc_atlas/config_defaults")["hydra_globals"]
  ours = {stage: configs.resolve(command.read_config(f"configs/{stage}.py")) for stage in theirs}
  rcl, config = theirs["teacher_rcl"], ours["teacher_rcl"]
  assert (config.data.batch_rows, config.data.group_size) == (rcl["train_batch_size"], rcl["num_generations"])
  assert config.train.accumulate_steps == rcl["generation_aggregation_steps"]
  assert (config.optim.lr, config.optim.steps) == (rcl["learning_rate"], rcl["max_steps"])
  assert config.optim.warmup_steps == math.ceil(rcl["warmup_ratio"] * rcl["max_steps"])
  assert config.optim.weight_decay == rcl["weight_decay"] and config.optim.final_lr_frac == 1.0  # "constant".
  assert (config.policy.preset, config.policy.kl_weight) == ("grpo", rcl["beta"])
  assert config.policy.reference_every_steps == rcl["ref_model_sync_steps"]
  assert config.policy.reference_share == rcl["ref_model_mixup_alpha"]
  assert config.sampler.temperature == rcl["temperature"]
  assert config.sampler.max_tokens == rcl["max_completion_length"]
  assert config.data.max_prompt_tokens == rcl["max_prompt_length"]
  assert config.checkpoint.every_steps == rcl["save_steps"]
  assert config.train.eval_every_steps == rcl["eval_steps"]
  assert config.data.held_out_frac == rcl["eval_split_ratio"]
  # Its documents and its first version say 50, its code 500: a long probe is an answer.
  assert config.teacher.probe_tokens == 50 < rcl["max_probe_tokens"]
  sft, config = theirs["teacher_sft"], ours["teacher_sft"]
  assert (config.optim.lr, config.data.epochs) == (sft["learning_rate"], sft["num_train_epochs"])
  assert (config.data.batch_rows, config.data.segment_len) == (sft["train_batch_size"], sft["max_seq_length"])
  assert config.data.packed == sft["packing"] and config.optim.beta2 == sft["adam_beta2"]
