"""What rules become in their limits: other rules, closed forms, and what they hold and stay within."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.memory import rules, scan
from atlas_jax.memory.types import Gates, Learned
from tests.helpers import assert_close, quick_compilation, random_gates, random_tokens, tiny_rule

K, N = 5, 8
LINEAR = dict(depth=1, residual=False)


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


@functools.partial(jax.jit, static_argnums=0, static_argnames="chunk_size")
def read(rule, learned, tokens, gates, write_T=None, *, chunk_size=4):
  """Reads from a fresh memory; gives (reads, fast weights)."""
  n = len(tokens.q)
  write_T = jnp.ones(n, bool) if write_T is None else write_T
  reset_N = jnp.zeros(n // chunk_size, bool)
  memory, out = scan.scan_packed(
    rule, rule.start(learned), learned, tokens, gates, write_T, reset_N, chunk_size=chunk_size
  )
  return out.out_CM, memory.fast


def small(name, *, n=N, width=K, chunk_size=4, **options):
  """A rule with noise in what it has learned, tokens, and gates; the momentum is off."""
  rule, learned = tiny_rule(
    name, dtype="float64", key_dim=width, value_dim=width, chunk_size=chunk_size, **options
  )
  tokens = random_tokens(1, n, key_dim=width, value_dim=width, dtype="float64")
  gates = random_gates(1, n, rule=rule, dtype="float64")
  return rule, learned, tokens, gates._replace(log_momentum=jnp.full(n, -1e3))


def of(name, learned, *, chunk_size=4, **options):
  """Another rule for the same weights."""
  width = learned.fast["w0"].shape[0]
  rule = rules.load(
    name,
    key_dim=width,
    value_dim=jax.tree.leaves(learned.fast)[-1].shape[-1],
    chunk_size=chunk_size,
    **options,
  )
  return rule


def with_own(gates, **own):
  return gates._replace(more=own)


def flat_gates(n, *, retention=1.0, write_rate=1.0):
  """The same gates for every token, without momentum."""
  return Gates(jnp.full(n, np.log(retention)), jnp.full(n, -1e3), jnp.full(n, write_rate))


# --- descent: windows, momentum, losses ---


@pytest.mark.parametrize("window_size", [1, 3])
def test_omega_whose_context_is_the_token_alone_is_titans_without_momentum(x64, window_size):
  rule, learned, tokens, gates = small("omega", window_size=window_size)
  alone = with_own(gates, context=jnp.zeros((N, window_size)).at[:, 0].set(1))
  titans = of("titans", learned, activation="gelu")
  assert_close(read(rule, learned, tokens, alone), read(titans, learned, tokens, gates))


def test_omega_with_momentum_whose_context_is_the_token_alone_is_titans(x64):
  rule, learned, tokens, gates = small("omega", window_size=2, momentum=True)
  gates = gates._replace(log_momentum=jnp.log(jnp.linspace(0.2, 0.9, N)))
  alone = with_own(gates, context=jnp.zeros((N, 2)).at[:, 0].set(1))
  titans = of("titans", learned, activation="gelu")
  assert_close(read(rule, learned, tokens, alone), read(titans, learned, tokens, gates))


def test_omega_over_the_whole_text_writes_running_sums_of_gradients(x64):
  """Window, chunk and text of one length, gates open: W_t = a W_{t-1} - r_t (grad_1 + .. + grad_t)."""
  options = dict(window_size=N, residual=True, fade_to="zero", surprise_max=None)
  rule, learned, tokens, gates = small("omega", chunk_size=N, **options)
  gates = with_own(gates, context=jnp.ones((N, N)))

  def loss(weights, k_K, v_M):
    return 0.5 * jnp.sum((k_K + jax.nn.gelu(k_K @ weights["w0"]) @ weights["w1"] - v_M) ** 2)

  each = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0, 0)))(learned.fast, tokens.k, tokens.v)
  sums = jax.tree.map(lambda g: np.cumsum(np.asarray(g), axis=0), each)
  weights, reads = jax.tree.map(np.asarray, learned.fast), []
  for t in range(N):
    a, r, q_K = float(gates.retention[t]), float(gates.write_rate[t]), tokens.q[t]
    weights = {name: a * w - r * sums[name][t] for name, w in weights.items()}
    reads.append(q_K + jax.nn.gelu(q_K @ weights["w0"]) @ weights["w1"])
  assert_close(read(rule, learned, tokens, gates, chunk_size=N), (jnp.stack(reads), weights))


def test_a_token_that_no_context_counts_is_as_good_as_absent(x64):
  """Its own retention, which also fades the others' writes, must be open."""
  out, n = 3, N
  rule, learned, tokens, gates = small("omega", window_size=n, chunk_size=n)
  lag_TT = np.arange(n)[:, None] - np.arange(n)[None, :]
  context_TW = np.ones((n, n))
  context_TW[np.arange(out, n), lag_TT[out:, out]] = 0  # Tokens from `out` on do not count it.
  context_TW[out] = 0  # And it writes nothing of others.
  gates = with_own(
    gates._replace(log_retention=gates.log_retention.at[out].set(0)), context=jnp.asarray(context_TW)
  )
  absent = jnp.ones(n, bool).at[out].set(False)
  ones = with_own(gates, context=jnp.ones((n, n)))
  counted, fast = read(rule, learned, tokens, gates, chunk_size=n)
  without, expected = read(rule, learned, tokens, ones, absent, chunk_size=n)
  others = np.flatnonzero(np.asarray(absent))
  assert_close((counted[others], fast), (without[others], expected))


