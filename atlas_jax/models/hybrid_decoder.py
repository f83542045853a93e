"""The decoder of pretrained hybrid models: gated delta nets, with full attention at every few blocks.

Qwen3.5's text models are settings of its fields; `language.pretrained.names` says which. Its attention is
gated, rotates a part of each head, and its norms have a scale around zero.
"""
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from atlas_jax import tree
from atlas_jax.memory.norms import rms_normalize
from atlas_jax.models import decoder, rope
from atlas_jax.models.decoder import DecoderOut, GatedMLP, Head, Projection, out_scale
from atlas_jax.models.gated_delta_net import NO_DOC, DeltaState, GatedDeltaNet
from atlas_jax.models.grouped_attention import attend
from atlas_jax.models.lm import REMAT
from atlas_jax.parallel import by_rows

KINDS = ("linear", "full")


class HybridCache(NamedTuple):
  """State after the tokens read so far, for each block of the pattern; leaves lead with repetitions, then B.

  A gated delta net's part is a `DeltaState`, of fixed size; attention's are keys and values [.., S, H, K].
  """

  parts: Any  # one for each block
  count_B: Any  # int32, tokens read so far


ROW_AXES: Any = HybridCache(parts=1, count_B=0)  # Which axis of each leaf counts rows.


class OffsetRMSNorm(nn.Module):
  """Scales vectors to root mean square one, times 1 plus a learned offset; computed in float32 or wider.

  Attributes:
    eps: added to mean squares.
  """

  eps: float

  @nn.compact
  def __call__(self, x_BTD):
    """Returns x, normalised along its last axis, in its dtype; it may have more axes, as of heads."""
    offset = self.param("offset", nn.initializers.zeros, (x_BTD.shape[-1],), jnp.float32)
    full = x_BTD.astype(tree.accumulation_dtype(x_BTD.dtype))
    lifted = jnp.expand_dims(1 + offset.astype(full.dtype), range(x_BTD.ndim - 1))
    return (rms_normalize(full, eps=self.eps) * lifted).astype(x_BTD.dtype)


class GatedAttention(nn.Module):
  """Attention whose output is gated by its input; it rotates the first `rotary_dim` features of a head.

  Attributes:
    shape: the fields of the `HybridDecoder`.
  """

  shape: Mapping

  @nn.compact
  def __call__(self, x_BTD, past, cos_sin, doc_BT, count_B):
    """Returns [B, T, D] and the new keys and values; arguments as of `decoder.DecoderBlock`."""
    shape = self.shape
    bias, size, eps = shape["attention_bias"], shape["head_dim"], shape["norm_eps"]
    both_BTHK = Projection((shape["heads"], 2 * size), bias=bias, name="q")(x_BTD)
    q_BTHK, gate_BTHK = jnp.split(both_BTHK, 2, axis=-1)
    k_BTHK = Projection((shape["kv_heads"], size), bias=bias, name="k")(x_BTD)
    v_BTHK = Projection((shape["kv_heads"], size), bias=bias, name="v")(x_BTD)
    cos, sin = (part[:, :, None] for part in cos_sin)

    def turned(x_BTHK):
      turns = shape["rotary_dim"]
      return jnp.concatenate([rope.apply_rope(x_BTHK[..., :turns], cos, sin), x_BTHK[..., turns:]], axis=-1)

    q_BTHK = turned(OffsetRMSNorm(eps, name="q_norm")(q_BTHK))
    k_BTHK = turned(OffsetRMSNorm(eps, name="k_norm")(k_BTHK))
    out_BTHK = attend(q_BTHK, k_BTHK, v_BTHK, doc_BT, None if past is None else (*past, count_B),
                      block_tokens=shape["attention_block_tokens"])
    out = Projection((x_BTD.shape[-1],), n_in=2, bias=bias, scale=out_scale(shape), name="out")
    return out(out_BTHK * jax.nn.sigmoid(gate_BTHK)), (k_BTHK, v_BTHK)


class HybridBlock(nn.Module):
  """A gated delta net or attention, then a gated feed-forward layer, each on normalised input.

  Attributes:
    shape: the fields of the `HybridDecoder`.
    kind: one of KINDS.
  """

  shape: Mapping
  kind: str

  @nn.compact
  def __call__(self, x_BTD, past, where):
    """Returns x_BTD and what the block keeps: a `DeltaState`, or new keys and values.

    Args:
      x_BTD: the block's input.
      past: of this block; for attention None where nothing was read.
      where: (cos_sin, doc_BT, last_doc_B, count_B).
    """
    cos_sin, doc_BT, last_doc_B, count_B = where
    x_BTD = by_rows.keep(x_BTD)
    normal_BTD = OffsetRMSNorm(self.shape["norm_eps"], name="norm_mixer")(x_BTD)
    if self.kind == "linear":
      mixed_BTD, kept = GatedDeltaNet(self.shape, name="delta")(normal_BTD, past, doc_BT, last_doc_B)
    else:
      attention = GatedAttention(self.shape, name="attention")
      mixed_BTD, kept = attention(normal_BTD, past, cos_sin, doc_BT, count_B)
    x_BTD = x_BTD + mixed_BTD
    fed_BTD = GatedMLP(self.shape, name="mlp")(OffsetRMSNorm(self.shape["norm_eps"], name="norm_mlp")(x_BTD))
    return by_rows.keep(x_BTD + fed_BTD), kept


