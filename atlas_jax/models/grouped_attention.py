"""Causal attention in which several query heads share one head of keys and values."""
import jax
import jax.numpy as jnp

from atlas_jax import tree

MASKED = -1e30  # Finite, so that a padded row, which sees nothing, gets numbers and not NaN.


def attend(q_BTHK, k_BTHK, v_BTHK, doc_BT, past=None, *, block_tokens: int | None = None):
  """Lets each token look at itself and the earlier tokens of its document.

  Args:
    q_BTHK: queries; its H is a multiple of that of keys and values, and head h looks at h // (H / their H).
    k_BTHK, v_BTHK: keys and values of the same tokens.
    doc_BT: document of each token, -1 at padding, whose output means nothing.
    past: (k_BSHK, v_BSHK, count_B): earlier tokens, the first count_B of S, seen by every new token.
    block_tokens: queries taken at a time, which bounds memory to B x H x block_tokens x T; None: all at once.
      What is left of T behind whole blocks is taken by itself.

  Returns:
    [B, T, H, K] in q's dtype; softmax in float32 or wider.
  """
  length = q_BTHK.shape[1]
  at_T = jnp.arange(length)
  if block_tokens is None or length <= block_tokens:
    return _attend(q_BTHK, doc_BT, at_T, k_BTHK, v_BTHK, doc_BT, past)
  whole = length // block_tokens * block_tokens

  def cut(x):
    return jnp.moveaxis(x[:, :whole].reshape(x.shape[0], -1, block_tokens, *x.shape[2:]), 1, 0)

  # Else the loop would keep every block's weights for the backward pass, B H T T of them after all.
  one = jax.checkpoint(lambda block: _attend(block[0], block[1], block[2], k_BTHK, v_BTHK, doc_BT, past))
  out = jax.lax.map(one, (cut(q_BTHK), cut(doc_BT), at_T[:whole].reshape(-1, block_tokens)))
  out_BTHK = jnp.moveaxis(out, 0, 1).reshape(q_BTHK.shape[0], whole, *q_BTHK.shape[2:])
  if whole == length:
    return out_BTHK
  rest = one((q_BTHK[:, whole:], doc_BT[:, whole:], at_T[whole:]))
  return jnp.concatenate([out_BTHK, rest], axis=1)


def _attend(q_BTHK, doc_BT, at_T, k_BSHK, v_BSHK, doc_BS, past):
  """Attends from queries at positions at_T to all S new keys, and to the past."""
  # Queries are grouped by their head of keys; keys and values are not repeated for each of the G.
  q_BTHGK = q_BTHK.reshape(*q_BTHK.shape[:2], k_BSHK.shape[2], -1, q_BTHK.shape[3])
  same_BTS = (doc_BT[:, :, None] == doc_BS[:, None]) & (doc_BS >= 0)[:, None]
  seen_BTS = same_BTS & (jnp.arange(k_BSHK.shape[1])[None, None] <= at_T[None, :, None])
  # Two parts of one softmax, new keys and the cache: joined, the cache would be copied at every token.
  scores = [_scores(q_BTHGK, k_BSHK, seen_BTS)]
  values = [v_BSHK]
  if past is not None:
    past_k_BSHK, past_v_BSHK, count_B = past
    seen_BTS = (jnp.arange(past_k_BSHK.shape[1])[None] < count_B[:, None])[:, None]
    scores.append(_scores(q_BTHGK, past_k_BSHK, seen_BTS))
    values.append(past_v_BSHK)
  # The shift changes nothing, so it has no gradient either.
  top = jax.lax.stop_gradient(jnp.max(jnp.stack([jnp.max(part, -1) for part in scores]), 0)[..., None])
  weights = [jnp.exp(part - top) for part in scores]
  total_BHGT = sum(jnp.sum(weight, -1) for weight in weights)
  wide = total_BHGT.dtype
  summed = sum(jnp.einsum("bhgts,bshk->bthgk", weight.astype(value.dtype), value, preferred_element_type=wide)
               for weight, value in zip(weights, values, strict=True))
  # Divided once per output, not once per score.
  out = summed / jnp.moveaxis(total_BHGT, 3, 1)[..., None]
  return out.reshape(q_BTHK.shape).astype(q_BTHK.dtype)


def _scores(q_BTHGK, k_BSHK, seen_BTS):
  """Returns scaled products, MASKED where a token does not look; [B, H, G, T, S], float32 or wider."""
  wide = tree.accumulation_dtype(q_BTHGK.dtype)
  scores = jnp.einsum("bthgk,bshk->bhgts", q_BTHGK, k_BSHK.astype(q_BTHGK.dtype), preferred_element_type=wide)
  scores = scores * jnp.asarray(q_BTHGK.shape[-1] ** -0.5, wide)
  return jnp.where(seen_BTS[:, None, None], scores, jnp.asarray(MASKED, wide))