def test_one_window_of_hebbian_writes_is_deep_linear_attention_and_that_of_one_matrix_is_retention(x64):
  rule, learned, tokens, gates = small("swla", window_size=1)
  gates = with_own(gates, context=jnp.ones((N, 1)))
  dla = of("dla", learned, **LINEAR, fade_to="zero", surprise_max=None)
  expected = read(of("retention", learned), learned, tokens, gates)
  assert_close(read(rule, learned, tokens, gates), expected, why="swla")
  assert_close(read(dla, learned, tokens, gates), expected, why="dla")


def test_moneta_with_squares_is_descent_on_the_squared_error(x64):
  """p = q = 2: the norm's power is 0; the smooth sign and the root's epsilon leave 1e-6."""
  options = dict(LINEAR, norm=None, activation="identity")
  rule, learned, tokens, gates = small("moneta", p=2, q=2, sharpness=1e9, **options)
  titans = of("titans", learned, surprise_max=None, **LINEAR)
  actual, expected = read(rule, learned, tokens, gates), read(titans, learned, tokens, gates)
  assert_close(actual, expected, tolerance=1e-4)


@pytest.mark.parametrize("huber", ["coordinate", "norm"])
def test_yaad_with_a_huge_threshold_is_descent_on_the_squared_error(x64, huber):
  rule, learned, tokens, gates = small("yaad", huber=huber, norm=None, expansion=1)
  wide = with_own(gates, threshold=jnp.full(N, 1e9))
  titans = of("titans", learned, activation="gelu")
  assert_close(read(rule, learned, tokens, wide), read(titans, learned, tokens, gates))


def test_an_elastic_net_of_no_size_is_plain_descent(x64):
  rule, learned, tokens, gates = small("elastic_net", threshold=1e-30, norm=None, expansion=1)
  titans = of("titans", learned, activation="gelu")
  assert_close(read(rule, learned, tokens, gates), read(titans, learned, tokens, gates))


@pytest.mark.parametrize("name", ["titans", "omega", "moneta", "yaad", "ttt_mlp", "dla", "delta"])
def test_without_writing_and_with_full_retention_nothing_changes(x64, name):
  rule, learned, tokens, gates = small(name)
  still = gates._replace(log_retention=jnp.zeros(N), write_rate=jnp.zeros(N))
  _, fast = read(rule, learned, tokens, still)
  assert_close(fast, learned.fast)


# --- linear attention ---


@pytest.mark.parametrize("feature_map,powers", [("none", (1,)), ("poly", (0, 1, 2))])
def test_linear_attention_from_nothing_is_masked_attention_without_a_softmax(x64, feature_map, powers):
  rule, learned, tokens, gates = small("linear_attention", feature_map=feature_map)
  empty = Learned(jax.tree.map(jnp.zeros_like, learned.fast), jax.tree.map(jnp.ones_like, learned.slow))
  met_TT = np.asarray(tokens.q @ tokens.k.T)
  kernel_TT = sum(met_TT**i / max(1, i) for i in powers)
  expected = (np.tril(kernel_TT) * np.asarray(gates.write_rate)) @ np.asarray(tokens.v)
  for chunk_size in (1, 4):
    assert_close(read(rule, empty, tokens, gates, chunk_size=chunk_size)[0], expected)


