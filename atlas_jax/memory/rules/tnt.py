"""TNT memory: one memory of a text's long past, read once per chunk, and quick ones of its last tokens.

With xi(t, C) the last multiple of C at or before t, C_G the layer's chunk_size and S_L = shard_tokens:

  V_{t + C_G} = V_t - sum over the chunk of r_i grad l(V_t; k_i, v_i)      (t a multiple of C_G)
  local memory j, at a multiple of S_L:   W_t = W_init,  S_t = 0           (W_init learned)
  else:  S_t = m_t S_{t-1} - p_t grad l(W_{xi(t, C_L)}; k_t, v_t),  W_t = a_t W_{t-1} + S_t
  P_t = sum of k k^T over the shard's tokens up to t
  y_t = f(V_{xi(t, C_G)}; q_t) + sum_j f(W^j_t; P_t q_t)

Each local memory has its own learned start, its own chunk C_L = local_chunks[j] and its own gates m, p
(local_rate), a; V has the common write rate and neither momentum nor retention. f is the same kind of network
for all, l half the squared error. P starts anew with the shard, as in the paper's appendix C, where its
equation 7 lets it run on; that local memories have gates like Titans is our reading.

Shards need nothing of each other, so that packed text is read with all shards side by side, and only the
S_L / C_L chunks of a shard one after another; V takes one step per chunk_size tokens. That costs memory: the
local weights of all shards exist at once. A stream, which may start anywhere, takes local chunks in order.

Stage 2 of the paper's training is a config with smaller local_chunks: neither parameters nor state change
their shapes with local_chunks, as long as it names as many memories, so that a checkpoint goes on with it.

State per head: the weights of V, for each local memory three times its weights (weights, momentum, those of
its chunk's start), key_dim^2 floats of P, and an int.

The key is added to the output on request alone (residual=True): else an emptied memory would pass the query
on.

In a line: one memory per chunk plus local ones that start anew with each shard, read at P q
Floats per head: 3 w per local + w + d²

Source: Li et al. 2025, TNT, arXiv:2511.07343, Eq. 5-9 and appendix C.
"""
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from atlas_jax.memory import descent, features, nets, objectives
from atlas_jax.memory.types import (
  ChunkOut,
  Gates,
  GateSpec,
  GateStarts,
  Learned,
  MemoryRule,
  MemoryState,
  Token,
)

# Before (retention .995, momentum .6, rate .01, fading to zero, with residual) the global memory took 16,384
# tokens to recall anything: its loss was 1.6 times that of answering zero.
STARTS = GateStarts(write_rate=0.1, write_rate_max=0.2)


class TNTForm(NamedTuple):
  """Settings of the memories, and their grids."""

  body: descent.Descent
  chunk_size: int
  shard_tokens: int
  local_chunks: tuple[int, ...]
  project_queries: bool
  global_memory: bool


class Local(NamedTuple):
  """One local memory inside a shard."""

  fast: Any
  momentum: Any
  base: Any  # the weights at its chunk's start


class TNTExtra(NamedTuple):
  """State beside the global memory's weights."""

  locals: tuple[Local, ...]
  keys_KK: Any  # sum of k k^T over the shard so far; () if queries are not projected
  seen: jax.Array  # [] int32, the place after the last real token in its chunk; 0: none yet


class PreparedTNT(NamedTuple):
  """All of a chunk that needs no memory."""

  tokens: Token
  gates: Gates
  write_C: jax.Array
  position_C: jax.Array
  local: Any  # ChunkOut of the local memories, if the whole chunk is here; else ()


