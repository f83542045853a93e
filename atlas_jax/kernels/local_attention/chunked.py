"""Local attention by blocks of one window: each block of queries meets two blocks of keys."""
import jax
import jax.numpy as jnp

from atlas_jax import tree
from atlas_jax.kernels.local_attention.reference import near


def _blocks(x, window):
  return x.reshape(x.shape[0], x.shape[1] // window, window, *x.shape[2:])


def _pairs(x, window):
  """Joins each block of keys with the block before it: [B, N, 2 * window, ...]."""
  blocks = _blocks(x, window)
  return jnp.concatenate([blocks[:, :-1], blocks[:, 1:]], axis=2)


def _pad_rows(x, before, after, value=0):
  return jnp.pad(x, [(0, 0), (before, after)] + [(0, 0)] * (x.ndim - 2), constant_values=value)


def local_attention(q_BTHK, k_BSHK, v_BSHK, doc_BT, doc_BS, *, window_tokens: int, seen_tokens=None):
  """Works on T / window blocks, in time and memory like T * window; arguments as in the package."""
  length = q_BTHK.shape[1]
  window = window_tokens
  tail = k_BSHK.shape[1] - length
  after = -length % window
  keep = min(tail, window)  # Rows farther back are never seen.

  # One window of keys before the first query, whatever the tail: every block of queries then meets two blocks
  # of keys, the one before it and its own.
  def fit(x, value=0):
    return _pad_rows(x[:, tail - keep:], window - keep, after, value)

  k_BNSHK = _pairs(fit(k_BSHK), window)
  v_BNSHK = _pairs(fit(v_BSHK), window)
  # -3 is no number of a document, nor -1 of padding, nor -2 of a state that has read nothing: rows that are
  # added here meet only each other, and their output is cut at the end.
  doc_BNS = _pairs(fit(doc_BS, -3), window)
  q_BNTHK = _blocks(_pad_rows(q_BTHK, 0, after), window)
  doc_BNT = _blocks(_pad_rows(doc_BT, 0, after, -3), window)
  # Query t of a block is row window + t of its pair of key blocks. One mask of [W, 2 W] serves all blocks.
  lag_TS = jnp.arange(window)[:, None] + window - jnp.arange(2 * window)[None, :]
  near_TS = near(lag_TS, window, seen_tokens)
  seen_BNTS = near_TS[None, None] & (doc_BNT[..., :, None] == doc_BNS[..., None, :])
  wide = tree.accumulation_dtype(q_BTHK.dtype)
  scores = jnp.einsum("bnthk,bnshk->bnhts", q_BNTHK, k_BNSHK, preferred_element_type=wide)
  scores = scores * jnp.asarray(q_BTHK.shape[-1] ** -0.5, wide)
  # Finite, so that a row that sees nothing gets even weights in place of NaN; real rows see themselves.
  weights = jax.nn.softmax(jnp.where(seen_BNTS[:, :, None], scores, -1e30), axis=-1)
  out = jnp.einsum("bnhts,bnshk->bnthk", weights.astype(v_BSHK.dtype), v_BNSHK)
  return out.reshape(out.shape[0], -1, *out.shape[3:])[:, :length]
