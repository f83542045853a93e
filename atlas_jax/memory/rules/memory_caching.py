"""Memory caching: a memory of any rule, and what it was at the end of each earlier segment, read together.

With M_t the memory of the rule `rule`, and M_1 .. M_n what it was when each of the last segments ended,

  y_t = g_t M_t(q_t) + sum_i g_(t,i) M_i(q_t)

  read "residual": all g are 1.
  read "gate":     g is a softmax over u_t . mean key of the segment, u_t = q_t U, U learned. The mean of the
                   segment that goes on is that of its tokens so far, the token itself included; where the
                   rule reads the weights of its chunk's start, that of the tokens before the chunk.
  read "sparse":   the same softmax over the `choose` segments of the largest products, and the memory M_t.

Writing is the rule's affair and goes on as without checkpoints; with `restart` every segment begins from the
learned start, so that a checkpoint holds its own segment alone. A segment is a number of whole chunks of the
document. The state has room for `segments` checkpoints, from the start: a full one, by `when_full`, gives up
the oldest, or keeps the first ones and takes no more. A new document has none.

Every checkpoint is read at every token, also where "sparse" weighs most of them zero: their number and the
cost of a token are fixed. The paper makes u of the layer's input, where a rule sees queries alone, and pools
that input, where we pool keys; it keeps all checkpoints of a text, without a bound. Its fourth read, averaged
weights, is not offered. Reads "residual" are sums, whose length says nothing.

State per head: `segments` times what the rule reads with (for most its weights) and a key's width, beside the
rule's own; with `restart` the rule's start once more. A stream holds the checkpoints twice: as its state, and
as the base of its chunk.

In a line: y = g M(q) + Σ gᵢ Mᵢ(q), Mᵢ what any rule's memory was at earlier segments' ends
Floats per head: the rule's + segments (w + d)

Source: Behrouz et al. 2026, Memory Caching, arXiv:2602.24281, section 3: residual, gated residual and sparse
selective reads; checkpoints and independent compressors (`restart`).
"""
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from atlas_jax.memory import rules
from atlas_jax.memory.nets import FIELD
from atlas_jax.memory.types import ChunkOut, Learned, MemoryRule, MemoryState

READS = ("residual", "gate", "sparse")
WHEN_FULL = ("oldest", "first")
SHARPNESS = 8.0  # U at the start, times the identity: a mean of unit keys is short.
CHOOSE = 2


class CachingForm(NamedTuple):
  """Settings of the checkpoints."""

  rule: MemoryRule
  key_dim: int
  value_dim: int
  segment_chunks: int
  segments: int
  read: str
  choose: int
  restart: bool
  when_full: str


class SegmentCache(NamedTuple):
  """Memories at the ends of earlier segments, and the keys of the one that goes on."""

  bases: Any  # what the rule reads with, leaves [segments, ...]
  mean_SK: jax.Array  # mean key of each of these segments
  filled: jax.Array  # [] int32, segments that were kept so far
  sum_K: jax.Array  # of the keys written in the segment that goes on
  n_keys: jax.Array  # [] int32


class CachingExtra(NamedTuple):
  """State beside the rule's weights and momentum."""

  rule: Any  # whatever else the rule carries
  checkpoints: SegmentCache
  chunks: jax.Array  # [] int32, full chunks of the segment that goes on
  fresh: Any  # the rule's state at a segment's start; () where segments go on from the last


class CachingBase(NamedTuple):
  """The rule's base of a chunk, and what is read beside it."""

  rule: Any
  checkpoints: SegmentCache


class PreparedCaching(NamedTuple):
  """All of a chunk that needs no memory."""

  rule: Any
  q_CK: jax.Array
  k_CK: jax.Array
  write_C: jax.Array


