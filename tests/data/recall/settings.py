"""Settings of tasks for tests: a byte tokenizer, small chunks, and a haystack of a few documents."""

import functools

import numpy as np

from atlas_jax.data import recall
from atlas_jax.data.recall import sample
from atlas_jax.data.recall.haystack import Haystack
from atlas_jax.data.tokenizer import ByteTokenizer

ALIGN = 16
WORDS = ("def", "return", "value", "index", "for", "in", "range", "self", "\n", "=", "+", "None")


@functools.cache
def haystack():
  """Ten documents of some hundred bytes each."""
  draw = np.random.default_rng(5)
  texts = [" ".join(draw.choice(WORDS, size=size)).encode() for size in draw.integers(60, 200, size=10)]
  lengths = np.array([len(text) for text in texts])
  ids = np.frombuffer(b"".join(texts), np.uint8)
  return Haystack(ids, np.cumsum(lengths) - lengths, lengths)


def setting(align_tokens=ALIGN, tokenizer=None, **options):
  """A setting with these options; by default a gap of 32 tokens."""
  return recall.setting_of({"task_gap_tokens": 32, **options}, tokenizer=tokenizer or ByteTokenizer(),
                           align_tokens=align_tokens, haystack=haystack)


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
