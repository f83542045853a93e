"""Builds the small things tests are about and compares results; computes no expected value."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import freeze

from atlas_jax.memory import rules, scan
from atlas_jax.memory.layer import Memory
from atlas_jax.memory.types import Gates, Learned, Token
from atlas_jax.models import lm

# Float64 leaves only rounding; float32 sums of a few dozen terms of size one lose 1e-6, a decade is margin.
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
  for (path, x), y in zip(
    jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=f"{why}{jax.tree_util.keystr(path)}")


def assert_grads(function, arguments, gradient, *, step=1e-6, tolerance=1e-7):
  """Compares a gradient with central differences of a float64 function, along one random direction per leaf.

  Args:
    function: arguments -> float.
    arguments: a pytree of float64 arrays.
    gradient: the same tree of gradients.
    step: width of the difference.
    tolerance: as in `assert_close`; a difference loses half of float64's digits.
  """
  leaves, treedef = jax.tree.flatten(arguments)
  draw = np.random.default_rng(6)
  for i, (path, grad) in enumerate(jax.tree_util.tree_leaves_with_path(gradient)):
    direction = draw.normal(size=leaves[i].shape)
    up, down = (
      jax.tree.unflatten(treedef, [*leaves[:i], leaves[i] + sign * direction, *leaves[i + 1 :]])
      for sign in (step, -step)
    )
    expected = np.float64((function(up) - function(down)) / (2 * step))
    actual = np.sum(np.asarray(grad) * direction)
    assert_close(actual, expected, why=jax.tree_util.keystr(path), tolerance=tolerance)


@contextlib.contextmanager
def quick_compilation(quick=True):
  """Compiles without the slow half of the compiler while it lasts; tests run a function a few times only."""
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", quick)
  try:
    yield
  finally:
    jax.config.update("jax_disable_most_optimizations", before)


def full_compilation():
  """Compiles with all of the compiler while it lasts: for programs that run hundreds of times."""
  return quick_compilation(False)


def trace_counter(function):
  """Returns a jitted copy of a function, and a list that grows by one whenever it is traced and compiled."""
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


def random_gates(
  seed,
  n,
  *,
  rule=None,
  dtype="float32",
  retention=(0.7, 1.0),
  momentum=(0.2, 0.95),
  write_rate=(0.05, 0.4),
):
  """Gates of one head, uniform in the given ranges; a rule's own ones in theirs, around their start."""
  draw = np.random.default_rng(seed + 1000)
  low, high = zip(retention, momentum, write_rate)
  retention_T, momentum_T, write_rate_T = draw.uniform(low, high, size=(n, 3)).T
  own = {}
  for spec in rule.gates if rule else ():
    shape = (n,) if spec.size is None else (n, spec.size)
    low, high = (
      (0.1 * spec.max, 0.9 * spec.max) if spec.kind == "sigmoid" else (0.2 * spec.init, 2 * spec.init)
    )
    own[spec.name] = jnp.asarray(draw.uniform(low, high, size=shape), dtype)
  common = (np.log(retention_T), np.log(momentum_T), write_rate_T)
  return Gates(*(jnp.asarray(x, dtype) for x in common), more=own or ())


def tiny_rule(name="titans", *, seed=0, dtype="float32", key_dim=5, value_dim=5, chunk_size=4, **options):
  """A rule of one small head and what it has learned: its own start, plus noise in every entry.

  What starts positive everywhere, such as masses and scales, stays so.
  """
  rule = rules.load(name, key_dim=key_dim, value_dim=value_dim, chunk_size=chunk_size, **options)
  draw = np.random.default_rng(seed)

  def shaken(w, scale):
    w = np.asarray(w)
    moved = w + draw.normal(scale=scale, size=w.shape)
    return jnp.asarray(np.abs(moved) if (w > 0).all() else moved, dtype)

  learned = rule.init(jax.random.key(seed))
  fast = jax.tree.map(lambda w: shaken(w, 0.4), learned.fast)
  return rule, Learned(fast, jax.tree.map(lambda w: shaken(w, 0.1), learned.slow))


def running_from(rule, learned, *, seed=None):
  """The state before the first token; with a seed its momentum is random, as in the middle of a text."""
  running = scan.start(rule, learned)
  if seed is None:
    return running
  draw = np.random.default_rng(seed)
  noise = jax.tree.map(
    lambda s: jnp.asarray(draw.normal(scale=0.2, size=s.shape), s.dtype), running.memory.momentum
  )
  return running._replace(memory=running.memory._replace(momentum=noise))


