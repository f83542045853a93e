"""What rewards and recipes read of rows, and the one warning of a run that names the rest."""

import functools
import json
import logging

import pytest

from atlas_jax.data import prompts
from atlas_jax.recipes import gkd, sft
from atlas_jax.rollout import reward_columns, rewards
from configs import gkd as gkd_file
from configs import sft as sft_file

ROWS = [{"question": f"{n}?", "answer": n, "level": 1, "completion": "b", "id": n} for n in range(9)]


def of_trl(prompts, completions, level, weight=1.0, **kwargs):
  return [0.0 for _ in completions]


def of_all(prompt, completion, answer, extra):
  return 0.0


bound = functools.partial(of_trl, weight=2.0)
TRL, ALL, BOUND = (f"{__name__}.{name}" for name in ("of_trl", "of_all", "bound"))


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "rows.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
  return str(path)


def test_parameters_of_rewards_are_columns_but_for_what_the_run_gives():
  of_programs = [name for name in rewards.names() if name not in (rewards.JUDGES, "group")]
  assert reward_columns.asked(*of_programs) == reward_columns.asked() == frozenset()
  assert {"ground_truth", "baseline", "guidance", "trajectory"} <= reward_columns.asked(rewards.JUDGES)
  assert reward_columns.asked(*of_programs, TRL) == {"level", "weight"}
  assert "level" in reward_columns.asked(BOUND)
  assert reward_columns.asked(TRL, ALL) is None


def test_grpo_names_solutions_and_columns_that_no_reward_asks_for(file, caplog):
  config = sft_file.get_config("smoke")
  config.rewards = f"correct,{TRL}=0.5"
  needs = reward_columns.needs_of(config, None, solution=False, answer=True)
  with caplog.at_level(logging.WARNING):
    prompts.make(seed=0, name="files", files=file, batch_rows=2, held_out_frac=0.3, needs=needs)
  (record,) = caplog.records
  assert "'completion' (9 of 9 rows), 'id' (9 of 9 rows)" in record.message and "level" not in record.message


@pytest.mark.parametrize("held_out_frac, names", [(0.3, ["level", "id"]), (0.0, ["answer", "level", "id"])])
def test_sft_names_what_neither_training_nor_evaluation_reads(file, caplog, held_out_frac, names):
  config = sft_file.get_config("smoke")
  config.data.options = {}
  config.data.update(name="files", files=file, held_out_frac=held_out_frac)
  with caplog.at_level(logging.WARNING):
    for split in ("train", "held_out")[: 1 + (held_out_frac > 0)]:
      sft.problems_of(config, split)
  (record,) = caplog.records
  assert ", ".join(f"'{name}' (9 of 9 rows)" for name in names) in record.message


@pytest.mark.parametrize("frac, rest, held_out_frac, reads", [
  (1.0, "recorded", 0.0, (False, False)), (0.5, "recorded", 0.0, (True, False)),
  (0.5, "teacher", 0.0, (False, False)), (1.0, "recorded", 0.1, (True, True))])  # fmt: skip
def test_gkd_reads_solutions_where_they_are_learnt_or_evaluated(frac, rest, held_out_frac, reads):
  config = gkd_file.get_config()
  config.distill.update(on_policy_frac=frac, off_policy_source=rest)
  config.data.held_out_frac = held_out_frac
  needs = gkd.needs_of(config, None)
  assert (needs.solution, needs.answer) == reads
