"""A rule run over tokens: by chunks, by any cut, with padding and resets, against the loop of the paper."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_jax.memory import scan
from atlas_jax.memory.types import Gates, Learned
from tests import oracles
from tests.helpers import (
  assert_close,
  assert_grads,
  assert_same_bits,
  cut,
  for_oracle,
  quick_compilation,
  random_gates,
  random_tokens,
  results,
  running_from,
  tiny_rule,
)
from tests.memory import oracles as memory_oracles
from tests.memory.oracles import titans as titans_loop

K, N = 5, 24
PAPER = dict(residual=True, fade_to="zero")  # As printed.


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


@functools.lru_cache
def titans(dtype="float32", seed=0):
  """One rule for the file, so that compiled functions are shared; two matrices, hidden width 5."""
  return tiny_rule("titans", seed=seed, dtype=dtype, key_dim=K, value_dim=K, **PAPER)


def inputs(dtype="float32", n=N, seed=0):
  return random_tokens(seed, n, key_dim=K, value_dim=K, dtype=dtype), random_gates(seed, n, dtype=dtype)


def gates_of(retention_T, momentum_T, write_rate_T, *, write_rate_max, dtype="float32"):
  """Gates from what goes into their sigmoids; a large retention shuts, as it is what is forgotten."""
  logs = (-oracles.softplus(retention_T), -oracles.softplus(-momentum_T))
  return Gates(*(jnp.asarray(x, dtype) for x in (*logs, write_rate_max * oracles.sigmoid(write_rate_T))))


@functools.partial(jax.jit, static_argnums=0, static_argnames="chunk_size")
def _packed(rule, memory, learned, tokens, gates, write_T, reset_N, *, chunk_size):
  return scan.scan_packed(rule, memory, learned, tokens, gates, write_T, reset_N, chunk_size=chunk_size)


def packed(rule, learned, tokens, gates, *, chunk_size=8, memory=None, write_T=None, resets=()):
  """Reads whole chunks from a fresh or a given state, which starts anew before the chunks in `resets`."""
  n = len(gates.write_rate)
  memory = rule.start(learned) if memory is None else memory
  write_T = jnp.ones(n) if write_T is None else jnp.asarray(write_T)
  reset_N = jnp.asarray([i in resets for i in range(n // chunk_size)])
  return _packed(rule, memory, learned, tokens, gates, write_T, reset_N, chunk_size=chunk_size)


@functools.partial(jax.jit, static_argnums=0, static_argnames="chunk_size")
def stream(rule, running, slow, tokens, gates, count, *, chunk_size):
  return scan.scan_stream(rule, running, slow, tokens, gates, count, chunk_size=chunk_size)


@functools.partial(jax.jit, static_argnums=0, static_argnames="chunk_size")
def one_by_one(rule, running, slow, tokens, gates, write_T, *, chunk_size):
  return scan.scan_tokens(rule, running, slow, tokens, gates, write_T, chunk_size=chunk_size)


def oracle(learned, tokens, gates, *, chunk_size, running=None, **options):
  """Runs the loop of the paper from the start, or from the momentum of a given state at a chunk's start."""
  if running is not None:
    options |= dict(momentum=running.memory.momentum)
  return titans_loop.run(*for_oracle(learned, tokens, gates), chunk_size=chunk_size, **PAPER | options)


def expected_base(learned, tokens, gates, count, *, chunk_size, running=None):
  """The weights after the last full chunk of `count` tokens."""
  full = count // chunk_size * chunk_size
  if not full:
    return for_oracle(learned, tokens, gates)[0]["fast"]
  return oracle(learned, *cut((tokens, gates), 0, full), chunk_size=chunk_size, running=running).fast


def weighed(out_TM, memory):
  """A scalar that looks at every output and every number of the final state."""
  draw = np.random.default_rng(5)
  leaves = [out_TM, *jax.tree.leaves(memory)]
  return sum(jnp.sum(jnp.asarray(draw.normal(size=x.shape), x.dtype) * x) for x in leaves)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("chunk_size", "remat"))
