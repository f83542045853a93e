"""States on the host: whole where their size is fixed, and only the new tokens' rows where it grows.

A memory model's state stands for all that it read. Of a decoder's cache a part holds the rows of some tokens,
and the parts from a text's start on make the cache again, so that texts with a common start share them.
"""
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from atlas_jax.models.language import LanguageModel


class StateParts(NamedTuple):
  """Functions that take states apart and put them together."""

  grows: bool  # whether a state is made of all parts from a text's start on, not of the last one alone
  row_bytes: int  # of the state of a row
  capture: Callable  # (row, start, stop) -> arrays: of the state behind `stop` tokens, what `start` had not
  restore: Callable  # (sequence of parts, the last one at the end) -> row


def of(language: LanguageModel, room_tokens: int | None) -> StateParts:
  """Returns the functions for the states of one row of a model."""
  shapes = jax.eval_shape(lambda: language.zero_state(1, room_tokens))
  leaves, form = jax.tree.flatten(shapes)
  row_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
  if language.token_axes is None:
    def whole(row, start: int, stop: int):
      del start, stop
      return [np.asarray(leaf) for leaf in jax.tree.leaves(row)]

    return StateParts(False, row_bytes, whole,
                      lambda parts: jax.tree.unflatten(form, map(jnp.asarray, parts[-1])))
  axes = jax.tree.leaves(jax.tree.map(lambda axis, part: jax.tree.map(lambda _: axis, part),
                                      language.token_axes, shapes))

  def capture(row, start: int, stop: int):
    return [np.asarray(leaf) if axis < 0 else _rows(np.asarray(leaf), axis, start, stop).copy()
            for axis, leaf in zip(axes, jax.tree.leaves(row), strict=True)]

  def restore(parts: Sequence[list[np.ndarray]]):
    return jax.tree.unflatten(form, [
        jnp.asarray(_joined(axis, leaf, [part[at] for part in parts]))
        for at, (axis, leaf) in enumerate(zip(axes, leaves, strict=True))])

  return StateParts(True, row_bytes, capture, restore)


def _rows(array: np.ndarray, axis: int, start: int, stop: int) -> np.ndarray:
  return array[(slice(None),) * axis + (slice(start, stop),)]


def _joined(axis: int, leaf, parts: list[np.ndarray]) -> np.ndarray:
  """Returns a leaf with the rows of all parts from its start on, zeros behind them, as a cache begins."""
  if axis < 0:
    return parts[-1]
  joined = np.zeros(leaf.shape, leaf.dtype)
  at = 0
  for part in parts:
    size = part.shape[axis]
    _rows(joined, axis, at, at + size)[...] = part
    at += size
  return joined
