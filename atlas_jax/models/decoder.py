"""The decoder of pretrained language models: full attention with grouped queries, gated feed-forward layers.

Llama 3, Qwen2, Qwen2.5 and Qwen3 are settings of its fields; `interop.names` says which.
"""
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from atlas_jax.models import rope
from atlas_jax.models.grouped_attention import attend
from atlas_jax.models.layers import RMSNorm, gated, scaled_normal
from atlas_jax.models.lm import REMAT
from atlas_jax.models.lora import Lora
from atlas_jax.parallel import by_rows

# Axes of its leaves that are split over `tensor`, see `models.placement`.
TENSOR_AXES = (
    (r"attention/[qkv]/(kernel|bias|lora_b)", (-2,)),  # D or rank, H, K
    (r"attention/out/(kernel|lora_a)", (-3,)),  # H, K, D or rank
    (r"mlp/(gate|up)/(kernel|bias|lora_b)", (-1,)),  # D or rank, F
    (r"mlp/down/(kernel|lora_a)", (-2,)),  # F, D or rank
    (r"embed", (-2, -1)),  # V, D
    (r"head/kernel", (-1, -2)))  # D, V, where the output weights are not the embedding


class Cache(NamedTuple):
  """Keys and values of the tokens read so far, of fixed length.

  They lead with depth, not with B, so that the scan over depth reads them where they are.
  """

  k: Any  # [L, B, S, H, K], rotated by position; S is the longest text it can hold
  v: Any  # [L, B, S, H, K]
  count_B: Any  # int32, how many of the S are filled, from the start; padding takes none


ROW_AXES: Any = Cache(k=1, v=1, count_B=0)  # Which axis of each leaf counts rows.
TOKEN_AXES: Any = Cache(k=2, v=2, count_B=-1)  # Which axis of each leaf counts tokens, -1 for none.


class DecoderOut(NamedTuple):
  """The outcome of reading."""

  hidden_BTD: jax.Array  # normalised vectors, to be scored by the head; meaningless at padding
  cache: Any  # the model's own, with the tokens just read; None if none was given


class Projection(nn.Module):
  """A linear map over the last axes of its input, with a low-rank adapter beside it if asked.

  Attributes:
    features: axes of the output.
    n_in: how many of the input's last axes are summed over.
    bias: whether a bias is added.
    scale: factor on the initial weights.
    adapter: rank and scale of the adapter, or None.
  """

  features: tuple[int, ...]
  n_in: int = 1
  bias: bool = False
  scale: float = 1.0
  adapter: Lora | None = None

  @nn.compact
  def __call__(self, x_BTD):
    """Returns [B, T, *features] in x's dtype."""
    inputs = x_BTD.shape[-self.n_in:]
    dtype = x_BTD.dtype
    tokens = x_BTD.shape[:-self.n_in]
    x_ND = x_BTD.reshape(-1, *inputs)  # Gradients of products over two axes of tokens copy their operands.
    init = scaled_normal(self.scale, in_axes=self.n_in)
    kernel = self.param("kernel", init, (*inputs, *self.features), jnp.float32)
    y = jnp.tensordot(x_ND, kernel.astype(dtype), axes=self.n_in)
    if self.bias:
      bias = self.param("bias", nn.initializers.zeros, self.features, jnp.float32)
      y = y + bias.astype(dtype)[None]
    if self.adapter is None:
      return y.reshape(*tokens, *self.features)
    # The deviation of a uniform draw within 1 / sqrt(inputs), as adapters usually start. With B at zero the
    # model is as it was, and the first gradient reaches B alone.
    down = self.param("lora_a", scaled_normal(3**-0.5, self.n_in), (*inputs, self.adapter.rank), jnp.float32)
    up = self.param("lora_b", nn.initializers.zeros, (self.adapter.rank, *self.features), jnp.float32)
    # Scaled where it is narrowest: rank numbers per token.
    low = jnp.tensordot(x_ND, down.astype(dtype), axes=self.n_in) * jnp.asarray(self.adapter.scale, dtype)
    return (y + jnp.tensordot(low, up.astype(dtype), axes=1)).reshape(*tokens, *self.features)


