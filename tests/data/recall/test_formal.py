"""Words of formal languages, judged by counting."""

import pytest

from atlas_jax.data import recall
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


JUDGES = dict(parity=parity, even=even, counts=counts, shuffle=shuffle)


def word_of(text):
  """The symbols of a word."""
  *word, mark = ids_of(text)[1:].tolist()
  while word[0] == formal.MARK:  # They shift the word against the borders of chunks.
    word.pop(0)
  assert mark == formal.MARK
  return word


@pytest.mark.parametrize("judge", JUDGES.values(), ids=JUDGES)
def test_the_answer_says_whether_the_word_is_in_the_language(judge):
  right = total = 0
  for cell, text in drawn("formal", setting(formal_kinds=judge.__name__, formal_lengths="64,90"), count=60):
    word = word_of(text)
    assert answers(text) == [[formal.YES if judge(word) else formal.NO]]
    assert cell["length"] // 2 - 3 <= len(word) <= cell["length"] + 1
    right += judge(word)
    total += 1
  assert 0.35 < right / total < 0.65


def test_the_length_of_a_question_does_not_tell_the_answer():
  texts = [text for _, text in drawn("formal", setting(formal_kinds="even", formal_lengths="90"), count=200)]
  agree = [(len(text.input_T) % 2 == 0) == (answers(text) == [[formal.YES]]) for text in texts]
  assert 0.4 < sum(agree) / len(agree) < 0.6


@pytest.mark.parametrize("kind", formal.KINDS)
def test_no_word_is_drawn_in_two_splits_whatever_the_seed(kind):
  given = setting(formal_kinds=kind, formal_lengths="64,70")
  found = {}
  for split in recall.SPLITS:
    texts = [drawn("formal", given, count=60, split=split, seed=seed) for seed in range(3)]
    found[split] = {tuple(word_of(text)) for part in texts for _, text in part}
    judged = [JUDGES[kind](list(word)) for word in found[split]]
    assert 0 < sum(judged) < len(judged), f"{split} has words of one answer alone"
    lengths = {len(word) for word in found[split]}
    assert kind not in formal.BY_LENGTH or max(lengths) - min(lengths) >= 20, "words of few lengths"
  assert not found["train"] & found["held_out"] and not found["train"] & found["eval"]
  assert not found["held_out"] & found["eval"]


@pytest.mark.parametrize("kind", formal.BY_LENGTH)
def test_lengths_with_too_few_words_are_refused(kind):
  with pytest.raises(ValueError, match=f"formal_lengths=64,16: words of {kind} of 16 symbols have 1"):
    recall.load("formal").cells(setting(formal_kinds=f"parity,{kind}", formal_lengths="64,16"))
  assert recall.load("formal").cells(setting(formal_kinds="parity,shuffle", formal_lengths="16"))
  for length in range(64, 600):
    parts = [formal.split_of(kind, [0] * 2 * pairs) for pairs in range(length // 4, length // 2 + 1)]
    assert min(map(parts.count, recall.SPLITS)) >= formal.FEWEST, length


def test_the_split_follows_from_the_word_alone():
  words = [[1, 0, 1] * 8, [0, 1] * 15, [1] * 20, [0] * 33]
  assert [formal.split_of("parity", word) for word in words] == ["eval", "held_out", "train", "held_out"]
