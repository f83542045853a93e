"""Texts as student and teacher read them: each its own prompt, and the completion in the ids of each."""
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from atlas_jax.data import chats, problems, spans
from atlas_jax.data.problems import Problem
from atlas_jax.data.tokenizer import Tokenizer
from atlas_jax.rollout import arrays

TEACHER = "teacher_"  # Before the names of arrays that are the teacher's.


class ModelView(NamedTuple):
  """Functions that encode a text for one of the two models."""

  tokenizer: Tokenizer
  prompt: Callable  # problem -> ids of its prompt, None to pass it over; see `ask.encoder`
  solution: Callable  # problem -> ids that follow the prompt; see `recorded`
  ends: tuple[int, ...]  # ids that end a completion
  end: int  # the one of them with which it ends what others wrote


def recorded(tokenizer: Tokenizer, template: chats.Template | None = None, *, max_tokens: int,
             overlong: str = "error", values: Mapping[str, Any] = problems.NOTHING) -> Callable:
  """Makes the function from a problem to the ids of its recorded solution, what ends it included.

  Args:
    tokenizer, template, values: as in `chats.encode`.
    max_tokens: of a solution.
    overlong: of a longer one: "error", "truncate" (its end is cut off), or "skip" (None is given).

  Returns:
    problem -> int32 ids, or None. It raises ValueError, naming the place of the problem.
  """
  def solve(problem: Problem) -> np.ndarray | None:
    if len(problem.reply) > 1:
      raise ValueError(f"{problem.where}: its solution has {len(problem.reply)} messages, and a recorded one "
                       "must be a single message; put those before the last into the prompt")
    ids_T, learn_T = chats.encode(problem, tokenizer, template, learn="last", **values)
    # learn="last": learnt are the ids of the reply and what ends it; those before are the prompt's.
    learnt = np.flatnonzero(learn_T)
    ids = ids_T[learnt[0]:learnt[-1] + 1]
    if len(ids) <= max_tokens:
      return ids
    if overlong == "error":
      raise ValueError(f"{problem.where}: its solution has {len(ids)} tokens, more than "
                       f"config.sampler.max_tokens={max_tokens}; raise that, or set config.data.overlong "
                       "to 'truncate' (cuts off its end) or 'skip'")
    return None if overlong == "skip" else ids[:max_tokens]

  return solve


class Text(NamedTuple):
  """One text of a batch."""

  student_prompt: Sequence[int]
  teacher_prompt: Sequence[int]
  ids: Sequence[int]  # the completion, as its writer has it
  by_teacher: bool  # whether the teacher wrote it, in its own ids


def same_ids(texts: Sequence[Text], *, pad_tokens: int, align_tokens: int) -> dict:
  """Puts texts into arrays for models of one tokenizer.

  Args:
    texts: of the batch.
    pad_tokens, align_tokens: lengths are multiples of them.

  Returns:
    What `arrays.of_completions` gives, for the student as it is, for the teacher with `TEACHER` before it.
  """
  ids = [text.ids for text in texts]
  return _both([text.student_prompt for text in texts], ids, [text.teacher_prompt for text in texts], ids,
               pad_tokens=pad_tokens, align_tokens=align_tokens)


def by_spans(texts: Sequence[Text], student: ModelView, teacher: ModelView, *, pad_tokens: int,
             align_tokens: int) -> dict:
  """Puts texts into arrays for models of different tokenizers.

  Args:
    texts, pad_tokens, align_tokens: as in `same_ids`.
    student, teacher: how they read.

  Returns:
    What `same_ids` gives, and span_BT, first_BN, the same with `TEACHER`, single_BN and span_mask_BN; see
    `data.spans.Spans`. There are as many spans as the student has places.
  """
  read = [_two_ways(text, student, teacher) for text in texts]
  made = _both([text.student_prompt for text in texts], [ids for ids, _, _ in read],
               [text.teacher_prompt for text in texts], [ids for _, ids, _ in read],
               pad_tokens=pad_tokens, align_tokens=align_tokens)
  found = [one for _, _, one in read]
  width = made["completion_BT"].shape[1]
  teacher_width = made[f"{TEACHER}completion_BT"].shape[1]
  columns = (("span_BT", "student_T", -1, width), ("first_BN", "student_first_N", 0, width),
             (f"{TEACHER}span_BT", "teacher_T", -1, teacher_width),
             (f"{TEACHER}first_BN", "teacher_first_N", 0, width),
             ("single_BN", "single_N", False, width), ("span_mask_BN", "counts_N", False, width))
  return {**made, **{name: _rows([getattr(one, field) for one in found], fill, size)
                     for name, field, fill, size in columns}}


def _two_ways(text: Text, student: ModelView, teacher: ModelView):
  """Returns the completion in the student's ids, in the teacher's, and where they agree."""
  of, other = (teacher, student) if text.by_teacher else (student, teacher)
  ids = np.asarray(text.ids, np.int32)
  # The end is an id without text. It is taken off, and behind the same text each model has its own.
  ended = len(ids) > 0 and int(ids[-1]) in of.ends
  said = ids[:-1] if ended else ids
  written, common, complete = spans.same_text(said, of.tokenizer, other.tokenizer)
  pair = (written, said) if text.by_teacher else (said, written)
  found = spans.align(_lengths(pair[0], student.tokenizer), _lengths(pair[1], teacher.tokenizer), common)
  # Cut off, or not the same text to its end in the other's ids: then there is no end to compare.
  if not (ended and complete):
    return *pair, found
  ends = (other.end, ids[-1]) if text.by_teacher else (ids[-1], other.end)
  left, right = (np.append(one, end).astype(np.int32) for one, end in zip(pair, ends))
  return left, right, spans.with_end(found)


def _lengths(ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
  """Returns how many bytes each id stands for; none where a model has more ids than its tokenizer."""
  # An id that the tokenizer does not know stands for no bytes; index 0 is only looked up in its place.
  known = ids < tokenizer.vocab_size
  return np.where(known, tokenizer.byte_lengths()[np.where(known, ids, 0)], 0)


def _both(student_prompts, student_ids, teacher_prompts, teacher_ids, **multiples: int) -> dict:
  made = arrays.of_completions(student_prompts, student_ids, **multiples)
  taught = arrays.of_completions(teacher_prompts, teacher_ids, **multiples)
  return {**made, **{TEACHER + name: array for name, array in taught.items()}}


def _rows(rows: Sequence[np.ndarray], fill, width: int) -> np.ndarray:
  array = np.full((len(rows), width), fill, bool if isinstance(fill, bool) else np.int32)
  for row, values in enumerate(rows):
    array[row, :len(values)] = values
  return array
