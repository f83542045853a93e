"""Words of formal languages, judged by counting."""

import pytest

from atlas_jax.data.recall import formal
from tests.data.recall.settings import answers, drawn, ids_of, setting


def parity(word):
  return word.count(formal.ONE) % 2 == 0


def even(word):
  return set(word) <= {formal.ONE} and len(word) % 2 == 0


def counts(word):
  half = len(word) // 2
  return word == half * [formal.ONE] + half * [formal.TWO] and len(word) % 2 == 0


def shuffle(word):
  for first in (formal.OPEN, formal.OTHER_OPEN):
    depth = 0
    for one in word:
      depth += (one == first) - (one == first + 1)
      if depth < 0:
        return False
    if depth:
      return False
  return True


@pytest.mark.parametrize("judge", [parity, even, counts, shuffle], ids=lambda judge: judge.__name__)
def test_the_answer_says_whether_the_word_is_in_the_language(judge):
  right = total = 0
  for cell, text in drawn("formal", setting(formal_kinds=judge.__name__, formal_lengths="16,90"), count=60):
    *word, mark = ids_of(text)[1:].tolist()
    assert mark == formal.MARK and answers(text) == [[formal.YES if judge(word) else formal.NO]]
    assert cell["length"] // 2 - 3 <= len(word) <= cell["length"] + 1
    right += judge(word)
    total += 1
  assert 0.35 < right / total < 0.65