def test_retention_is_linear_attention_that_fades(x64):
  rule, learned, tokens, gates = small("retention")
  plain = of("linear_attention", learned)
  kept = gates._replace(log_retention=jnp.zeros(N))
  assert_close(read(rule, learned, tokens, kept), read(plain, learned, tokens, gates))
  empty = jax.tree.map(jnp.zeros_like, learned)
  fade_T = np.cumsum(np.asarray(gates.log_retention))
  fade_TT = np.tril(np.exp(fade_T[:, None] - fade_T[None, :]))
  weight_TT = np.asarray(tokens.q @ tokens.k.T) * fade_TT * np.asarray(gates.write_rate)
  assert_close(read(rule, empty, tokens, gates)[0], weight_TT @ np.asarray(tokens.v))


@pytest.mark.parametrize("normalize", [None, "sum"])
def test_one_layer_of_kernels_is_attention_with_and_without_a_softmax(x64, normalize):
  """From nothing, write rate 1 and all kept; the chunk size is then a matter of speed."""
  options = dict(LINEAR, scale=1.5, normalize=normalize, surprise_max=None)
  rule, learned, tokens, _ = small("deep_transformer", **options)
  empty = jax.tree.map(jnp.zeros_like, learned)
  weight_TT = np.tril(np.exp(1.5 * np.asarray(tokens.q @ tokens.k.T)))
  if normalize == "sum":
    weight_TT /= weight_TT.sum(1, keepdims=True)
  assert_close(read(rule, empty, tokens, flat_gates(N))[0], weight_TT @ np.asarray(tokens.v))


# --- the delta rule ---


def test_delta_is_the_same_for_every_chunk_size(x64):
  n = 64
  rule, learned, tokens, gates = small("delta", n=n)
  gates = gates._replace(log_momentum=random_gates(1, n, dtype="float64").log_momentum)
  one = read(rule, learned, tokens, gates, chunk_size=1)
  for chunk_size in (8, 16, 64):
    assert_close(read(rule, learned, tokens, gates, chunk_size=chunk_size), one, why=f"chunk {chunk_size}")


def test_delta_without_momentum_is_the_gated_product_form(x64):
  """W_t = (a_t - r_t k k^T) W + r_t k v^T: erase what the key recalls, write the value."""
  rule, learned, tokens, gates = small("delta", momentum=False)
  w, reads = np.asarray(learned.fast["w0"]), []
  for t in range(N):
    k_K, v_M = np.asarray(tokens.k[t]), np.asarray(tokens.v[t])
    a, r = float(gates.retention[t]), float(gates.write_rate[t])
    w = (a * np.eye(K) - r * np.outer(k_K, k_K)) @ w + r * np.outer(k_K, v_M)
    reads.append(np.asarray(tokens.q[t]) @ w)
  expected = np.array(reads), {"w0": w}
  assert_close(read(rule, learned, tokens, gates), expected)
  with_momentum = of("delta", learned)
  assert_close(read(with_momentum, learned, tokens, gates), expected, why="momentum shut")


def test_delta_stays_bounded_where_a_stale_chunk_diverges(x64):
  """Write rate 1 and keys that are nearly one: C of them overshoot C-fold from one base."""
  n, draw = 256, np.random.default_rng(0)
  keys = np.array([1.0, 0, 0, 0, 0]) + 0.1 * draw.normal(size=(n, K))
  keys = jnp.asarray(keys / np.linalg.norm(keys, axis=1, keepdims=True))
  rule, learned, tokens, _ = small("delta", n=n, momentum=False)
  tokens, gates = tokens._replace(k=keys, q=keys), flat_gates(n)
  exact = np.abs(np.asarray(read(rule, learned, tokens, gates, chunk_size=64)[0]))
  assert np.isfinite(exact).all() and exact.max() < 20
  stale = of("titans", learned, surprise_max=None, **LINEAR)
  assert np.abs(np.asarray(read(stale, learned, tokens, gates, chunk_size=64)[0])).max() > 1e4


def test_delta_stores_orthonormal_keys_in_one_pass(x64):
  rule, learned, tokens, _ = small("delta", n=8, width=8, momentum=False)
  keys = jnp.asarray(np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0])
  tokens = tokens._replace(k=keys)
  _, fast = read(rule, learned, tokens, flat_gates(8), chunk_size=8)
  assert_close(keys @ fast["w0"], tokens.v)