def make(*, key_dim: int, value_dim: int, chunk_size: int, rule: str = "titans",
         options: Mapping | None = None, segment: int | None = None, segments: int = 8, read: str = "gate",
         choose: int | None = None, restart: bool = False, when_full: str = "oldest") -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim: widths of keys and values.
    chunk_size: tokens of a chunk, of the rule's, too.
    rule, options: the memory rule that is written, by name, and its own options; a config's file gives these,
      since flags set single ones.
    segment: tokens after which its memory is kept, a multiple of chunk_size; None: every chunk.
    segments: how many are kept at most.
    read: "residual", "gate" or "sparse".
    choose: with read "sparse": how many of them a token reads; None: 2, or all if there is room for fewer.
    restart: whether a segment begins from the learned start; else where the last one ended.
    when_full: "oldest": the newest takes the place of the oldest; "first": the first ones stay.

  Raises:
    ValueError: if an option is out of range, or has no use; for the rule's own see `rules.load`.
  """
  if options is not None and not isinstance(options, Mapping):
    raise TypeError(f"{FIELD}.options={options!r} must be the options of rule={rule!r} by name, or None")
  segment = chunk_size if segment is None else segment
  if segment < 1 or segment % chunk_size:
    raise ValueError(f"{FIELD}.segment={segment} must be a multiple of config.model.memory.chunk_size="
                     f"{chunk_size}: memories are kept where a chunk ends")
  if segments < 1:
    raise ValueError(f"{FIELD}.segments={segments} must be at least 1; without any, name the rule itself")
  for name, value, known in (("read", read, READS), ("when_full", when_full, WHEN_FULL)):
    if value not in known:
      raise ValueError(f"{FIELD}.{name}={value!r} is unknown; known are {', '.join(known)}")
  if choose is not None and (read != "sparse" or not 1 <= choose <= segments):
    raise ValueError(f"{FIELD}.choose={choose} must be between 1 and segments={segments}, and is for "
                     f"read='sparse'; read is {read!r}")
  inner = rules.load(rule, key_dim=key_dim, value_dim=value_dim, chunk_size=chunk_size, **(options or {}))
  chosen = min(CHOOSE, segments) if choose is None else choose
  form = CachingForm(inner, key_dim, value_dim, segment // chunk_size, segments, read, chosen, restart,
                     when_full)
  return _rule(form)


def _rule(form: CachingForm) -> MemoryRule:
  def bind(function):
    return functools.partial(function, form)

  inner = form.rule
  resume = functools.partial(_chunk, form, inner.resume) if inner.resume else None
  return MemoryRule(
      init=bind(_init), start=bind(_start), apply=bind(_apply), still=bind(_still), empty=bind(_empty),
      step=bind(_step), prepare=bind(_prepare), chunk=functools.partial(_chunk, form, inner.chunk),
      resume=resume, base_of=bind(_base_of), close=bind(_close), gates=inner.gates, uses=inner.uses,
      starts=inner.starts, reads=inner.reads, lift=inner.lift,
      aims="direction" if form.read == "residual" else inner.aims,
      flops=bind(_flops) if inner.flops else None)


def _flops(form: CachingForm, chunk_size: int) -> float:
  """Counts the FLOPs of one token: the rule's, a read of every checkpoint, and the choice among them."""
  assert form.rule.flops is not None
  fast = jax.eval_shape(form.rule.init, jax.random.key(0)).fast
  reads = 2.0 * sum(math.prod(w.shape) for w in jax.tree.leaves(fast)) + 2 * form.value_dim
  gates = 0 if form.read == "residual" else 2 * form.key_dim * (form.key_dim + form.segments + 1)
  return form.rule.flops(chunk_size) + form.segments * reads + gates


def _init(form: CachingForm, key) -> Learned:
  learned = form.rule.init(key)
  slow = {"rule": learned.slow} if learned.slow else {}
  if form.read != "residual":
    slow["router"] = SHARPNESS * jnp.eye(form.key_dim, dtype=jnp.float32)
  return Learned(learned.fast, slow)


def _of_rule(slow):
  """Returns the rule's own constants."""
  return slow["rule"] if "rule" in slow else {}


def _empty(form: CachingForm, learned: Learned) -> Learned:
  """Returns what an empty memory starts from: the rule's, behind the same choice of segments."""
  inner = form.rule.empty(Learned(learned.fast, _of_rule(learned.slow)))
  slow = learned.slow | {"rule": inner.slow} if inner.slow else learned.slow
  return Learned(inner.fast, slow)


