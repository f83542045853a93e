"""What every file in memory/rules must keep: it is collected, documented, and equal to its oracle."""

import functools
import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.memory import rules, scan
from tests import oracles
from tests.helpers import (
  as_numpy,
  assert_close,
  assert_same_bits,
  quick_compilation,
  random_gates,
  random_tokens,
  results,
  running_from,
  tiny_rule,
)


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


FILES = sorted(
  path.stem for path in pathlib.Path(rules.__file__).parent.glob("*.py") if path.stem != "__init__"
)
N, CHUNK = 12, 4

every_rule = pytest.mark.parametrize("name", FILES)


@functools.lru_cache
def small(name, dtype):
  rule, fast = tiny_rule(name, dtype=dtype)
  return (
    rule,
    fast,
    running_from(rule, fast, seed=7),
    random_tokens(2, N, key_dim=5, value_dim=5, dtype=dtype),
    random_gates(2, N, dtype=dtype),
  )


@functools.partial(jax.jit, static_argnums=0)
def packed(rule, memory, fast, tokens, gates, write_T):
  return scan.scan_packed(
    rule, memory, fast, tokens, gates, write_T, jnp.zeros(N // CHUNK, bool), chunk_size=CHUNK
  )


@functools.partial(jax.jit, static_argnums=0)
def single(rule, running, tokens, gates, write_T):
  return scan.scan_tokens(rule, running, tokens, gates, write_T, chunk_size=CHUNK)


@functools.partial(jax.jit, static_argnums=0)
def stream(rule, running, tokens, gates, count):
  return scan.scan_stream(rule, running, tokens, gates, count, chunk_size=CHUNK)


def test_every_file_is_a_rule_and_has_an_oracle():
  assert rules.names() == FILES
  assert FILES, "memory/rules has no rule"
  missing = [name for name in FILES if name not in oracles.RULES]
  assert not missing, f"tests/oracles.py has no loop for {', '.join(missing)}; write one and add it to RULES"
  assert sorted(oracles.RULES) == FILES, "tests/oracles.py has loops for rules that are not there"


@every_rule
def test_a_rule_names_its_source(name):
  assert "Source:" in importlib.import_module(f"{rules.__name__}.{name}").__doc__


@every_rule
def test_a_rule_starts_from_float32_weights_that_depend_on_the_key_alone(name):
  rule = rules.load(name, key_dim=5, value_dim=5)
  first, again, other = (rule.init_fast(jax.random.key(seed)) for seed in (0, 0, 1))
  assert_same_bits(first, again)
  assert {x.dtype for x in jax.tree.leaves(first)} == {jnp.dtype("float32")}
  assert any(
    (np.asarray(x) != np.asarray(y)).any() for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(other))
  )
  state = rule.init(first)
  assert_same_bits(state.fast, first)
  assert not any(np.asarray(s).any() for s in jax.tree.leaves(state.momentum))


@pytest.mark.core
@every_rule
def test_chunks_and_single_tokens_equal_the_oracle(x64, name):
  """With padding inside chunks and a momentum to start from."""
  rule, fast, running, tokens, gates = small(name, "float64")
  write_T = np.ones(N)
  write_T[[2, 7]] = 0
  expected = oracles.RULES[name](
    fast, *as_numpy(tokens, gates), chunk_size=CHUNK, write_T=write_T, momentum=running.memory.momentum
  )
  memory, out = packed(rule, running.memory, fast, tokens, gates, jnp.asarray(write_T))
  end, out_TM = single(rule, running, tokens, gates, jnp.asarray(write_T))
  real = write_T == 1
  for why, state, read_TM in (("chunks", memory, out.out_CM), ("single tokens", end.memory, out_TM)):
    assert_close(results(read_TM[real], state), results(expected.out_TM[real], expected), why=why)


@every_rule
def test_two_calls_cut_inside_a_chunk_equal_one(x64, name):
  rule, _, running, tokens, gates = small(name, "float64")
  whole, whole_TM = single(rule, running, tokens, gates, jnp.ones(N))
  middle, left_TM = stream(rule, running, tokens, gates, 5)
  rest = jax.tree.map(lambda x: jnp.roll(x, -5, axis=0), (tokens, gates))
  end, right_TM = stream(rule, middle, *rest, 7)
  assert_close((jnp.concatenate([left_TM[:5], right_TM[:7]]), end), (whole_TM, whole))


@every_rule
def test_a_write_is_seen_from_its_token_on_and_never_before(name):
  rule, fast, running, tokens, gates = small(name, "float32")
  read = lambda tokens: np.asarray(packed(rule, running.memory, fast, tokens, gates, jnp.ones(N))[1].out_CM)
  before, after = read(tokens), read(tokens._replace(v=tokens.v.at[6].add(1.0)))
  assert_same_bits(after[:6], before[:6])
  assert (after[6:] != before[6:]).any(axis=1).all()


@every_rule
def test_outer_gradients_of_chunks_equal_those_of_single_tokens(x64, name):
  rule, _, running, tokens, gates = small(name, "float64")

  def total(form, fast, tokens, gates):
    start = scan.start(rule, fast)
    if form == "chunks":
      memory, out = packed(rule, start.memory, fast, tokens, gates, jnp.ones(N))
      out_TM = out.out_CM
    else:
      end, out_TM = single(rule, start, tokens, gates, jnp.ones(N))
      memory = end.memory
    return jnp.sum(jnp.sin(3 * out_TM)) + sum(jnp.sum(x**2) for x in jax.tree.leaves(memory))

  actual, expected = (
    jax.grad(functools.partial(total, form), (0, 1, 2))(running.base, tokens, gates)
    for form in ("chunks", "single tokens")
  )
  assert_close(actual, expected)


def test_an_unknown_rule_or_option_is_refused_with_the_known_ones():
  with pytest.raises(ValueError, match="titans"):
    rules.load("titan", key_dim=5, value_dim=5)
  with pytest.raises(TypeError, match="depth"):
    rules.load("titans", key_dim=5, value_dim=5, dept=2)