@pytest.mark.parametrize(
  "feature_map,pairs,held", [("none", 6, True), ("none", 20, False), ("poly", 20, True)]
)
def test_delta_over_polynomial_features_stores_more_pairs_than_keys_are_wide(x64, feature_map, pairs, held):
  """Pairs come round again and again, each written whole: a step of 1 over the lifted key's square norm."""
  sweeps = 320
  rule, learned, tokens, _ = small("delta", n=pairs, width=8, momentum=False, feature_map=feature_map)
  learned = learned._replace(slow=jax.tree.map(jnp.ones_like, learned.slow))
  again = jax.tree.map(lambda x: jnp.tile(x, (sweeps, 1)), tokens)
  rate = 1.0 if feature_map == "none" else 1 / 2.5  # 1 + 1 + 1 / 2
  _, fast = read(rule, learned, again, flat_gates(pairs * sweeps, write_rate=rate), chunk_size=40)
  recalled = rule.apply(learned.slow, fast, tokens.k)
  error = np.abs(np.asarray(recalled - tokens.v)).max()
  assert (error < 1e-3) if held else (error > 0.3), f"largest error {error:.1e}"


# --- what weights are bound to ---


@pytest.mark.parametrize("over", ["column", "matrix"])
def test_memora_s_weights_stay_on_the_simplex(x64, over):
  rule, learned, tokens, gates = small("memora", over=over)
  _, logits = read(rule, learned, tokens, gates)
  assert any(np.abs(np.asarray(logits[w] - learned.fast[w])).max() > 1e-3 for w in logits)
  base = rule.base_of(learned.slow, scan.MemoryState(logits))
  for w in (base.weights if hasattr(base, "weights") else base).values():
    w = np.asarray(w)
    assert (w > 0).all()
    entries = w.shape[0] if over == "column" else w.size
    assert_close(
      w.sum(0 if over == "column" else None), np.full(w.shape[1:] if over == "column" else (), entries**0.5)
    )


def test_bregman_s_weights_stay_between_their_bounds(x64):
  rule, learned, tokens, gates = small("bregman", low=-0.5, high=0.25)
  _, logits = read(rule, learned, tokens, gates._replace(write_rate=jnp.full(N, 5.0)))
  base = rule.base_of(learned.slow, scan.MemoryState(logits))
  for w in (base.weights if hasattr(base, "weights") else base).values():
    assert (np.asarray(w) > -0.5).all() and (np.asarray(w) < 0.25).all()


@pytest.mark.parametrize("divergence", ["kl", "chi2", "hellinger"])
def test_f_divergence_moves_the_mass_of_a_column_and_keeps_its_sum(x64, divergence):
  rule, learned, tokens, gates = small("f_divergence", divergence=divergence, fade_to="zero")
  _, fast = read(rule, learned, tokens, gates)
  kept = float(np.exp(np.sum(np.asarray(gates.log_retention))))
  for name, w in fast.items():
    w, old = np.asarray(w), np.asarray(learned.fast[name])
    assert (w > 0).all()
    assert_close(w.sum(0), kept * old.sum(0))
    assert np.abs(w - kept * old).max() > 1e-3


@pytest.mark.parametrize("momentum", [False, True])
def test_lact_keeps_the_norm_of_every_column(x64, momentum):
  rule, learned, tokens, gates = small("lact", momentum=momentum)
  _, fast = read(rule, learned, tokens, gates)
  for name, w in fast.items():
    w, old = np.asarray(w), np.asarray(learned.fast[name])
    assert_close(np.sqrt((w**2).sum(0)), np.sqrt((old**2).sum(0)))
    assert np.abs(w - old).max() > 0.1


# --- hierarchies ---


@pytest.mark.parametrize("local", [4, N])
def test_tnt_without_a_global_memory_and_with_one_shard_is_titans(x64, local):
  options = dict(local_chunks=(local,), project_queries=False, global_memory=False)
  rule, learned, tokens, gates = small("tnt", chunk_size=N, **options)
  own = with_own(
    gates,
    local_retention=jnp.exp(gates.log_retention)[:, None],
    local_momentum=jnp.full((N, 1), 0.7),
    local_rate=gates.write_rate[:, None],
  )
  titans_gates = gates._replace(log_momentum=jnp.full(N, np.log(0.7)))
  titans = Learned(learned.slow["local0"], {})
  expected = read(of("titans", titans, fade_to="zero"), titans, tokens, titans_gates, chunk_size=local)[0]
  assert_close(read(rule, learned, tokens, own, chunk_size=N)[0], expected)
