"""Keys and values of random letters on lines of their own in real text, then all keys again.

  ... \\nqeb=vud\\n ... \\nkox=ban\\n ... \\nkox=ban\\nqeb=vud

Between the lines stand 0 to 48 tokens of text. A key stands right before its value, so that a memory whose
keys are the last few tokens can hold it: with the tokenizer of bytes, and the line break, it is 5 of them.
Answered by greedy decoding, and right if all letters are.
"""
from atlas_jax.data.recall import episode, sample

AXES = ("items", "distance")
READS = ("episode_items", "episode_distances")
LETTERS = 3  # Of a key, and of a value.
FILLER_TOKENS = 48  # Before a line, at most.
MOST = {"stored": 57, "asked": 8}  # Bytes of an item at most, see `episode.room`.

cells = episode.cells


def draw(cell, draw, setting) -> sample.RecallSample:
  """Draws a text."""

  def make(number: int) -> episode.StoredItem:
    del number
    key, value = ("".join(map(chr, ord("a") + draw.integers(26, size=LETTERS))) for _ in range(2))
    before_T = episode.filler(draw, setting, FILLER_TOKENS)
    return episode.line_of(setting, f"\n{key}=", value, "\n", before_T)

  return episode.text(cell, draw, setting, make, kind="a key and a value")


def chance(cell, setting) -> float:
  """Returns one in the number of values."""
  del cell, setting
  return 26.0 ** -LETTERS
