"""Signs of collapse, by hand: numbers beside their bounds, several evaluations in a row, what is unknown."""
import math

import pytest

from atlas_jax.evals import collapse_signs
from atlas_jax.evals.collapse_signs import GAIN, HEALTH, checks, collapsed, signs

HEALTHY = {
  HEALTH: 4096.0, GAIN: 3840.0,
  "eval/raw_gate_mean/layer_01": 0.5, "eval/raw_gate_mean/layer_03": 0.1,
  "eval/memory_norm_ratio/layer_01": 0.01, "eval/memory_norm_in_values/layer_03": 0.02,
  "eval/inner_loss_ratio/layer_01": 0.98, "eval/half_life_tokens/layer_01": 32.0,
  "eval/memory_gain_emptied_nats": 0.2, "eval/memory_gain_emptied_nats_low": 0.01,
  "eval/memory_gain_swapped_nats": 0.1, "eval/memory_gain_swapped_nats_low": 0.001,
}  # fmt: skip
CHUNK = 32
# Metric -> a value just beyond its bound, and the sign that then stands.
BEYOND = {
  "eval/raw_gate_mean/layer_03": (0.0999, ("gate", "layer_03")),
  "eval/memory_norm_ratio/layer_01": (0.0099, ("norm", "layer_01")),
  "eval/memory_norm_in_values/layer_03": (0.0099, ("norm_in_values", "layer_03")),
  "eval/inner_loss_ratio/layer_01": (0.99, ("recall", "layer_01")),
  "eval/half_life_tokens/layer_01": (31.9, ("half_life", "layer_01")),
  "eval/memory_gain_emptied_nats_low": (0.0, ("emptied", None)),
  "eval/memory_gain_swapped_nats_low": (-0.01, ("swapped", None)),
}
NOT_NUMBERS = (None, math.nan, math.inf, "0.05", True)


def judged(*rows, evaluations=3):
  return collapsed(rows, chunk_size=CHUNK, evaluations=evaluations)


def with_(**changes):
  return HEALTHY | changes


def keys(found):
  return {sign.key for sign in found}


def test_numbers_at_their_healthy_ends_show_no_sign():
  assert not signs(HEALTHY, CHUNK)
  assert len(checks(HEALTHY, CHUNK)) == 8
  assert judged(HEALTHY, HEALTHY, HEALTHY).stands is False


@pytest.mark.parametrize("metric", BEYOND)
def test_each_number_beyond_its_bound_is_its_sign_alone(metric):
  value, key = BEYOND[metric]
  (sign,) = signs(HEALTHY | {metric: value}, CHUNK)
  assert sign.key == key and sign.value == value
  assert key[0] in sign.words and f"{value:.3g}" in sign.words and "config." in sign.words
  assert (key[1] or "the model") in sign.words


@pytest.mark.parametrize("metric", BEYOND)
@pytest.mark.parametrize("value", NOT_NUMBERS)
def test_what_is_no_number_is_neither_collapse_nor_health(metric, value):
  """The original program took gates that were not finite for a collapse of 100%."""
  row = HEALTHY | {metric: value}
  assert not signs(row, CHUNK)
  found = judged(row, row, row)
  assert found.stands is None and not found.signs and not found.now
  assert [title.split()[0] for title in found.unknown] == [BEYOND[metric][1][0]]


def test_a_sign_must_stand_at_every_one_of_the_last_evaluations():
  shut = with_(**{"eval/raw_gate_mean/layer_01": 0.05})
  assert judged(shut, shut).stands is False and keys(judged(shut, shut).now) == {("gate", "layer_01")}
  assert judged(shut, shut, shut).stands is True
  assert judged(shut, shut, HEALTHY).stands is False
  assert judged(shut, HEALTHY, shut, shut).stands is False
  assert judged(HEALTHY, shut, shut, shut).stands is True
  assert judged(shut, evaluations=1).stands is True
  # Two blocks that take turns: neither has stood for long.
  other = with_(**{"eval/raw_gate_mean/layer_03": 0.05})
  assert judged(shut, other, shut).stands is False


def test_an_unknown_number_in_between_is_no_collapse():
  metric = "eval/raw_gate_mean/layer_01"
  shut, lost = HEALTHY | {metric: 0.05}, HEALTHY | {metric: None}
  assert judged(shut, lost, shut).stands is False
  assert judged(shut, shut, lost).stands is None
  missing = {name: value for name, value in HEALTHY.items() if name != metric}
  assert judged(shut, shut, missing).unknown == ("gate of layer_01",)
  assert judged(shut, shut, missing).stands is None


def test_one_sign_that_stands_is_collapse_whatever_else_is_unknown():
  row = with_(**{"eval/raw_gate_mean/layer_01": 0.05, "eval/half_life_tokens/layer_01": None})
  found = judged(row, row, row)
  assert found.stands is True and keys(found.signs) == {("gate", "layer_01")} and len(found.unknown) == 1


def test_nothing_measured_is_unknown():
  for rows in ((), ({},), ({"step": 3, "train/loss_nats": 2.0},)):
    assert judged(*rows).stands is None
  without_text = {HEALTH: 0.0, GAIN: 0.0}
  assert judged(without_text).unknown == ("emptied of the model", "swapped of the model")


def test_another_documents_memory_counts_where_a_gate_is_open():
  low = {"eval/memory_gain_swapped_nats_low": -0.01}
  gates = [name for name in HEALTHY if name.startswith("eval/raw_gate_mean/")]
  assert ("swapped", None) in keys(signs(HEALTHY | low, CHUNK))
  shut = HEALTHY | low | dict.fromkeys(gates, 0.05)
  assert keys(signs(shut, CHUNK)) == {("gate", "layer_01"), ("gate", "layer_03")}
  half_known = HEALTHY | low | {gates[0]: None, gates[1]: 0.05}
  assert "swapped of the model" in judged(half_known).unknown
  gateless = {name: value for name, value in (HEALTHY | low).items() if name not in gates}
  assert keys(signs(gateless, CHUNK)) == {("swapped", None)}  # All of the memory enters.
  unmeasured = {name: value for name, value in gateless.items() if name != HEALTH}
  assert "swapped of the model" in judged(unmeasured).unknown


def test_a_memory_that_tells_of_its_document_is_not_dead():
  dead = with_(**{"eval/inner_loss_ratio/layer_01": 1.5, "eval/half_life_tokens/layer_01": 11.0})
  found = judged(dead, dead, dead)
  assert found.stands is False and not found.signs
  assert keys(found.refuted) == keys(found.now) == {("recall", "layer_01"), ("half_life", "layer_01")}
  for low in (0.0, None):
    row = dead | {"eval/memory_gain_swapped_nats_low": low}
    assert {("recall", "layer_01"), ("half_life", "layer_01")} <= keys(judged(row, row, row).signs)
  # A shut gate is a shut gate, whatever other blocks do.
  shut = dead | {"eval/raw_gate_mean/layer_01": 0.01}
  assert keys(judged(shut, shut, shut).signs) == {("gate", "layer_01")}


def test_rows_of_training_are_no_evaluations():
  assert collapse_signs.is_evaluation({"step": 1, GAIN: 0.0})
  assert not collapse_signs.is_evaluation({"step": 1, "memory/mix_gate_raw_mean/layer_01": 0.05})
