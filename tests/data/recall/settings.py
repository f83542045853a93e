"""Settings of tasks for tests: a byte tokenizer, small chunks, and a haystack of a few documents."""

import functools

import numpy as np

from atlas_jax.data import recall
from atlas_jax.data.recall import sample
from atlas_jax.data.recall.haystack import Haystack
from atlas_jax.data.tokenizer import ByteTokenizer

ALIGN = 16
WORDS = ("def", "return", "value", "index", "for", "in", "range", "self", "\n", "\n", "=", "+", "None")
SYLLABLES = ("ba", "che", "dor", "fi", "gul", "hem", "jas", "kip", "lo", "mun", "nev", "pra", "rus", "tol")


@functools.cache
def texts():
  """Thirty documents of some hundred bytes each: common words, and others, of which some are names."""
  draw = np.random.default_rng(5)

  def word():
    made = "".join(draw.choice(SYLLABLES, size=draw.integers(2, 4)))
    kind = draw.random()
    common = str(draw.choice(WORDS))
    return common if kind < 0.5 else made if kind < 0.8 else made.capitalize() if kind < 0.95 else str(
        draw.integers(10**4, 10**7))

  return [" ".join(word() for _ in range(size)) for size in draw.integers(60, 200, size=30)]


@functools.cache
def haystack():
  """The documents of `texts`, as bytes."""
  return haystack_of([text.encode() for text in texts()])


def haystack_of(documents, tokenizer=None):
  """Documents to hide things in."""
  ids = [(tokenizer or ByteTokenizer()).encode(document) for document in documents]
  lengths = np.array(list(map(len, ids)))
  return Haystack(np.concatenate(ids).astype(np.uint16), np.cumsum(lengths) - lengths, lengths)


def setting(align_tokens=ALIGN, tokenizer=None, text=haystack, **options):
  """A setting with these options; by default a gap of 32 tokens."""
  return recall.setting_of({"task_gap_tokens": 32, **options}, tokenizer=tokenizer or ByteTokenizer(),
                           align_tokens=align_tokens, haystack=text)


def drawn(name, given, *, count=20, split="eval", seed=0):
  """Yields (cell, text) of every cell of a task, so many of each."""
  task = recall.load(name)
  for cell in task.cells(given):
    for number in range(count):
      yield cell, task.sample(cell, given, seed=seed, split=split, number=number)


def ids_of(text):
  """All ids that are read before the last answer is complete."""
  return np.r_[sample.joined(text.context, 0, text.context_len), text.input_T]


def words_of(text):
  """(context, question, answer) of a text in words."""
  context_T = sample.joined(text.context, 0, text.context_len)
  start = int(np.argmax(text.answer_T >= 0)) + 1
  answer_T = text.target_T[text.answer_T >= 0]
  parts = (context_T, text.input_T[:start], answer_T)
  return tuple(ByteTokenizer().decode(part) for part in parts)


def answers(text):
  """The ids of each answer."""
  return [text.target_T[text.answer_T == n].tolist() for n in range(len(text.distance_N))]
