"""One text under two tokenizers: spans that end alike in both, and vocabularies as classes of the same text.

A tokenizer's ids stand for bytes, so the same text has the same bytes under both, cut at different places.
Between two places where both cut, the ids of either say the same: that is a span.
"""
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from atlas_jax.data.tokenizer import Tokenizer

# Texts that tokenizers with the same ids may still cut at different places.
PROBES = ("The 12 boxes weigh 3.75 kg each;\n  isn't that 45 kg?\t(Yes!)",
          "def f(x):\n    return x**2  # größer 数字 🙂", "47+85=7+5=12 4+8+1=13 #### 132")


class Spans(NamedTuple):
  """Spans on which two sequences of ids of one text agree; N of them, in the order of the text."""

  student_T: np.ndarray  # int32, the span of each of the student's ids; -1: of none
  teacher_T: np.ndarray  # int32, of the teacher's
  student_first_N: np.ndarray  # int32, where each span begins among the student's ids
  teacher_first_N: np.ndarray  # int32, among the teacher's
  single_N: np.ndarray  # bool, one id on either side
  counts_N: np.ndarray  # bool, False where an id without bytes stands, which the other side does not have


class VocabularyClasses(NamedTuple):
  """Two vocabularies as classes of ids, so that a class means the same in both."""

  student_V: np.ndarray  # int32, the class of each id; -1: of none
  teacher_V: np.ndarray
  size: int  # how many classes; each has an id of either vocabulary


def align(student_bytes_T, teacher_bytes_T, common_bytes: int) -> Spans:
  """Cuts a text where both tokenizers cut it.

  Args:
    student_bytes_T, teacher_bytes_T: how many bytes each id stands for, 0 for special ids.
    common_bytes: how long the text is that both have; ids behind it belong to no span.

  Returns:
    Spans, as many and as short as can be.
  """
  sides = [np.asarray(lengths, np.int64) for lengths in (student_bytes_T, teacher_bytes_T)]
  ends = [np.cumsum(lengths) for lengths in sides]
  left, right = (end[length > 0] for end, length in zip(ends, sides))
  # Ends are counted in bytes of the text, the one unit that both tokenizers share. Only ids with bytes can
  # end a span: a special id ends where the one before it does.
  shared_N = np.intersect1d(left, right)
  shared_N = shared_N[shared_N <= common_bytes]
  spans = []
  firsts = []
  counts = []
  bare = np.zeros(len(shared_N), bool)
  for end, length in zip(ends, sides):
    # The span that ends at or behind the id's end. A special id falls into the span that ends where it
    # stands, and makes that span `bare`: its probability has no counterpart on the other side.
    span_T = np.searchsorted(shared_N, end)
    span_T[span_T == len(shared_N)] = -1
    bare[span_T[(length == 0) & (span_T >= 0)]] = True
    found, first = np.unique(span_T, return_index=True)
    # `found` is sorted, and every shared end closes an id of this side, so there
    # is one first id for each span.
    firsts.append(first[found >= 0].astype(np.int32))
    counts.append(np.bincount(span_T[span_T >= 0], minlength=len(shared_N)))
    spans.append(span_T.astype(np.int32))
  single_N = (counts[0] == 1) & (counts[1] == 1)
  return Spans(spans[0], spans[1], firsts[0], firsts[1], single_N, ~bare)


def with_end(spans: Spans) -> Spans:
  """Adds the span of the ids that end the text, one behind the others on either side."""

  def add(x, value):
    return np.append(x, value).astype(x.dtype)

  n = len(spans.single_N)
  return Spans(add(spans.student_T, n), add(spans.teacher_T, n),
               add(spans.student_first_N, len(spans.student_T)),
               add(spans.teacher_first_N, len(spans.teacher_T)), add(spans.single_N, True),
               add(spans.counts_N, True))


