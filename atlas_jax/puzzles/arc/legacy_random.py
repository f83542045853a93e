"""The numbers of NumPy's old generator, many augmentations at a time.

`numpy.random.RandomState` draws an integer of 0..m by taking 32-bit words, keeping the low bits that m needs,
until the result is at most m; m = 0 takes none. How many words a draw takes is known only by taking them.
Here words are taken in blocks and the draws followed inside a block: the same numbers as by thousands of
calls, in a small part of the time. NumPy promises that these streams never change.
"""
import numpy as np

_BLOCK = 2**16
# One word for the transform, and for each step of the shuffle (m + 1 values of 2**bits) as many as its
# rejections make: 1 + 16/9 + 8/8 + 8/7 + 8/6 + 8/5 + 4/4 + 4/3 + 2/2 = 11.2.
_WORDS_OF_AN_AUGMENTATION = 12  # On average 11.2 are taken.
_BOUNDS = ((8, 15), (7, 7), (6, 7), (5, 7), (4, 7), (3, 3), (2, 3), (1, 1))  # Largest result, its bits.


class LegacyRandom:
  """A stream of `numpy.random.RandomState(seed)`; it belongs to its owner, not to the process."""

  def __init__(self, seed: int):
    self._random = np.random.RandomState(seed)
    self._words = np.zeros(0, np.uint32)
    self._at = 0

  def words(self, count: int) -> np.ndarray:
    """Looks at the next `count` words without taking them, uint32."""
    missing = self._at + count - len(self._words)
    if missing > 0:
      # Over all 32 bits nothing is masked or rejected: these are the words that any
      # other draw would begin from.
      fresh = self._random.randint(0, 2**32, max(missing, _BLOCK), dtype=np.uint32)
      self._words = np.concatenate([self._words[self._at:], fresh])
      self._at = 0
    return self._words[self._at:self._at + count]

  def skip(self, count: int) -> None:
    """Takes `count` words that `words` showed."""
    self._at += count

  def below(self, bound: int) -> int:
    """Draws as randint(0, bound) does."""
    # The low bits of each word, again until the result fits: NumPy's old `randint` of ranges below 2**32. A
    # range of one value takes no word.
    mask = mask_of(bound - 1)
    while bound > 1:
      word = int(self.words(1)[0]) & mask
      self.skip(1)
      if word < bound:
        return word
    return 0

  def shuffled(self, count: int) -> list[int]:
    """Returns the order into which shuffle puts `count` things."""
    order = list(range(count))
    for last in range(count - 1, 0, -1):
      other = self.below(last + 1)
      order[last], order[other] = order[other], order[last]
    return order

  def augmentations(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Looks at the next draws of randint(0, 8) and permutation(1..9), one pair after another.

    Returns:
      (transforms [n], permutations [n, 10] uint8 with colour 0 in front, ends [n]), where ends says how many
      words are to be skipped to have taken that draw and all before it; n is at least 1 and at most `count`.
    """
    # The mean with some room; where it is not enough, fewer augmentations are returned.
    words = self.words(_WORDS_OF_AN_AUGMENTATION * count + 600)
    end = len(words)
    places = np.arange(len(words), dtype=np.int32)
    accepted = {}
    # For every place of the block, the first place at or behind it whose word a draw with this bound would
    # accept: the minimum of all fitting places from there on. Bounds that fill their bits accept any word.
    for bound, mask in _BOUNDS:
      if bound < mask:
        fits = np.where((words & np.uint32(mask)) <= bound, places, end)
        accepted[bound] = np.append(np.minimum.accumulate(fits[::-1])[::-1], end)
    after = np.minimum(places + 1, end)  # Of each place: where a draw that starts there would end.
    # Followed for all places at once, the eight draws of a shuffle are eight look-ups. What remains is to hop
    # from augmentation to augmentation, one step each.
    for bound, _ in _BOUNDS:
      after = np.minimum((accepted[bound][after] if bound in accepted else after) + 1, end)
    starts = []
    ends = []
    following = after.tolist()
    place = 0
    while len(starts) < count and place < end and following[place] < end:
      starts.append(place)
      place = following[place]
      ends.append(place)
    at = np.array(starts, np.int32)
    kinds = (words[at] & np.uint32(7)).astype(np.uint8)
    permutations = np.tile(np.arange(10, dtype=np.uint8), (len(at), 1))
    each = np.arange(len(at))
    at = at + 1
    for bound, mask in _BOUNDS:
      at = accepted[bound][at] if bound in accepted else at
      other = (words[at] & np.uint32(mask)) + 1
      # Fisher and Yates from the back, over the colours 1 to 9: entry `bound` of nine, which is `bound + 1`
      # behind the fixed 0, changes places with a drawn one before it or itself.
      last = permutations[:, bound + 1].copy()
      permutations[:, bound + 1] = permutations[each, other]
      permutations[each, other] = last
      at = at + 1
    return kinds, permutations, np.array(ends, np.int64)


def mask_of(largest: int) -> int:
  """Returns the bits that a draw of 0..largest keeps."""
  return (1 << largest.bit_length()) - 1
