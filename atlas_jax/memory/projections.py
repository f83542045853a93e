"""Queries, keys and values of a memory layer, by projections and short convolutions.

With the shift, a token's value is written under the key of the token before it, and its query is that of
the token itself: the memory answers what came after the context up to now, earlier in the document. Where
keys and queries share their projection, a context that returns asks with the very key it was written under.
"""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from atlas_jax.memory.norms import l2_normalize
from atlas_jax.memory.types import Learned, LiftedToken, Token

NGRAM_FALL = 0.9  # Weight of a token in a key over that of the token after it.
OUTSIDE = 0.02  # Weight of the tokens that are not in a head's n-gram.

# Axes of the layer's leaves that are split over `tensor`, see `models.placement`.
TENSOR_AXES = (
    (r"blocks(_\d+)?/memory/qkv_kernel", (-2,)),  # D, H, queries keys and values
    (r"memory/value_kernel", (-2,)),  # D, H, M
    (r"memory/conv_kernel", (-2,)),  # taps, H, channels
    (r"memory/initial_fast/.*", (0,)))  # H, the rule's own axes


class ProjectionWeights(NamedTuple):
  """Parameters of a layer but those of the gates."""

  qkv_DHE: Any  # queries, keys, values side by side, see `ProjectionForm.split`; () if they are attention's
  taps_SHE: jax.Array  # of the convolutions
  value_DHM: Any  # values of the token alone; () where they are among qkv_DHE
  learned: Learned  # of the rule, every leaf [H, ...], float32 or wider


class ProjectionForm(NamedTuple):
  """Settings of queries, keys and values.

  Attributes:
    key_dim, value_dim: K and M.
    conv_taps: width of the convolutions.
    shift: whether a value is written under the key of the token before.
    shared_qk: whether queries are keys: one projection and one convolution for both.
    activation: what follows the convolutions, "silu" or "none".
    value_source: "input", through the convolution, or "token", the token itself without its context.
  """

  key_dim: int
  value_dim: int
  conv_taps: int
  shift: bool
  shared_qk: bool
  activation: str
  value_source: str

  @property
  def key_channels(self) -> int:
    """Channels of keys and queries, per head."""
    return self.key_dim if self.shared_qk else 2 * self.key_dim

  @property
  def channels(self) -> int:
    """Channels of the convolutions, per head."""
    return self.key_channels + (self.value_dim if self.value_source == "input" else 0)

  @property
  def lags(self) -> int:
    """Tokens before a token that its query, key and value depend on."""
    return self.conv_taps - 1 + self.shift

  def split(self, mixed_BSHE):
    """Splits channels into queries, keys and values; values are None where they come from the token."""
    q = mixed_BSHE[..., :self.key_dim]
    # With shared_qk this is the same slice as q; without, the second one.
    k = mixed_BSHE[..., self.key_channels - self.key_dim:self.key_channels]
    return q, k, mixed_BSHE[..., self.key_channels:] if self.value_source == "input" else None


def dense(x, kernel):
  """Multiplies the last axis of x with a kernel's first, which is brought to x's dtype.

  All other axes of x lie in one: from three axes of rows and features the gradient of a kernel would come by
  way of transposed copies, which cost a feed-forward layer a third of its time on a CPU.
  """
  flat = x.reshape(-1, x.shape[-1]) @ kernel.reshape(kernel.shape[0], -1).astype(x.dtype)
  return flat.reshape(*x.shape[:-1], *kernel.shape[1:])


def last_valid(tail_BSE, x_BTE, count_B):
  """Returns the last S rows of a tail followed by the first `count` rows of x."""
  both = jnp.concatenate([tail_BSE, x_BTE.astype(tail_BSE.dtype)], axis=1)
  size = tail_BSE.shape[1]
  if count_B is None:
    return both[:, both.shape[1] - size:]
  return jax.vmap(lambda rows, at: jax.lax.dynamic_slice_in_dim(rows, at, size))(both, count_B)


def kept_tail(tail_BSHE, x_BTHE, doc_BT, last_doc_B, count_B):
  """Returns the last S rows read; those of an earlier document than the last one are 0.

  Later calls take all of them for rows of the last document.
  """
  doc_BS = jnp.repeat(last_doc_B[:, None], tail_BSHE.shape[1], 1)
  doc_BS = last_valid(doc_BS, doc_BT, count_B)
  kept_BS = doc_BS == doc_BS[:, -1:]
  return jnp.where(kept_BS[..., None, None], last_valid(tail_BSHE, x_BTHE, count_B), 0)


def causal_conv(x_BTHE, tail_BSHE, kernel_SHE, mask_BTS):
  """Convolves each channel with its own last rows, across calls.

  Args:
    x_BTHE: inputs.
    tail_BSHE: the rows before them, S = taps - 1.
    kernel_SHE: one weight per tap and channel; the last tap is the row itself.
    mask_BTS: whether row t may see the row `lag` before it, for lags S..1 in this order; None: all.

  Returns:
    [B, T, H, E].
  """
  length = x_BTHE.shape[1]
  taps = kernel_SHE.shape[0]
  both = jnp.concatenate([tail_BSHE.astype(x_BTHE.dtype), x_BTHE], axis=1)
  # A sum of shifted copies, one per tap: where documents are packed each tap has a mask of its own.
  out = x_BTHE * kernel_SHE[None, None, -1]
  for tap in range(taps - 1):
    row = both[:, tap:tap + length] * kernel_SHE[None, None, tap]
    out = out + (row if mask_BTS is None else jnp.where(mask_BTS[:, :, tap, None, None], row, 0))
  return out


