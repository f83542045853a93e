"""The TNT rule: shards that need nothing of each other, their projected queries, and what it reduces to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.memory import rules, scan
from atlas_jax.memory.types import Gates
from tests.helpers import (
  assert_close,
  assert_same_bits,
  cut,
  quick_compilation,
  random_gates,
  random_tokens,
  tiny_memory,
  tiny_rule,
)


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


WIDTH, N, CHUNK, SHARD = 5, 24, 12, 6
PAPER = dict(residual=True, fade_to="zero", surprise_max=None)  # Titans as printed.


def small(**options):
  """A rule with the paper's residual, its parameters, tokens and gates, in float64."""
  sizes = dict(key_dim=WIDTH, value_dim=WIDTH, chunk_size=CHUNK)
  rule, learned = tiny_rule("tnt", dtype="float64", **sizes, residual=True, **options)
  tokens = random_tokens(3, N, key_dim=WIDTH, value_dim=WIDTH, dtype="float64")
  return rule, learned, tokens, random_gates(3, N, rule=rule, dtype="float64")


@functools.partial(jax.jit, static_argnums=(0, 1))
def read(rule, chunk_size, learned, tokens, gates):
  """All tokens from a fresh memory, in whole chunks."""
  length = tokens.k.shape[0]
  write_T, reset_N = jnp.ones(length, bool), jnp.zeros(length // chunk_size, bool)
  memory = rule.start(learned)
  return scan.scan_packed(rule, memory, learned, tokens, gates, write_T, reset_N, chunk_size=chunk_size)[
    1
  ].out_CM


@functools.partial(jax.jit, static_argnums=0)
def read_singly(rule, running, slow, tokens, gates, write_T):
  return scan.scan_tokens(rule, running, slow, tokens, gates, write_T, chunk_size=CHUNK)


@functools.partial(jax.jit, static_argnums=0)
def read_on(rule, running, slow, tokens, gates, count):
  return scan.scan_stream(rule, running, slow, tokens, gates, count, chunk_size=CHUNK)


def projected(q_TK, k_TK, shard):
  """P_t q_t, with P_t the sum of k k^T over the shard up to t."""
  out = []
  for t, q_K in enumerate(q_TK):
    seen_SK = k_TK[t // shard * shard : t + 1]
    out.append(sum(np.outer(k, k) for k in seen_SK) @ q_K)
  return np.array(out)


def as_titans(gates, j):
  """The gates of local memory j as those of the Titans rule."""
  own = {name: gate[:, j] for name, gate in gates.more.items()}
  return Gates(jnp.log(own["local_retention"]), jnp.log(own["local_momentum"]), own["local_rate"])


def local_reads(learned, tokens, gates, local_chunks):
  """One shard after another, each by the Titans rule from its learned start."""
  rule = rules.load("titans", key_dim=WIDTH, value_dim=WIDTH, chunk_size=CHUNK, **PAPER)
  query_TK = jnp.asarray(projected(np.asarray(tokens.q), np.asarray(tokens.k), SHARD))
  total = 0
  for j, size in enumerate(local_chunks):
    start = learned._replace(fast=learned.slow[f"local{j}"], slow={})
    pieces = [
      cut((tokens._replace(q=query_TK), as_titans(gates, j)), at, at + SHARD) for at in range(0, N, SHARD)
    ]
    total = total + jnp.concatenate([read(rule, size, start, *piece) for piece in pieces])
  return total


def global_reads(learned, tokens, gates):
  """The global memory with the gradient of its summed loss."""
  f = lambda weights, x: x + jax.nn.silu(x @ weights["w0"]) @ weights["w1"]
  loss = lambda weights, k, v, rate: jnp.sum(rate * 0.5 * jnp.sum((f(weights, k) - v) ** 2, -1))
  weights, out = learned.fast, []
  for at in range(0, N, CHUNK):
    part, rate_C = cut((tokens, gates.write_rate), at, at + CHUNK)
    out.append(f(weights, part.q))
    grad = jax.grad(loss)(weights, part.k, part.v, rate_C)
    weights = jax.tree.map(lambda w, g: w - g, weights, grad)
  return jnp.concatenate(out)


@pytest.mark.core
def test_a_text_equals_a_loop_over_its_shards_and_one_over_its_chunks(x64):
  rule, learned, tokens, gates = small(shard_tokens=SHARD, local_chunks=(3, 2), surprise_max=None)
  expected = local_reads(learned, tokens, gates, (3, 2)) + global_reads(learned, tokens, gates)
  assert_close(read(rule, CHUNK, learned, tokens, gates), expected)


def test_the_order_of_shards_does_not_change_what_local_memories_recall(x64):
  rule, learned, tokens, gates = small(shard_tokens=SHARD, local_chunks=(3,), global_memory=False)
  order_T = np.arange(N).reshape(-1, SHARD)[[2, 0, 3, 1]].reshape(-1)
  moved = jax.tree.map(lambda x: x[order_T], (tokens, gates))
  assert_close(read(rule, CHUNK, learned, *moved), read(rule, CHUNK, learned, tokens, gates)[order_T])


def test_one_local_memory_of_one_shard_and_chunk_is_the_titans_rule(x64):
  options = dict(local_chunks=(CHUNK,), project_queries=False, global_memory=False, surprise_max=None)
  rule, learned, tokens, gates = small(**options)
  titans = rules.load("titans", key_dim=WIDTH, value_dim=WIDTH, chunk_size=CHUNK, **PAPER)
  start = learned._replace(fast=learned.slow["local0"], slow={})
  first = cut((tokens, gates), 0, CHUNK)
  expected = read(titans, CHUNK, start, first[0], as_titans(first[1], 0))
  assert_close(read(rule, CHUNK, learned, *first), expected)


def test_the_projected_query_is_that_of_the_sum_over_the_shard(x64):
  """With weights of zero and no writes, a local memory gives back its query."""
  rule, learned, tokens, gates = small(shard_tokens=SHARD, local_chunks=(2,), global_memory=False)
  still = gates._replace(more=gates.more | {"local_rate": jnp.zeros((N, 1))})
  out_TM = read(rule, CHUNK, jax.tree.map(jnp.zeros_like, learned), tokens, still)
  assert_close(out_TM, projected(np.asarray(tokens.q), np.asarray(tokens.k), SHARD))


def test_any_cut_leaves_the_state_of_single_tokens(x64):
  """Also what is carried inside a shard: momentum, bases and projections."""
  rule, learned, tokens, gates = small(shard_tokens=SHARD, local_chunks=(3, 2))
  start = scan.start(rule, learned)
  expected = [start]
  for t in range(20):
    part = cut((tokens, gates), t, t + 1)
    expected.append(read_singly(rule, expected[-1], learned.slow, *part, jnp.ones(1, bool))[0])
  for cuts in ((0, 4, 5, 8, 16), (0, 1, 7, 20), (0, 13, 14, 15)):
    running = start
    for left, right in zip(cuts, cuts[1:]):
      moved = jax.tree.map(lambda x, left=left: jnp.roll(x, -left, axis=0), (tokens, gates))
      part = cut(moved, 0, 1) if right - left == 1 else moved  # A lone token is read in a form of its own.
      running, _ = read_on(rule, running, learned.slow, *part, right - left)
      assert_close(running, expected[right], why=f"up to {right}")


def test_padding_at_the_start_of_a_shard_does_not_keep_the_shard_before(x64):
  rule, learned, tokens, gates = small(shard_tokens=SHARD, local_chunks=(3, 2))
  start = scan.start(rule, learned)
  write_T = np.ones(N, bool)
  write_T[[6, 7, 8, 12, 18]] = False
  _, expected = read_singly(rule, start, learned.slow, tokens, gates, jnp.asarray(write_T))
  other = tokens._replace(k=tokens.k.at[:6].multiply(-1), v=tokens.v.at[:6].add(1.0))
  _, moved = read_singly(rule, start, learned.slow, other, gates, jnp.asarray(write_T))
  assert_same_bits(moved[6:12], expected[6:12])
  assert (np.asarray(moved[:6]) != np.asarray(expected[:6])).any(axis=1).all()


def test_neither_parameters_nor_state_change_shape_with_the_local_chunk():
  def shapes(local_chunks):
    rule = rules.load("tnt", key_dim=4, value_dim=4, chunk_size=32, local_chunks=local_chunks)
    state = jax.eval_shape(lambda key: (rule.init(key), scan.start(rule, rule.init(key))), jax.random.key(0))
    return jax.tree.map(lambda x: (x.shape, x.dtype), state), rule.gates

  assert shapes((16, 8)) == shapes((4, 1))


def test_a_layer_without_a_global_memory_reads_packed_text_like_a_stream(x64):
  options = dict(local_chunks=(2,), global_memory=False)
  layer, params, x_BTD = tiny_memory("tnt", T=8, dtype="float64", options=options)
  doc_BT, last_doc_B = jnp.zeros(x_BTD.shape[:2], jnp.int32), jnp.full(x_BTD.shape[:1], -2, jnp.int32)
  run = lambda mode: layer.apply(
    {"params": params}, x_BTD, layer.zero_state(2, x_BTD.dtype), doc_BT, last_doc_B, None, mode=mode
  )[:2]
  assert_close(run("packed"), run("stream"))


@pytest.mark.parametrize(
  "options,field",
  [
    (dict(shard_tokens=5), "shard_tokens=5"),
    (dict(shard_tokens=0), "shard_tokens=0"),
    (dict(shard_tokens=6, local_chunks=(3, 4)), "local_chunks"),
    (dict(local_chunks=()), "local_chunks"),
    (dict(surprise_max=0.0), "surprise_max"),
  ],
)
def test_grids_that_do_not_fit_are_refused(options, field):
  with pytest.raises(ValueError, match=field):
    rules.load("tnt", key_dim=4, value_dim=4, chunk_size=CHUNK, **options)
