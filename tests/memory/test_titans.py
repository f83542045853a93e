"""The Titans rule: its hand-derived gradient, its form in a chunk, and what it reduces to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.memory import nets, scan
from atlas_jax.memory.types import Gates
from tests.helpers import (
  assert_close,
  cut,
  for_oracle,
  quick_compilation,
  random_gates,
  random_tokens,
  results,
  tiny_rule,
)
from tests.memory.oracles import titans


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


# Every activation at depth 2, every depth with one of them, residual or not; without, all widths differ.
FORMS = [
  dict(depth=2, activation=name, residual=residual) for name in nets.ACTIVATIONS for residual in (True, False)
]
FORMS += [
  dict(depth=depth, activation="silu", residual=residual) for depth in (1, 3) for residual in (True, False)
]
WIDTHS = {True: dict(key_dim=5, value_dim=5), False: dict(key_dim=5, value_dim=4, expansion=1.5)}
ACTIVATE = {
  "silu": jax.nn.swish,
  "gelu": jax.nn.gelu,
  "relu2": lambda x: jnp.maximum(x, 0) ** 2,
  "identity": lambda x: x,
}


def label(form):
  return f"{form['activation']}-{form['depth']}{'-residual' if form['residual'] else ''}"


def small(form):
  width = WIDTHS[form["residual"]]
  rule, learned, chunk = _small(tuple(sorted((width | form).items())))
  return (
    rule,
    learned,
    random_tokens(1, 6, key_dim=width["key_dim"], value_dim=width["value_dim"], dtype="float64"),
    chunk,
  )


@functools.lru_cache
def _small(options):
  rule, learned = tiny_rule("titans", dtype="float64", **dict(options))
  return rule, learned, jax.jit(functools.partial(read_chunk, rule))


def read_chunk(rule, state, base, tokens, gates):
  """Reads a chunk of real tokens at once."""
  n = len(gates.write_rate)
  prepared = rule.prepare({}, tokens, gates, jnp.ones(n, bool), jnp.arange(n, dtype=jnp.int32))
  return rule.chunk({}, state, base, prepared)


def recall_loss(fast, k_K, v_M, form):
  """The inner loss, written again: half the squared error of the memory's answer to its key."""
  h = k_K
  for layer in range(form["depth"]):
    h = (h if layer == 0 else ACTIVATE[form["activation"]](h)) @ fast[f"w{layer}"]
  return 0.5 * jnp.sum((h + (k_K if form["residual"] else 0) - v_M) ** 2)


def open_gates(n, *, write_rate=1.0):
  """Full retention and momentum."""
  return Gates(jnp.zeros(n), jnp.zeros(n), jnp.full(n, write_rate))


@pytest.mark.parametrize("form", FORMS, ids=label)
def test_a_chunk_equals_the_loop_for_every_form(x64, form):
  """The second half of a chunk: gradients come from a base that is not the running state."""
  rule, learned, tokens, chunk = small(form)
  gates = random_gates(1, 6, dtype="float64")
  momentum = jax.tree.map(lambda w: 0.3 * jnp.cos(w), learned.fast)
  start = rule.start(learned)._replace(momentum=momentum)
  middle, left = chunk(start, learned.fast, *cut((tokens, gates), 0, 3))
  end, right = chunk(middle, learned.fast, *cut((tokens, gates), 3, 6))
  expected = titans.run(*for_oracle(learned, tokens, gates), chunk_size=8, momentum=momentum, **form)
  read_TM = jnp.concatenate([left.out_CM, right.out_CM])
  assert_close(results(read_TM, end), results(expected.out_TM, expected))


def test_a_bound_shortens_long_gradients_and_leaves_short_ones(x64):
  """Chunks and single tokens equal the loop; outer gradients, also through the bound, equal each other."""
  form = dict(depth=2, activation="silu", residual=True, surprise_max=3.5)
  rule, learned, tokens, chunk = small(form)
  gates = random_gates(1, 6, dtype="float64")
  expected = titans.run(*for_oracle(learned, tokens, gates), chunk_size=6, **form)

  def chunks(learned, tokens, gates):
    state, out = chunk(rule.start(learned), learned.fast, tokens, gates)
    return results(out.out_CM, state), out.surprise_C

  def singles(learned, tokens, gates):
    start = scan.start(rule, learned)
    end, out_TM = scan.scan_tokens(rule, start, learned.slow, tokens, gates, jnp.ones(6), chunk_size=6)
    return results(out_TM, end.memory), None

  norm_T = np.asarray(chunks(learned, tokens, gates)[1])
  assert norm_T.min() < 3.5 < norm_T.max(), f"the bound is not between the norms {norm_T}"
  total = lambda read, *args: sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(read(*args)[0]))
  grads = []
  for read in (chunks, singles):
    assert_close(read(learned, tokens, gates)[0], results(expected.out_TM, expected))
    grads.append(jax.jit(jax.grad(functools.partial(total, read), (0, 1, 2)))(learned, tokens, gates))
  assert_close(*grads)


def test_an_mlp_has_the_widths_it_was_asked_for():
  rule, _ = tiny_rule("titans", key_dim=6, value_dim=4, depth=3, expansion=2.5, residual=False)
  fast = rule.init(jax.random.key(0)).fast
  assert {name: w.shape for name, w in fast.items()} == {"w0": (6, 10), "w1": (10, 10), "w2": (10, 4)}
  assert {w.dtype for w in fast.values()} == {jnp.dtype("float32")}
  assert all(np.asarray(w).any() for w in fast.values())


