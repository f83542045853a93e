"""Spans of two tokenizers against a walk over the pieces, and classes against a look at every beginning."""

import numpy as np
import pytest

from atlas_jax.data import spans
from atlas_jax.data.tokenizer import ByteTokenizer
from tests.pieces import Pieces

TEXT = "47+85=132; größer 数字 🙂 is no 12"


def walk(student, teacher, common):
  """Pairs ids by walking along the text: the side that is behind takes its next id."""
  found, i, j, at = [], 0, 0, 0
  while True:
    left, right, s, t = at + student[i] if i < len(student) else None, None, i, j
    right = at + teacher[j] if j < len(teacher) else None
    while None not in (left, right) and left != right:
      if left < right:
        i += 1
        left = left + student[i] if i < len(student) else None
      else:
        j += 1
        right = right + teacher[j] if j < len(teacher) else None
    if None in (left, right) or left > common:
      return found
    i, j, at = i + 1, j + 1, left
    found.append((range(s, i), range(t, j)))


def test_spans_are_those_of_a_walk_along_the_text():
  draw = np.random.default_rng(0)
  for _ in range(200):
    student, teacher = (draw.integers(1, 4, draw.integers(1, 12)).tolist() for _ in range(2))
    common = int(draw.integers(0, min(sum(student), sum(teacher)) + 1))
    found, expected = spans.align(student, teacher, common), walk(student, teacher, common)
    assert len(found.single_N) == len(expected)
    for ids, ranges, first in (
            (found.student_T, [s for s, _ in expected], found.student_first_N),
            (found.teacher_T, [t for _, t in expected], found.teacher_first_N)):  # fmt: skip
      by_walk = np.full(len(ids), -1)
      for number, here in enumerate(ranges):
        by_walk[list(here)] = number
      np.testing.assert_array_equal(ids, by_walk)
      np.testing.assert_array_equal(first, [here[0] for here in ranges])
    np.testing.assert_array_equal(found.single_N, [len(s) == len(t) == 1 for s, t in expected])
    assert found.counts_N.all()


def test_a_span_with_a_special_id_inside_does_not_count():
  found = spans.align([2, 0, 1, 1], [1, 1, 1, 1], 4)
  np.testing.assert_array_equal(found.student_T, [0, 0, 1, 2])
  np.testing.assert_array_equal(found.counts_N, [False, True, True])


def test_nothing_in_common_is_no_span():
  for found in (spans.align([], [], 0), spans.align([2, 2], [1, 2], 3), spans.align([1], [1], 0)):
    assert len(found.single_N) == len(found.student_first_N) == len(found.teacher_first_N) == 0
    assert (found.student_T == -1).all()


def test_the_end_is_a_span_of_its_own():
  found = spans.with_end(spans.align([1, 1], [2], 2))
  np.testing.assert_array_equal(found.student_T, [0, 0, 1])
  np.testing.assert_array_equal(found.teacher_T, [0, 1])
  assert (found.student_first_N.tolist(), found.teacher_first_N.tolist()) == ([0, 2], [0, 1])
  assert found.single_N.tolist() == [False, True]


def test_a_text_is_written_in_the_other_s_ids():
  student, teacher = Pieces("47", "132"), Pieces("7+", " is")
  written, common, whole = spans.same_text(student.encode(TEXT), student, teacher)
  np.testing.assert_array_equal(written, teacher.encode(TEXT))
  assert (common, whole) == (len(TEXT.encode()), True)


def test_broken_characters_are_not_read():
  of = ByteTokenizer()
  written, common, whole = spans.same_text([*b"ab", 0xE6, 0x97, *b"cd"], of, Pieces("ab"))
  assert (len(written), common, whole) == (1, 2, False)
  assert spans.same_text([256], of, Pieces())[1:] == (0, True)


class Spelled(ByteTokenizer):
  """Writes every umlaut otherwise, as a normaliser does."""

  def encode(self, text):
    data = text.encode() if isinstance(text, str) else text
    return super().encode(data.replace("ö".encode(), b"oe"))


def test_what_the_other_tokenizer_changes_ends_the_common_text():
  _, common, whole = spans.same_text([*"größer".encode()], ByteTokenizer(), Spelled())
  assert (common, whole) == (2, False)


def test_classes_are_the_longest_beginnings_that_both_have():
  student, teacher = Pieces("12", "ab", specials=3), Pieces("ab", "abc", "123", specials=1)
  found = spans.classes(student, teacher, [student.doc_id, student.doc_id + 1], [teacher.doc_id])
  tables = [[one.decode_bytes([i]) for i in range(one.vocab_size)] for one in (student, teacher)]
  shared = set(tables[0]) & set(tables[1]) - {b""}
  names = {}
  for class_V, table in zip((found.student_V, found.teacher_V), tables):
    for text, number in zip(table, class_V):
      if text:
        best = max((text[:n] for n in range(1, len(text) + 1) if text[:n] in shared), key=len)
        assert names.setdefault(int(number), best) == best
  assert len(names) == len(shared) == found.size - 1
  ends = found.student_V[student.doc_id], found.student_V[student.doc_id + 1], found.teacher_V[teacher.doc_id]
  assert set(ends) == {found.size - 1}
  assert found.student_V[student.doc_id + 2] == -1
  assert set(found.student_V) - {-1} == set(found.teacher_V) == set(range(found.size))


def test_the_same_vocabulary_has_a_class_per_id_however_it_is_numbered():
  student, teacher = Pieces("12", "ab"), Pieces("12", "ab", shuffle=3)
  found = spans.classes(student, teacher, [student.doc_id], [teacher.doc_id])
  assert found.size == student.vocab_size
  for token in range(student.vocab_size - 1):
    same = int(np.flatnonzero(found.teacher_V == found.student_V[token])[0])
    assert student.decode_bytes([token]) == teacher.decode_bytes([same])


@pytest.mark.parametrize("teacher, says", (
  (Pieces("ab"), None),
  (Pieces("ab", "cd"), "the student's has 258 ids, the teacher's 259"),
  (Pieces("ac"), "id 256 is b'ab' to the student's and b'ac' to the teacher's"),
))  # fmt: skip
def test_what_two_tokenizers_differ_in_is_said(teacher, says):
  teacher.fingerprint = "another"
  assert spans.difference(Pieces("ab"), teacher) == says


def test_the_same_ids_cut_at_other_places_are_a_difference():
  teacher = Pieces("47")
  teacher.fingerprint, teacher.encode = "another", ByteTokenizer().encode
  assert "different places" in spans.difference(Pieces("47"), teacher)
