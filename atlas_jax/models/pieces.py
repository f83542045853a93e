"""Cuts the tokens of a call where a grid's cells end, at another place in every row; cells are of equal size.

A row that stands at a place inside of a cell first fills it, then cells from their start. Pieces of all rows
have the same shape; the first tokens of one count.
"""
import jax
import jax.numpy as jnp


def number(length: int, size: int) -> int:
  """Returns the most cells that so many tokens touch, from any place in the first one."""
  return (length + size - 2) // size + 1


def cut(x, position_B, count_B, size: int):
  """Cuts arrays [B, T, ...] into pieces of at most `size` tokens.

  Args:
    x: a pytree of them.
    position_B: where the next token stands in its cell.
    count_B: how many of the T tokens are real.
    size: of a cell.

  Returns:
    (pieces, count_NB): leaves [N, B, min(T, size), ...], and how many tokens of each piece are real.
  """
  length = jax.tree.leaves(x)[0].shape[1]
  cell_N1 = jnp.arange(number(length, size), dtype=jnp.int32)[:, None]
  first_NB = jnp.clip(cell_N1 * size - position_B[None], 0, count_B[None])
  end_NB = jnp.clip((cell_N1 + 1) * size - position_B[None], 0, count_B[None])
  source_NBT = first_NB[..., None] + jnp.arange(min(length, size), dtype=jnp.int32)[None, None]
  source_NBT = jnp.minimum(source_NBT, length - 1)
  take = jax.vmap(jax.vmap(lambda row, at: row[at]), in_axes=(None, 0))
  return jax.tree.map(lambda leaf: take(leaf, source_NBT), x), end_NB - first_NB


def join(pieces, position_B, length: int, size: int):
  """Puts pieces [N, B, ...] of `cut` together again: [B, T, ...]; what is not real is of no meaning."""
  slot_BT = position_B[:, None] + jnp.arange(length, dtype=jnp.int32)[None]
  cell_BT = jnp.minimum(slot_BT // size, number(length, size) - 1)
  at_BT = slot_BT - jnp.maximum(cell_BT * size, position_B[:, None])
  at_BT = jnp.minimum(at_BT, min(length, size) - 1)

  def row(pieces, cell_T, at_T):
    return pieces[cell_T, at_T]

  return jax.tree.map(lambda leaf: jax.vmap(row, in_axes=(1, 0, 0))(leaf, cell_BT, at_BT), pieces)


def last_document(doc_BT, last_doc_B, count_B):
  """Returns the document of the last real token, or the earlier one if no token is real.

  Args:
    doc_BT: document of each token, -1 at padding.
    last_doc_B: the earlier one.
    count_B: how many of the tokens are real, all of one document; None: those that have a document.
  """
  if count_B is not None:
    return jnp.where(count_B > 0, doc_BT[:, 0], last_doc_B)
  # argmax of positions finds the last real token; where there is none it finds the first, which is not taken.
  position_BT = jnp.where(doc_BT >= 0, jnp.arange(doc_BT.shape[1])[None], -1)
  found_B = jnp.take_along_axis(doc_BT, jnp.argmax(position_BT, axis=1)[:, None], axis=1)[:, 0]
  return jnp.where(jnp.any(doc_BT >= 0, axis=1), found_B, last_doc_B)
