"""The six small tasks, their answers found again by other means than those that drew them."""

import numpy as np

from atlas_jax.data.recall import mad
from tests.data.recall.settings import answers, drawn, ids_of, setting

KEY, VALUE, NOISE = (range(first, first + 16) for first in (0, mad.FIRST_VALUE, mad.FIRST_NOISE))


def texts(kind, length=96, count=20):
  """Texts of one kind; ids of the first symbols are the symbols."""
  given = setting(mad_kinds=kind, mad_lengths=str(length))
  return [text for _, text in drawn("mad", given, count=count)]


def words(ids):
  """Splits ids into words of keys and words of values, noise left out."""
  found = []
  for one in ids:
    kind = "key" if one in KEY else "value" if one in VALUE else None
    if found and found[-1][0] == kind and kind:
      found[-1][1].append(int(one))
    else:
      found.append((kind, [int(one)]))
  return [(kind, tuple(word)) for kind, word in found if kind]


def test_pairs_that_return_have_the_value_that_was_shown_last_and_always():
  for kind in ("recall", "fuzzy", "noisy"):
    lengths = set()
    for text in texts(kind):
      context = ids_of(text)[1:text.context_len]
      found = words(context)
      shown = dict(zip([word for kind, word in found if kind == "key"],
                       [word for kind, word in found if kind == "value"]))
      asked = words(text.input_T)
      keys = [word for kind, word in asked if kind == "key"]
      assert len(set(keys)) == len(keys) and set(keys) == set(shown)
      assert [tuple(answer) for answer in answers(text)] == [shown[key] for key in keys]
      lengths |= {len(word) for _, word in found}
      noise = np.isin(context, NOISE).mean()
      assert noise > 0.05 if kind == "noisy" else noise < 0.1
    assert lengths == ({1, 2, 3} if kind == "fuzzy" else {1})


def test_tokens_to_copy_are_all_that_is_no_noise_in_their_order():
  for text in texts("copy"):
    context = ids_of(text)[1:text.context_len]
    assert [answer[0] for answer in answers(text)] == [one for one in context if one in VALUE]
    assert text.input_T[0] == mad.MARK and len(answers(text)) == mad.COPIED


def test_a_row_is_asked_for_by_place():
  for text in texts("compress"):
    row = ids_of(text)[1:1 + mad.PLACES]
    places = text.input_T[text.answer_T >= 0] - mad.FIRST_PLACE
    assert sorted(places) == list(range(mad.PLACES))
    assert [answer[0] for answer in answers(text)] == row[places].tolist()


def test_what_is_memorized_is_the_same_in_all_texts_and_in_none_of_their_contexts():
  value_of: dict = {}
  for text in texts("memorize"):
    assert not set(ids_of(text)[1:text.context_len].tolist()) & set(VALUE)
    for key, answer in zip(text.input_T[text.answer_T >= 0].tolist(), answers(text)):
      assert value_of.setdefault(key, answer) == answer
  assert len(value_of) == mad.MEMORIZED and len({answer[0] for answer in value_of.values()}) > 8


def test_distances_are_those_to_the_last_time_it_was_shown():
  for text in texts("recall"):
    ids = ids_of(text)
    for at, distance in zip(np.flatnonzero(text.answer_T >= 0), text.distance_N):
      key, place = text.input_T[at], text.context_len + at
      shown = [n for n in range(text.context_len - 1) if ids[n] == key]
      assert place + 1 - (max(shown) + 2) == distance