def _inner(state: MemoryState) -> MemoryState:
  """Returns the rule's own state."""
  return state._replace(kept=state.kept.rule)


def _start(form: CachingForm, learned: Learned) -> MemoryState:
  slow = _of_rule(learned.slow)
  state = form.rule.start(Learned(learned.fast, slow))
  base = form.rule.base_of(slow, state)

  def room(x):  # Filled with what can be read: a rule need not read weights of zero without an accident.
    return jnp.broadcast_to(x[None], (form.segments, *x.shape))

  dtype = jax.tree.leaves(learned.fast)[0].dtype
  none = jnp.zeros((), jnp.int32)
  checkpoints = SegmentCache(jax.tree.map(room, base), jnp.zeros((form.segments, form.key_dim), dtype), none,
                             jnp.zeros((form.key_dim,), dtype), none)
  return state._replace(kept=CachingExtra(state.kept, checkpoints, none, state if form.restart else ()))


def _base_of(form: CachingForm, slow, state: MemoryState) -> CachingBase:
  return CachingBase(form.rule.base_of(_of_rule(slow), _inner(state)), state.kept.checkpoints)


def _mean(sum_K, count):
  """Returns the mean of keys, zero where there are none; leading axes are free."""
  return sum_K / jnp.maximum(count, 1).astype(sum_K.dtype)[..., None]


def _weights(form: CachingForm, slow, checkpoints: SegmentCache, q_CK, mean_CK):
  """Weighs the memory itself, and each checkpoint, for each token; [C] and [C, segments]."""
  there_S = jnp.arange(form.segments, dtype=jnp.int32) < checkpoints.filled
  there_CS = jnp.broadcast_to(there_S, (q_CK.shape[0], form.segments))
  if form.read == "residual":
    return jnp.ones_like(q_CK[:, 0]), there_CS.astype(q_CK.dtype)
  asked_CK = q_CK @ slow["router"]
  product_CS = jnp.where(there_CS, asked_CK @ checkpoints.mean_SK.T, -jnp.inf)
  if form.read == "sparse":
    _, best_CS = jax.lax.top_k(product_CS, form.choose)
    every_11S = jnp.arange(form.segments, dtype=best_CS.dtype)[None, None]
    chosen_CS = jnp.any(best_CS[..., None] == every_11S, axis=-2)
    product_CS = jnp.where(chosen_CS & there_CS, product_CS, -jnp.inf)
  # The memory itself is always there: the softmax is over something also before the first segment ends.
  own_C1 = jnp.sum(asked_CK * mean_CK, -1, keepdims=True)
  weight_CS = jax.nn.softmax(jnp.concatenate([own_C1, product_CS], axis=-1), axis=-1)
  return weight_CS[:, 0], weight_CS[:, 1:]


def _together(form: CachingForm, slow, checkpoints: SegmentCache, q_CK, mean_CK, out_CM):
  """Adds what checkpoints recall to the memory's own reads."""
  own_C, weight_CS = _weights(form, slow, checkpoints, q_CK, mean_CK)
  each_SCM = jax.vmap(form.rule.apply, in_axes=(None, 0, None))(_of_rule(slow), checkpoints.bases, q_CK)
  return own_C[:, None] * out_CM + jnp.einsum("cs,scm->cm", weight_CS, each_SCM)


def _standing(form: CachingForm, slow, base: CachingBase, q_CK, out_CM):
  """Reads with nothing written since the base was made."""
  kept = base.checkpoints
  mean_CK = jnp.broadcast_to(_mean(kept.sum_K, kept.n_keys), q_CK.shape)
  return _together(form, slow, kept, q_CK, mean_CK, out_CM)


def _apply(form: CachingForm, slow, base: CachingBase, x_K):
  q_CK = x_K.reshape(-1, x_K.shape[-1])
  out_CM = _standing(form, slow, base, q_CK, form.rule.apply(_of_rule(slow), base.rule, q_CK))
  return out_CM.reshape(*x_K.shape[:-1], form.value_dim)


def _still(form: CachingForm, slow, base: CachingBase, q_CK, position_C):
  out_CM = form.rule.still(_of_rule(slow), base.rule, q_CK, position_C)
  return _standing(form, slow, base, q_CK, out_CM)