# --- what it reduces to ---


@functools.partial(jax.jit, static_argnums=0, static_argnames="chunk_size")
def run(rule, learned, tokens, gates, *, chunk_size=3):
  return scan.scan_packed(
    rule,
    rule.start(learned),
    learned,
    tokens,
    gates,
    jnp.ones(len(tokens.q)),
    jnp.zeros(len(tokens.q) // chunk_size, bool),
    chunk_size=chunk_size,
  )


def test_without_momentum_and_forgetting_it_is_gradient_descent_by_mini_batches(x64):
  """Test-time training: W_t is the base minus the summed gradients of the chunk so far."""
  form = dict(depth=2, activation="gelu", residual=True, surprise_max=None)
  rule, learned, tokens, _ = small(form)
  gates = random_gates(1, 6, dtype="float64")._replace(
    log_retention=jnp.zeros(6), log_momentum=jnp.full(6, -1e3)
  )
  memory, out = run(rule, learned, tokens, gates)
  descend = jax.jit(jax.grad(lambda fast, k, v: recall_loss(fast, k, v, form)))
  weights, base, reads = learned.fast, learned.fast, []
  for t, rate in enumerate(gates.write_rate):
    base = weights if t % 3 == 0 else base
    gradient = descend(base, tokens.k[t], tokens.v[t])
    weights = jax.tree.map(lambda w, g, rate=rate: w - rate * g, weights, gradient)
    reads.append(tokens.q[t] + jax.nn.gelu(tokens.q[t] @ weights["w0"]) @ weights["w1"])
  assert_close((out.out_CM, memory.fast), (jnp.stack(reads), weights))


def test_without_writing_the_weights_stay_where_they_began(x64):
  rule, learned, tokens, _ = small(dict(depth=2, activation="silu", residual=True))
  gates = random_gates(1, 6, dtype="float64")._replace(write_rate=jnp.zeros(6))
  memory, _ = run(rule, learned, tokens, gates)
  assert_close(memory.fast, learned.fast)


def test_without_writing_weights_that_fade_to_zero_only_decay(x64):
  rule, learned, tokens, _ = small(dict(depth=2, activation="silu", residual=True, fade_to="zero"))
  gates = random_gates(1, 6, dtype="float64")._replace(write_rate=jnp.zeros(6))
  memory, _ = run(rule, learned, tokens, gates)
  kept = float(np.prod(np.exp(np.asarray(gates.log_retention))))
  assert_close(memory.fast, jax.tree.map(lambda w: kept * w, learned.fast))
  assert not any(np.asarray(s).any() for s in jax.tree.leaves(memory.momentum))


def test_without_writing_and_with_full_retention_nothing_changes():
  rule, learned = tiny_rule("titans")
  tokens = random_tokens(1, 6, key_dim=5, value_dim=5)
  memory, out = run(rule, learned, tokens, open_gates(6, write_rate=0.0))
  assert_close((memory.fast, out.out_CM), (learned.fast, rule.apply({}, learned.fast, tokens.q)))


def test_a_linear_memory_that_starts_empty_is_linear_attention_within_a_chunk(x64):
  """Depth 1 from zero with momentum off: the error at the base is -v, so reads are sums of r v (k . q)."""
  rule, learned, tokens, _ = small(dict(depth=1, activation="identity", residual=False, surprise_max=None))
  empty = jax.tree.map(jnp.zeros_like, learned)
  gates = random_gates(1, 6, dtype="float64")._replace(
    log_retention=jnp.zeros(6), log_momentum=jnp.full(6, -1e3)
  )
  _, out = run(rule, empty, tokens, gates, chunk_size=6)
  weight_TT = np.tril(np.asarray(tokens.q @ tokens.k.T)) * np.asarray(gates.write_rate)
  assert_close(out.out_CM, weight_TT @ np.asarray(tokens.v))


def test_online_writes_of_orthonormal_keys_store_each_value(x64):
  """A linear memory with write rate 1, chunk size 1, no momentum, no forgetting is the delta rule."""
  rule, learned, _, _ = small(dict(depth=1, activation="identity", residual=False, surprise_max=None))
  draw = np.random.default_rng(0)
  k_TK, v_TM = jnp.asarray(np.linalg.qr(draw.normal(size=(5, 5)))[0]), jnp.asarray(draw.normal(size=(5, 4)))
  tokens = random_tokens(0, 5, key_dim=5, value_dim=4, dtype="float64")._replace(k=k_TK, v=v_TM)
  gates = open_gates(5)._replace(log_momentum=jnp.full(5, -1e3))
  memory, _ = run(rule, learned, tokens, gates, chunk_size=1)
  assert_close(k_TK @ memory.fast["w0"], v_TM)


@pytest.mark.parametrize(
  "wrong,said",
  [
    (dict(depth=0), "depth"),
    (dict(activation="tanhh"), "silu"),
    (dict(expansion=0), "expansion"),
    (dict(surprise_max=0.0), "surprise_max"),
    (dict(value_dim=4, residual=True), "residual"),
  ],
)
def test_options_out_of_range_are_refused_by_name(wrong, said):
  with pytest.raises(ValueError, match=said):
    tiny_rule("titans", **wrong)