def same_text(ids, of: Tokenizer, other: Tokenizer) -> tuple[np.ndarray, int, bool]:
  """Writes the text of some ids in the ids of another tokenizer.

  Returns:
    (ids of the other, bytes from the start that both have, whether these are all that the text has). They
    are not where the text is broken UTF-8, which is read no further than that, or the other tokenizer
    changes what it reads.
  """
  ids = np.asarray(ids, np.int32)
  text = of.decode_bytes(ids[ids < of.vocab_size])  # A model may have more ids, which stand for no text.
  try:
    text.decode()
    valid = text
  except UnicodeDecodeError as error:
    # A model may stop inside a character; the other tokenizer would read replacement characters instead.
    valid = text[:error.start]
  written = other.encode(valid)
  common = _common_bytes(valid, other.decode_bytes(written))
  return written, common, common == len(text)


def _common_bytes(left: bytes, right: bytes) -> int:
  size = min(len(left), len(right))
  same = np.frombuffer(left[:size], np.uint8) == np.frombuffer(right[:size], np.uint8)
  return size if same.all() else int(np.argmin(same))


def classes(student: Tokenizer, teacher: Tokenizer, student_ends: Iterable[int],
            teacher_ends: Iterable[int]) -> VocabularyClasses:
  """Sorts the ids of two vocabularies into classes that say the same of what the text goes on with.

  An id whose bytes both vocabularies have is of the class of these bytes. An id that only one has counts as
  the longest beginning that both have: where the teacher may say "12" and the student says "1", then "2",
  both say that the text goes on with "1" and with nothing longer that both know. That is exact where
  tokenizers take the longest id that fits. The ids that end a text are one class.

  Args:
    student, teacher: the tokenizers.
    student_ends, teacher_ends: ids that end a text.

  Returns:
    The classes; an id without bytes that ends nothing, and one with no beginning that both have, is of none.
  """
  tables = [bytes_of_ids(tokenizer) for tokenizer in (student, teacher)]
  # Sorted: the numbers of classes must not depend on the order of a set, which differs between processes.
  shared = sorted((set(tables[0]) & set(tables[1])) - {b""})
  number = {text: at for at, text in enumerate(shared)}
  longest = max(map(len, shared), default=0)
  found = []
  for table, ends in zip(tables, (student_ends, teacher_ends)):
    class_V = np.array([_class_of(text, number, longest) for text in table], np.int32)
    # Set after the classes of bytes: an id that ends a text ends it even where it has bytes.
    class_V[list(ends)] = len(shared)
    found.append(class_V)
  kept = np.intersect1d(found[0], found[1])
  kept = kept[kept >= 0]  # All of them, unless an id that ends a text took the only one of a class.
  # Two entries more than texts: the class of ends, and one that stays -1 and is the last, so that class
  # -1 indexes it and remains -1.
  renumber = np.full(len(shared) + 2, -1, np.int32)
  renumber[kept] = np.arange(len(kept))
  return VocabularyClasses(renumber[found[0]], renumber[found[1]], len(kept))


def _class_of(text: bytes, number: dict[bytes, int], longest: int) -> int:
  for size in range(min(len(text), longest), 0, -1):
    if (at := number.get(text[:size])) is not None:
      return at
  return -1


def bytes_of_ids(tokenizer: Tokenizer) -> list[bytes]:
  """Returns the bytes of every id, b"" for special ids."""
  return [tokenizer.decode_bytes([token]) for token in range(tokenizer.vocab_size)]


def difference(student: Tokenizer, teacher: Tokenizer) -> str | None:
  """Says in what two tokenizers differ, so that the same ids would not mean the same; None if in nothing."""
  if student.fingerprint == teacher.fingerprint:
    return None
  tables = bytes_of_ids(student), bytes_of_ids(teacher)
  if len(tables[0]) != len(tables[1]):
    return f"the student's has {len(tables[0])} ids, the teacher's {len(tables[1])}"
  for token, (left, right) in enumerate(zip(*tables)):
    if left != right:
      return f"id {token} is {left!r} to the student's and {right!r} to the teacher's"
  if student.doc_id != teacher.doc_id:
    return f"a text ends with id {student.doc_id} in the student's, with {teacher.doc_id} in the teacher's"
  # The same table does not mean the same merges. This is a check and no proof, which would need all texts.
  for probe in PROBES:
    if not np.array_equal(student.encode(probe), teacher.encode(probe)):
      return f"they cut {probe!r} at different places"
  return None
