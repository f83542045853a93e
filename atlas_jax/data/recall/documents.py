"""Texts of tasks as documents of a training row, see `data.packing.read_row` for its arrays."""
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from atlas_jax.data.recall import sample as samples


class TaskDocument(NamedTuple):
  """A text, with what is learnt of it."""

  tokens_T: np.ndarray
  targets_T: np.ndarray
  weight_T: np.ndarray  # float32, 1 where a token counts
  answer_T: np.ndarray  # float32, 1 where it is of an answer that has to be recalled


def blank(size: int, doc_id: int) -> dict[str, np.ndarray]:
  """Returns the arrays of a row in which nothing is real."""
  none_T = np.zeros(size, np.int32)
  mark_T = np.full(size, doc_id, np.int32)
  return {"tokens_T": mark_T, "targets_T": mark_T.copy(), "weight_T": np.zeros(size, np.float32),
          "answer_T": np.zeros(size, np.float32), "doc_T": none_T - 1, "pos_T": none_T,
          "bytes_T": none_T.copy()}


def of_sample(found: samples.RecallSample, *, context: float) -> TaskDocument:
  """Makes the document of a text with a question.

  Args:
    found: the text.
    context: weight of the tokens before the question; those of the question but the answers have none.
  """
  context_T = samples.joined(found.context, 0, found.context_len)
  answer_T = (found.answer_T >= 0).astype(np.float32)
  none_T = np.zeros(len(context_T), np.float32)
  weight_T = np.full(len(context_T), context, np.float32)
  weight_T[-1:] = 0  # What comes next is the question.
  targets_T = np.r_[context_T[1:], found.input_T[:1], found.target_T]
  return TaskDocument(np.r_[context_T, found.input_T], targets_T, np.r_[weight_T, answer_T],
                      np.r_[none_T, answer_T])


def of_text(text_T: np.ndarray, doc_id: int) -> TaskDocument:
  """Makes the document of a stretch of text, of which every token counts."""
  ones_T = np.ones(len(text_T) + 1, np.float32)
  return TaskDocument(np.r_[doc_id, text_T], np.r_[text_T, doc_id], ones_T, np.zeros_like(ones_T))


def put(arrays: Mapping[str, np.ndarray], at: int, document: TaskDocument, doc: int, byte_lengths) -> None:
  """Writes a document into the arrays of a row.

  Args:
    arrays: of the row, changed in place; those that they lack are left out.
    at: where it begins.
    document: what is written.
    doc: its number, other than those of the documents around it.
    byte_lengths: of every token of the vocabulary.
  """
  here = slice(at, at + len(document.tokens_T))
  bytes_T = np.where(document.weight_T > 0, byte_lengths[document.targets_T], 0)
  found = {**document._asdict(), "doc_T": doc, "pos_T": np.arange(len(document.tokens_T)), "bytes_T": bytes_T}
  for name, array_T in arrays.items():
    array_T[here] = found[name]
