"""Liveness of a memory: whether its weights last, whether one write counts, and whether it recalls.

A memory of one head reads two streams at its gates' starts, without any training: random pairs, on which the
norm of its weights and the weight of one write are measured, and pairs that return, on which recall is.
Where the widths and the chunk are those of a model, this says whether the model starts with a memory at all.
"""
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from atlas_jax.memory.types import Gates, GateStarts, MemoryRule, Token

WRITE_LEAST = 0.01  # A read must move by this fraction of its length when one value is exchanged.
NORM_RANGE = 100.0  # Factor by which the norm may leave its start, both ways.
LOSS_MOST = 0.99  # Loss on pairs that return, over the loss of answering zero.
ASKED = 8  # Pairs of a chunk whose values are exchanged, one at a time.


class Life(NamedTuple):
  """Measurements of a memory after so many tokens; arrays have one number per head."""

  norm: jax.Array  # |W| on random pairs
  write: jax.Array  # median fraction of its length by which a read moves when its value is exchanged
  loss: jax.Array  # mean recall loss on pairs that return, over that of answering zero


class Streams(NamedTuple):
  """The text that the memory reads."""

  pairs: int = 64  # distinct pairs that return, in an order drawn anew each time
  noise: float = 0.1  # length of what is added to a returning key or value
  likeness: float = 0.0  # mean cosine of keys


STREAMS = Streams()


def constant_gates(rule: MemoryRule, length: int) -> Gates:
  """Returns the gates of `length` tokens as they are where training starts, on an input of zero."""
  starts = rule.starts
  full = lambda value, *shape: jnp.full((length, *shape), value, jnp.float32)
  common = {"log_retention": math.log(starts.retention), "log_momentum": math.log(starts.momentum),
            "write_rate": starts.write_rate}
  used = {name: full(value if name in rule.uses else 0.0) for name, value in common.items()}
  own = {spec.name: full(spec.init, *(() if spec.size is None else (spec.size,))) for spec in rule.gates}
  return Gates(**used, more=own or ())


def unit(x):
  """Brings vectors to norm one."""
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def keys(key, likeness: float, count: int, width: int):
  """Draws unit keys whose cosines have that mean, all around one direction."""
  common, own = jax.random.split(key)
  centre_K = unit(jax.random.normal(common, (width,)))
  own_TK = unit(jax.random.normal(own, (count, width)))
  # Two such keys have a product of about `likeness`: those with and of random directions have a mean of 0.
  return unit(likeness**0.5 * centre_K[None] + (1 - likeness) ** 0.5 * own_TK)


def random_pairs(streams: Streams, key, length: int, key_dim: int, value_dim: int) -> Token:
  """Draws pairs that never return; each is asked for as it is written."""
  of_keys, of_values = jax.random.split(key)
  k_TK = keys(of_keys, streams.likeness, length, key_dim)
  return Token(k_TK, k_TK, unit(jax.random.normal(of_values, (length, value_dim))))


def returning_pairs(streams: Streams, key, length: int, key_dim: int, value_dim: int):
  """Draws pairs that return; each token asks for the pair that the next token writes again.

  Returns:
    (Token of `length`, the values asked for [length, M]).
  """
  of_pairs, of_order, of_noise = jax.random.split(key, 3)
  pairs = random_pairs(streams, of_pairs, streams.pairs, key_dim, value_dim)
  cycles = length // streams.pairs + 2
  order = jax.vmap(lambda key: jax.random.permutation(key, streams.pairs))(jax.random.split(of_order, cycles))
  order_T = order.reshape(-1)[:length + 1]

  def noisy(key, x):
    return unit(x + streams.noise * unit(jax.random.normal(key, x.shape)))

  one, two = jax.random.split(of_noise)
  k_TK = noisy(one, pairs.k[order_T])
  v_TM = noisy(two, pairs.v[order_T])
  # Token t asks for what token t + 1 writes, noise included: only earlier returns of the pair can answer.
  return Token(k_TK[1:], k_TK[:-1], v_TM[:-1]), v_TM[1:]


def norm(fast):
  """Returns the norm of all fast weights together."""
  return jnp.sqrt(sum(jnp.sum(w * w) for w in jax.tree.leaves(fast)))


def read_chunk(rule: MemoryRule, slow, gates: Gates, memory, tokens: Token):
  """Reads one chunk from its start and closes it; returns the memory and what was recalled."""
  size = tokens.k.shape[0]
  ready = rule.prepare(slow, tokens, gates, jnp.ones((size,), bool), jnp.arange(size, dtype=jnp.int32))
  base = rule.base_of(slow, memory)
  assert rule.chunk is not None, "rules.load completes it"
  after, out = rule.chunk(slow, memory, base, ready)
  return rule.close(slow, after, base), out.out_CM


def weight_of_a_write(rule: MemoryRule, slow, gates: Gates, memory, tokens: Token, v_SM):
  """Exchanges one value after another of a chunk; returns how far the read of its key moves, the median."""
  size = tokens.k.shape[0]
  asked = v_SM.shape[0]
  at_S = jnp.arange(asked, dtype=jnp.int32) * size // asked

  def recalled(v_TM):
    after, _ = read_chunk(rule, slow, gates, memory, tokens._replace(v=v_TM))
    # After the close, with the next base: rules that write at a chunk's end have written by now.
    return rule.apply(slow, rule.base_of(slow, after), tokens.k[at_S])

  as_is_SM = recalled(tokens.v)
  changed_SM = jax.vmap(lambda i, at: recalled(tokens.v.at[at].set(v_SM[i]))[i])(jnp.arange(asked), at_S)
  length_S = jnp.linalg.norm(as_is_SM, axis=-1)
  moved_S = jnp.linalg.norm(changed_SM - as_is_SM, axis=-1)
  return jnp.median(moved_S / jnp.maximum(length_S, 1e-30))


