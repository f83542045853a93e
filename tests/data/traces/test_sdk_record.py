"""Rows of the Atlas SDK become the records that its exporter writes, to the byte."""
import json

import pytest

from atlas_jax.data.traces import sdk_record
from tests import stores

RULES = stores.read_json("sdk_runtime_rules.json")


@pytest.mark.parametrize("number", range(4))
def test_recorded_rows_give_the_recorded_lines(number):
  record = sdk_record.build(stores.sdk_rows()[number])
  assert json.dumps(record, ensure_ascii=False) == stores.export_lines()[number]


def test_rewards_are_coerced_as_recorded():
  assert len(RULES["reward_from_dict"]) > 3
  for case in RULES["reward_from_dict"]:
    assert sdk_record.coerced(case["in"]) == case["out"]


@pytest.mark.parametrize("score", ["0.5x", None, [], {}, True])
def test_a_score_that_is_no_number_becomes_a_number(score):
  assert sdk_record.coerced({"score": score})["score"] == (1.0 if score is True else 0.0)


def test_a_plan_that_fits_the_model_has_its_keys_and_another_is_left_alone():
  assert sdk_record.plan_of({"steps": [{"description": "d", "id": 1}]}) == {
    "steps": [{"id": 1, "description": "d", "tool": None, "tool_params": None, "depends_on": []}],
    "execution_mode": "stepwise"}
  for strange in ({"steps": "none"}, {"steps": [{"id": "a", "description": "d"}]}, {"mine": 1}):
    assert sdk_record.plan_of(strange) == strange
  assert sdk_record.plan_of(None) == {}


def test_only_keys_directly_under_the_event_are_hoisted():
  event = {"id": 1, "event": {"actor": "student", "payload": {"name": "deep"}}, "created_at": "t"}
  assert sdk_record.hoisted(event) == event | {"actor": "student"}
