"""Fast weights that are trained while text is read, by the model's own loss on it: one step per mini-batch.

A text is read by mini-batches of b tokens. Blocks below the first with fast weights read all of it at once;
those from it on, "above", one mini-batch after another, with the fast weights W as the earlier mini-batches
left them. Then

  g = gradient by W of the mean loss of predicting token t + 1 from token t, both in the mini-batch
  W <- W - rate * g * min(1, clip_norm / |g|)          (of each row by itself, all blocks together)

so that no token's prediction depends on a later one, and training goes through g as well: gradients of
gradients. Keys and values that attention keeps of earlier mini-batches were made with the weights of their
time. A document starts with the learned W, and at a mini-batch's start.

What the last token of a mini-batch predicts has not been read when the step is taken, so that a step is by
b - 1 predictions, where the paper has b. In a stream a mini-batch's inputs are kept until it is full.

Source: Tandon et al. 2025, TTT-E2E, arXiv:2512.23675.
"""
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from atlas_jax import tree
from atlas_jax.models import pieces

SMALLEST_SQUARE = 1e-24  # Under the root of a norm, which has no gradient at zero.


class InnerState(NamedTuple):
  """State from call to call; every leaf leads with B."""

  fast: Any  # fast weights, leaves [B, blocks with them, ...]
  start: Any  # attention of the blocks above at the mini-batch's start, [B, blocks above, ...]
  rows: jax.Array  # [B, b, D] what has entered the blocks above of the mini-batch; 0 behind it
  tokens: jax.Array  # [B, b] its tokens
  place: jax.Array  # [B] int32, how many they are


def zero_state(fast, start, *, rows: int, batch_tokens: int, width: int, dtype) -> InnerState:
  """Returns the state of a model that has read nothing; `fast` and `start` are as in it."""
  x_BCD = jnp.zeros((rows, batch_tokens, width), dtype)
  tokens_BC = jnp.zeros((rows, batch_tokens), jnp.int32)
  return InnerState(fast, start, x_BCD, tokens_BC, jnp.zeros((rows,), jnp.int32))


class InnerReader(NamedTuple):
  """The model from the first block with fast weights on, as functions of these."""

  read: Callable  # (fast, attention, x_BTD, token_BTD, doc_BT, last_doc_B, count_B) -> (y_BTD, attention)
  nll: Callable  # (y_BTD, targets_BT) -> nll_BT
  initial: Any  # learned start of the fast weights, leaves [blocks with them, ...]
  batch_tokens: int  # b
  rate: float
  clip_norm: float | None  # None: no bound
  remat: bool  # whether the backward pass reads a mini-batch again
  writes: Any  # [] bool, whether steps are taken; None: they are


class InnerInput(NamedTuple):
  """The text of a call, leaves [B, T, ...]."""

  x: jax.Array  # what enters the blocks above
  tokens: jax.Array
  doc: jax.Array


def read_packed(reader: InnerReader, state: InnerState, attention, text: InnerInput, last_doc_B):
  """Reads whole mini-batches.

  Args:
    reader: of the model.
    state: at a mini-batch's start.
    attention: of the blocks above.
    text: T is a multiple of the mini-batch.
    last_doc_B: document of the last token of the earlier call.

  Returns:
    (y_BTD, InnerState, attention, stats).
  """
  def split(x):
    return jnp.moveaxis(x.reshape(x.shape[0], -1, reader.batch_tokens, *x.shape[2:]), 1, 0)

  def body(carry, part: InnerInput):
    fast, attention, last_doc_B = carry
    new_B = (part.doc[:, 0] != last_doc_B) & (part.doc[:, 0] >= 0)
    fast = _started(reader, fast, new_B)
    step = _step(reader, fast, attention, part, last_doc_B)
    last_doc_B = pieces.last_document(part.doc, last_doc_B, None)
    return (step.fast, step.attention, last_doc_B), (step.y, step.loss, step.norm)

  body = jax.checkpoint(body, prevent_cse=False) if reader.remat else body
  fast = _wide(reader, state.fast)
  (fast, attention, _), (y_NBTD, loss_NB, norm_NB) = jax.lax.scan(body, (fast, attention, last_doc_B),
                                                                 jax.tree.map(split, text))
  stats = {"inner_loss_nats": jnp.mean(loss_NB), "inner_grad_norm": jnp.mean(norm_NB)}
  y_BTD = jnp.moveaxis(y_NBTD, 0, 1).reshape(text.x.shape)
  return y_BTD, state._replace(fast=fast, start=attention), attention, jax.lax.stop_gradient(stats)