def fraction_of_zero(rule: MemoryRule, out_TM, v_TM):
  """Returns the squared error over that of answering zero.

  Where a rule aims at directions alone (see `MemoryRule.aims`), reads are first brought to the one length
  that suits them best, as what follows the memory does.
  """

  def square(x):
    return jnp.sum(x * x)

  # A Hebbian loss has no least value: reads grow with every write, and the layer's norm brings them back.
  if rule.aims == "direction":
    out_TM = out_TM * jnp.maximum(jnp.sum(out_TM * v_TM), 0) / jnp.maximum(square(out_TM), 1e-30)
  return square(out_TM - v_TM) / square(v_TM)


@functools.partial(jax.jit, static_argnums=(0, 1))
def advance(rule: MemoryRule, pairs: int, slow, gates: Gates, memories, tokens: Token, asked_TM):
  """Reads on with two memories, of random and of returning pairs.

  Args:
    pairs: distinct pairs that return.
    memories: two, side by side.
    tokens: of both, [2, T, ...].
    asked_TM: what the second is asked for.

  Returns:
    the memories, the norm of the first, and the loss of the second over the last eight rounds of the pairs.
  """
  size = gates.write_rate.shape[0]
  read = jax.vmap(functools.partial(read_chunk, rule, slow, gates))
  parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(2, -1, size, x.shape[-1]), 1, 0), tokens)
  memories, out_N2CM = jax.lax.scan(read, memories, parts)
  last = min(8 * pairs, asked_TM.shape[0])
  out_TM = out_N2CM[:, 1].reshape(asked_TM.shape)
  norm_2 = jax.vmap(norm)(memories.fast)
  return memories, norm_2[0], fraction_of_zero(rule, out_TM[-last:], asked_TM[-last:])


@functools.partial(jax.jit, static_argnums=0)
def probe(rule: MemoryRule, slow, gates: Gates, memory, tokens: Token):
  """Returns the weight of a write in a memory at a chunk's start; see `weight_of_a_write`."""
  size = gates.write_rate.shape[0]
  chunk = jax.tree.map(lambda x: x[:size], tokens)
  return weight_of_a_write(rule, slow, gates, memory, chunk, tokens.v[size:])


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4))
def texts(streams: Streams, key, length: int, key_dim: int, value_dim: int):
  """Draws both streams: tokens [2, length, ...], and what the second asks for."""
  of_random, of_returning = jax.random.split(key)
  plain = random_pairs(streams, of_random, length, key_dim, value_dim)
  again, asked_TM = returning_pairs(streams, of_returning, length, key_dim, value_dim)
  return jax.tree.map(lambda a, b: jnp.stack([a, b]), plain, again), asked_TM


def measure(rule: MemoryRule, *, key_dim: int, value_dim: int, chunk_size: int, steps: int = 1,
            segment: int = 4096, streams: Streams = STREAMS, zero: bool = False, seed: int = 0) -> Life:
  """Reads both streams with a memory at its start.

  Args:
    rule: its `starts` are the gates.
    key_dim, value_dim, chunk_size: of the memory.
    steps, segment: how often is measured, and after how many tokens each time; a multiple of chunk_size.
    streams: what it reads.
    zero: whether the memory starts from weights of zero.
    seed: draws the memory's learned start and the streams.

  Returns:
    Life with arrays [1 + steps], at the start and after each segment; the loss at the start is 1.
  """
  of_start, of_text, of_probe = jax.random.split(jax.random.key(seed), 3)
  learned = rule.init(of_start)
  if zero:
    learned = learned._replace(fast=jax.tree.map(jnp.zeros_like, learned.fast))
  slow = learned.slow
  gates = constant_gates(rule, chunk_size)
  rule = rule._replace(starts=GateStarts())  # Gates are arrays here: others need no other compilation.
  fresh = rule.start(learned)
  memories = jax.tree.map(lambda x: jnp.stack([x, x]), fresh)
  asked = random_pairs(streams, of_probe, chunk_size + ASKED, key_dim, value_dim)
  tokens, asked_TM = texts(streams, of_text, steps * segment, key_dim, value_dim)
  found = [(norm(learned.fast), probe(rule, slow, gates, fresh, asked), 1.0)]
  for begin in range(0, steps * segment, segment):
    part = jax.tree.map(lambda x, begin=begin: x[:, begin:begin + segment], tokens)
    memories, size, loss = advance(rule, streams.pairs, slow, gates, memories, part,
                                   asked_TM[begin:begin + segment])
    one = jax.tree.map(lambda x: x[0], memories)
    found.append((size, probe(rule, slow, gates, one, asked), loss))
  return Life(*(jnp.stack([jnp.asarray(x) for x in row]) for row in zip(*found, strict=True)))


def faults(life: Life) -> list[str]:
  """Names what is dead in a memory; none if it is alive.

  A memory that starts from weights of zero is measured against its norm after the first segment.
  """
  norms, writes, losses = (list(map(float, part)) for part in life)
  begin = norms[0] if norms[0] > 0 else norms[1]
  found = []
  for at in range(1, len(norms)):
    if not begin / NORM_RANGE <= norms[at] <= begin * NORM_RANGE:  # Also if it is not finite.
      found.append(f"segment {at}: its norm is {norms[at]:.2g}, at the start {begin:.2g}")
    if not writes[at] >= WRITE_LEAST:
      found.append(f"segment {at}: one write moves a read by {writes[at]:.2g} of its length")
    if not losses[at] <= LOSS_MOST:
      found.append(f"segment {at}: its loss is {losses[at]:.3g} of that of answering zero")
  return found
