"""Passages of real text, each of one document; their first tokens are shown again, and the next asked for.

Nothing is put into the text here: passages are 48 tokens of it, with up to 16 tokens of the same document
before each. Behind the gap the first 16 tokens of a passage return, and the next 8 are the answer. Answered
by greedy decoding, and right if all of them are.
"""
import numpy as np

from atlas_jax.data.recall import episode, sample

AXES = ("items", "distance")
READS = ("episode_items", "episode_distances")
PASSAGE_TOKENS = 48
SHOWN_TOKENS = 16
ANSWER_TOKENS = 8
FILLER_TOKENS = 16  # Before a passage, at most.
MOST = {"stored": 64, "asked": 25}  # Bytes of an item at most, see `episode.room`.

cells = episode.cells


def draw(cell, draw, setting) -> sample.RecallSample:
  """Draws a text."""
  line_T = setting.tokenizer.encode("\n")

  def make(number: int) -> episode.StoredItem:
    del number
    before = int(draw.integers(FILLER_TOKENS + 1))
    text_T = setting.haystack().stretch(draw, before + PASSAGE_TOKENS)
    ends = before + SHOWN_TOKENS, before + SHOWN_TOKENS + ANSWER_TOKENS
    before_T, cue_T, answer_T, after_T = np.split(text_T, [before, *ends])
    return episode.StoredItem(before_T, cue_T, answer_T, after_T, np.r_[line_T, cue_T])

  return episode.text(cell, draw, setting, make, kind="a passage of real text with an answer")


def chance(cell, setting) -> float:
  """Returns 0: an answer may be any text."""
  # One who knows no more than that it is 8 tokens of text has as good as none right. How well the shown
  # tokens alone let one guess is measured by emptying the memory.
  del cell, setting
  return 0.0
