"""How far attention sees in training: lengths, their frequencies, and what they depend on."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.optim import windows

RANDOM = dict(kind="random", least_tokens=4, delay_steps=None, window_tokens=64, seed=3)


def lengths(steps=4_000, **changes):
  return np.asarray(jax.jit(jax.vmap(windows.schedule(**RANDOM | changes)))(jnp.arange(steps)))


def test_random_windows_fall_into_each_octave_equally_often():
  found = lengths()
  assert found.dtype == np.int32 and found.min() == 4 and found.max() == 64
  counts = np.histogram(found, [4, 8, 16, 32, 65])[0]
  expected = len(found) * np.diff(np.log([4, 8, 16, 32, 65])) / np.log(65 / 4)
  assert np.abs(counts - expected).max() < 5 * np.sqrt(expected.max())


def test_every_length_between_the_least_and_the_whole_is_drawn():
  assert set(lengths(least_tokens=1, window_tokens=6)) == {1, 2, 3, 4, 5, 6}


def test_a_window_depends_on_seed_and_update_alone():
  one = windows.schedule(**RANDOM)
  assert [int(one(jnp.int32(step))) for step in (7, 0, 31)] == list(lengths(32)[[7, 0, 31]])
  assert (lengths(32) != lengths(32, seed=4)).any() and len(set(lengths(32))) > 8


def test_a_delayed_window_is_the_shortest_and_then_the_whole():
  assert list(lengths(5, kind="delayed", delay_steps=3)) == [4, 4, 4, 64, 64]


def test_a_full_window_is_no_function_and_an_unknown_kind_is_refused():
  assert windows.schedule(**RANDOM | dict(kind="full")) is None
  with pytest.raises(ValueError, match="config.window.kind='short' is unknown; known are full, random, del"):
    windows.schedule(**RANDOM | dict(kind="short"))


def test_rows_are_dropped_one_by_one_as_often_as_asked():
  keys = jax.random.split(jax.random.key(0), 2_000)
  keep = np.asarray(jax.vmap(lambda key: windows.kept_rows(key, 4, 0.3))(keys))
  assert keep.dtype == np.float32 and set(np.unique(keep)) == {0.0, 1.0}
  # Counts of kept rows in a batch, if each is drawn by itself.
  expected = 2_000 * np.array([math.comb(4, n) * 0.7**n * 0.3 ** (4 - n) for n in range(5)])
  counts = np.bincount(keep.sum(axis=1).astype(int), minlength=5)
  assert np.abs(counts - expected).max() < 5 * np.sqrt(expected.max())
  assert np.abs(keep.mean(axis=0) - 0.7).max() < 0.06


def test_all_or_no_rows_are_dropped_at_the_ends():
  assert windows.kept_rows(jax.random.key(0), 4, 0.0) is None
  assert not np.asarray(windows.kept_rows(jax.random.key(0), 64, 1.0)).any()
