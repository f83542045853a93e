"""Words of formal languages, and behind a mark whether a word is in the language.

  parity   ones and twos: an even number of ones
  even     ones alone, (aa)*: an even number of them
  counts   a^n b^n: as many twos behind the ones
  shuffle  shuffle-2: brackets of two kinds, each kind balanced by itself, whatever stands between

Half of the words are in the language. The other half differ little: one symbol more, some symbols moved over
the border, one bracket turned. Answered by greedy decoding with one of two symbols. The context ends at a
chunk's end inside of the word, and its rest belongs to the question: an emptied memory knows the rest alone.

Source: languages as in Bhattamishra et al. 2020, arXiv:2009.11264; words are drawn by rules of ours.
"""
import numpy as np

from atlas_jax.data.recall import options, sample

AXES = ("kind", "length")
READS = ("formal_kinds", "formal_lengths")
ONE, TWO, OPEN, CLOSE, OTHER_OPEN, OTHER_CLOSE, MARK, YES, NO = range(9)
SYMBOLS = 9
TURNED = {OPEN: CLOSE, CLOSE: OPEN, OTHER_OPEN: OTHER_CLOSE, OTHER_CLOSE: OTHER_OPEN}


def cells(setting) -> list[dict]:
  """Returns each language at each length."""
  found = setting.options
  return [{"kind": kind, "length": length} for kind in found["formal_kinds"]
          for length in found["formal_lengths"]]


def draw(cell, draw, setting) -> sample.RecallSample:
  """Draws a word, at most as long as the cell says and at least half as long, and its answer."""
  options.room(setting, cell["length"], 0, "formal_lengths")
  member = bool(draw.integers(2))
  word_T = KINDS[cell["kind"]](draw, cell["length"], member)
  ids = sample.symbols(setting, SYMBOLS)
  answer = ids[YES if member else NO]
  # Everything has to be remembered, the first symbol as well.
  return sample.in_symbols(setting, ids[word_T], [(ids[MARK], answer, 0)], [len(word_T)])


def chance(cell, setting) -> float:
  """Returns one half."""
  del cell, setting
  return 0.5


def _parity(draw, length: int, member: bool):
  word_T = draw.integers(2, size=length)
  if (np.sum(word_T == ONE) % 2 == 0) != member:
    at = draw.integers(length)
    word_T[at] = TWO if word_T[at] == ONE else ONE
  return word_T


def _even(draw, length: int, member: bool):
  count = 2 * int(draw.integers(length // 4, length // 2 + 1))
  return np.full(count + (not member), ONE)


def _counts(draw, length: int, member: bool):
  half = int(draw.integers(length // 4, length // 2 + 1))
  moved = 0 if member else int(draw.integers(1, 4)) * int(draw.choice([-1, 1]))
  return np.r_[np.full(half + moved, ONE), np.full(half - moved, TWO)]


def _shuffle(draw, length: int, member: bool):
  first = 2 * int(draw.integers(1, max(2, length // 2 - 1)))
  second = max(2, length // 2 * 2 - first)
  words = [_balanced(draw, first, OPEN), _balanced(draw, second, OTHER_OPEN)]
  turn_T = draw.permutation(np.r_[np.zeros(first, int), np.ones(second, int)])
  places = [iter(word) for word in words]
  word_T = np.array([next(places[turn]) for turn in turn_T])
  if not member:  # One bracket turned: its kind has two more of the one than of the other.
    at = draw.integers(len(word_T))
    word_T[at] = TURNED[int(word_T[at])]
  return word_T


def _balanced(draw, count: int, opening: int) -> list[int]:
  """Draws a balanced word of one kind of brackets."""
  word = []
  depth = 0
  for left in range(count, 0, -1):
    opens = depth == 0 or (depth < left and draw.random() < 0.5)
    depth += 1 if opens else -1
    word.append(opening if opens else opening + 1)
  return word


KINDS = {"parity": _parity, "even": _even, "counts": _counts, "shuffle": _shuffle}
