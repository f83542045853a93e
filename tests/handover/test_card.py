"""The model card says what was measured, how the model is loaded, and what it cannot do."""

import re

import pytest
import yaml

from atlas_jax import config as configs
from atlas_jax.handover import card
from configs import memory_40m, sft, trm_sudoku

SUMMARY = {"steps": 4, "tokens_seen": 4096, "train_loss_nats": 2.5, "val_loss_nats": 2.25, "time_step_s": 9.0,
           "val_loss_nats_by_position_000000-000063": 3.0, "collapsed": False, "phase": "learning",
           "recall_accuracy_past_window": 0.5, "recall_accuracy_past_window_low": 0.25,
           "recall_accuracy_past_window_high": 0.75, "memory_gain_zeroed_nats": 0.125,
           "memory_gain_zeroed_nats_low": 0.0625, "memory_gain_zeroed_nats_high": 0.25}


def facts(config=memory_40m, arg="smoke", summary=SUMMARY, **changes):
  made = configs.resolve(config.get_config(arg))
  found = card.CardFacts("alice/model", made, summary, 4, 29258, True, False)
  return found._replace(**changes)


@pytest.mark.parametrize(
  ("config", "arg"), [(memory_40m, "smoke"), (sft, "smoke"), (trm_sudoku, "4x4,smoke")])
def test_the_front_matter_is_yaml_that_names_the_kind_of_model(config, arg):
  _, front, text = card.write(facts(config, arg)).split("---\n", 2)
  found = yaml.safe_load(front)
  assert found["library_name"] == "atlas_jax" and all(isinstance(tag, str) for tag in found["tags"])
  is_text = config is not trm_sudoku
  assert (found.get("pipeline_tag") == "text-generation") == is_text
  mode = "generate" if is_text else "solve"
  assert f"python -m atlas_jax.main --mode={mode} --from=alice/model" in text


def test_the_table_has_numbers_with_their_intervals_and_no_times():
  text = card.write(facts())
  assert "| recall_accuracy_past_window | 0.5 | 0.25 to 0.75 |" in text
  assert "| val_loss_nats | 2.25 |  |" in text
  assert "![Curves of the training](report.png)" in text and "| loss of the last updates | 2.5 |" in text
  assert "time_step_s" not in text and "by_position" not in text and "past_window_low" not in text


@pytest.mark.parametrize(
  ("changes", "says"),
  [(dict(summary={}), "The training was not finished when this was sent: update 4 of 4."),
   (dict(step=3), "update 3 of 4"),
   (dict(summary={**SUMMARY, "memory_gain_zeroed_nats_low": -0.1}), "not shown to help .* \\(zeroed\\)"),
   (dict(summary={"steps": 4}), "Whether the memory helps was not measured"),
   (dict(summary={**SUMMARY, "collapsed": True}), "Signs of a collapsed memory"),
   (dict(), "There is no optimizer state")],
)  # fmt: skip
def test_limits_are_said_where_they_hold(changes, says):
  text = "\n".join(card.limits(facts(**changes)))
  assert re.search(says, text)
  assert ("not shown to help" in text) == ("not shown" in says)


def test_a_run_with_its_optimizer_says_so():
  assert "There is no optimizer state" not in card.write(facts(optimizer=True))
  assert "`checkpoints/`" in card.write(facts(optimizer=True))


def test_no_path_of_this_machine_stands_in_a_card(tmp_path):
  config = memory_40m.get_config("smoke")
  config.data.tokenizer = str(tmp_path / "mine" / "tokenizer.json")
  text = card.write(facts()._replace(config=configs.resolve(config)))
  assert str(tmp_path) not in text and "`tokenizer.json`" in text