class DecoderBlock(nn.Module):
  """Attention, then a gated feed-forward layer, each on normalised input and added to it.

  Attributes:
    shape: the fields of the `Decoder`.
    keeps: whether the new keys and values are given back.
  """

  shape: Mapping
  keeps: bool

  @nn.compact
  def __call__(self, x_BTD, past, cos_sin, doc_BT, count_B):
    """Reads T tokens.

    Args:
      x_BTD: the block's input.
      past: (k_BSHK, v_BSHK) of this block, or None.
      cos_sin: cosine and sine of the tokens' positions, or None for no rotation.
      doc_BT: document of each token, -1 at padding.
      count_B: filled slots of the past.

    Returns:
      x_BTD, and the new tokens' (k_BTHK, v_BTHK), None unless they are kept.
    """
    shape = self.shape
    x_BTD = by_rows.keep(x_BTD)

    def norm(name):
      return RMSNorm(shape["norm_eps"], name=name)

    attention = Attention(shape, name="attention")
    mixed_BTD, new = attention(norm("norm_attention")(x_BTD), past, cos_sin, doc_BT, count_B)
    x_BTD = x_BTD + mixed_BTD
    fed_BTD = GatedMLP(shape, name="mlp")(norm("norm_mlp")(x_BTD))
    return by_rows.keep(x_BTD + fed_BTD), new if self.keeps else None


class Attention(nn.Module):
  """Projects to heads, rotates them by position, attends and projects back; see `DecoderBlock`."""

  shape: Mapping

  @nn.compact
  def __call__(self, x_BTD, past, cos_sin, doc_BT, count_B):
    """Returns [B, T, D] and the new keys and values; arguments as of `DecoderBlock`."""
    shape = self.shape

    def project(name, heads):
      return Projection((heads, shape["head_dim"]), bias=shape["qkv_bias"],
                        adapter=Lora.of(shape["lora"], name), name=name)(x_BTD)

    q_BTHK = project("q", shape["heads"])
    k_BTHK = project("k", shape["kv_heads"])
    v_BTHK = project("v", shape["kv_heads"])
    # Before rotation: the norm's scale is one per feature, which turning pairs of features would mix.
    if shape["qk_norm"]:
      q_BTHK = RMSNorm(shape["norm_eps"], name="q_norm")(q_BTHK)
      k_BTHK = RMSNorm(shape["norm_eps"], name="k_norm")(k_BTHK)
    if cos_sin is not None:
      cos, sin = (part[:, :, None] for part in cos_sin)
      q_BTHK = rope.apply_rope(q_BTHK, cos, sin)
      k_BTHK = rope.apply_rope(k_BTHK, cos, sin)
    out_BTHK = attend(q_BTHK, k_BTHK, v_BTHK, doc_BT, None if past is None else (*past, count_B),
                      block_tokens=shape["attention_block_tokens"])
    out = Projection((x_BTD.shape[-1],), n_in=2, bias=shape["out_bias"], scale=out_scale(shape),
                     adapter=Lora.of(shape["lora"], "out"), name="out")
    return out(out_BTHK), (k_BTHK, v_BTHK)


class GatedMLP(nn.Module):
  """(silu(x W_gate) * x W_up) W_down, see `layers.gated` and `DecoderBlock`."""

  shape: Mapping

  @nn.compact
  def __call__(self, x_BTD):
    """Returns [B, T, D] in x's dtype."""
    shape = self.shape

    def project(name, width, scale=1.0):
      return Projection(
(width,), bias=shape["mlp_bias"], scale=scale, adapter=Lora.of(shape["lora"], name), name=name)

    gate_BTF = project("gate", shape["ff_width"])(x_BTD)
    up_BTF = project("up", shape["ff_width"])(x_BTD)
    return project("down", x_BTD.shape[-1], out_scale(shape))(gated(gate_BTF, up_BTF))


def out_scale(shape: Mapping) -> float:
  """Returns the factor on initial weights of projections back to the width, which adds up over depth."""
  # Two sums per block: 2 depth terms with this factor add up to the variance of one.
  return (2 * shape["depth"]) ** -0.5


class Head(nn.Module):
  """Owns the output weights of a model whose head is not the embedding."""

  vocab_size: int

  @nn.compact
  def __call__(self, width: int):
    """Returns [D, V]."""
    return self.param("kernel", scaled_normal(1.0), (width, self.vocab_size), jnp.float32)


