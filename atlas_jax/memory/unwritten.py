"""Reads of a memory that is never written: every token meets the start that was learned.

The control for what writing gives: a learned table behind the same keys, with the parameters of the memory.
"""
import jax
import jax.numpy as jnp

from atlas_jax.memory import scan
from atlas_jax.memory.types import Gates, Learned, MemoryRule, Running, Token, all_tokens, fast_weights


def read(rule: MemoryRule, learned: Learned, position_B, tokens: Token, gates: Gates, doc_BT, last_doc_B, *,
         chunk_size: int):
  """Reads the tokens of all rows and heads.

  Args:
    rule: of one head.
    learned: leaves [H, ...].
    position_B: tokens already read of the chunk that was begun before; some rules read by place.
    tokens, gates: leaves [B, H, T, ...].
    doc_BT: the document of each token, -1 at padding. Documents may begin anywhere.
    last_doc_B: the document of the last token read before.
    chunk_size: tokens of a chunk.

  Returns:
    (Running, out_BHTM): the start, with the place of the next token; out is of no meaning at padding.
  """
  def places(doc_T, last_doc, position):
    _, place_T, _, after = scan.document_grid(doc_T, last_doc, position, chunk_size)
    return place_T, after

  place_BT, after_B = jax.vmap(places)(doc_BT, last_doc_B, position_B)
  started = jax.vmap(lambda learned: scan.start(rule, learned))(learned)
  head = lambda learned, tokens, gates, place_T: read_start(rule, learned, tokens, gates, place_T)
  heads = jax.vmap(head, in_axes=(0, 0, 0, None))
  out_BHTM = jax.vmap(heads, in_axes=(None, 0, 0, 0))(learned, tokens, gates, place_BT)
  rows = lambda x: jnp.broadcast_to(x[None], (doc_BT.shape[0], *x.shape))
  memory, base = jax.tree.map(rows, (started.memory, started.base))
  return Running(memory, base, after_B.astype(jnp.int32)), out_BHTM


def read_start(rule: MemoryRule, learned: Learned, tokens: Token, gates: Gates, place_T):
  """Reads T tokens of one head, each from the start; what is read by place has its own place; [T, M]."""
  running = scan.start(rule, learned)
  # A rule that makes its base reads with nothing else. One that goes by steps reads what it has just written.
  if rule.anchor is not fast_weights or rule.prepare is all_tokens:
    return rule.apply(learned.slow, running.base, tokens.q)
  read_chunk = rule.resume or rule.chunk
  absent_C = jnp.zeros((1,), bool)

  def one(token, gate, place):
    alone = jax.tree.map(lambda x: x[None], (token, gate))
    prepared = rule.prepare(learned.slow, *alone, absent_C, place[None])
    return read_chunk(learned.slow, running.memory, running.base, prepared)[1].out_CM[0]

  return jax.vmap(one)(tokens, gates, place_T)
