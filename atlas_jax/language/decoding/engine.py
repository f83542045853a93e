"""Decoding with a language model: prompts are read by pieces, completions written id by id, a row for each.

Text generation, the sampler and servers share it. The state of an engine has one row per document; the rows
of a server are slots, into which a prompt that was read on its own is put, and which are then free again:

    row, logits_BV = engine.prefill(params, engine.init(1), prompt_BT)
    state = engine.insert(state, slot, row)
    state, logits_BV = engine.decode(params, state, token_B)  # of all slots, free ones too
    state = engine.release(state, slot)

A memory model's rows are of fixed size however long the text; a decoder's have room for a given length.
"""
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from atlas_jax.language.decoding import sampling
from atlas_jax.models.language import LanguageModel
from atlas_jax.parallel import mesh as meshes

PIECE_TOKENS = 256  # Of a prompt, read at once; the last piece is padded: one compilation for all.


class Engine(NamedTuple):
  """Functions of decoding states, pure where `of` made them, compiled where `make` did."""

  init: Callable  # (rows=1) -> state of rows that have read nothing
  prefill: Callable  # (params, state, tokens_BT, count_B=None) -> (state, logits_BV after each row's last)
  decode: Callable  # (params, state, token_B) -> (state, logits_BV)
  draw: Callable  # (logits_BV, key_B, at, settings, seen_BV=None, *, filtered), see `sampling.draw_at`
  insert: Callable  # (state, slot, row) -> state whose slot goes on from `row`, the state of one row
  release: Callable  # (state, slot) -> state whose slot has read nothing
  take_rows: Callable  # (state, row_B) -> state of the chosen rows, in their order


def of(language: LanguageModel, *, room_tokens: int | None = None) -> Engine:
  """Returns the pure functions, to be called inside of compiled ones.

  `prefill` reads on from a state; rows of no tokens stay as they are, and their scores are of no meaning. Its
  state may be None for rows that have read nothing, so that a decoder need not attend to an empty past.

  Args:
    language: the model.
    room_tokens: of a decoder: the longest text, prompt included; tokens beyond it are not kept, so callers
      must stay within it. `decode` does not need it.
  """
  axes = language.row_axes

  def init(rows: int = 1):
    return language.zero_state(rows, room_tokens)

  def prefill(params, state, tokens_BT, count_B=None):
    if count_B is None:
      count_B = jnp.full(tokens_BT.shape[:1], tokens_BT.shape[1], jnp.int32)
    if state is None:
      state, hidden_BD = language.prefill(params, tokens_BT, count_B, room_tokens=room_tokens)
    else:
      state, hidden_BD = language.extend(params, state, tokens_BT, count_B)
    return state, language.logits(params, hidden_BD)

  def decode(params, state, token_B):
    state, hidden_BD = language.decode(params, state, token_B)
    return state, language.logits(params, hidden_BD)

  def insert(state, slot, row):
    # The slot may be traced: one program puts a row into any of them.
    def put(axis, old, new):
      return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), slot, axis)

    return by_rows(put, axes, state, row)

  def take_rows(state, row_B):
    return by_rows(lambda axis, x: x[(slice(None),) * axis + (row_B,)], axes, state)

  # A slot is released by a row that has read nothing, so no trace of its last text is left.
  return Engine(init, prefill, decode, sampling.draw_at, insert,
                release=lambda state, slot: insert(state, slot, init(1)), take_rows=take_rows)


def by_rows(function: Callable, axes, *states) -> Any:
  """Applies a function of (axis that counts rows, leaves) to the leaves of states.

  Args:
    function: (axis, one leaf of each state) -> leaf.
    axes: `LanguageModel.row_axes`, a prefix of the states.
    *states: alike.
  """
  # The outer map stops at the leaves of the prefix, of which each stands for a part of the state.
  return jax.tree.map(lambda axis, *parts: jax.tree.map(functools.partial(function, axis), *parts),
                      axes, *states)