class Decoder(nn.Module):
  """A decoder with the architecture of pretrained language models.

  Attributes:
    vocab_size, width, depth, ff_width: the usual.
    heads, kv_heads, head_dim: query heads, heads of keys and values (a divisor), and features of each.
    rope_base, rope_scaling: see `rope.inverse_frequencies`.
    learned_positions: rows of a learned table of positions, used instead of rotation; None: rotation.
    qk_norm: whether queries and keys are normalised per head before they are rotated.
    qkv_bias, out_bias, mlp_bias: which projections have biases.
    tied: whether the output weights are the embedding.
    norm_eps: added to mean squares.
    dtype: of activations; parameters may be of any.
    remat: what the backward pass recomputes: "none", "dots" (all but products with parameters) or "block".
    scan_unroll: blocks unrolled per step of the scan over depth; changes speed only.
    attention_block_tokens: queries attended at a time, see `grouped_attention.attend`; changes memory only.
    lora: rank, alpha, targets and scaling of adapters, see `lora.Lora`; None for none.
  """

  vocab_size: int
  width: int
  depth: int
  heads: int
  kv_heads: int
  head_dim: int
  ff_width: int
  rope_base: float = 10_000.0
  rope_scaling: Mapping | None = None
  learned_positions: int | None = None
  qk_norm: bool = False
  qkv_bias: bool = False
  out_bias: bool = False
  mlp_bias: bool = False
  tied: bool = False
  norm_eps: float = 1e-6
  dtype: str = "float32"
  remat: str = "none"
  scan_unroll: int = 1
  attention_block_tokens: int | None = None
  lora: Mapping | None = None
  row_axes = ROW_AXES
  token_axes = TOKEN_AXES

  def __post_init__(self):
    """Freezes the mappings, so that the model can be hashed and equals another of the same fields."""
    for name in ("rope_scaling", "lora"):
      if getattr(self, name) is not None:
        fixed = {key: tuple(value) if isinstance(value, list) else value
                 for key, value in getattr(self, name).items()}
        object.__setattr__(self, name, nn.FrozenDict(fixed))
    super().__post_init__()

  @nn.nowrap
  def zero_cache(self, rows: int, length: int) -> Cache:
    """Returns the cache of a model that has read nothing, with room for `length` tokens per row."""
    shape = (self.depth, rows, length, self.kv_heads, self.head_dim)
    dtype = jnp.dtype(self.dtype)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((rows,), jnp.int32))

  @nn.compact
  def __call__(self, tokens_BT, cache: Cache | None = None, *, doc_BT=None, position_BT=None,
               room_tokens: int | None = None) -> DecoderOut:
    """Reads T tokens of each row.

    Args:
      tokens_BT: int32 in [0, vocab_size); anything at padding.
      cache: what an earlier call returned, to read on; None starts anew. Real tokens that find no room in it
        are not kept: callers see to its length.
      doc_BT: document of each token, -1 at padding, wherever it stands; None: all real. Tokens see only their
        document. With a cache a row is one document, and every real token continues it.
      position_BT: position of each token in its document; None: counted, without padding.
      room_tokens: starts a cache of this length; None with no cache keeps nothing.

    Raises:
      ValueError: if fields contradict each other, or more tokens are read than the cache can hold.
    """
    self._check(tokens_BT, cache, room_tokens)
    doc_BT = jnp.zeros_like(tokens_BT) if doc_BT is None else doc_BT
    if position_BT is None:
      position_BT = positions(doc_BT) if cache is None else continued_positions(doc_BT, cache.count_B)
    dtype = jnp.dtype(self.dtype)
    embedding = self.param("embed", nn.initializers.normal(0.02), (self.vocab_size, self.width), jnp.float32)
    # Taken before they are cast, which copies no table; not scaled by the width's root, unlike those of `lm`.
    x_BTD = embedding[tokens_BT].astype(dtype)
    cos_sin = None
    if self.learned_positions is None:
      frequencies = rope.inverse_frequencies(self.head_dim, self.rope_base, self.rope_scaling)
      # Once for all blocks: depth is a loop whose constants these are.
      cos_sin = rope.cos_sin(position_BT, *frequencies, dtype)
    else:
      table = self.param("positions", nn.initializers.normal(0.02), (self.learned_positions, self.width),
                         jnp.float32)
      x_BTD = x_BTD + table[position_BT].astype(dtype)
    block = nn.remat(DecoderBlock, policy=REMAT[self.remat],
                     prevent_cse=False) if self.remat != "none" else DecoderBlock
    blocks = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth,
                     in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast), out_axes=0,
                     unroll=self.scan_unroll, check_constancy_invariants=self.is_initializing())  # As in lm
    # New keys come out of the loop over depth and are written behind the old ones at once, below: written
    # inside, the whole cache would be among what the loop carries.
    past, count_B = (None, None) if cache is None else ((cache.k, cache.v), cache.count_B)
    keeps = cache is not None or room_tokens is not None
    x_BTD, new = blocks(self.shape(), keeps, name="blocks")(x_BTD, past, cos_sin, doc_BT, count_B)
    hidden_BTD = RMSNorm(self.norm_eps, name="final_norm")(x_BTD)
    if not self.tied:
      # For its parameter alone: hidden vectors are scored outside, by blocks where all logits would not fit.
      Head(self.vocab_size, name="head")(self.width)
    if room_tokens is not None:
      cache = self.zero_cache(tokens_BT.shape[0], room_tokens)
    return DecoderOut(hidden_BTD, None if cache is None else extend(cache, new, doc_BT))

  @nn.nowrap
  def shape(self) -> dict:
    """Returns the fields that say what the model is, not how it is run."""
    names = self.__dataclass_fields__.keys() - {"parent", "name"}
    return {name: getattr(self, name) for name in names}

  @nn.nowrap
  def _check(self, tokens_BT, cache, room_tokens):
    if self.heads % self.kv_heads:
      raise ValueError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
    if self.head_dim % 2:
      raise ValueError(f"head_dim={self.head_dim} must be even: features are turned in pairs")
    if self.remat not in REMAT:
      raise ValueError(f"remat={self.remat!r} is unknown; known are {', '.join(REMAT)}")
    if cache is not None and room_tokens is not None:
      raise ValueError(f"room_tokens={room_tokens} starts a cache, but one was given; leave one of them out")
    room = room_tokens if cache is None else cache.k.shape[2]
    if room is not None and tokens_BT.shape[1] > room:
      raise ValueError(f"{tokens_BT.shape[1]} tokens do not fit a cache of {room}; make it longer")


