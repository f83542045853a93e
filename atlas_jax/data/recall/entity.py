"""Masked entities: names and numbers in lines of real text, asked for by their line without them.

  ... \\nlast seen by Ferdinand in\\n ... \\nlast seen by ____ in\\nlast seen by Ferdinand

An entity is a number, or a word with a capital, an underscore or a digit in it, of 5 to 16 characters. Real
text has it at one place of the episode, and not among its common words: a stretch of other text must lack it,
too. Of a long line the nearest words count: up to 24 bytes before the entity, of which there must be 8, and
12 behind it. The question is the line with a mask in the place of the entity, and again up to there. Answered
by greedy decoding, and right if all of it is.
"""
import re

from atlas_jax.data.recall import episode, sample

AXES = ("items", "distance")
READS = ("episode_items", "episode_distances")
STRETCH_TOKENS = 96  # In which one entity is looked for.
COMMON_TOKENS = 2048  # Of other text, whose words are too common.
FILLER_TOKENS = 16  # Before a line, at most.
LEAST_LEFT, MOST_LEFT, MOST_RIGHT = 8, 24, 12  # Bytes of a line before an entity, and behind it.
MOST = {"stored": 70, "asked": 82}  # Bytes of an item at most, see `episode.room`.
MASK = "____"
# No letter beyond ASCII may touch it: a part of a word would be cut off.
WORD = re.compile(rb"(?<![\w\x80-\xff])\w{5,16}(?![\w\x80-\xff])")

cells = episode.cells


def draw(cell, draw, setting) -> sample.RecallSample:
  """Draws a text."""
  encode = setting.tokenizer.encode
  common = set(WORD.findall(_bytes(setting, setting.haystack().take(draw, COMMON_TOKENS))))

  def make(number: int) -> episode.StoredItem | None:
    del number
    text = _bytes(setting, [setting.haystack().stretch(draw, STRETCH_TOKENS)])
    found = [one for one in entities(text) if one[1] not in common]
    if not found:
      return None
    left, word, right = (part.decode(errors="ignore") for part in found[int(draw.integers(len(found)))])
    before_T = episode.filler(draw, setting, FILLER_TOKENS)
    line = episode.line_of(setting, f"\n{left}", word, f"{right}\n", before_T)
    masked = [line.cue_T, encode(MASK), encode(right), line.cue_T]
    return line._replace(asked_T=sample.joined(masked, 0, sample.length_of(masked)))

  return episode.text(cell, draw, setting, make, kind="a line of real text with a name or a number")


def chance(cell, setting) -> float:
  """Returns 0: an answer may be any name or number."""
  # Names are not drawn from a list, so that nothing but the line helps one who guesses, and how far it does
  # is measured by emptying the memory.
  del cell, setting
  return 0.0


def entities(text: bytes) -> list[tuple[bytes, bytes, bytes]]:
  """Returns (left, entity, right) of every entity of a text that has enough of its line before it.

  The first word of the text may be a part of one, and is left out.
  """
  found = []
  for match in WORD.finditer(text):
    word = match[0]
    if not (_is_name(word) or word.isdigit()) or text.count(word) > 1:
      continue
    start = text.rfind(b"\n", 0, match.start()) + 1 or text.find(b" ") + 1
    left = text[start:match.start()].lstrip()
    if len(left) > MOST_LEFT:
      left = left[-MOST_LEFT:].partition(b" ")[2]
    right = text[match.end():].partition(b"\n")[0][:MOST_RIGHT].rstrip()
    if len(left.strip()) >= LEAST_LEFT and match.end() < len(text):
      found.append((left, word, right))
  return found


def _is_name(word: bytes) -> bool:
  """Returns whether a word is written as a name; what is in small letters alone may be any word."""
  return len(re.findall(rb"[A-Za-z]", word)) >= 5 and bool(re.search(rb"[A-Z0-9_]", word))


def _bytes(setting, parts) -> bytes:
  return setting.tokenizer.decode_bytes(sample.joined(parts, 0, sample.length_of(parts)))
