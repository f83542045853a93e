"""Reads that write nothing: of the start that was learned, or of a memory as it stands.

`read`, where a memory is never written, is the control for what writing gives: a learned table behind the
same keys, with the parameters of the memory. `recall` asks a memory that is written elsewhere.
"""
import jax
import jax.numpy as jnp

from atlas_jax.memory import scan
from atlas_jax.memory.types import Learned, MemoryRule, Running, Token


def read(rule: MemoryRule, learned: Learned, running: Running, tokens: Token, doc_BT, last_doc_B, *,
         chunk_size: int):
  """Reads the tokens of all rows and heads with the learned start.

  Args:
    rule: of one head.
    learned: leaves [H, ...].
    running: of which the position is used: tokens already read of the chunk that was begun before. Some rules
      read by place.
    tokens: leaves [B, H, T, ...].
    doc_BT: the document of each token, -1 at padding. Documents may begin anywhere.
    last_doc_B: the document of the last token read before.
    chunk_size: tokens of a chunk.

  Returns:
    (Running, out_BHTM): the start, with the place of the next token; out is of no meaning at padding.
  """
  def places(doc_T, last_doc, position):
    # On the grid of a memory that is written: a rule that turns queries by place reads at the same places.
    _, position_T, _, after = scan.document_grid(doc_T, last_doc, position, chunk_size)
    return position_T, after

  position_BT, after_B = jax.vmap(places)(doc_BT, last_doc_B, running.position)
  started = jax.vmap(lambda learned: scan.start(rule, learned))(learned)
  # `still`, not `apply`: a read of a chunk that writes nothing, which some rules make by more than the base.
  heads = jax.vmap(rule.still, in_axes=(0, 0, 0, None))
  out_BHTM = jax.vmap(heads, in_axes=(None, None, 0, 0))(learned.slow, started.base, tokens.q, position_BT)

  def rows(x):
    return jnp.broadcast_to(x[None], (doc_BT.shape[0], *x.shape))

  # Only the position changes; the memory is handed on whole, so that states of both kinds have one form.
  memory, base = jax.tree.map(rows, (started.memory, started.base))
  return Running(memory, base, after_B.astype(jnp.int32)), out_BHTM


def recall(rule: MemoryRule, learned: Learned, running: Running, tokens: Token, doc_BT, last_doc_B, *,
           chunk_size: int):
  """Reads the tokens of all rows and heads with the base that a memory has; arguments as of `read`.

  All tokens of a row are of one document, padding aside; the memory starts anew where it is another one than
  last_doc_B.

  Returns:
    (Running, out_BHTM): with the base that was read, and memory and position as they were.
  """
  new_B = (doc_BT[:, 0] != last_doc_B) & (doc_BT[:, 0] >= 0)
  started = jax.vmap(lambda learned: scan.start(rule, learned))(learned)

  def anew(fresh, base):
    return jnp.where(new_B.reshape(-1, *[1] * fresh.ndim), fresh[None], base)

  base = jax.tree.map(anew, started.base, running.base)
  position_BT = (running.position[:, None] + jnp.arange(doc_BT.shape[1], dtype=jnp.int32)[None]) % chunk_size
  heads = jax.vmap(rule.still, in_axes=(0, 0, 0, None))
  out_BHTM = jax.vmap(heads, in_axes=(None, 0, 0, 0))(learned.slow, base, tokens.q, position_BT)
  return running._replace(base=base), out_BHTM
