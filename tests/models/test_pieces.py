"""Tokens cut where a grid's cells end: each piece by its row's place, and put together again."""

import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.models import pieces


@pytest.mark.parametrize("length,size", [(1, 4), (3, 4), (4, 4), (9, 4), (5, 1)])
def test_pieces_fill_cells_from_any_place_and_join_to_what_was_cut(length, size):
  places = np.repeat(np.arange(size), length + 1)
  counts = np.tile(np.arange(length + 1), size)
  x_BT = jnp.asarray(np.random.default_rng(0).integers(0, 99, (len(places), length)))
  position_B, count_B = jnp.asarray(places, jnp.int32), jnp.asarray(counts, jnp.int32)
  cut_NBT, count_NB = pieces.cut(x_BT, position_B, count_B, size)
  assert cut_NBT.shape == (pieces.number(length, size), len(places), min(length, size))
  for b, (place, count) in enumerate(zip(places, counts)):
    expected = [x_BT[b, t] for t in range(count)]
    filled = place
    for n, piece_T in enumerate(np.asarray(cut_NBT[:, b])):
      real = int(count_NB[n, b])
      assert real == min(size - filled, len(expected))
      assert list(piece_T[:real]) == expected[:real]
      expected, filled = expected[real:], (filled + real) % size
    assert not expected
  joined_BT = np.asarray(pieces.join(cut_NBT, position_B, length, size))
  for b, count in enumerate(counts):
    np.testing.assert_array_equal(joined_BT[b, :count], x_BT[b, :count])