def read_stream(reader: InnerReader, state: InnerState, attention, text: InnerInput, last_doc_B, count_B):
  """Reads any number of tokens from any place in a mini-batch; all of a row are of one document.

  Args:
    reader, state, attention, text, last_doc_B: as of `read_packed`.
    count_B: how many of the T tokens are real, the first ones.

  Returns:
    (y_BTD, InnerState, attention).
  """
  size = reader.batch_tokens
  doc_B1 = text.doc[:, :1]

  def body(carry, xs):
    state, attention, last_doc_B = carry
    part, count_B = xs
    fast = _started(reader, state.fast, (doc_B1[:, 0] != last_doc_B) & (count_B > 0))
    y_BTD, attention = reader.read(fast, attention, part.x, part.doc, last_doc_B, count_B)
    rows, tokens = _put((state.rows, state.tokens), (part.x, part.tokens), state.place, count_B)
    position_B = state.place + count_B
    full_B = position_B == size
    last_doc_B = pieces.last_document(part.doc, last_doc_B, count_B)

    def write(fast):
      batch = InnerInput(rows, tokens, jnp.broadcast_to(doc_B1, tokens.shape))
      return _chosen(full_B, _step(reader, fast, state.start, batch, last_doc_B).fast, fast)

    fast = jax.lax.cond(jnp.any(full_B), write, lambda fast: fast, fast)
    kept = jax.tree.map(jnp.zeros_like, (rows, tokens, position_B))
    rows, tokens, position_B = _chosen(full_B, kept, (rows, tokens, position_B))
    start = _chosen(full_B, attention, state.start)
    return (InnerState(fast, start, rows, tokens, position_B), attention, last_doc_B), y_BTD

  cut, count_NB = pieces.cut(text, state.place, count_B, size)
  state = state._replace(fast=_wide(reader, state.fast))
  (after, attention, _), y_NBTD = jax.lax.scan(body, (state, attention, last_doc_B), (cut, count_NB))
  return pieces.join(y_NBTD, state.place, text.x.shape[1], size), after, attention


class InnerStep(NamedTuple):
  """The outcome of reading a mini-batch."""

  fast: Any  # after the step
  y: jax.Array  # [B, b, D] read before it
  attention: Any
  loss: jax.Array  # [B] mean nats of its predictions
  norm: jax.Array  # [B] of the gradient, before it is bounded


def _step(reader: InnerReader, fast, attention, batch: InnerInput, last_doc_B) -> InnerStep:
  """Reads a mini-batch and takes one step on its loss."""
  counted_BT = (batch.doc[:, :-1] >= 0) & (batch.doc[:, 1:] == batch.doc[:, :-1])

  def loss_of(fast):
    y_BTD, after = reader.read(fast, attention, batch.x, batch.doc, last_doc_B, None)
    nll_BT = reader.nll(y_BTD[:, :-1], batch.tokens[:, 1:])
    weight_BT = counted_BT.astype(nll_BT.dtype)
    loss_B = jnp.sum(nll_BT * weight_BT, axis=1) / jnp.maximum(jnp.sum(weight_BT, axis=1), 1)
    return jnp.sum(loss_B), (y_BTD, after, loss_B)  # Rows have weights of their own, hence gradients.

  gradient, (y_BTD, after, loss_B) = jax.grad(loss_of, has_aux=True)(fast)
  square_B = sum(jnp.sum(g * g, axis=tuple(range(1, g.ndim))) for g in jax.tree.leaves(gradient))
  norm_B = jnp.sqrt(jnp.maximum(square_B, SMALLEST_SQUARE))
  rate_B = jnp.full_like(norm_B, reader.rate)
  if reader.clip_norm is not None:
    rate_B = rate_B * jnp.minimum(1, reader.clip_norm / norm_B)
  moved = jax.tree.map(lambda w, g: w - rate_B.reshape(-1, *[1] * (w.ndim - 1)) * g, fast, gradient)
  if reader.writes is not None:
    moved = jax.tree.map(lambda new, old: jnp.where(reader.writes, new, old), moved, fast)
  return InnerStep(moved, y_BTD, after, loss_B, norm_B)


def _started(reader: InnerReader, fast, new_B):
  """Returns the fast weights with the learned ones where a document begins."""

  def anew(start, w):
    return jnp.where(new_B.reshape(-1, *[1] * start.ndim), start[None].astype(w.dtype), w)

  return jax.tree.map(anew, reader.initial, fast)


def _wide(reader: InnerReader, fast):
  """Returns fast weights in the type of the learned ones: float32 or wider."""
  return jax.tree.map(lambda start, w: w.astype(tree.accumulation_dtype(start.dtype)), reader.initial, fast)


def _put(old, new, position_B, count_B):
  """Puts the first `count` rows of new arrays, [B, T, ...], behind `place` of old ones, [B, b, ...]."""

  def put(old, new):
    at_B = jnp.arange(old.shape[1], dtype=jnp.int32)[None] - position_B[:, None]
    moved = jax.vmap(lambda row, at: row[jnp.clip(at, 0, row.shape[0] - 1)])(new, at_B)
    taken_BT = (at_B >= 0) & (at_B < count_B[:, None])
    return jnp.where(taken_BT.reshape(*taken_BT.shape, *[1] * (old.ndim - 2)), moved.astype(old.dtype), old)

  return jax.tree.map(put, old, new)


def _chosen(condition_B, on_true, on_false):
  """Chooses between the rows of two trees."""

  def choose(new, old):
    return jnp.where(condition_B.reshape(-1, *[1] * (new.ndim - 1)), new.astype(old.dtype), old)

  return jax.tree.map(choose, on_true, on_false)