def make(language: LanguageModel, *, mesh: Mesh | None = None, piece_tokens: int = PIECE_TOKENS,
         room_tokens: int | None = None) -> Engine:
  """Returns the functions compiled, each at its first use, once for every number of rows.

  The state that `prefill`, `decode`, `insert` and `release` take is used up: it is donated, so copy what is
  to be kept. `prefill` takes prompts of any length, at the left of their rows, each of a token at least.
  Prompts with ids outside the vocabulary, and slots and rows that a state has not, are a ValueError.

  Args:
    language: the model.
    mesh: where the parameters live, if on several devices; states and logits are then whole on each.
    piece_tokens: tokens of a prompt read at once, or as many of them as a decoder can.
    room_tokens: of a decoder: the longest text, prompt included.
  """
  pure = of(language, room_tokens=room_tokens)
  piece_tokens = _piece(language, piece_tokens, room_tokens)
  compiled = functools.partial(jax.jit, out_shardings=None if mesh is None else meshes.replicated(mesh))

  # A row whose tokens ended in an earlier piece keeps the logits of its last one.
  def read_piece(params, state, tokens_BT, count_B, logits_BV):
    state, scored_BV = pure.prefill(params, state, tokens_BT, count_B)
    return state, jnp.where((count_B > 0)[:, None], scored_BV, logits_BV.astype(scored_BV.dtype))

  piece = compiled(read_piece, donate_argnums=1)
  init = compiled(pure.init, static_argnums=0)
  blank = compiled(lambda rows: jnp.zeros((rows, language.vocab_size), jnp.float32), static_argnums=0)
  insert = compiled(pure.insert, donate_argnums=0)
  release = compiled(pure.release, donate_argnums=0)
  # Not donated: several states may take rows from this one.
  take_rows = compiled(pure.take_rows)

  def prefill(params, state, tokens_BT, count_B=None):
    tokens_BT, count_B = _prompt(tokens_BT, count_B, language.vocab_size)
    rows, length = tokens_BT.shape
    logits_BV = blank(rows)
    for start in range(0, length, piece_tokens):
      part_BT = tokens_BT[:, start:start + piece_tokens]
      part_BT = np.pad(part_BT, ((0, 0), (0, piece_tokens - part_BT.shape[1])))
      # Of a row that has ended nothing is left: 0 tokens, and its state stays as it is.
      state, logits_BV = piece(params, state, part_BT, np.clip(count_B - start, 0, piece_tokens), logits_BV)
    return state, logits_BV

  checked = functools.partial(_checked, language.row_axes)
  return Engine(
      init=lambda rows=1: init(rows), prefill=prefill, decode=compiled(pure.decode, donate_argnums=1),
      draw=compiled(pure.draw, static_argnames="filtered"),
      insert=lambda state, slot, row: insert(state, checked(state, slot), row),
      release=lambda state, slot: release(state, checked(state, slot)),
      take_rows=lambda state, row_B: take_rows(state, checked(state, row_B)))


def _piece(language: LanguageModel, piece_tokens: int, room_tokens: int | None) -> int:
  """Returns how many tokens are read at once: no more than have room, and whole blocks of attention."""
  size = piece_tokens if room_tokens is None else min(piece_tokens, room_tokens)
  block = language.attention_block_tokens
  # Attention reads in whole blocks; a piece that is longer than one is cut down to a multiple.
  return size if block is None or size <= block else size // block * block


def _checked(axes, state, rows):
  """Returns rows as an array; refuses those that are not there, for which XLA would take the nearest."""
  rows = np.asarray(rows, np.int32)
  # All leaves agree on the number of rows, so the first one will do.
  count = jax.tree.leaves(by_rows(lambda axis, x: x.shape[axis], axes, state))[0]
  if rows.size and not 0 <= rows.min() <= rows.max() < count:
    raise ValueError(f"slot {rows.tolist()} is none of the state's {count} rows, which count from 0")
  return rows


def _prompt(tokens_BT, count_B, vocab_size: int):
  """Returns the tokens of prompts and how many of each row are real."""
  tokens_BT = np.asarray(tokens_BT, np.int32)
  rows, length = tokens_BT.shape
  count_B = np.full(rows, length, np.int32) if count_B is None else np.asarray(count_B, np.int32)
  if length < 1 or count_B.min() < 1 or count_B.max() > length:
    raise ValueError(f"every row of a prompt needs 1 to {length} tokens, got {count_B.tolist()}; an empty "
                     "prompt is DOC alone")
  real_N = tokens_BT[np.arange(length)[None] < count_B[:, None]]
  if real_N.min() < 0 or real_N.max() >= vocab_size:
    raise ValueError(f"a prompt has ids from {real_N.min()} to {real_N.max()}; they must lie in 0.."
                     f"{vocab_size - 1}, the model's vocabulary")
  return tokens_BT, count_B
