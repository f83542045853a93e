"""Words of formal languages, and behind a mark whether a word is in the language.

  parity   ones and twos: an even number of ones
  even     ones alone, (aa)*: an even number of them
  counts   a^n b^n: as many twos behind the ones
  shuffle  shuffle-2: brackets of two kinds, each kind balanced by itself, whatever stands between

Half of the words are in the language. The other half differ little: one symbol more, some symbols moved over
the border, one bracket turned. Answered by greedy decoding with one of two symbols. The context ends at a
chunk's end inside of the word, and its rest belongs to the question: an emptied memory knows the rest alone.
No word is drawn for two of train, held_out and eval, whatever the seed: `split_of` says whose it is, and
half of the words are trained on. Of `even` and `counts`, with few words of a length, the length decides.

Source: languages as in Bhattamishra et al. 2020, arXiv:2009.11264; words are drawn by rules of ours.
"""
import hashlib

import numpy as np

from atlas_jax.data.recall import options, sample

AXES = ("kind", "length")
READS = ("formal_kinds", "formal_lengths")
ONE, TWO, OPEN, CLOSE, OTHER_OPEN, OTHER_CLOSE, MARK, YES, NO = range(9)
SYMBOLS = 9
TURNED = {OPEN: CLOSE, CLOSE: OPEN, OTHER_OPEN: OTHER_CLOSE, OTHER_CLOSE: OTHER_OPEN}
BY_LENGTH = ("even", "counts")
PARTS = ("train", "train", "held_out", "eval")  # Whose each quarter of the words is.
FEWEST = 3  # Lengths of words that each part is to have.


def cells(setting) -> list[dict]:
  """Returns each language at each length.

  Raises:
    ValueError: if a length is too short for its words to be parted into those trained on and those asked.
  """
  found = setting.options
  for kind in BY_LENGTH:
    short = [length for length in found["formal_lengths"] if _fewest(kind, length) < FEWEST]
    if kind in found["formal_kinds"] and short:
      raise ValueError(
          f"config.eval.formal_lengths={','.join(map(str, found['formal_lengths']))}: words of {kind} of "
          f"{short[0]} symbols have {_fewest(kind, short[0])} lengths to be asked and not trained on, and "
          f"need {FEWEST}; take 64 or more, or leave {kind} out of config.eval.formal_kinds")
  return [{"kind": kind, "length": length} for kind in found["formal_kinds"]
          for length in found["formal_lengths"]]


def split_of(kind: str, word_T) -> str:
  """Returns which of train, held_out and eval a word may be drawn for; it follows from the word alone."""
  if kind in BY_LENGTH:
    return _split_of_pairs(kind, len(word_T) // 2)
  return PARTS[_digest(kind, *np.asarray(word_T).tolist()) % len(PARTS)]


def _split_of_pairs(kind: str, pairs: int) -> str:
  # Of four lengths in a row every part has its own, by chance which: hashes of few lengths may leave one out.
  block, at = divmod(pairs, len(PARTS))
  order = np.random.default_rng(_digest(kind, block)).permutation(len(PARTS))
  return PARTS[order[at]]


def _digest(*parts) -> int:
  return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8])


def _pairs(length: int) -> range:
  """Returns half the lengths of words of BY_LENGTH."""
  return range(length // 4, length // 2 + 1)


def _fewest(kind: str, length: int) -> int:
  parts = [_split_of_pairs(kind, pairs) for pairs in _pairs(length)]
  return min(parts.count(part) for part in PARTS)


def draw(cell, draw, setting, split: str) -> sample.RecallSample:
  """Draws a word of a split, at most as long as the cell says and at least half as long, and its answer."""
  options.room(setting, cell["length"], 0, "formal_lengths")
  member = bool(draw.integers(2))
  word_T = KINDS[cell["kind"]](draw, cell["length"], member)
  while split_of(cell["kind"], word_T) != split:
    word_T = KINDS[cell["kind"]](draw, cell["length"], member)
  ids = sample.symbols(setting, SYMBOLS)
  answer = ids[YES if member else NO]
  # What does not fill a chunk belongs to the question, so the number of tokens there would tell how long the
  # word is, up to whole chunks: with `even`, which are of even length, that is the answer.
  shift_T = np.full(draw.integers(setting.align_tokens), MARK)
  # Everything has to be remembered, the first symbol as well.
  return sample.in_symbols(setting, ids[np.r_[shift_T, word_T]], [(ids[MARK], answer, 0)], [len(word_T)])


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
  count = 2 * int(draw.choice(_pairs(length)))
  return np.full(count + (not member), ONE)


def _counts(draw, length: int, member: bool):
  half = int(draw.choice(_pairs(length)))
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
