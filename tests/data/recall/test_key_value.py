"""Lines with keys and values: all are asked for, and a key stands within five bytes of its value."""

import re

from tests.data.recall.settings import answers, drawn, setting, words_of

LINE = r"\n([a-z]{3})=([a-z]{3})(?=\n)"


def test_every_key_is_asked_for_and_answered_with_its_value():
  given = setting(episode_items="1,6", episode_distances="0,100")
  for cell, text in drawn("key_value", given, count=10):
    context, _, _ = words_of(text)
    value_of = dict(re.findall(LINE, context))
    assert len(value_of) == cell["items"]
    asked = re.findall(r"\n([a-z]{3})=([a-z]{3})", bytes([*text.input_T, text.target_T[-1]]).decode())
    assert sorted(asked) == sorted(value_of.items())
    assert [bytes(answer).decode() for answer in answers(text)] == [value for _, value in asked]


def test_the_gap_is_the_distance_and_stretches_between_lines_vary():
  stretches = set()
  for cell, text in drawn("key_value", setting(episode_items="3", episode_distances="90"), count=60):
    context = words_of(text)[0]
    lines = list(re.finditer(LINE, context))
    assert len(context) - lines[-1].end() - 1 == cell["distance"]
    stretches |= {after.start() - before.end() - 1 for before, after in zip(lines, lines[1:])}
  assert min(stretches) <= 2 and 46 <= max(stretches) <= 48 and len(stretches) > 30


def test_letters_are_all_drawn():
  given = setting(episode_items="8", episode_distances="0")
  found = "".join(bytes(answer).decode() for _, text in drawn("key_value", given, count=30)
                  for answer in answers(text))
  assert len(set(found)) == 26 and max(map(found.count, set(found))) < 3 * len(found) / 26
