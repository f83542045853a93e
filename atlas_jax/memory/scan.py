"""Runs a memory rule over the tokens of one row and head: token by token, by chunks, by any cut or documents.

`scan_tokens` defines what the others compute faster. Gradients of a chunk are taken at the memory of its
start, so the chunk size is part of the model, unless a rule is exact for any size and says so.
"""

import jax
import jax.numpy as jnp

from atlas_jax.memory.types import (
  SAVED_NAMES,
  Gates,
  Learned,
  MemoryRule,
  MemoryState,
  Running,
  Token,
  no_close,
)


def _select(condition, on_true, on_false):
  return jax.tree.map(lambda new, old: jnp.where(condition, new, old), on_true, on_false)


def keep_products():
  """Returns the policy of what the backward pass need not compute again: products with fast weights."""
  return jax.checkpoint_policies.save_only_these_names(*SAVED_NAMES)


def start(rule: MemoryRule, learned: Learned) -> Running:
  """Returns a memory that has read nothing."""
  memory = rule.start(learned)
  return Running(memory, rule.base_of(learned.slow, memory), jnp.zeros((), jnp.int32))


def _close(rule, slow, memory, base, filled):
  """Ends a chunk where it is full: what the rule does then, and the base of the next one."""
  # Computed at every call and kept where the chunk is full: under vmap a condition would compute both sides
  # anyway. A stream of single tokens therefore pays for `close` at every token, full chunk or not.
  closed = rule.close(slow, memory, base)
  return _select(filled, (closed, rule.base_of(slow, closed)), (memory, base))


def scan_tokens(rule: MemoryRule, running: Running, slow, tokens: Token, gates: Gates, write_T, *,
                chunk_size: int):
  """Reads token by token: the definition, slow and obvious.

  Args:
    running: the memory before the first token.
    slow: the rule's learned constants.
    tokens, gates: fields with a leading T.
    write_T: 1 where the token counts, 0 at padding, which leaves the weights as they are; a chunk of padding
      alone is not closed.
    chunk_size: tokens whose gradients are taken at the same base.

  Returns:
    (running, out_TM): the memory after the last token, what each token recalled (0 at padding).
  """

  def body(carry, xs):
    running, wrote = carry
    token, gate, write = xs
    written, out_M = rule.step(slow, running.memory, running.base, token, gate, running.position)
    memory = _select(write.astype(bool), written, running.memory)
    # Padding takes a position of the chunk as well: chunks are a grid over the tokens given, real or not.
    position = (running.position + 1) % chunk_size
    wrote = wrote | write.astype(bool)
    memory, base = _close(rule, slow, memory, running.base, (position == 0) & wrote)
    return (Running(memory, base, position), wrote & (position > 0)), out_M * write.astype(out_M.dtype)

  # A chunk that an earlier call began counts as written.
  (running, _), out_TM = jax.lax.scan(body, (running, running.position > 0), (tokens, gates, write_T))
  return running, out_TM


def _chunked(x, chunk_size):
  return x.reshape(x.shape[0] // chunk_size, chunk_size, *x.shape[1:])


def _prepared(rule, slow, tokens: Token, gates: Gates, write_T, position_T, chunk_size):
  """Does for all chunks at once what needs no memory."""
  parts = jax.tree.map(lambda x: _chunked(x, chunk_size), (tokens, gates, write_T, position_T))
  # Its inner values are cheap to find again and, for a long text, costly to keep.
  prepare = jax.vmap(rule.prepare, in_axes=(None, 0, 0, 0, 0))
  return jax.checkpoint(prepare, policy=keep_products(), prevent_cse=False)(slow, *parts)


def scan_packed(rule: MemoryRule, memory: MemoryState, learned: Learned, tokens: Token, gates: Gates, write_T,
                reset_N, *, chunk_size: int, remat: bool = False, read_T=None):
  """Reads whole chunks from a chunk border on; the memory may start anew at any chunk.

  Args:
    memory: the memory before the first token, which is the first of a chunk.
    learned: weights with which a memory starts, and the rule's learned constants.
    tokens, gates, write_T: as in `scan_tokens`; T is a multiple of chunk_size.
    reset_N: bool, whether the memory starts anew at the chunk.
    remat: whether the backward pass computes the inner values of a chunk again, all but its products.
    read_T: 1 where the token reads: beside those that are written, tokens of chunks that write nothing; None:
      as write_T.

  Returns:
    (memory, ChunkOut of T): the memory after the last token, and what each token recalled (0 where none
    reads).
  """
  slow = learned.slow
  read_T = write_T if read_T is None else read_T
  # Made once, outside the loop: every reset selects the same arrays.
  fresh = rule.start(learned)

  def body(memory, xs):
    chunk, reset, wrote = xs
    memory = _select(reset, fresh, memory)
    # Every chunk begins at its border here, so that the base follows from the memory and is not carried.
    base = rule.base_of(slow, memory)
    memory, out = rule.chunk(slow, memory, base, chunk)
    if rule.close is not no_close:  # A chunk of padding alone is not closed: nothing was written.
      memory = _select(wrote, rule.close(slow, memory, base), memory)
    return memory, out

  position_T = jnp.arange(write_T.shape[0], dtype=jnp.int32) % chunk_size
  xs = (_prepared(rule, slow, tokens, gates, write_T, position_T, chunk_size), reset_N,
        jnp.any(_chunked(write_T, chunk_size).astype(bool), axis=1))
  # prevent_cse=False: forward and backward are two loops, across which the compiler merges nothing anyway.
  if remat:
    body = jax.checkpoint(body, policy=keep_products(), prevent_cse=False)
  memory, out = jax.lax.scan(body, memory, xs)
  out = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)
  return memory, out._replace(out_CM=out.out_CM * read_T[:, None].astype(out.out_CM.dtype))