def make(*, key_dim: int, value_dim: int, chunk_size: int, local_chunks: Sequence[int] | None = None,
         shard_tokens: int | None = None, project_queries: bool = True, global_memory: bool = True,
         depth: int = 2, expansion: float = 1, activation: str = "silu", residual: bool = False,
         surprise_max: float | None = 1.0) -> MemoryRule:
  """Makes the rule for one head.

  Args:
    key_dim, value_dim: widths of keys and values.
    chunk_size: tokens after which the global memory is written.
    local_chunks: for each local memory the tokens whose gradients are taken at the same weights; a divisor of
      shard_tokens. None: one memory with 8, or the largest common divisor of 8 and shard_tokens.
    shard_tokens: tokens after which local memories start anew, a divisor of chunk_size; None: chunk_size.
    project_queries: whether local memories are asked for the part of q that the shard's keys span.
    global_memory: whether there is one.
    depth, expansion, activation, residual: of every memory's network, see `rules.titans`.
    surprise_max: bound on the norm of a token's gradient over all matrices of a memory; None: no bound,
      with which a run of equal tokens diverges.

  Raises:
    ValueError: if an option is out of range, or residual with different widths.
  """
  objectives.check_bound(surprise_max)
  shard_tokens = chunk_size if shard_tokens is None else shard_tokens
  if shard_tokens < 1 or chunk_size % shard_tokens:
    raise ValueError(f"{nets.FIELD}.shard_tokens={shard_tokens} does not divide "
                     f"config.model.memory.chunk_size={chunk_size}; lower it to a divisor")
  local_chunks = (math.gcd(8, shard_tokens),) if local_chunks is None else tuple(local_chunks)
  if not local_chunks or any(size < 1 or shard_tokens % size for size in local_chunks):
    raise ValueError(f"{nets.FIELD}.local_chunks={local_chunks} must name at least one memory, and each size "
                     f"must divide shard_tokens={shard_tokens}")
  net = nets.mlp(key_dim=key_dim, value_dim=value_dim, lifted_dim=key_dim, depth=depth, expansion=expansion,
                 activation=activation, residual=residual)
  body = descent.Descent(net, features.make("none", key_dim=key_dim), objectives.l2, True,
                         surprise_max=surprise_max)
  form = TNTForm(body, chunk_size, shard_tokens, local_chunks, project_queries, global_memory)
  number = len(local_chunks)

  def bind(function):
    return functools.partial(function, form)

  # One of each per local memory. Plain gates, not logs as the common ones: see `_local_gates`.
  own = (GateSpec("local_retention", number, init=0.999), GateSpec("local_momentum", number, init=0.5),
         GateSpec("local_rate", number, init=0.05, max=0.5, writes=True))
  return MemoryRule(init=bind(_init), start=bind(_start), apply=bind(_apply), step=bind(_step),
                    prepare=bind(_prepare), chunk=bind(_chunk), resume=bind(_resume), close=bind(_close),
                    still=bind(_still), empty=_empty,
                    gates=own, uses=("write_rate",) if global_memory else (), starts=STARTS,
                    flops=bind(_flops))


def _flops(form, chunk_size):
  """Counts the FLOPs of one token: of each memory, and of its query's part in what the shard's keys span."""
  shared = form.body._replace(momentum=False, reads="chunk")
  total = sum(descent.flops(form.body, size) for size in form.local_chunks)
  total += descent.flops(shared, chunk_size) if form.global_memory else 0
  # P q as in `_projected`: products of queries and keys, then of these and keys, 2 S_L K each.
  return total + (4 * form.shard_tokens * form.body.lift.key_dim if form.project_queries else 0)


def _init(form, key) -> Learned:
  keys = jax.random.split(key, len(form.local_chunks) + 1)
  fast = form.body.net.init_fast(keys[0]) if form.global_memory else {}
  return Learned(fast, {f"local{i}": form.body.net.init_fast(key) for i, key in enumerate(keys[1:])})


def _start(form, learned) -> MemoryState:
  return MemoryState(learned.fast, kept=_fresh(form, learned.slow))


def _fresh(form, slow) -> TNTExtra:
  """Returns the local memories before a shard."""
  started = [slow[f"local{i}"] for i in range(len(form.local_chunks))]
  every = tuple(Local(fast, jax.tree.map(jnp.zeros_like, fast), fast) for fast in started)
  width = form.body.lift.key_dim
  keys_KK: Any = jnp.zeros((width, width), jax.tree.leaves(started)[0].dtype) if form.project_queries else ()
  return TNTExtra(every, keys_KK, jnp.zeros((), jnp.int32))


def _close(form, slow, state, base):
  """Ends the shard that ends with the chunk; the chunk's sum of writes is in the weights already."""
  del base
  return state._replace(kept=_fresh(form, slow))


def _apply(form, slow, base, x_K):
  """Recalls with the global memory; without one, with the start of the first local memory."""
  return descent.apply(form.body, {}, base if form.global_memory else slow["local0"], x_K)


def _still(form, slow, base, q_CK, position_C):
  """Reads a chunk that writes nothing: local memories stand at their starts, and no key spans anything."""
  del position_C
  asked_CK = jnp.zeros_like(q_CK) if form.project_queries else q_CK
  out_CM: Any = 0
  for i in range(len(form.local_chunks)):
    out_CM = out_CM + descent.apply(form.body, {}, slow[f"local{i}"], asked_CK)
  return out_CM + _apply(form, slow, base, q_CK) if form.global_memory else out_CM


