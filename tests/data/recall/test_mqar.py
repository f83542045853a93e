"""Pairs and questions: every answer is the value of its key, and stands as far away as it says."""

import numpy as np
import pytest

from atlas_jax.data.recall import mqar, sample
from tests.data.recall.settings import answers, drawn, ids_of, setting


def test_answers_follow_from_the_pairs_by_a_dictionary():
  given = setting(mqar_pairs="1,7,100", mqar_distances="0,33", mqar_symbols=100)
  for cell, text in drawn("mqar", given, count=5):
    pairs, ids = cell["pairs"], ids_of(text)[1:]
    value_of = dict(zip(ids[0:2 * pairs:2].tolist(), ids[1:2 * pairs:2].tolist()))
    place = {key: 2 * at for at, key in enumerate(ids[0:2 * pairs:2].tolist())}
    assert len(value_of) == pairs and not set(value_of) & set(value_of.values())
    keys = text.input_T[text.answer_T >= 0].tolist()
    assert sorted(keys) == sorted(value_of) and answers(text) == [[value_of[key]] for key in keys]
    start = len(ids) - pairs  # No answer is shown behind the filler, and no key in it.
    assert not set(ids[2 * pairs:start].tolist()) & {*value_of, *value_of.values()}
    assert ids[start:].tolist() == keys
    for at, key in enumerate(keys):
      assert text.distance_N[at] == start + at + 1 - (place[key] + 2)
    assert text.distance_N.min() >= cell["distance"]


def test_more_pairs_than_keys_are_refused():
  with pytest.raises(ValueError, match="of 9 pairs, and config.eval.mqar_symbols=8 are all the keys"):
    list(drawn("mqar", setting(mqar_pairs="9", mqar_symbols=8)))


def test_symbols_keep_their_ids_whatever_their_number():
  found = [set(), set()]
  for of, symbols in zip(found, (8, 100)):
    for _, text in drawn("mqar", setting(mqar_pairs="4", mqar_distances="0", mqar_symbols=symbols)):
      of |= {target for answer in answers(text) for target in answer}
  assert found[0] <= set(range(mqar.MOST_PAIRS, mqar.MOST_PAIRS + 8)) and min(found[1]) >= mqar.MOST_PAIRS
  assert mqar.chance({}, setting(mqar_symbols=8)) == 1 / 8


def test_sequences_ask_for_every_key_as_often_as_they_shall():
  batch = mqar.sequences(np.random.default_rng(0), rows=4, pairs=5, keys=9, times=3)
  for tokens_T, targets_T in zip(batch["tokens_BT"], batch["targets_BT"]):
    value_of = dict(zip(tokens_T[:10:2].tolist(), tokens_T[1:10:2].tolist()))
    assert sorted(tokens_T[10:].tolist()) == sorted(3 * list(value_of))
    assert [value_of[key] for key in tokens_T[10:].tolist()] == targets_T[10:].tolist()
  assert sample.round_up(17, 8) == 24