def _written(form: CachingForm, state: MemoryState, base: CachingBase, k_CK, write_C):
  """Counts a chunk's keys: the checkpoints after it, and the mean key that each token's read goes by."""
  kept = state.kept.checkpoints
  sum_CK = kept.sum_K[None] + jnp.cumsum(jnp.where(write_C[:, None], k_CK, 0), axis=0)
  count_C = kept.n_keys + jnp.cumsum(write_C, dtype=jnp.int32)
  mean_CK = _mean(sum_CK, count_C)
  if form.rule.reads == "chunk":  # Reads see nothing of their own chunk, nor may their weights.
    before = base.checkpoints
    mean_CK = jnp.broadcast_to(_mean(before.sum_K, before.n_keys), k_CK.shape)
  return kept._replace(sum_K=sum_CK[-1], n_keys=count_C[-1]), mean_CK


def _step(form: CachingForm, slow, state: MemoryState, base: CachingBase, token, gates, place):
  after, out_M = form.rule.step(_of_rule(slow), _inner(state), base.rule, token, gates, place)
  kept, mean_1K = _written(form, state, base, token.k[None], jnp.ones((1,), bool))
  out_1M = _together(form, slow, kept, token.q[None], mean_1K, out_M[None])
  return after._replace(kept=state.kept._replace(rule=after.kept, checkpoints=kept)), out_1M[0]


def _prepare(form: CachingForm, slow, tokens, gates, write_C, position_C) -> PreparedCaching:
  ready = form.rule.prepare(_of_rule(slow), tokens, gates, write_C, position_C)
  return PreparedCaching(ready, tokens.q, tokens.k, write_C)


def _chunk(form: CachingForm, read, slow, state: MemoryState, base: CachingBase, ready: PreparedCaching):
  after, out = read(_of_rule(slow), _inner(state), base.rule, ready.rule)
  kept, mean_CK = _written(form, state, base, ready.k_CK, ready.write_C.astype(bool))
  out_CM = _together(form, slow, kept, ready.q_CK, mean_CK, out.out_CM)
  after = after._replace(kept=state.kept._replace(rule=after.kept, checkpoints=kept))
  return after, ChunkOut(out_CM, out.surprise_C, out.loss_C)


def _close(form: CachingForm, slow, state: MemoryState, base: CachingBase) -> MemoryState:
  """Ends a chunk, and with the segment's last one the segment."""
  # The rule's own end comes first: what it does then belongs to the segment that is kept.
  closed = form.rule.close(_of_rule(slow), _inner(state), base.rule)
  chunks = state.kept.chunks + 1
  goes_on = closed._replace(kept=state.kept._replace(rule=closed.kept, chunks=chunks))
  # Both are made, as everywhere where a traced condition chooses: a branch under vmap would be no cheaper.
  ended = _ended(form, _of_rule(slow), closed, state.kept)
  return jax.tree.map(lambda a, b: jnp.where(chunks == form.segment_chunks, a, b), ended, goes_on)


def _ended(form: CachingForm, slow, closed: MemoryState, extra: CachingExtra) -> MemoryState:
  """Keeps the memory as it is, and begins a segment."""
  kept = extra.checkpoints
  full = form.when_full == "first"
  slot = jnp.minimum(kept.filled, form.segments) if full else kept.filled % form.segments

  def put(all_S, one):
    return all_S.at[slot].set(one, mode="drop")  # With the first ones kept there is no such slot.

  bases = jax.tree.map(put, kept.bases, form.rule.base_of(slow, closed))
  mean_SK = put(kept.mean_SK, _mean(kept.sum_K, kept.n_keys))
  filled = jnp.minimum(kept.filled + 1, form.segments) if full else kept.filled + 1
  kept = SegmentCache(bases, mean_SK, filled, jnp.zeros_like(kept.sum_K), jnp.zeros_like(kept.n_keys))
  begun = extra.fresh if form.restart else closed
  return begun._replace(kept=CachingExtra(begun.kept, kept, jnp.zeros_like(extra.chunks), extra.fresh))
