"""The six tasks of the mechanistic architecture design set, in the form of a language model's text.

  recall    pairs of a key and a value that return; then each key that came is asked for
  fuzzy     the same, with keys and values of one to three tokens
  noisy     recall, with noise between pairs, a fifth of all
  copy      tokens to keep, scattered in noise; behind a mark they are to be written in their order
  compress  a row of tokens; behind a mark, what stood at each of its places, in any order
  memorize  keys whose values are the same in all texts and not shown: what weights hold, and no memory does

Answered by greedy decoding; values of recall, fuzzy, noisy and copy are shown once they are scored.
Compression differs from the original, which decodes the whole row from the last token's vector: here it is
asked for by place, which has to pass through the state as well.

Source: Poli et al. 2024, arXiv:2403.17844.
"""
import numpy as np

from atlas_jax.data.recall import options, sample

AXES = ("kind", "length")
READS = ("mad_kinds", "mad_lengths")
KEYS = VALUES = NOISE = 16
PLACES = 32  # Tokens of a row that is compressed.
COPIED = 16  # Tokens to keep.
MEMORIZED = 64  # Keys; their values follow from this number as a seed.
NOISE_FRAC = 0.2
FIRST_VALUE = KEYS
FIRST_NOISE = FIRST_VALUE + VALUES
FIRST_PLACE = FIRST_NOISE + NOISE
FIRST_MEMORIZED = FIRST_PLACE + PLACES
MARK = FIRST_MEMORIZED + MEMORIZED
SYMBOLS = MARK + 1


def cells(setting) -> list[dict]:
  """Returns each kind at each length."""
  found = setting.options
  return [{"kind": kind, "length": length} for kind in found["mad_kinds"]
          for length in found["mad_lengths"]]


def draw(cell, draw, setting) -> sample.RecallSample:
  """Draws a text of the cell's kind."""
  room = options.room(setting, cell["length"], 0, "mad_lengths")
  context_T, question, distance_N = KINDS[cell["kind"]](draw, room)
  ids = sample.symbols(setting, SYMBOLS)
  asked = [(ids[shown], None if target is None else ids[target], answer)
           for shown, target, answer in question]
  return sample.in_symbols(setting, ids[np.asarray(context_T)], asked, distance_N)


def chance(cell, setting) -> float:
  """Returns one in the number of values; of fuzzy recall, where a value has one to three of them, less."""
  del setting
  if cell["kind"] == "fuzzy":
    return sum(VALUES**-length for length in (1, 2, 3)) / 3
  return 1 / VALUES


def _pairs(draw, room: int, *, longest: int = 1, noise_frac: float = 0.0):
  """Returns the context, the question and the distances of pairs that return."""
  keys = _words(draw, 0, KEYS, longest)
  values = [tuple(FIRST_VALUE + draw.integers(VALUES, size=draw.integers(1, longest + 1))) for _ in keys]
  context: list[int] = []
  last: dict[int, int] = {}  # Key -> where it was shown last.
  while True:
    which = int(draw.integers(len(keys)))
    noise = FIRST_NOISE + draw.integers(NOISE, size=1 if draw.random() < noise_frac else 0)
    pair = [*noise, *keys[which], *values[which]]
    if len(context) + len(pair) > room:
      break
    context += pair
    last[which] = len(context)
  start = room - len(context)  # A rest that holds no pair stands in front, as noise.
  context_T = np.r_[FIRST_NOISE + draw.integers(NOISE, size=start), context].astype(int)
  shown: list[int] = []
  targets: list[tuple[int, int] | None] = []
  distance_N = []
  for answer, which in enumerate(draw.permutation(sorted(last))):
    shown += keys[which]
    targets += [None] * (len(keys[which]) - 1)
    distance_N.append(room - start - last[which] + len(shown))
    targets += [(value, answer) for value in values[which]]
    shown += values[which]
    targets.append(None)  # What follows a value is drawn.
  return context_T, [(one, *(target or (None, 0))) for one, target in zip(shown, targets)], distance_N


def _words(draw, first: int, count: int, longest: int) -> list[tuple[int, ...]]:
  """Draws as many different words of one to so many symbols, none of which ends in another."""
  if longest == 1:
    return [(first + symbol,) for symbol in range(count)]
  found: list[tuple[int, ...]] = []
  while len(found) < count:
    word = tuple(first + draw.integers(count, size=draw.integers(1, longest + 1)))
    if not any(word[-len(other):] == other or other[-len(word):] == word for other in found):
      found.append(word)
  return found


def _copy(draw, room: int):
  """Returns the parts of a text with tokens to keep in noise."""
  kept_N = FIRST_VALUE + draw.integers(VALUES, size=COPIED)
  position_N = np.sort(draw.choice(room, size=COPIED, replace=False))
  context_T = FIRST_NOISE + draw.integers(NOISE, size=room)
  context_T[position_N] = kept_N
  question = [(shown, target, n) for n, (shown, target) in enumerate(zip([MARK, *kept_N], kept_N))]
  return context_T, question, room - position_N + np.arange(COPIED)


def _compress(draw, room: int):
  """Returns the parts of a text that begins with a row, which is asked for by place."""
  count = min(PLACES, room)
  row_N = FIRST_VALUE + draw.integers(VALUES, size=count)
  context_T = np.r_[row_N, FIRST_NOISE + draw.integers(NOISE, size=room - count)]
  order_N = draw.permutation(count)
  question = [(MARK, None, 0), *[(FIRST_PLACE + place, row_N[place], n) for n, place in enumerate(order_N)]]
  return context_T, question, room - order_N + 1 + np.arange(count)


def _memorize(draw, room: int):
  """Returns the parts of a text of keys without values, whose values are the same in all texts."""
  value_N = FIRST_VALUE + np.random.default_rng(MEMORIZED).integers(VALUES, size=MEMORIZED)
  context_T = FIRST_MEMORIZED + draw.integers(MEMORIZED, size=room)
  asked_N = draw.permutation(MEMORIZED)[:KEYS]
  question = [(FIRST_MEMORIZED + key, value_N[key], n) for n, key in enumerate(asked_N)]
  return context_T, question, np.zeros(KEYS)  # No text says it.


def _fuzzy(draw, room: int):
  return _pairs(draw, room, longest=3)


def _noisy(draw, room: int):
  return _pairs(draw, room, noise_frac=NOISE_FRAC)


KINDS = {"recall": _pairs, "fuzzy": _fuzzy, "noisy": _noisy, "copy": _copy, "compress": _compress,
         "memorize": _memorize}
