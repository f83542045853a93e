"""Documents: the last word is what that person put away, and nothing else in them says so."""

import re

from atlas_jax.data.recall import last_word
from tests.data.recall.settings import drawn, setting, words_of


def test_the_last_word_is_what_the_same_person_put_away():
  for cell, text in drawn("last_word", setting(last_word_lengths="512,900"), count=20):
    context, question, answer = words_of(text)
    put = dict(re.findall(r" (\w+) put the (\w+) into the chest\.", context))
    name = re.fullmatch(r" At last (\w+) opened the chest and took out the", question)[1]
    assert len(put) == last_word.OWNERS and answer == f" {put[name]}."
    assert text.candidates[text.correct].tolist() == list(answer.encode())
    assert text.context_len == -(-cell["length"] // 16) * 16
    for thing in last_word.THINGS:
      assert len(re.findall(rf"\b{thing}\b", context)) == (thing in put.values())
