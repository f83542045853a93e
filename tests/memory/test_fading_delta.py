"""Delta rules that fade first: any size of chunk, what they come down to, and what they can hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.memory import rules, scan
from atlas_jax.memory.types import Gates, Token, by_steps
from tests.helpers import assert_close, quick_compilation, random_gates, random_tokens, results, tiny_rule

NAMES = ("gated_delta", "kda", "gated_delta_2")
LONG, WIDTH = 24, 5


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


@functools.partial(jax.jit, static_argnums=(0,), static_argnames=("chunk_size",))
def read(rule, learned, tokens, gates, *, chunk_size):
  size = tokens.q.shape[0]
  memory, out = scan.scan_packed(rule, rule.start(learned), learned, tokens, gates, jnp.ones(size, bool),
                                 jnp.zeros(size // chunk_size, bool), chunk_size=chunk_size)
  return results(out.out_CM, memory)


def alike(gates, rate_T, width=WIDTH):
  """The gates of each rule that make all three one: every channel fades, erases and writes alike."""
  each_TK = jnp.broadcast_to(rate_T[:, None], (rate_T.shape[0], width))
  plain = gates._replace(write_rate=rate_T, more=())
  return {
    "gated_delta": plain,
    "kda": plain._replace(more={"decay": jnp.ones_like(each_TK)}),
    "gated_delta_2": plain._replace(
      more={"decay": jnp.ones_like(each_TK), "erase": each_TK, "write": each_TK}),
  }


@pytest.mark.parametrize("name", NAMES)
def test_the_size_of_a_chunk_changes_nothing(x64, name):
  rule, learned = tiny_rule(name, dtype="float64", chunk_size=LONG)
  tokens = random_tokens(1, LONG, key_dim=WIDTH, value_dim=WIDTH, dtype="float64")
  gates = random_gates(1, LONG, rule=rule, dtype="float64")
  steps = read(by_steps(rule), learned, tokens, gates, chunk_size=1)
  for chunk_size in (1, 3, 8, LONG):
    assert_close(read(rule, learned, tokens, gates, chunk_size=chunk_size), steps, why=f"{chunk_size} ")


def test_the_three_are_one_where_channels_are_alike(x64):
  tokens = random_tokens(1, LONG, key_dim=WIDTH, value_dim=WIDTH, dtype="float64")
  gates = random_gates(1, LONG, dtype="float64")
  every = alike(gates, gates.write_rate)
  found = {}
  for name in NAMES:
    rule, learned = tiny_rule(name, dtype="float64", chunk_size=8)
    found[name] = read(rule, learned, tokens, every[name], chunk_size=8)
  assert_close(found["kda"], found["gated_delta"])
  assert_close(found["gated_delta_2"], found["gated_delta"])


def test_orthonormal_keys_are_stored_exactly_and_replaced_without_a_trace(x64):
  """With nothing fading and rate 1 every value is recalled, also after each key was written twice."""
  rule = rules.load("kda", key_dim=WIDTH, value_dim=3, chunk_size=WIDTH)
  learned = rule.init(jax.random.key(0))
  learned = jax.tree.map(lambda w: w.astype(jnp.float64), learned)
  draw = np.random.default_rng(0)
  key_KK = np.linalg.qr(draw.normal(size=(WIDTH, WIDTH)))[0]
  k_TK, v_TM = jnp.asarray(np.concatenate([key_KK, key_KK])), jnp.asarray(draw.normal(size=(2 * WIDTH, 3)))
  gates = alike(Gates(*(jnp.zeros(2 * WIDTH),) * 3), jnp.ones(2 * WIDTH))["kda"]
  found = read(rule, learned, Token(k_TK, k_TK, v_TM), gates, chunk_size=WIDTH)
  assert_close(found["out"], v_TM)
  assert_close(key_KK @ np.asarray(found["fast"]["w0"]), v_TM[WIDTH:])


def test_each_channel_fades_by_its_own_gate(x64):
  """Nothing is written: after t tokens a channel has its gate to the t-th power of its start."""
  rule, learned = tiny_rule("kda", dtype="float64", chunk_size=4)
  decay_K = np.linspace(0.5, 2, WIDTH)
  tokens = random_tokens(1, 4, key_dim=WIDTH, value_dim=WIDTH, dtype="float64")
  gates = Gates(jnp.full(4, np.log(0.9)), jnp.zeros(4), jnp.zeros(4),
                {"decay": jnp.broadcast_to(jnp.asarray(decay_K), (4, WIDTH))})
  found = read(rule, learned, tokens, gates, chunk_size=4)
  assert_close(found["fast"]["w0"], 0.9 ** (4 * decay_K)[:, None] * np.asarray(learned.fast["w0"]))


def test_an_erase_gate_without_a_bound_is_refused():
  for bound in (0.0, 2.5):
    with pytest.raises(ValueError, match=f"options.erase_max={bound} must be above 0 and at most 2"):
      rules.load("gated_delta_2", key_dim=4, value_dim=4, chunk_size=4, erase_max=bound)
  rule = rules.load("gated_delta_2", key_dim=4, value_dim=4, chunk_size=4, erase_max=2.0)
  erase = next(spec for spec in rule.gates if spec.name == "erase")
  assert (erase.init, erase.max) == (1.0, 2.0)
