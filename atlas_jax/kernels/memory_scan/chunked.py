"""The scan of an MLP memory in dual form, a chunk at a time: no token's gradient or weights ever exist.

What is written here for one chunk of one memory has only operations on matrices that a kernel has too; gates
stand as columns and single entries, so that nothing is cut out of a matrix.
"""
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from atlas_jax.kernels.memory_scan.reference import ACTIVATIONS, Decay, ScanForm, bound, by_chunks


class Chunk(NamedTuple):
  """One chunk: its tokens, and the weights of `Decay`, whose last rows stand by themselves."""

  q_CK: Any
  k_CK: Any
  v_CM: Any
  fast_CE: Any  # E = 1 here and below
  momentum_CE: Any  # () without momentum, as all that speaks of it
  mix_CC: Any
  last_fast_EE: Any
  last_momentum_EE: Any
  last_mix_CE: Any
  keep_EE: Any
  surprise_CE: Any
  reset_EE: Any  # 1 where the memory starts anew before the chunk, else 0


class State(NamedTuple):
  """A memory before or after a chunk, or gradients of one."""

  fast: Any  # list of matrices
  momentum: Any  # list of matrices; empty without momentum


class ChunkSurprise(NamedTuple):
  """Gradients of a chunk's tokens as outer products: of matrix l, inputs[l][t] and grads[l][t]."""

  inputs: list
  grads: list
  norm_CE: Any
  loss_CE: Any


def chunks(q_GTK, k_GTK, v_GTM, decay: Decay, reset_GN, *, chunk_size: int) -> Chunk:
  """Brings the operation's arguments into the form of `Chunk`, with leading axes G and N."""
  split = functools.partial(by_chunks, chunk_size=chunk_size)
  column = lambda x: x[..., None]
  entry = lambda x: x[..., None, None]
  fast_GNC = split(decay.fast_GT)
  momentum_GNC = jax.tree.map(split, decay.momentum_GT)
  return Chunk(
      split(q_GTK), split(k_GTK), split(v_GTM), column(fast_GNC), jax.tree.map(column, momentum_GNC),
      decay.mix_GNCC, entry(fast_GNC[..., -1]), jax.tree.map(lambda x: entry(x[..., -1]), momentum_GNC),
      column(decay.mix_GNCC[..., -1, :]), jax.tree.map(entry, decay.keep_GN),
      jax.tree.map(column, decay.surprise_GNC), entry(reset_GN.astype(q_GTK.dtype)))


def _product(left, right, axes, precision):
  """Multiplies two matrices, summing over the given axis of each."""
  return jax.lax.dot_general(left, right, (((axes[0],), (axes[1],)), ((), ())), precision=precision,
                             preferred_element_type=left.dtype)


def begin(state: State, initial, reset_EE) -> State:
  """Starts a memory anew where it is asked to."""
  fresh = State(initial, jax.tree.map(jnp.zeros_like, state.momentum))
  # Chosen, not weighed by 0 and 1: 0 times what is not finite would carry it past the reset.
  return jax.tree.map(lambda new, old: jnp.where(reset_EE > 0, new, old), fresh, state)


def find(form: ScanForm, fast, k_CK, v_CM, precision=None) -> ChunkSurprise:
  """Back-propagates the loss of each token at the chunk's first weights, in one pass for all."""
  h = k_CK
  inputs = []
  pulls = []
  for i, w in enumerate(fast):
    if i:
      # Of the activation alone, which is elementwise: a kernel has that. Products are transposed by hand.
      h, pull = jax.vjp(ACTIVATIONS[form.activation], h)
      pulls.append(pull)
    inputs.append(h)
    h = _product(h, w, (1, 0), precision)
  grad = (k_CK + h if form.residual else h) - v_CM
  loss_CE = 0.5 * jnp.sum(grad * grad, 1, keepdims=True)
  grads = [grad]
  # All matrices but the first, last one first: nothing passes back to the keys.
  for w, pull in zip(fast[:0:-1], reversed(pulls), strict=True):
    grads.insert(0, pull(_product(grads[0], w, (1, 1), precision))[0])
  # An outer product's norm is the product of the norms.

  def squares(x):
    return jnp.sum(x * x, 1, keepdims=True)

  square_CE = sum(squares(u) * squares(grad) for u, grad in zip(inputs, grads))
  if form.surprise_max is not None:
    scale_CE = bound(form, square_CE)
    grads = [grad * scale_CE for grad in grads]
  norm_CE = jnp.sqrt(jax.lax.stop_gradient(square_CE))
  return ChunkSurprise(inputs, grads, norm_CE, jax.lax.stop_gradient(loss_CE))