def for_oracle(learned, tokens, gates):
  """Learned parameters, tokens and gates as the oracles take them: float64 arrays, gates in their range."""
  wide = lambda tree: jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
  gates, own = wide(gates), dict(wide(gates).more or {})
  common = dict(
    retention=np.exp(gates.log_retention), momentum=np.exp(gates.log_momentum), write_rate=gates.write_rate
  )
  return wide(learned._asdict()), wide(tuple(tokens)), common | own


def results(out_TM, memory):
  """All that a run gives, by name; `memory` has `fast` and `momentum`, and may have none of the latter."""
  return {"out": out_TM, "fast": memory.fast, "momentum": memory.momentum or {}}


def cut(tree, start, stop):
  """The tokens from start to stop of every leaf."""
  return jax.tree.map(lambda x: x[start:stop], tree)


# --- the layer and the language model ---

MEMORY = dict(
  rule="titans",
  options={},
  heads=3,
  key_dim=4,
  value_dim=4,
  chunk_size=4,
  conv_taps=4,
  retention_init=0.95,
  momentum_init=0.7,
  write_rate_init=0.1,
  write_rate_max=0.4,
)
# Keys of the context before, values of the token alone, a start at zero, reads of their own length.
SHIFTED = dict(
  rule="delta",
  options=freeze({"momentum": False, "feature_map": "cells", "feature_dim": 6}),
  shift=True,
  shared_qk=True,
  activation="none",
  value_source="token",
  conv_init="ngram",
  initial="zero",
  read_norm="none",
)
# A value under its own token's key; reads of unit mean square.
PAPER = dict(
  rule="titans",
  shift=False,
  shared_qk=False,
  activation="silu",
  value_source="input",
  conv_init="identity",
  initial="learned",
  read_norm="rms",
)
LM = dict(
  vocab_size=32,
  width=12,
  depth=2,
  heads=2,
  ff_width=20,
  window_tokens=3,
  memory_mix="gate",
  gate_floor=0.1,
  dtype="float32",
  remat="none",
  scan_unroll=1,
  persistent_tokens=2,
  inner=freeze(dict(batch_tokens=4, ff_width=16, rate=0.5, clip_norm=1.0)),
)


def noisy(params, *, scale, dtype, seed=0):
  """Adds noise to every parameter, so that none stands at a special point such as zero or the identity."""
  draw = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(np.asarray(x) + draw.normal(scale=scale, size=x.shape), dtype), params
  )


@functools.lru_cache
def _memory_params(layer, D, seed):
  doc_BT = jnp.zeros((1, layer.chunk_size), jnp.int32)
  init = jax.jit(functools.partial(layer.init, mode="stream"))
  return init(
    jax.random.key(seed),
    jnp.zeros((1, 1, D), jnp.float32),
    layer.zero_state(1),
    doc_BT[:, :1],
    doc_BT[:, 0],
    None,
  )["params"]


def tiny_memory(rule="titans", *, B=2, T=12, D=7, dtype="float32", seed=0, noise=0.2, **fields):
  """A small memory layer, its parameters and an input; `fields` replace those of MEMORY."""
  layer = Memory(
    **freeze(MEMORY | dict(rule=rule) | fields)
  )  # Frozen, so that a layer can be a static argument.
  x_BTD = jnp.asarray(np.random.default_rng(seed).normal(size=(B, T, D)), dtype)
  return layer, noisy(_memory_params(layer, D, seed), scale=noise, dtype=dtype, seed=seed), x_BTD


@functools.lru_cache
def _lm_params(model, seed):
  init = jax.jit(functools.partial(model.init, mode="stream"))
  return init(jax.random.key(seed), jnp.zeros((1, 1), jnp.int32), model.zero_state(1))["params"]


def tiny_lm(*, B=2, T=12, dtype="float32", seed=0, noise=0.1, memory=None, **fields):
  """A small language model, its parameters, random tokens; `fields`, `memory` replace those of LM, MEMORY."""
  model = lm.LM(**(LM | fields), memory=freeze(MEMORY | (memory or {})))
  wide = "float64" if dtype == "float64" else "float32"  # Parameters are never narrower.
  params = noisy(_lm_params(model, seed), scale=noise, dtype=wide, seed=seed)
  tokens_BT = jnp.asarray(np.random.default_rng(seed).integers(0, model.vocab_size, size=(B, T)), jnp.int32)
  return model.clone(dtype=dtype), params, tokens_BT
