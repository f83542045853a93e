"""Local attention over every pair of rows: the definition."""
import jax
import jax.numpy as jnp

from atlas_jax import tree


def near(lag_TS, window_tokens: int, seen_tokens):
  """Returns which keys lie in the window, by how many tokens they lie behind the query."""
  if seen_tokens is None:
    return (lag_TS >= 0) & (lag_TS < window_tokens)
  # Cut at the window: chunked forms have no more keys at hand, and all forms must agree.
  return (lag_TS >= 0) & (lag_TS < jnp.minimum(seen_tokens, window_tokens).astype(lag_TS.dtype))


def local_attention(q_BTHK, k_BSHK, v_BSHK, doc_BT, doc_BS, *, window_tokens: int, seen_tokens=None):
  """Scores every query with every key and masks; arguments as in the package."""
  length = q_BTHK.shape[1]
  rows = k_BSHK.shape[1]
  # Rows of keys are counted, not places in the text: query t stands at row S - T + t.
  at_T = jnp.arange(length) + rows - length
  at_S = jnp.arange(rows)
  lag_TS = at_T[:, None] - at_S[None, :]
  seen_BTS = near(lag_TS, window_tokens, seen_tokens)[None] & (doc_BT[:, :, None] == doc_BS[:, None, :])
  wide = tree.accumulation_dtype(q_BTHK.dtype)
  scores_BHTS = jnp.einsum("bthk,bshk->bhts", q_BTHK, k_BSHK, preferred_element_type=wide)
  scores_BHTS = scores_BHTS * jnp.asarray(q_BTHK.shape[-1] ** -0.5, wide)
  weights_BHTS = jax.nn.softmax(jnp.where(seen_BTS[:, None], scores_BHTS, -1e30), axis=-1)
  # Rounded behind the softmax only: its sum of S weights needs float32, their product with values does not.
  return jnp.einsum("bhts,bshk->bthk", weights_BHTS.astype(v_BSHK.dtype), v_BSHK)