def positions(doc_BT):
  """Counts each token's position in its document, which padding does not advance; 0 at padding.

  Documents follow one another: one that stops does not go on later.
  """
  real_BT = doc_BT >= 0
  at_BT = jnp.broadcast_to(jnp.arange(doc_BT.shape[1], dtype=jnp.int32)[None], doc_BT.shape)
  last_BT = jax.lax.cummax(jnp.where(real_BT, at_BT, -1), axis=1)  # The last real token so far.
  before_BT = jnp.pad(last_BT[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  going_BT = jnp.take_along_axis(doc_BT, jnp.maximum(before_BT, 0), axis=1)
  starts_BT = real_BT & ((before_BT < 0) | (going_BT != doc_BT))
  rank_BT = jnp.cumsum(real_BT.astype(jnp.int32), axis=1) - 1
  start_BT = jax.lax.cummax(jnp.where(starts_BT, rank_BT, 0), axis=1)
  return jnp.where(real_BT, rank_BT - start_BT, 0)


def continued_positions(doc_BT, count_B):
  """Counts on from count_B tokens over the real ones; padding has the position of the last real token."""
  return count_B[:, None] + jnp.maximum(jnp.cumsum((doc_BT >= 0).astype(jnp.int32), axis=1) - 1, 0)


def extend(cache: Cache, new, doc_BT) -> Cache:
  """Puts the keys and values of real tokens, [L, B, T, H, K], behind those in the cache."""
  real_BT = doc_BT >= 0
  # Padding goes to slot S, which is not there, and is dropped; so is what finds no room.
  slot_BT = jnp.where(real_BT, continued_positions(doc_BT, cache.count_B), cache.k.shape[2])
  row_BT = jnp.arange(len(slot_BT))[:, None]

  def put(old, new):
    return old.at[:, row_BT, slot_BT].set(new.astype(old.dtype), mode="drop")

  k = put(cache.k, new[0])
  v = put(cache.v, new[1])
  return Cache(k, v, cache.count_B + jnp.sum(real_BT, axis=1, dtype=jnp.int32))
