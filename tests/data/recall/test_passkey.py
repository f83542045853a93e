"""Pass keys: each is that of its owner, and owners are told apart by the last bytes before the number."""

import re

import pytest

from atlas_jax.data import recall
from atlas_jax.data.recall import passkey
from tests.data.recall.settings import drawn, setting, words_of

SENTENCE = r"\nPass key, ([a-z]+): ([0-9]{5})\.\n"


def test_every_owner_is_asked_for_and_answered_with_their_pass_key():
  for cell, text in drawn("passkey", setting(episode_items="1,5", episode_distances="0,100"), count=10):
    key_of = dict(re.findall(SENTENCE, words_of(text)[0]))
    assert len(key_of) == cell["items"] and set(key_of) <= set(passkey.NAMES)
    question = bytes([*text.input_T, text.target_T[-1]]).decode()
    asked = re.findall(r"\nPass key, ([a-z]+): ([0-9]{5})", question)
    assert sorted(asked) == sorted(key_of.items())


def test_names_are_many_short_and_told_apart_by_their_last_four_letters():
  assert len(passkey.NAMES) >= 64 and all(4 <= len(name) <= 6 for name in passkey.NAMES)
  assert len({name[-4:] for name in passkey.NAMES}) == len(passkey.NAMES)


def test_all_names_can_be_in_one_text_and_no_more():
  most = len(passkey.NAMES)
  task, given = recall.load("passkey"), setting()
  text = task.sample({"items": most, "distance": 10}, given, seed=0, split="train", number=0)
  assert len(dict(re.findall(SENTENCE, words_of(text)[0]))) == most
  with pytest.raises(ValueError, match=f"episode_items={most + 1}: there are {most} names of owners"):
    task.sample({"items": most + 1, "distance": 10}, given, seed=0, split="train", number=0)