class Repetition(nn.Module):
  """The blocks of the pattern, once.

  Attributes:
    shape: the fields of the `HybridDecoder`.
    keeps: whether what the blocks keep is given back.
  """

  shape: Mapping
  keeps: bool

  @nn.compact
  def __call__(self, x_BTD, parts, where):
    """Returns x_BTD and what each block keeps, None unless it is kept."""
    kept = []
    for i, kind in enumerate(self.shape["pattern"]):
      x_BTD, one = HybridBlock(self.shape, kind, name=f"block_{i}")(x_BTD, parts[i], where)
      kept.append(one)
    return x_BTD, tuple(kept) if self.keeps else None


class HybridDecoder(nn.Module):
  """A language model of the pretrained hybrid kind.

  Attributes:
    vocab_size, width, depth, ff_width: the usual; depth is a multiple of the pattern's length.
    pattern: kinds of block, "linear" or "full", that repeat over depth.
    heads, kv_heads, head_dim: of attention, see `decoder.Decoder`.
    rotary_dim, rope_base: features of a head that are rotated, an even number, and the base.
    key_heads, value_heads, key_dim, value_dim: of gated delta nets; value heads are a multiple of key heads.
    conv_taps: width of their convolutions.
    attention_bias: whether attention's projections have biases.
    tied: whether the output weights are the embedding.
    norm_eps: added to mean squares.
    dtype, remat, scan_unroll, attention_block_tokens: how it is run, see `decoder.Decoder`.
    lora: None; adapters are offered for `decoder.Decoder` alone.
  """

  vocab_size: int
  width: int
  depth: int
  ff_width: int
  pattern: tuple[str, ...]
  heads: int
  kv_heads: int
  head_dim: int
  rotary_dim: int
  rope_base: float
  key_heads: int
  value_heads: int
  key_dim: int
  value_dim: int
  conv_taps: int = 4
  attention_bias: bool = False
  tied: bool = False
  norm_eps: float = 1e-6
  dtype: str = "float32"
  remat: str = "none"
  scan_unroll: int = 1
  attention_block_tokens: int | None = None
  lora: Mapping | None = None
  learned_positions = None  # It rotates.
  row_axes = ROW_AXES

  @property
  def token_axes(self) -> HybridCache | None:
    """Returns which axis of each leaf counts tokens, -1 for none; None where the cache is of fixed size."""
    if "full" not in self.pattern:
      return None
    return HybridCache(tuple(2 if kind == "full" else -1 for kind in self.pattern), -1)

  @nn.nowrap
  def zero_cache(self, rows: int, length: int) -> HybridCache:
    """Returns the cache of a model that has read nothing, whose attention has room for `length` tokens."""
    dtype = jnp.dtype(self.dtype)
    repeats = self.depth // len(self.pattern)
    keys_values = (repeats, rows, length, self.kv_heads, self.head_dim)
    memory = (repeats, rows, self.value_heads, self.key_dim, self.value_dim)
    channels = 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    def part(kind):
      if kind == "full":
        return jnp.zeros(keys_values, dtype), jnp.zeros(keys_values, dtype)
      return DeltaState(jnp.zeros(memory, tree.accumulation_dtype(dtype)),
                        jnp.zeros((repeats, rows, self.conv_taps - 1, channels), dtype))

    return HybridCache(tuple(map(part, self.pattern)), jnp.zeros((rows,), jnp.int32))

  @nn.compact
  def __call__(self, tokens_BT, cache: HybridCache | None = None, *, doc_BT=None, position_BT=None,
               room_tokens: int | None = None) -> DecoderOut:
    """Reads T tokens of each row; arguments, result and errors as of `decoder.Decoder`."""
    self._check(tokens_BT, cache, room_tokens)
    doc_BT = jnp.zeros_like(tokens_BT) if doc_BT is None else doc_BT
    if position_BT is None:
      position_BT = (decoder.positions(doc_BT) if cache is None
                     else decoder.continued_positions(doc_BT, cache.count_B))
    # Real tokens come first, so that a convolution or a memory meets no padding between two of them.
    order_BT = jnp.argsort(doc_BT < 0, axis=1, stable=True)
    tokens_BT, doc_BT, position_BT = (jnp.take_along_axis(x, order_BT, axis=1)
                                      for x in (tokens_BT, doc_BT, position_BT))
    dtype = jnp.dtype(self.dtype)
    embedding = self.param("embed", nn.initializers.normal(0.02), (self.vocab_size, self.width), jnp.float32)
    x_BTD = embedding[tokens_BT].astype(dtype)
    cos_sin = rope.cos_sin(position_BT, *rope.inverse_frequencies(self.rotary_dim, self.rope_base), dtype)
    rows = tokens_BT.shape[0]
    # Memories need a start, even of zero; attention that has read nothing needs no keys to look at.
    past = self.zero_cache(rows, 1) if cache is None else cache
    parts = tuple(part if isinstance(part, DeltaState) or cache is not None else None for part in past.parts)
    if cache is None:
      last_doc_B = jnp.full((rows,), NO_DOC, jnp.int32)
    else:  # A row is one document, whatever its number.
      doc_BT = jnp.where(doc_BT >= 0, 0, -1)
      last_doc_B = jnp.where(cache.count_B > 0, 0, NO_DOC)
    repetition = nn.remat(Repetition, policy=REMAT[self.remat],
                          prevent_cse=False) if self.remat != "none" else Repetition
    blocks = nn.scan(repetition, variable_axes={"params": 0}, split_rngs={"params": True},
                     length=self.depth // len(self.pattern), in_axes=(0, nn.broadcast), out_axes=0,
                     # As in `lm.LM._blocks`.
                     unroll=self.scan_unroll, check_constancy_invariants=self.is_initializing())
    keeps = cache is not None or room_tokens is not None
    where = (cos_sin, doc_BT, last_doc_B, past.count_B)
    x_BTD, kept = blocks(self.shape(), keeps, name="blocks")(x_BTD, parts, where)
    hidden_BTD = OffsetRMSNorm(self.norm_eps, name="final_norm")(x_BTD)
    if not self.tied:
      Head(self.vocab_size, name="head")(self.width)
    if room_tokens is not None:
      cache = self.zero_cache(rows, room_tokens)
    # Callers find their tokens where they put them.
    back_BT = jnp.argsort(order_BT, axis=1)
    hidden_BTD = jnp.take_along_axis(hidden_BTD, back_BT[..., None], axis=1)
    return DecoderOut(hidden_BTD, None if cache is None else _extend(cache, kept, doc_BT))

  @nn.nowrap
  def shape(self) -> dict:
    """Returns the fields that say what the model is, with those that its layers share with a `Decoder`."""
    names = self.__dataclass_fields__.keys() - {"parent", "name"}
    return {**{name: getattr(self, name) for name in names}, "mlp_bias": False}

  @nn.nowrap
  def _check(self, tokens_BT, cache, room_tokens):
    if self.lora is not None:
      raise ValueError("config.lora.rank puts adapters into a decoder of full attention, and this is a "
                       "hybrid model; set config.lora.rank=None")
    unknown = sorted(set(self.pattern) - set(KINDS))
    if unknown or not self.pattern or self.depth % len(self.pattern):
      raise ValueError(f"pattern={self.pattern} must be of {' and '.join(KINDS)}, and its length must divide "
                       f"depth={self.depth}")
    for many, few in (("heads", "kv_heads"), ("value_heads", "key_heads")):
      if getattr(self, many) % getattr(self, few):
        raise ValueError(f"{many}={getattr(self, many)} is not a multiple of {few}={getattr(self, few)}")
    if self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim:
      raise ValueError(f"rotary_dim={self.rotary_dim} must be even, and at most head_dim={self.head_dim}")
    if self.remat not in REMAT:
      raise ValueError(f"remat={self.remat!r} is unknown; known are {', '.join(REMAT)}")
    if cache is not None and room_tokens is not None:
      raise ValueError(f"room_tokens={room_tokens} starts a cache, but one was given; leave one of them out")
    room = room_tokens if cache is None else _room(cache)
    if room is not None and tokens_BT.shape[1] > room:
      raise ValueError(f"{tokens_BT.shape[1]} tokens do not fit a cache of {room}; make it longer")


AnyDecoder = decoder.Decoder | HybridDecoder


def _room(cache: HybridCache) -> int | None:
  """Returns how many tokens attention has room for, None where there is none."""
  rooms = [part[0].shape[2] for part in cache.parts if not isinstance(part, DeltaState)]
  return rooms[0] if rooms else None


def _extend(cache: HybridCache, kept, doc_BT) -> HybridCache:
  """Takes over memories, and puts new keys and values behind those in the cache."""

  def extended(part, new):
    if isinstance(part, DeltaState):
      return new
    longer = decoder.extend(decoder.Cache(*part, cache.count_B), new, doc_BT)
    return longer.k, longer.v

  count_B = cache.count_B + jnp.sum(doc_BT >= 0, axis=1, dtype=jnp.int32)
  return HybridCache(tuple(map(extended, cache.parts, kept)), count_B)
