"""A text with a question behind it, and the parts that texts are made of."""
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

NO_ANSWER = -1  # Of a target that belongs to no answer.


class TaskSetting(NamedTuple):
  """The means by which the texts of a task are made."""

  options: Mapping[str, Any]  # name -> value, see `options.parse`
  tokenizer: Any
  align_tokens: int  # what the length of a context is a multiple of: the chunk of a memory
  haystack: Callable  # () -> haystack.Haystack: real text, read when it is first asked for
  download: bool = False  # whether sets on the hub may be fetched


class RecallSample(NamedTuple):
  """A text: a context, then inputs behind which answers are expected."""

  context: tuple[np.ndarray, ...]  # ids in parts, the document mark first; a multiple of align_tokens in all
  input_T: np.ndarray  # ids of the question, with those of the answers that are shown
  target_T: np.ndarray  # what should follow each of them
  answer_T: np.ndarray  # which answer, from 0, a target belongs to; NO_ANSWER: none
  distance_N: np.ndarray  # of each answer: tokens between it and the nearest text it follows from
  candidates: tuple[np.ndarray, ...] = ()  # all answers there could be, of a text with one; (): open
  correct: int = 0  # the right one of these

  @property
  def context_len(self) -> int:
    """Returns how many tokens stand before the question."""
    return length_of(self.context)

  def alternatives(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns (input_T, target_T, answer_T) with each candidate as the answer; as it is where it is open."""
    if not self.candidates:
      return [(self.input_T, self.target_T, self.answer_T)]
    prompt_T = self.input_T[:int(np.argmax(self.answer_T == 0)) + 1]
    return [shown_answer(prompt_T, candidate_T) for candidate_T in self.candidates]


def shown_answer(prompt_T, answer_T):
  """Returns (input_T, target_T, answer_T) of a prompt and one answer behind it.

  Given the right tokens before, each token of the answer is the likeliest one exactly if greedy decoding
  writes the answer.
  """
  target_T = np.r_[prompt_T[1:], answer_T]
  mark_T = np.full(len(target_T), NO_ANSWER)
  mark_T[len(prompt_T) - 1:] = 0
  return np.r_[prompt_T, answer_T[:-1]].astype(np.int32), target_T.astype(np.int32), mark_T.astype(np.int32)


def length_of(parts: Sequence[np.ndarray]) -> int:
  """Returns how many tokens parts have together."""
  return sum(map(len, parts))


def cut(parts: Sequence[np.ndarray], start: int, stop: int) -> list[np.ndarray]:
  """Returns the tokens from start to stop, in parts that are views."""
  found = []
  first = 0
  for part in parts:
    here = part[max(0, start - first):max(0, stop - first)]
    if len(here):
      found.append(here)
    first += len(part)
  return found


def joined(parts: Sequence[np.ndarray], start: int, stop: int) -> np.ndarray:
  """Returns the tokens from start to stop as one int32 array."""
  found = cut(parts, start, stop)
  return np.concatenate(found).astype(np.int32) if found else np.zeros(0, np.int32)


def insert(parts: Sequence[np.ndarray], places: Iterable[int], inserted: Sequence[np.ndarray]):
  """Puts texts between the tokens of parts.

  Args:
    parts: of the text.
    places: before which of its tokens, from 0 to its length, each is put; rising.
    inserted: as many texts.

  Returns:
    (parts, starts): the parts of the longer text, and where each inserted one begins in it.
  """
  found: list[np.ndarray] = []
  starts = []
  before = 0
  for place, text_T in zip(places, inserted, strict=True):
    found += cut(parts, before, place)
    starts.append(length_of(found))
    found.append(text_T)
    before = place
  return [*found, *cut(parts, before, length_of(parts))], starts


def round_up(count: int, multiple: int) -> int:
  """Returns the smallest multiple that is not below a number."""
  return -(-count // multiple) * multiple


def symbols(setting: TaskSetting, count: int) -> np.ndarray:
  """Returns ids that stand for the symbols of a task that is not written in words: the first but the mark.

  Raises:
    ValueError: if the vocabulary has not so many.
  """
  tokenizer = setting.tokenizer
  if tokenizer.vocab_size <= count:
    raise ValueError(f"config.data.tokenizer has {tokenizer.vocab_size} ids, and the task needs {count} and "
                     "the mark of documents; take a larger vocabulary, or leave the task out")
  ids_N = np.arange(count + 1, dtype=np.int32)
  return ids_N[ids_N != tokenizer.doc_id][:count]


def in_symbols(setting: TaskSetting, context_T, question: Sequence[tuple], distance_N) -> RecallSample:
  """Makes the sample of a task in symbols.

  Args:
    setting: of the task.
    context_T: ids before the question, without the document mark, which is put before them.
    question: (input id, target id or None, number of the answer) of each place; a target of None counts not.
    distance_N: see `RecallSample`.
  """
  input_T = np.array([one[0] for one in question], np.int32)
  target_T = np.array([0 if one[1] is None else one[1] for one in question], np.int32)
  answer_T = np.array([NO_ANSWER if one[1] is None else one[2] for one in question], np.int32)
  return at_border(setting, context_T, (input_T, target_T, answer_T), distance_N)


def at_border(setting: TaskSetting, context_T, question: tuple, distance_N) -> RecallSample:
  """Makes a sample of a context of any length: what follows its last whole chunk belongs to the question.

  Args:
    setting: of the task.
    context_T: ids before the question, without the document mark, which is put before them.
    question: (input_T, target_T, answer_T), see `RecallSample`.
    distance_N: see `RecallSample`.
  """
  input_T, target_T, answer_T = question
  ids_T = np.r_[setting.tokenizer.doc_id, context_T].astype(np.int32)
  border = len(ids_T) // setting.align_tokens * setting.align_tokens
  rest_T = ids_T[border:]
  after_T = np.r_[rest_T[1:], input_T[:1]][:len(rest_T)]  # What follows each token of the rest.
  none_T = np.full(len(rest_T), NO_ANSWER)
  return RecallSample((ids_T[:border],), np.r_[rest_T, input_T].astype(np.int32),
                      np.r_[after_T, target_T].astype(np.int32), np.r_[none_T, answer_T].astype(np.int32),
                      np.asarray(distance_N, np.int32))