def conv_mask(doc_BT, last_doc_B, lags: int):
  """Tells which of the rows before it belong to a row's document; [B, T, lags], the farthest first."""
  doc = jnp.concatenate([jnp.repeat(last_doc_B[:, None], lags, 1), doc_BT], axis=1)
  length = doc_BT.shape[1]
  return jnp.stack([doc[:, tap:tap + length] == doc_BT for tap in range(lags)], axis=-1)


def of_attention(form: ProjectionForm, qkv_BTHE):
  """Takes attention's queries, keys and values, before their rotation, as inputs of the convolutions.

  Args:
    form: of the layer.
    qkv_BTHE: the three side by side.

  Returns:
    [B, T, H, E], of `form.channels`: what `ProjectionForm.split` splits again.
  """
  q, k, v = jnp.split(qkv_BTHE, 3, axis=-1)
  parts = [k] if form.shared_qk else [q, k]
  return jnp.concatenate(parts + [v] * (form.value_source == "input"), axis=-1)


def project(form: ProjectionForm, weights: ProjectionWeights, lift, x_BTD, token_BTD, tail_BSHE, mask_BTS):
  """Makes queries, keys and values.

  Args:
    form, weights: of the layer.
    lift: of its rule; where queries are keys, each is lifted once for both.
    x_BTD: its input; where `weights` have no qkv_DHE, what `of_attention` gives.
    token_BTD: the tokens themselves, of unit mean square; used where value_source is "token".
    tail_BSHE: the last `lags` rows of an earlier call.
    mask_BTS: see `conv_mask`, for `lags` rows.

  Returns:
    (Token or LiftedToken of [B, H, T, ...], the convolutions' inputs [B, T, H, E]). With the shift, the key
    of a document's first token is of no meaning: see `has_key`.
  """
  x_BTHE = x_BTD if isinstance(weights.qkv_DHE, tuple) else dense(x_BTD, weights.qkv_DHE)
  rows = x_BTHE
  tail = tail_BSHE
  mask = mask_BTS
  if form.shift:  # The row before the call is its first token's key; what it saw is of its own document.
    rows = jnp.concatenate([tail_BSHE[:, -1:].astype(x_BTHE.dtype), x_BTHE], axis=1)
    tail = tail_BSHE[:, :-1]
    # The convolution has one lag fewer than the mask: its farthest is that of the key of the token before.
    near = mask_BTS[:, :, 1:]
    mask = jnp.concatenate([jnp.ones_like(near[:, :1]), near], axis=1)
  mixed = causal_conv(rows, tail, weights.taps_SHE.astype(x_BTD.dtype), mask)
  mixed = jax.nn.silu(mixed) if form.activation == "silu" else mixed
  q, k, v = form.split(mixed)
  v = dense(token_BTD, weights.value_DHM) if v is None else v[:, int(form.shift):]

  def by_head(x):
    return l2_normalize(jnp.moveaxis(x, 2, 1))

  # With the shift token t has its key in row t, which ends with the token before, its query in row t + 1.
  early = lambda x: x[:, :, :x_BTD.shape[1]]
  late = lambda x: x[:, :, int(form.shift):]
  q_BHSK = by_head(q)
  k_BHSK = q_BHSK if form.shared_qk else by_head(k)
  tokens = Token(late(q_BHSK), early(k_BHSK), by_head(v))
  if lift is None or not form.shared_qk:
    return tokens, x_BTHE
  # Once per row for query and key: lifted vectors may be many times as wide as keys.
  both_BHSP = jax.vmap(lift, in_axes=(0, 1), out_axes=1)(weights.learned.slow, q_BHSK)
  return LiftedToken(*tokens, late(both_BHSP), early(both_BHSP)), x_BTHE


def has_key(form: ProjectionForm, mask_BTS):
  """Tells which tokens have a key, hence write and read; with the shift all but a document's first."""
  return mask_BTS[:, :, -1] if form.shift else True


def identity_taps(key, shape, dtype):
  """Starts near the identity: the token itself, and a little of those before it."""
  noise = jax.random.normal(key, shape, dtype) * 0.02
  return noise.at[-1].add(1)


def ngram_taps(form: ProjectionForm, key, shape, dtype):
  """Starts keys as signatures of the last tokens: a random sign per lag and channel, longer by the head.

  Head h of H looks at between 2 and conv_taps tokens; values start near the identity. Queries that have a
  convolution of their own start with the signs of the keys.
  """
  taps, heads, channels = shape
  of_signs, of_values = jax.random.split(key)
  lag_S = np.arange(taps)[::-1]
  # From two tokens to all taps: short contexts return often, long ones are told apart better.
  reach_H = np.linspace(2, taps, heads)
  weight_SH = np.where(lag_S[:, None] < reach_H[None], NGRAM_FALL ** lag_S[:, None], OUTSIDE)
  sign_SHK = jax.random.rademacher(of_signs, (taps, heads, form.key_dim), dtype)
  signed_SHK = sign_SHK * jnp.asarray(weight_SH[..., None], dtype)
  parts = [signed_SHK] * (form.key_channels // form.key_dim)
  if channels > form.key_channels:
    parts.append(identity_taps(of_values, (taps, heads, channels - form.key_channels), dtype))
  return jnp.concatenate(parts, axis=-1)
