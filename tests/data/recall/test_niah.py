"""Needles: found again by a search in the text, at the depth that was asked for."""

import re

import pytest

from tests.data.recall.settings import drawn, setting, words_of


@pytest.mark.parametrize(("kind", "code"), [("single_1", "[0-9]{7}"), ("single_2", "[0-9]{7}"),
                                            ("single_3", "[0-9a-f]{32}"), ("multi_key", "[0-9]{7}")])
def test_the_answer_is_the_code_of_the_name_that_is_asked_for(kind, code):
  given = setting(niah_kinds=kind, niah_lengths="512,1024", niah_depths="0,0.3,1")
  for cell, text in drawn("niah", given, count=6):
    context, question, answer = words_of(text)
    needles = re.findall(rf"\nThe code of the (\w+ \w+) is ({code})\.\n", context)
    assert len(dict(needles)) == len(needles) == (4 if kind == "multi_key" else 1)
    name = re.fullmatch(r"\nThe code of the (\w+ \w+) is", question)[1]
    assert answer == f" {dict(needles)[name]}." and text.context_len == cell["length"]


def test_depths_go_from_the_start_to_the_gap():
  given = setting(niah_kinds="single_2", niah_lengths="1024", niah_depths="0,0.5,1", task_gap_tokens=64)
  for cell, text in drawn("niah", given, count=4):
    context, question, _ = words_of(text)
    start = context.index("\nThe code")
    end = start + len(re.search(r"\nThe code[^\n]*\n", context)[0])
    room = len(context) - (end - start) - 64
    assert start == round(cell["depth"] * room)
    assert text.distance_N[0] == len(context) - end + len(question)
    assert text.distance_N[0] >= 64


def test_the_noise_is_a_few_sentences_and_real_text_is_not():
  for kind in ("single_1", "single_2"):
    given = setting(niah_kinds=kind, niah_lengths="1024", niah_depths="0")
    context = next(words_of(text)[0] for _, text in drawn("niah", given, count=1))
    assert ("The lake lies still." in context) == (kind == "single_1")
