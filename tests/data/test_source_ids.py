"""Sources of one's own: found by a dotted name, and their ids are checked as they come."""

import numpy as np
import pytest

from atlas_jax.data import source

V = 10


class Given:
  """A source of one batch."""

  manifest = {"corpus": "mine"}

  def __init__(self, **arrays):
    self._batch = {name: np.asarray(array, np.int32) for name, array in arrays.items()}

  def next(self, params):
    return self._batch


def drawn(**arrays):
  return source.checked(Given(**arrays), name="mine.source", vocab_size=V).next(None)


def test_ids_of_the_vocabulary_and_marks_where_nothing_counts_pass():
  batch = drawn(
    tokens_BT=[[0, 9, -1]], doc_BT=[[0, 0, -1]], targets_BT=[[9, 0, -1]], weight_BT=[[1, 1, 0]]
  )
  assert batch["tokens_BT"].tolist() == [[0, 9, -1]]
  assert drawn(puzzle_B=[99])["puzzle_B"] == [99]


@pytest.mark.parametrize("arrays, message", [
  (dict(tokens_BT=[[3, 10]]), "'mine.source' gives the id 10 in tokens_BT; ids are 0..9; .*vocab_size=10"),
  (dict(tokens_BT=[[3, -1]], doc_BT=[[0, 0]]), "the id -1 in tokens_BT"),
  (dict(targets_BT=[[-1, 3]], weight_BT=[[1, 1]]), "the id -1 in targets_BT"),
  (dict(targets_BT=[[-100, 3]], weight_BT=[[0, 1]]), "the id -100 in targets_BT"),
])  # fmt: skip
def test_an_id_that_the_model_has_not_is_refused(arrays, message):
  with pytest.raises(ValueError, match=f"config.data.source=.*{message}|{message}"):
    drawn(**arrays)


def test_all_else_of_the_source_is_its_own_and_sources_of_the_package_are_left_alone():
  mine = Given()
  assert source.checked(mine, name="mine.source", vocab_size=V).manifest == mine.manifest
  assert source.checked(mine, name="text", vocab_size=V) is mine