def _empty(learned: Learned) -> Learned:
  """Returns what an empty memory starts from.

  Local memories have their starts in `slow`, and all are zero.
  """
  return jax.tree.map(jnp.zeros_like, learned)


def _select(condition, on_true, on_false):
  return jax.tree.map(lambda new, old: jnp.where(condition, new, old), on_true, on_false)


def _same(seen, place, size: int):
  """Returns whether the last real token and that at `place` stand in one piece of `size` tokens."""
  # `seen` is one behind the last token's place, so that 0 can say that there was none.
  return (seen > 0) & ((seen - 1) // size == place // size)


def _entered(form, slow, i: int, local: Local, seen, place) -> Local:
  """Returns a local memory as the token at `place` finds it.

  Anew in a new shard, with a base of its chunk.
  """
  initial = slow[f"local{i}"]
  fresh = Local(initial, jax.tree.map(jnp.zeros_like, initial), initial)
  # That a border lies between two tokens follows from their places: none has to stand on it, padding may.
  here = local._replace(base=_select(_same(seen, place, form.local_chunks[i]), local.base, local.fast))
  return _select(_same(seen, place, form.shard_tokens), here, fresh)


def _local_gates(gates: Gates, i: int) -> Gates:
  def log(gate):
    # Logs of shut gates must be finite.
    return jnp.log(jnp.maximum(gate[..., i], 1e-30))

  more = gates.more
  return Gates(log(more["local_retention"]), log(more["local_momentum"]), more["local_rate"][..., i])


def _step(form, slow, state, base, token, gates, place):
  kept = state.kept
  query_K = token.q
  out_M: Any = 0
  keys_KK: Any = ()
  if form.project_queries:
    keys_KK = jnp.where(_same(kept.seen, place, form.shard_tokens), kept.keys_KK, 0)
    # Its own key first: a token reads what it has just written.
    keys_KK = keys_KK + jnp.outer(token.k, token.k)
    query_K = keys_KK @ token.q
  after = []
  for i, local in enumerate(kept.locals):
    local = _entered(form, slow, i, local, kept.seen, place)
    new, read_M = descent.step(form.body, {}, MemoryState(local.fast, local.momentum), local.base,
                               token._replace(q=query_K), _local_gates(gates, i), place)
    after.append(Local(new.fast, new.momentum, local.base))
    out_M = out_M + read_M
  fast = state.fast
  if form.global_memory:
    grad = descent.token_gradient(form.body, {}, base, token.k, token.v, ())
    fast = jax.tree.map(lambda w, g: w - gates.write_rate * g, fast, grad)
    out_M = out_M + _apply(form, slow, base, token.q)
  return MemoryState(fast, kept=TNTExtra(tuple(after), keys_KK, (place + 1).astype(jnp.int32))), out_M


def _pieces(x, size: int):
  return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0] // size, size, *leaf.shape[1:]), x)


def _projected(tokens: Token, write_C, inside_CC):
  """Returns P_t q_t from the tokens of this call; inside_CC: whether two tokens stand in one shard."""
  # P_t q_t = sum over i <= t of (q_t . k_i) k_i: no [K, K] matrix per token.
  seen_CC = jnp.tril(inside_CC & write_C.astype(bool)[None, :])
  return jnp.where(seen_CC, tokens.q @ tokens.k.T, 0) @ tokens.k


def _prepare_locals(form, i: int, tokens, gates, write_C, position_C, size: int):
  """Prepares each local chunk of `size` tokens by itself."""
  parts = _pieces((tokens, _local_gates(gates, i), write_C, position_C), size)
  return jax.vmap(functools.partial(descent.prepare, form.body, {}))(*parts)


def _read_shard(form, slow, tokens, gates, write_C, position_C) -> ChunkOut:
  """Reads one shard from its start with all local memories; reports the first one's surprise and loss."""
  if form.project_queries:
    same_CC = jnp.ones((form.shard_tokens, form.shard_tokens), bool)
    tokens = tokens._replace(q=_projected(tokens, write_C, same_CC))

  # descent.chunk takes the base by itself: a local chunk starts from the weights that the one before left.
  def body(state, ready):
    return descent.chunk(form.body, {}, state, state.fast, ready)

  outs = []
  for i, size in enumerate(form.local_chunks):
    initial = slow[f"local{i}"]
    ready = _prepare_locals(form, i, tokens, gates, write_C, position_C, size)
    _, out = jax.lax.scan(body, MemoryState(initial, jax.tree.map(jnp.zeros_like, initial)), ready)
    outs.append(_flat(out))
  return _added(outs)


def _flat(out: ChunkOut) -> ChunkOut:
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)


