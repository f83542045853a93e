"""The compiled programs of a scheduler: each has one shape, so what a row computes has no other.

A product of matrices may round differently with the number of its rows. On a CPU one row goes another way
than two, and sixty-four another than thirty-two; the row's place among them and the others' contents change
nothing. So prompts are read as [1, piece_tokens] always, and slots written as groups of group_rows always.
"""
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from atlas_jax.language.decoding import drawing
from atlas_jax.language.decoding import engine as engines
from atlas_jax.models.language import LanguageModel
from atlas_jax.parallel import mesh as meshes


class Shapes(NamedTuple):
  """The sizes that are part of the numbers."""

  group_rows: int
  piece_tokens: int
  room_tokens: int | None  # of a decoder


class SlotPrograms(NamedTuple):
  """Programs of one model, each compiled at its first use; `row` is a state of one row.

  `row` and `state` are those of `LanguageModel`, `drawing` of `drawing.DrawState`. Those in slots
  have the form of `LanguageModel.writing`.
  """

  shapes: Shapes
  blank: Callable  # () -> row that has read nothing
  read: Callable  # (params, row, tokens_N: at most piece_tokens ids) -> (row, hidden_BD); the old row stays
  first: Callable  # (params, hidden_BD, drawing of one row) -> (drawing, DrawnIds): what a prompt's end draws
  group: Callable  # () -> (state, drawing) of group_rows free slots
  insert: Callable  # (state, drawing, slot, row of either form, its drawing) -> (state, drawing)
  take: Callable  # (state, drawing, slot) -> (row as in slots, drawing of one row); the group stays as it is
  step: Callable  # (params, state, drawing) -> (state, drawing, DrawnIds): reads the last ids, draws the next
  set_bias: Callable  # (drawing, slot, bias_V) -> drawing
  put: Callable  # row or hidden_BD of the host -> the same where those of `read` are


def make(language: LanguageModel, shapes: Shapes, *, mesh=None) -> SlotPrograms:
  """Returns the programs of a model; `group`, `step`, `insert` and `set_bias` use up the group they take.

  Raises:
    ValueError: if the sizes do not fit the model.
  """
  _check(language, shapes)
  pure = engines.of(language, room_tokens=shapes.room_tokens)
  vocab_size = language.vocab_size
  axes = (language.writing_axes, 0)
  compiled = functools.partial(jax.jit, out_shardings=None if mesh is None else meshes.replicated(mesh))

  def read_piece(params, row, tokens_BT, count_B):
    return language.extend(params, row, tokens_BT, count_B)

  def first(params, hidden_BD, draws):
    return drawing.draw(language.logits(params, hidden_BD), draws)

  def step(params, state, draws):
    state, logits_BV = pure.decode(params, state, draws.token_B)
    return (state, *drawing.draw(logits_BV, draws))

  def insert(state, draws, slot, row, row_draws):
    def put(axis, old, new):
      return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), slot, axis)

    return engines.by_rows(put, axes, (state, draws), (language.writing(row), row_draws))

  def take(state, draws, slot):
    def one(axis, x):
      return jax.lax.dynamic_slice_in_dim(x, slot, 1, axis)

    return engines.by_rows(one, axes, (state, draws))

  def group():
    return language.writing(pure.init(shapes.group_rows)), drawing.empty(shapes.group_rows, vocab_size)

  def set_bias(draws, slot, bias_V):
    return draws._replace(bias_BV=draws.bias_BV.at[slot].set(bias_V))

  def put(host):
    # Placed otherwise, if only in name, `read` would be compiled once more, and all would wait for it.
    return place(host) if mesh is None else jax.device_put(host, meshes.replicated(mesh))

  # Not donated: the state of a piece's start is read on from more than once.
  read = functools.partial(_read, compiled(read_piece), shapes.piece_tokens)
  return SlotPrograms(
      shapes, compiled(functools.partial(pure.init, 1)), read, compiled(first), compiled(group),
      compiled(insert, donate_argnums=(0, 1)), compiled(take), compiled(step, donate_argnums=(1, 2)),
      compiled(set_bias, donate_argnums=0), put)


def _read(piece: Callable, piece_tokens: int, params, row, tokens_N):
  """Reads up to a piece of ids, padded to its whole."""
  tokens_BT = np.zeros((1, piece_tokens), np.int32)
  tokens_BT[0, :len(tokens_N)] = tokens_N
  return piece(params, row, tokens_BT, np.array([len(tokens_N)], np.int32))


def _check(language: LanguageModel, shapes: Shapes) -> None:
  for name in ("group_rows", "piece_tokens"):
    if getattr(shapes, name) < 1:
      raise ValueError(f"{name}={getattr(shapes, name)} must be at least 1")
  block = language.attention_block_tokens
  if block is not None and shapes.piece_tokens > block and shapes.piece_tokens % block:
    raise ValueError(f"piece_tokens={shapes.piece_tokens} must be at most the model's "
                     f"attention_block_tokens={block}, or a multiple of it")
  if language.token_axes is None:
    return
  if shapes.room_tokens is None or shapes.room_tokens < shapes.piece_tokens:
    raise ValueError(f"room_tokens={shapes.room_tokens} must be the longest text that a decoder is to hold, "
                     f"at least piece_tokens={shapes.piece_tokens}; its cache has a place for each token")
  if language.max_positions is not None and shapes.room_tokens > language.max_positions:
    raise ValueError(f"room_tokens={shapes.room_tokens} is more than the model's learned_positions="
                     f"{language.max_positions}; lower it")


def place(host: Any) -> Any:
  """Puts arrays of the host on the device."""
  return jax.tree.map(jnp.asarray, host)