def read(form: ScanForm, state: State, found: ChunkSurprise, chunk: Chunk, precision=None):
  """Recalls with each token's own weights."""
  h = chunk.q_CK
  for i, w in enumerate(state.fast):
    h = ACTIVATIONS[form.activation](h) if i else h
    # W_t = fast_t W + momentum_t S - sum_i mix[t, i] x_i g_i^T, met by u_t from the left: 2 C (in + out)
    # FLOPs a token for the sum, and no W_t.
    score_CC = chunk.mix_CC * _product(h, found.inputs[i], (1, 1), precision)
    out = _product(chunk.fast_CE * h, w, (1, 0), precision)
    if state.momentum:
      out = out + _product(chunk.momentum_CE * h, state.momentum[i], (1, 0), precision)
    h = out - _product(score_CC, found.grads[i], (1, 0), precision)
  return chunk.q_CK + h if form.residual else h


def write(state: State, found: ChunkSurprise, chunk: Chunk, precision=None) -> State:
  """Returns the state after the chunk."""

  def sums(weight_CE):
    return [_product(u, weight_CE * grad, (0, 0), precision)
            for u, grad in zip(found.inputs, found.grads)]

  fast = [chunk.last_fast_EE * w - g for w, g in zip(state.fast, sums(chunk.last_mix_CE))]
  if not state.momentum:
    return State(fast, [])
  fast = [w + chunk.last_momentum_EE * s for w, s in zip(fast, state.momentum)]
  return State(fast, [chunk.keep_EE * s - g for s, g in zip(state.momentum, sums(chunk.surprise_CE))])


def advance(form: ScanForm, state: State, initial, chunk: Chunk, precision=None) -> State:
  """Writes a chunk without reading from it."""
  state = begin(state, initial, chunk.reset_EE)
  return write(state, find(form, state.fast, chunk.k_CK, chunk.v_CM, precision), chunk, precision)


def scan_chunk(form: ScanForm, state: State, initial, chunk: Chunk, precision=None):
  """Reads and writes a chunk of one memory.

  Returns:
    the state after it, and out_CM, norm_CE and loss_CE of its tokens.
  """
  state = begin(state, initial, chunk.reset_EE)
  found = find(form, state.fast, chunk.k_CK, chunk.v_CM, precision)
  out_CM = read(form, state, found, chunk, precision)
  return write(state, found, chunk, precision), (out_CM, found.norm_CE, found.loss_CE)


def memory_scan(q_GTK, k_GTK, v_GTM, decay: Decay, reset_GN, initial, fast, momentum, *, chunk_size: int,
                form: ScanForm):
  """Works on the same chunk of all memories at once; arguments as in the package."""
  parts = chunks(q_GTK, k_GTK, v_GTM, decay, reset_GN, chunk_size=chunk_size)
  every = jax.vmap(functools.partial(scan_chunk, form))
  # On two cores it takes less time to find a chunk's inner values again, 22 ms for both passes, than to keep
  # them, 44 ms.
  body = jax.checkpoint(lambda state, chunk: every(state, initial, chunk), prevent_cse=False)
  by_time = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), parts)
  state, out = jax.lax.scan(body, State(fast, momentum), by_time)
  # The outputs are [N, G, C, .].
  out_GTM, surprise_GTE, loss_GTE = (jnp.moveaxis(x, 1, 0).reshape(x.shape[1], -1, x.shape[-1]) for x in out)
  return out_GTM, state.fast, state.momentum, surprise_GTE[..., 0], loss_GTE[..., 0]