def _added(outs) -> ChunkOut:
  """Adds what the memories recall; surprise and loss are of the first."""
  return outs[0]._replace(out_CM=sum(out.out_CM for out in outs))


def _prepare(form, slow, tokens, gates, write_C, position_C) -> PreparedTNT:
  """Reads the local memories of a whole chunk, all shards at once: nothing of them comes from before it."""
  local: Any = ()
  # Calls with fewer rows are tokens of a stream, whose local memories come from the state.
  if write_C.shape[0] == form.chunk_size:
    shards = _pieces((tokens, gates, write_C, position_C), form.shard_tokens)
    local = _flat(jax.vmap(functools.partial(_read_shard, form, slow))(*shards))
  return PreparedTNT(tokens, gates, write_C, position_C, local)


def _with_global(form, slow, state, base, ready: PreparedTNT, local: ChunkOut):
  """Adds the global memory's reads to those of the local ones, and writes it; reports are of it, if it is."""
  if not form.global_memory:
    return state, local
  tokens = ready.tokens
  found = descent.surprise(form.body, {}, base, tokens.k, tokens.k, tokens.v, ())
  rate_C = ready.gates.write_rate * ready.write_C.astype(ready.gates.write_rate.dtype)
  out_CM = local.out_CM + _apply(form, slow, base, tokens.q)
  fast = descent.add_gradients(state.fast, found, rate_C)
  return state._replace(fast=fast), ChunkOut(out_CM, found.norm_C, found.loss_C)


def _chunk(form, slow, state, base, ready: PreparedTNT):
  """Reads a whole chunk from its start; what its local memories come to is not kept, since it ends them."""
  return _with_global(form, slow, state, base, ready, ready.local)


def _resume(form, slow, state, base, ready: PreparedTNT):
  """Reads a whole chunk of which tokens may be missing at both ends, or any part of one."""
  kept = state.kept
  tokens = ready.tokens
  position_C = ready.position_C
  write_C = ready.write_C.astype(bool)
  last = jnp.max(jnp.where(write_C, position_C + 1, 0))
  keys_KK: Any = ()
  if form.project_queries:
    shard_C = position_C // form.shard_tokens
    query_CK = _projected(tokens, write_C, shard_C[:, None] == shard_C[None, :])
    carried_C = _same(kept.seen, position_C, form.shard_tokens)
    # Keys of earlier calls, for tokens of the shard that those calls ended in.
    query_CK = query_CK + jnp.where(carried_C[:, None], tokens.q @ kept.keys_KK, 0)
    # P goes on with the shard in which this call ends, its last real token's; other shards are over.
    written_CK = jnp.where((write_C & (shard_C == (last - 1) // form.shard_tokens))[:, None], tokens.k, 0)
    keys_KK = jnp.where(_same(kept.seen, last - 1, form.shard_tokens), kept.keys_KK, 0)
    keys_KK = jnp.where(last > 0, keys_KK + written_CK.T @ written_CK, kept.keys_KK)
    tokens = tokens._replace(q=query_CK)
  read = [_resume_local(form, slow, i, kept, tokens, ready) for i in range(len(kept.locals))]
  every, outs = zip(*read, strict=True)
  seen = jnp.where(last > 0, last, kept.seen).astype(jnp.int32)
  return _with_global(form, slow, state._replace(kept=TNTExtra(every, keys_KK, seen)), base, ready,
                      _added(outs))


def _resume_local(form, slow, i: int, kept: TNTExtra, tokens, ready: PreparedTNT):
  """Reads one local chunk after another from the carried state; of a part of a chunk, one token."""
  size = form.local_chunks[i] if ready.write_C.shape[0] == form.chunk_size else 1

  def body(carry, xs):
    local, seen = carry
    part, write_C, position_C = xs
    last = jnp.max(jnp.where(write_C, position_C + 1, 0))
    # A piece of padding alone must not start a chunk or shard: the next real token finds the state as it was.
    local = _select(last > 0, _entered(form, slow, i, local, seen, position_C[0]), local)
    state, out = descent.chunk(form.body, {}, MemoryState(local.fast, local.momentum), local.base, part)
    return (Local(state.fast, state.momentum, local.base), jnp.maximum(last, seen)), out

  parts = _prepare_locals(form, i, tokens, ready.gates, ready.write_C, ready.position_C, size)
  xs = (parts, *_pieces((ready.write_C.astype(bool), ready.position_C), size))
  (local, _), out = jax.lax.scan(body, (kept.locals[i], kept.seen), xs)
  return local, _flat(out)
