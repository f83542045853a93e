"""Needles in a haystack: a sentence that gives a code, hidden in other text, and asked for at its end.

  single_1   a number, in a few sentences that return for ever
  single_2   a number, in real text
  single_3   32 hexadecimal digits, in real text
  multi_key  a number among three others under other names, in real text

Lengths count all tokens before the question. The question is the beginning of the sentence, so that a model
without tuning to instructions goes on with the code; it is answered by greedy decoding, and right if all of
the code and the full stop are.

Source: the single and multi-key needles of RULER, Hsieh et al. 2024, arXiv:2404.06654, with sentences of
ours.
"""
import numpy as np

from atlas_jax.data.recall import options, sample

AXES = ("kind", "length", "depth")
READS = ("niah_kinds", "niah_lengths", "niah_depths", "task_gap_tokens")
DIGITS = {"single_1": 7, "single_2": 7, "single_3": 32, "multi_key": 7}
BASE = {"single_3": 16}  # Of the others 10.
OTHERS = {"multi_key": 3}  # Needles that are not asked for; of the others none.
COLOURS = ("amber", "azure", "brown", "coral", "green", "ivory", "ochre", "olive", "pink", "purple", "silver",
           "violet")
ANIMALS = ("badger", "beaver", "falcon", "heron", "lizard", "marmot", "otter", "parrot", "rabbit", "salmon",
           "spider", "turtle", "walrus", "weasel", "wombat", "zebra")
BLOCK_TOKENS = 2**16  # Of the sentences that return: few parts, however long the text.
NOISE = ("The lake lies still. The wind comes from the west. Nobody is on the road. The clouds move slowly. "
         "It is a long way home. ")


def cells(setting) -> list[dict]:
  """Returns each kind at each length and depth."""
  found = setting.options
  return [{"kind": kind, "length": length, "depth": depth} for kind in found["niah_kinds"]
          for length in found["niah_lengths"] for depth in found["niah_depths"]]


def draw(cell, draw, setting) -> sample.RecallSample:
  """Draws a text with needles, the one that is asked for at the depth of the cell."""
  kind = cell["kind"]
  encode = setting.tokenizer.encode
  names = [f"{colour} {animal}" for colour in COLOURS for animal in ANIMALS]
  chosen = [names[at] for at in draw.choice(len(names), size=1 + OTHERS.get(kind, 0), replace=False)]
  codes = [code(draw, kind) for _ in chosen]
  needles = [encode(f"\nThe code of the {name} is {one}.\n") for name, one in zip(chosen, codes)]
  length = cell["length"]
  count = options.room(setting, length, sample.length_of(needles), "niah_lengths")
  hay = noise(setting, count) if kind == "single_1" else setting.haystack().take(draw, count)
  room = max(0, count - options.gap(setting.options, length, "niah_lengths"))
  places = [round(cell["depth"] * room), *draw.integers(room + 1, size=len(needles) - 1)]
  order = np.argsort(places, kind="stable")
  parts, starts = sample.insert(hay, [places[at] for at in order], [needles[at] for at in order])
  prompt_T = encode(f"\nThe code of the {chosen[0]} is")
  input_T, target_T, answer_T = sample.shown_answer(prompt_T, encode(f" {codes[0]}."))
  end = starts[list(order).index(0)] + len(needles[0])
  distance = sample.length_of(parts) - end + len(prompt_T)
  mark_T = np.array([setting.tokenizer.doc_id], np.int32)
  return sample.RecallSample((mark_T, *parts), input_T, target_T, answer_T, np.array([distance], np.int32))


def chance(cell, setting) -> float:
  """Returns one in the number of codes."""
  del setting
  return float(BASE.get(cell["kind"], 10)) ** -DIGITS[cell["kind"]]


def code(draw: np.random.Generator, kind: str) -> str:
  """Draws the code of a needle."""
  return "".join("0123456789abcdef"[digit]
                 for digit in draw.integers(BASE.get(kind, 10), size=DIGITS[kind]))


def noise(setting: sample.TaskSetting, count: int) -> list[np.ndarray]:
  """Returns so many tokens of the sentences that return, as views of one copy."""
  one_T = setting.tokenizer.encode(NOISE)
  block_T = np.tile(one_T, min(count, BLOCK_TOKENS) // len(one_T) + 1)
  return sample.cut([block_T] * (count // len(block_T) + 1), 0, count)
