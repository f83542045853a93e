"""Masked entities: names and numbers of real text that only the stored line tells."""

import re

import pytest

from atlas_jax.data.recall import entity
from tests.data.recall.settings import answers, drawn, haystack_of, ids_of, setting, texts, words_of


def test_the_question_is_the_line_without_the_entity_and_again_up_to_it():
  for cell, text in drawn("entity", setting(episode_items="1,3", episode_distances="0,100"), count=20):
    context = words_of(text)[0]
    question = bytes([*ids_of(text)[text.context_len:], text.target_T[-1]]).decode()
    asked = re.findall(r"\n(.+)____(.*)\n\1(\w+)", question)
    assert len(asked) == cell["items"]
    for (left, right, word), answer in zip(asked, answers(text)):
      assert bytes(answer).decode() == word and len(left.strip()) >= 8
      assert context.count(f"\n{left}{word}{right}\n") == 1 and context.count(left) == 1
      assert context.count(word) == 1 and question.count(word) == 1
      assert any(f"{left}{word}{right}" in one for one in texts())
      assert len(word) >= 5 and (word.isdigit() or not word.islower())


@pytest.mark.parametrize(("line", "words"), [
  ("xx the captain was Ferdinand, of Spain", ["Ferdinand"]),  # Spain ends the text, and may go on.
  ("xx the year of 40213 or of 4021 was it", ["40213"]),
  ("xx return the snake_case of plain words now", ["snake_case"]),
  ("xx value of camelCase and Short now", ["camelCase", "Short"]),
  ("xx return the plain words of nothing at all", []),
  ("xx short: Ferdinand is too early here", []),  # Less than eight bytes stand before it.
  ("xx was Ferdinand not called Ferdinand then", []),
  ("xx the captain was Müller, and not Mülheim now", []),
  ("xx the captain was ____________ now", []),
  ("xx the captain was __init__ or abc12 now", []),  # Four letters, and three.
])  # fmt: skip
def test_entities_are_names_and_numbers_that_stand_once(line, words):
  assert [word.decode() for _, word, _ in entity.entities(line.encode())] == words


def test_of_a_long_line_the_nearest_words_count():
  line = b"cut off words of a line that is longer than the limit is until Ferdinand comes and goes away in it"
  assert entity.entities(line) == [(b"the limit is until ", b"Ferdinand", b" comes and g")]
  lines = b"cut\n   indented line of Ferdinand\nnext"
  assert entity.entities(lines) == [(b"indented line of ", b"Ferdinand", b"")]


def test_a_name_that_other_text_has_too_is_no_entity():
  """Every document has one name, at one place, and the text that is looked through for common words all."""
  lines = "small letters go on here for a while and say nothing\n"
  rare = [f"{lines}they speak of {name} and go on\n{lines}" for name in ("Alabaster", "Bartholomew")]
  assert all(len(entity.entities(one.encode())) == 1 for one in rare)
  common = haystack_of([one.encode() for one in rare])
  with pytest.raises(ValueError, match="find a line of real text with a name or a number"):
    next(drawn("entity", setting(align_tokens=1, text=lambda: common, episode_items="1",
                                 episode_distances="0"), count=1))