def scan_stream(rule: MemoryRule, running: Running, slow, tokens: Token, gates: Gates, count, *,
                chunk_size: int, write_T=None):
  """Reads any number of tokens from any position on; equal to `scan_tokens` for every cut.

  Args:
    running: the memory before the first token, perhaps inside a chunk.
    slow: the rule's learned constants.
    tokens, gates: fields with a leading T.
    count: [] int32, how many of the T tokens are real; the rest, at the end, leave no trace.
    chunk_size: tokens whose gradients are taken at the same base.
    write_T: 0 for real tokens that take a place in their chunk and else leave no trace; None: all are 1.

  Returns:
    (running, out_TM): the memory after the last real token, what each token recalled (0 if it leaves none).
  """
  length = tokens.q.shape[0]
  write_T = jnp.ones((length,), bool) if write_T is None else write_T.astype(bool)
  # The position is traced, shapes are not: chunk_size times the ceiling of (chunk_size - 1 + length) over
  # chunk_size rows are enough from any. A lone token, as in decoding, gets one row, not a masked chunk.
  # Tokens move to their rows of the chunk grid: a lone token is its own chunk, others start at `position`.
  rows = 1 if length == 1 else (length + chunk_size - 2) // chunk_size * chunk_size + chunk_size
  size = min(rows, chunk_size)
  shift = running.position if length > 1 else 0
  source_S = jnp.arange(rows, dtype=jnp.int32) - shift

  def put(x):
    # Rows without a token hold a copy of the first or last one, finite and masked by write_S.
    return x[jnp.clip(source_S, 0, length - 1)]

  write_S = (source_S >= 0) & (source_S < count) & put(write_T)
  placed, placed_gates = jax.tree.map(put, (tokens, gates))
  position_S = (source_S + running.position) % chunk_size
  # With a lone token the one row still counts as the grid chunk that it may complete.
  filled_N = running.position + count >= (jnp.arange(rows // size, dtype=jnp.int32) + 1) * chunk_size

  read = rule.resume or rule.chunk

  def body(carry, xs):
    memory, base = carry
    chunk, filled = xs
    memory, out = read(slow, memory, base, chunk)
    return _close(rule, slow, memory, base, filled), out.out_CM

  xs = (_prepared(rule, slow, placed, placed_gates, write_S, position_S, size), filled_N)
  (memory, base), out_NCM = jax.lax.scan(body, (running.memory, running.base), xs)
  out_SM = out_NCM.reshape(rows, -1)
  out_TM = out_SM[jnp.clip(shift + jnp.arange(length, dtype=jnp.int32), 0, rows - 1)]
  real_T = (jnp.arange(length, dtype=jnp.int32) < count) & write_T
  position = (running.position + count) % chunk_size
  return Running(memory, base, position.astype(jnp.int32)), out_TM * real_T[:, None].astype(out_TM.dtype)


def scan_documents(rule: MemoryRule, running: Running, learned: Learned, tokens: Token, gates: Gates, doc_T,
                   last_doc, *, chunk_size: int, n_chunks: int, write_T=None):
  """Reads documents that begin anywhere, from any position on; each has its own chunks, as if read alone.

  Args:
    running: the memory before the first token, perhaps inside a chunk of document `last_doc`.
    learned: weights with which a document starts, and the rule's learned constants.
    tokens, gates: fields with a leading T.
    doc_T: the document of each token, -1 at padding, which leaves no trace.
    last_doc: [] int32, the document of the last token read before; it goes on where doc_T begins with it.
    chunk_size: tokens whose gradients are taken at the same base.
    n_chunks: how many chunks are read; see `chunks_of_documents`.
    write_T: as in `scan_stream`.

  Returns:
    (running, out_TM): the memory after the last real token, what each token recalled (0 at padding). All are
    NaN from the first token on that n_chunks leaves no room for.
  """
  slow = learned.slow
  rows = n_chunks * chunk_size
  chunk_T, position_T, new_T, position = document_grid(doc_T, last_doc, running.position, chunk_size)
  real_T = doc_T >= 0
  slot_T = chunk_T * chunk_size + position_T  # source_S is its inverse; padding goes to row `rows`: dropped.
  count = jnp.arange(doc_T.shape[0], dtype=jnp.int32)
  source_S = jnp.full((rows,), -1, jnp.int32).at[jnp.where(real_T, slot_T, rows)].set(count, mode="drop")
  write_T = jnp.ones(doc_T.shape, bool) if write_T is None else write_T.astype(bool)
  def put(x):
    return x[jnp.maximum(source_S, 0)]

  write_S = (source_S >= 0) & put(write_T)
  placed, placed_gates = jax.tree.map(put, (tokens, gates))
  reset_N = jnp.zeros((n_chunks,), bool).at[jnp.where(new_T, chunk_T, n_chunks)].set(True, mode="drop")
  position_S = jnp.arange(rows, dtype=jnp.int32) % chunk_size
  fresh = start(rule, learned)
  read = rule.resume or rule.chunk

  def body(carry, xs):
    chunk, reset, filled = xs
    memory, base = _select(reset, (fresh.memory, fresh.base), carry)
    memory, out = read(slow, memory, base, chunk)
    return _close(rule, slow, memory, base, filled), out.out_CM

  xs = (_prepared(rule, slow, placed, placed_gates, write_S, position_S, chunk_size), reset_N,
        _chunked(source_S >= 0, chunk_size)[:, -1])  # Full chunks: rows fill in order, up to the last one.
  (memory, base), out_NCM = jax.lax.scan(body, (running.memory, running.base), xs)
  out_TM = out_NCM.reshape(rows, -1)[jnp.minimum(slot_T, rows - 1)]
  out_TM = out_TM * (real_T & write_T)[:, None].astype(out_TM.dtype)
  fits_T = chunk_T < n_chunks  # Found while a program runs, which can raise nothing: hence NaN.
  memory, base = jax.tree.map(lambda x: _nan_unless(fits_T[-1], x), (memory, base))
  return Running(memory, base, position), jnp.where(fits_T[:, None], out_TM, jnp.nan)


def chunks_of_documents(length: int, chunk_size: int, documents: int | None) -> int:
  """Returns how many chunks a row of so many tokens needs at most: the one begun before, and its documents'.

  Args:
    length: tokens of the row.
    chunk_size: tokens of a chunk.
    documents: documents of the row, one that goes on included; None: every token may begin one.
  """
  starts = length if documents is None else min(documents, length)
  # n tokens of a document take at most (n + C - 1) / C chunks; summed over documents that is the bound, and
  # no chunk is without a token. The 1 is the chunk begun before, which may get no token at all.
  return 1 + min(length, (length + starts * (chunk_size - 1)) // chunk_size)


def document_grid(doc_T, last_doc, position, chunk_size: int):
  """Counts each document's tokens into chunks of its own; chunk 0 is the one that was begun before.

  Returns:
    (chunk_T, position_T, new_T, position): chunk and place in it of each token (of no meaning at padding),
    whether a document begins there, and the place at which the next token would stand.
  """
  real_T = doc_T >= 0
  # Running maxima in place of a loop: the last real token up to each, then the last one before each.
  last_T = jax.lax.cummax(jnp.where(real_T, jnp.arange(doc_T.shape[0], dtype=jnp.int32), -1))
  before_T = jnp.concatenate([jnp.full((1,), -1, jnp.int32), last_T[:-1]])
  new_T = real_T & (doc_T != jnp.where(before_T < 0, last_doc, doc_T[before_T]))
  count_T = jnp.cumsum(real_T.astype(jnp.int32))
  # Real tokens before the document's first one. A document that goes on began `position` tokens before the
  # call, as far as its chunk is concerned.
  start_T = jax.lax.cummax(jnp.where(new_T, count_T - 1, -position))
  position_T = (count_T - 1 - start_T) % chunk_size
  chunk_T = jnp.cumsum((real_T & (position_T == 0)).astype(jnp.int32))
  return chunk_T, position_T, new_T, (count_T[-1] - start_T[-1]) % chunk_size


def _nan_unless(fits, x):
  return jnp.where(fits, x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.floating) else x
