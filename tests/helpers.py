"""Builds the small things tests are about and compares results; computes no expected value."""
import jax
import jax.numpy as jnp
import numpy as np

from atlas_jax.memory import rules, scan
from atlas_jax.memory.types import Gates, Token

# Float64 leaves only rounding; float32 sums of a few dozen terms of size one lose about 1e-6, a decade is margin.
TOLERANCE = {"float64": 1e-10, "float32": 2e-5, "bfloat16": 2e-2}


def assert_close(actual, expected, *, why="", tolerance=None):
  """Compares pytrees leaf by leaf, relative to each leaf's largest entry (at least 1).

  Args:
    actual, expected: pytrees of the same structure (dicts, tuples, arrays).
    why: a word on what is compared, for the message.
    tolerance: largest allowed |difference| / max(1, |expected|); by default that of the coarser dtype.
  """
  chex_like = jax.tree.structure(actual), jax.tree.structure(expected)
  assert chex_like[0] == chex_like[1], f"{why}: structures differ: {chex_like[0]} and {chex_like[1]}"
  expected_leaves = jax.tree.leaves(expected)
  for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(actual), expected_leaves):
    name = f"{why}{jax.tree_util.keystr(path)}"
    allowed = tolerance or max(TOLERANCE.get(str(getattr(z, "dtype", "float64")), 1e-10) for z in (x, y))
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    assert x.shape == y.shape, f"{name}: shape {x.shape}, expected {y.shape}"
    assert np.isfinite(x).all(), f"{name}: not finite"
    error = np.abs(x - y).max(initial=0) / max(1.0, np.abs(y).max(initial=0))
    assert error <= allowed, f"{name}: differs by {error:.2e} of its scale, allowed {allowed:.0e}"


def assert_same_bits(actual, expected, *, why=""):
  """Compares pytrees bit for bit."""
  for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=f"{why}{jax.tree_util.keystr(path)}")


def trace_counter(function):
  """Gives a jitted copy of a function and the list that grows by one at each trace, that is at each compilation."""
  traces = []

  def counted(*args, **kwargs):
    traces.append(1)
    return function(*args, **kwargs)

  return jax.jit(counted), traces


# --- memory rules: one head, one row ---

def random_tokens(seed, n, *, key_dim, value_dim, dtype="float32"):
  """Tokens of one head: unit-norm q and k, normal v."""
  draw = np.random.default_rng(seed)
  q_TK, k_TK = draw.normal(size=(2, n, key_dim))
  unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q_TK, k_TK)]
  return Token(*(jnp.asarray(x, dtype) for x in (*unit, draw.normal(size=(n, value_dim)))))


def random_gates(seed, n, *, dtype="float32", retention=(0.7, 1.0), momentum=(0.2, 0.95), write_rate=(0.05, 0.4)):
  """Gates of one head, uniform in the given ranges."""
  draw = np.random.default_rng(seed + 1000)
  low, high = zip(retention, momentum, write_rate)
  retention_T, momentum_T, write_rate_T = draw.uniform(low, high, size=(n, 3)).T
  return Gates(*(jnp.asarray(x, dtype) for x in (np.log(retention_T), np.log(momentum_T), write_rate_T)))


def tiny_rule(name="titans", *, seed=0, dtype="float32", key_dim=5, value_dim=5, **options):
  """A rule of one small head and random fast weights for it (the rule's own, plus noise in every entry)."""
  rule = rules.load(name, key_dim=key_dim, value_dim=value_dim, **options)
  draw = np.random.default_rng(seed)
  fast = jax.tree.map(lambda w: jnp.asarray(np.asarray(w) + draw.normal(scale=0.4, size=w.shape), dtype),
                      rule.init_fast(jax.random.key(seed)))
  return rule, fast


def running_from(rule, fast, *, seed=None):
  """The state before the first token; with a seed its momentum is random, as in the middle of a text."""
  memory = rule.init(fast)
  if seed is not None:
    draw = np.random.default_rng(seed)
    noise = jax.tree.map(lambda s: jnp.asarray(draw.normal(scale=0.2, size=s.shape), s.dtype), memory.momentum)
    memory = memory._replace(momentum=noise)
  return scan.Running(memory=memory, base=memory.fast, position=jnp.zeros((), jnp.int32))


def as_numpy(tokens, gates):
  """Tokens and gates as the oracles take them: float64 arrays, gates in their own range."""
  wide = lambda *xs: tuple(np.asarray(x, np.float64) for x in xs)  # noqa: E731
  retention_T, momentum_T = wide(gates.log_retention, gates.log_momentum)
  return wide(*tokens), (np.exp(retention_T), np.exp(momentum_T), *wide(gates.write_rate))


def cut(tree, start, stop):
  """The tokens from start to stop of every leaf."""
  return jax.tree.map(lambda x: x[start:stop], tree)