@functools.partial(jax.value_and_grad, argnums=(1, 3, 4))
def chunks_gradient(rule, memory, learned, tokens, gates, write_T, *, chunk_size, remat=False):
  """A value that depends on all results, and its gradient by the first state, the tokens and the gates."""
  reset_N = jnp.zeros(len(write_T) // chunk_size, bool)
  memory, out = scan.scan_packed(
    rule, memory, learned, tokens, gates, write_T, reset_N, chunk_size=chunk_size, remat=remat
  )
  return weighed(out.out_CM, memory)


@functools.partial(jax.jit, static_argnums=0, static_argnames="chunk_size")
@functools.partial(jax.value_and_grad, argnums=(1, 3, 4))
def singles_gradient(rule, memory, learned, tokens, gates, write_T, *, chunk_size):
  """The same through single tokens."""
  start = scan.start(rule, learned)._replace(memory=memory, base=memory.fast)
  end, out_TM = scan.scan_tokens(rule, start, learned.slow, tokens, gates, write_T, chunk_size=chunk_size)
  return weighed(out_TM, end.memory)


# --- chunks equal the loop ---


@pytest.mark.core
@pytest.mark.parametrize("chunk_size", [1, 3, 8, N])
def test_chunks_equal_the_loop_with_a_base_every_chunk(x64, chunk_size):
  rule, learned = titans("float64")
  running, (tokens, gates) = running_from(rule, learned, seed=7), inputs("float64")
  memory, out = packed(rule, learned, tokens, gates, memory=running.memory, chunk_size=chunk_size)
  expected = oracle(learned, tokens, gates, chunk_size=chunk_size, running=running)
  assert_close(results(out.out_CM, memory), results(expected.out_TM, expected))


@pytest.mark.parametrize("chunk_size", [1, 8])
def test_single_tokens_equal_the_loop(x64, chunk_size):
  rule, learned = titans("float64")
  running, (tokens, gates) = running_from(rule, learned, seed=7), inputs("float64")
  end, out_TM = one_by_one(rule, running, learned.slow, tokens, gates, jnp.ones(N), chunk_size=chunk_size)
  expected = oracle(learned, tokens, gates, chunk_size=chunk_size, running=running)
  assert_close(results(out_TM, end.memory), results(expected.out_TM, expected))
  assert int(end.position) == N % chunk_size


def test_chunks_equal_the_loop_in_float32():
  rule, learned = titans()
  tokens, gates = inputs()
  memory, out = packed(rule, learned, tokens, gates)
  expected = oracle(learned, tokens, gates, chunk_size=8)
  assert_close(results(out.out_CM, memory), results(expected.out_TM, expected), tolerance=2e-5)


def test_the_chunk_size_is_part_of_the_model(x64):
  """Were it not, the tests above would not tell a wrong base from a right one."""
  rule, learned = titans("float64")
  reads = [packed(rule, learned, *inputs("float64"), chunk_size=size)[1].out_CM for size in (1, 8)]
  assert np.abs(np.asarray(reads[0] - reads[1])).max() > 1e-3


def test_surprise_is_the_norm_of_the_gradient_at_the_base_and_loss_half_the_square(x64):
  rule, learned = titans("float64")
  tokens, gates = inputs("float64")
  _, out = packed(rule, learned, tokens, gates, chunk_size=N)
  wide, (_, k_TK, v_TM), _ = for_oracle(learned, tokens, gates)
  recall = memory_oracles.Recall({}, memory_oracles.mlp(depth=2, activation="silu", residual=True))
  gradients = [recall.gradient(wide["fast"], k, v, {}) for k, v in zip(k_TK, v_TM)]
  norm_T = [np.sqrt(sum((g**2).sum() for g in parts.values())) for parts in gradients]
  loss_T = [0.5 * ((recall.read(wide["fast"], k) - v) ** 2).sum() for k, v in zip(k_TK, v_TM)]
  assert_close((out.surprise_C, out.loss_C), (np.array(norm_T), np.array(loss_T)))


def test_grouped_recomputation_changes_no_value_and_no_gradient(x64):
  rule, learned = titans("float64")
  arguments = (rule, rule.start(learned), learned, *inputs("float64"), jnp.ones(N))
  assert_close(*(chunks_gradient(*arguments, chunk_size=3, remat=remat) for remat in (True, False)))


# --- any cut equals the whole ---


def rolled(tree, start, size):
  """Brings the tokens from `start` to the front; what follows the last one is as good as junk."""
  return jax.tree.map(lambda x: jnp.roll(x, -start, axis=0)[:size], tree)


CUTS = [(24,), (11, 13), (8, 16), (1, 1, 22), (7, 0, 3, 14), (1,) * 24]


@pytest.mark.core
@pytest.mark.parametrize("lengths", CUTS, ids=str)
def test_any_cut_into_calls_equals_the_loop(x64, lengths):
  """Calls are padded to one length, so that also cuts inside a chunk share one compilation."""
  rule, learned = titans("float64")
  tokens, gates = inputs("float64")
  first = running = running_from(rule, learned, seed=7)
  reads, start = [], 0
  expected = oracle(learned, tokens, gates, chunk_size=8, running=first)
  size = 1 if max(lengths) == 1 else N
  for length in lengths:
    running, out_TM = stream(
      rule, running, learned.slow, *rolled((tokens, gates), start, size), length, chunk_size=8
    )
    reads.append(out_TM[:length])
    start += length
  assert_close(results(jnp.concatenate(reads), running.memory), results(expected.out_TM, expected))
  assert_close(running.base, expected.fast, why="base")  # The tokens fill their last chunk.
  assert int(running.position) == 0


@pytest.mark.parametrize("length,starts", [(2, (0, 5, 6, 7)), (9, (0, 1, 7)), (10, (6, 7))])
def test_a_call_of_exactly_its_tokens_may_start_anywhere_in_a_chunk(x64, length, starts):
  rule, learned = titans("float64")
  tokens, gates = inputs("float64")
  whole = oracle(learned, tokens, gates, chunk_size=8)
  for start in starts:
    running, _ = stream(rule, running_from(rule, learned), learned.slow, tokens, gates, start, chunk_size=8)
    end, out_TM = stream(
      rule, running, learned.slow, *cut((tokens, gates), start, start + length), length, chunk_size=8
    )
    expected = oracle(learned, *cut((tokens, gates), 0, start + length), chunk_size=8)
    expected_TM = whole.out_TM[start : start + length]
    assert_close(results(out_TM, end.memory), results(expected_TM, expected), why=f"from {start}")
    base = expected_base(learned, tokens, gates, start + length, chunk_size=8)
    assert_close(end.base, base, why=f"base, from {start}")
    assert int(end.position) == (start + length) % 8


@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_random_gates_chunks_cuts_and_padding_equal_the_loop(data):
  """Shapes stay few, for the compiler's sake; gates range from shut to open, cuts and padding are free."""
  chunk_size, n = data.draw(st.sampled_from([(1, 12), (5, 12)]), label="chunk size, tokens")
  total = data.draw(st.integers(1, n), label="real tokens")
  middle = data.draw(st.integers(0, total), label="cut")
  logits = st.lists(st.floats(-30, 30), min_size=n, max_size=n)
  z_3T = [np.array(data.draw(logits, label=name)) for name in ("retention", "momentum", "write rate")]
  with jax.enable_x64(True):
    rule, learned = titans("float64")
    seed = data.draw(st.integers(0, 9), label="seed")
    tokens = random_tokens(seed, n, key_dim=K, value_dim=K, dtype="float64")
    gates = gates_of(*z_3T, write_rate_max=0.4, dtype="float64")
    first = running = running_from(rule, learned, seed=3)
    reads, expected = (
      [],
      oracle(learned, *cut((tokens, gates), 0, total), chunk_size=chunk_size, running=first),
    )
    for start, stop in ((0, middle), (middle, total)):
      part = rolled((tokens, gates), start, n)
      running, out_TM = stream(rule, running, learned.slow, *part, stop - start, chunk_size=chunk_size)
      reads.append(out_TM[: stop - start])
    assert_close(results(jnp.concatenate(reads), running.memory), results(expected.out_TM, expected))
    base = expected_base(learned, tokens, gates, total, chunk_size=chunk_size, running=first)
    assert_close(running.base, base, why="base")
    assert int(running.position) == total % chunk_size


# --- padding and resets ---


def test_padding_leaves_the_state_and_the_outputs_of_others_unchanged(x64):
  """Also inside a chunk: the padded token keeps its place on the grid, its key and value leave no trace."""
  rule, learned = titans("float64")
  running, (tokens, gates) = running_from(rule, learned, seed=7), inputs("float64")
  write_T = np.ones(N)
  write_T[[1, 6, 7, 8, 13, 22, 23]] = 0
  real = write_T == 1
  expected = oracle(learned, tokens, gates, chunk_size=8, running=running, write_T=write_T)
  for poison in (0.0, 1e3):
    junk_T1 = poison * (1 - write_T)[:, None]
    dirty = tokens._replace(k=tokens.k + junk_T1, v=tokens.v - junk_T1)
    memory, out = packed(rule, learned, dirty, gates, memory=running.memory, write_T=write_T)
    end, out_TM = one_by_one(rule, running, learned.slow, dirty, gates, jnp.asarray(write_T), chunk_size=8)
    for read_TM, state in ((out.out_CM, memory), (out_TM, end.memory)):
      assert_close(results(read_TM[real], state), results(expected.out_TM[real], expected))


def test_a_call_without_real_tokens_changes_no_bit():
  rule, learned = titans()
  running, (tokens, gates) = running_from(rule, learned, seed=7), inputs()
  running, _ = one_by_one(rule, running, learned.slow, *cut((tokens, gates), 0, 5), jnp.ones(5), chunk_size=8)
  after, _ = stream(rule, running, learned.slow, tokens, gates, 0, chunk_size=8)
  assert_same_bits(after, running)


def test_packed_documents_equal_separate_runs(x64):
  rule, learned = titans("float64")
  running, (tokens, gates) = running_from(rule, learned, seed=7), inputs("float64")
  initial = jax.tree.map(lambda x: x * 0.5, learned)
  write_T = np.ones(N)
  write_T[13:16] = 0  # The first document's last chunk is filled up.
  memory, out = packed(rule, initial, tokens, gates, memory=running.memory, write_T=write_T, resets=[2])
  left = oracle(learned, *cut((tokens, gates), 0, 13), chunk_size=8, running=running)
  right = oracle(initial, *cut((tokens, gates), 16, N), chunk_size=8)
  assert_close((out.out_CM[:13], out.out_CM[16:]), (left.out_TM, right.out_TM), why="outputs")
  assert_close(memory, type(memory)(right.fast, right.momentum), why="state")


# --- causality ---


@pytest.mark.parametrize("changed", [0, 5, 8, 23])
def test_changing_a_token_changes_nothing_before_it_and_everything_after(changed):
  rule, learned = titans()
  tokens, gates = inputs()
  before = np.asarray(packed(rule, learned, tokens, gates)[1].out_CM)
  for field in ("k", "v"):
    other = tokens._replace(**{field: getattr(tokens, field).at[changed].add(0.5)})
    after = np.asarray(packed(rule, learned, other, gates)[1].out_CM)
    assert_same_bits(after[:changed], before[:changed], why=f"{field} of a later token")
    assert (after[changed:] != before[changed:]).any(axis=1).all(), f"{field} is not read"


def test_the_jacobian_of_reads_by_writes_is_lower_triangular():
  rule, learned = titans()
  tokens, gates = inputs(n=8)
  run = lambda v_TM: packed(rule, learned, tokens._replace(v=v_TM), gates, chunk_size=4)[1].out_CM
  reach_TT = np.abs(np.asarray(jax.jit(jax.jacfwd(run))(tokens.v))).sum(axis=(1, 3))
  assert not np.triu(reach_TT, 1).any()
  assert (reach_TT[np.tril_indices(8)] > 0).all()


# --- outer gradients ---


@pytest.mark.core
@pytest.mark.parametrize("chunk_size", [3, 8])
def test_outer_gradients_of_chunks_equal_those_of_single_tokens(x64, chunk_size):
  """For the initial weights and momentum, queries, keys, values and every gate."""
  rule, learned = titans("float64")
  memory, (tokens, gates) = running_from(rule, learned, seed=7).memory, inputs("float64")
  write_T = jnp.ones(N).at[jnp.array([4, 5, 23])].set(0)
  arguments = (rule, memory, learned, tokens, gates, write_T)
  actual, expected = (f(*arguments, chunk_size=chunk_size) for f in (chunks_gradient, singles_gradient))
  assert_close(actual, expected)
  assert all(np.asarray(x).any() for x in jax.tree.leaves(actual))


def test_outer_gradients_equal_finite_differences_of_the_loop(x64):
  """Along one random direction per input, through the loop of the paper in NumPy."""
  rule, learned = titans("float64")
  memory, (tokens, gates) = running_from(rule, learned, seed=7).memory, inputs("float64")
  arguments = (memory, tokens, gates)

  def loop(arguments):
    memory, tokens, gates = arguments
    start = running_from(rule, learned)._replace(memory=memory)
    end = oracle(Learned(memory.fast, {}), tokens, gates, chunk_size=8, running=start)
    return float(weighed(end.out_TM, type(memory)(end.fast, end.momentum)))

  value, gradient = chunks_gradient(rule, memory, learned, tokens, gates, jnp.ones(N), chunk_size=8)
  assert_close(value, np.float64(loop(arguments)))
  assert_grads(loop, arguments, gradient)


def test_a_reset_sends_no_gradient_into_what_came_before(x64):
  rule, learned = titans("float64")
  tokens, gates = inputs("float64")

  def second_document(v_TM):
    return jnp.sum(packed(rule, learned, tokens._replace(v=v_TM), gates, resets=[1])[1].out_CM[8:] ** 2)

  grad_TM = np.asarray(jax.jit(jax.grad(second_document))(tokens.v))
  assert not grad_TM[:8].any()
  assert grad_TM[8:].any(axis=1).all()


# --- hard inputs ---


@pytest.mark.parametrize("logit", [-30.0, 30.0])
@pytest.mark.parametrize("kind", ["equal keys", "zero tokens", "random"])
def test_extreme_gates_and_tokens_give_finite_values_and_gradients(logit, kind):
  rule, learned = titans()
  tokens, _ = inputs()
  if kind == "zero tokens":
    tokens = jax.tree.map(jnp.zeros_like, tokens)
  if kind == "equal keys":
    tokens = tokens._replace(k=jnp.broadcast_to(tokens.k[:1], tokens.k.shape))
  gates = gates_of(*[np.full(N, logit)] * 3, write_rate_max=0.1)
  value, gradient = chunks_gradient(
    rule, rule.start(learned), learned, tokens, gates, jnp.ones(N), chunk_size=8
  )
  assert np.isfinite(value)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
