"""Products of gates over a chunk, and the gates themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.memory import gates
from atlas_jax.memory.types import GateSpec, GateStarts
from tests import oracles
from tests.helpers import assert_close, assert_grads, random_gates


def oracle_of(parts, write_C):
  log_retention_C, log_momentum_C, write_rate_C = (
    None if x is None else np.asarray(x, np.float64) for x in parts
  )
  momentum_C = None if log_momentum_C is None else np.exp(log_momentum_C)
  return oracles.chunk_decay(np.exp(log_retention_C), momentum_C, write_rate_C, write_C)


def log_gates(seed, size, dtype="float64"):
  """Log retention, log momentum and write rate."""
  return tuple(random_gates(seed, size, dtype=dtype)[:3])


@pytest.mark.core
@pytest.mark.parametrize("size", [1, 7])
def test_chunk_decay_equals_its_row_recurrences(x64, size):
  parts = log_gates(0, size)
  decay = gates.chunk_decay(*parts, jnp.ones(size))
  assert_close(decay._asdict(), oracle_of(parts, np.ones(size)), why="whole chunk")


@pytest.mark.parametrize("write_C", [[1] * 6, [1, 0, 1, 1, 0, 1]], ids=str)
def test_chunk_decay_without_momentum_equals_its_row_recurrences(x64, write_C):
  """Each gradient then enters the weights once, and only retention carries on."""
  log_retention_C, _, write_rate_C = log_gates(0, 6)
  parts = (log_retention_C, None, write_rate_C)
  decay = gates.chunk_decay(*parts, jnp.asarray(write_C, jnp.float64))
  expected = oracle_of(parts, np.array(write_C))
  assert_close(decay._asdict(), expected)


def test_chunk_decay_takes_a_padded_token_as_absent(x64):
  write_C = np.array([1, 1, 0, 1, 0, 0, 1, 0])
  parts = log_gates(1, 8)
  decay = gates.chunk_decay(*parts, jnp.asarray(write_C, jnp.float64))
  assert_close(decay._asdict(), oracle_of(parts, write_C), why="with padding")
  without = gates.chunk_decay(*(x[write_C == 1] for x in parts), jnp.ones(4))
  assert_close(decay.mix_CC[-1][write_C == 1], without.mix_CC[-1], why="mix of the tokens left")
  real = np.flatnonzero(write_C)
  assert_close(decay.surprise_CC[real][:, real], without.surprise_CC, why="momentum of the tokens left")


def test_a_chunk_of_padding_keeps_everything(x64):
  decay = gates.chunk_decay(*log_gates(2, 5), jnp.zeros(5))
  assert_close((decay.fast_C, decay.keep_C), (np.ones(5), np.ones(5)))
  for zero in (decay.momentum_C, decay.mix_CC, decay.surprise_CC):
    assert not np.asarray(zero).any()


def test_decay_tables_are_zero_above_the_diagonal():
  decay = gates.chunk_decay(*log_gates(3, 6, "float32"), jnp.ones(6))
  for table_CC in (decay.mix_CC, decay.surprise_CC):
    assert not np.triu(np.asarray(table_CC), 1).any()


def test_shut_gates_stay_finite_forward_and_backward():
  """Sixty-four shut tokens are a log decay of -1920: exp above the diagonal would overflow."""
  shut_C, size = jnp.full(64, -30.0), 64

  def total(log_retention_C, log_momentum_C, write_rate_C):
    return sum(
      x.sum() for x in gates.chunk_decay(log_retention_C, log_momentum_C, write_rate_C, jnp.ones(size))
    )

  for parts in (
    (shut_C, shut_C, jnp.ones(size)),
    (jnp.zeros(size), shut_C, jnp.ones(size)),
    (shut_C, jnp.zeros(size), jnp.ones(size)),
    (jnp.zeros(size), jnp.zeros(size), jnp.zeros(size)),
  ):
    value, gradient = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(*parts)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradient)


def test_open_gates_after_shut_ones_keep_float32_precision():
  """Differences of a long cumulative sum would lose the small logs that come after big ones."""
  log_C = np.array([-30.0] * 60 + [-0.013, -0.021, -0.034, -0.055])
  write_rate_C = np.full(64, 0.3)
  decay = gates.chunk_decay(
    *(jnp.asarray(x, jnp.float32) for x in (log_C, log_C, write_rate_C)), jnp.ones(64)
  )
  assert_close(decay._asdict(), oracle_of((log_C, log_C, write_rate_C), np.ones(64)))


def test_chunk_decay_gives_gradients_of_its_row_recurrences(x64):
  parts, write_C = log_gates(4, 6), np.array([1, 1, 0, 1, 1, 1])
  draw = np.random.default_rng(0)
  weight = {name: draw.normal(size=np.shape(x)) for name, x in oracle_of(parts, write_C).items()}
  weighed = lambda tables: sum((weight[name] * x).sum() for name, x in tables.items())
  written_C = jnp.asarray(write_C, jnp.float64)
  gradient = jax.jit(jax.grad(lambda parts: weighed(gates.chunk_decay(*parts, written_C)._asdict())))(parts)
  assert_grads(lambda parts: weighed(oracle_of(parts, write_C)), parts, gradient)


STARTS = GateStarts(retention=0.99, momentum=0.8, write_rate=0.05, write_rate_max=0.2)


def token_gates(**fields):
  return gates.TokenGates(heads=3, starts=STARTS, **fields)


def test_gates_start_where_they_are_told():
  module, x_BTD = token_gates(), jnp.zeros((2, 4, 6))
  start = module.apply(module.init(jax.random.key(0), x_BTD), x_BTD)
  for actual, expected in ((start.retention, 0.99), (start.momentum, 0.8), (start.write_rate, 0.05)):
    assert actual.shape == (2, 4, 3)
    assert_close(actual, np.full((2, 4, 3), expected))


def test_half_lives_rise_from_head_to_head_by_equal_factors_around_the_middle():
  module, x_BTD = token_gates(half_life_spread=16.0), jnp.zeros((2, 4, 6))
  start = module.apply(module.init(jax.random.key(0), x_BTD), x_BTD)
  half_life_H = np.log(2) / -np.asarray(start.log_retention)[0, 0]
  assert_close(half_life_H / (np.log(2) / -np.log(0.99)), np.array([0.25, 1.0, 4.0]), tolerance=1e-4)
  assert_close(start.write_rate, np.full((2, 4, 3), 0.05))
  alone = gates.TokenGates(heads=1, starts=STARTS, half_life_spread=16.0)
  start = alone.apply(alone.init(jax.random.key(0), x_BTD), x_BTD)
  assert_close(start.retention, np.full((2, 4, 1), 0.99))


def test_gates_are_functions_of_the_token_and_stay_in_range():
  module, x_BTD = (
    token_gates(),
    jnp.asarray(np.random.default_rng(0).normal(scale=100, size=(2, 9, 6)), jnp.float32),
  )
  params = module.init(jax.random.key(0), x_BTD)
  found = module.apply(params, x_BTD)
  assert all(np.isfinite(x).all() for x in found[:3])
  assert (found.log_retention <= 0).all() and (found.log_momentum <= 0).all()
  assert (found.write_rate >= 0).all() and (found.write_rate <= 0.2).all()
  assert np.ptp(np.asarray(found.retention)) > 0.1, "gates do not depend on the token"
  changed = module.apply(params, x_BTD.at[:, 5].add(1.0))
  for before, after in zip(found[:3], changed[:3]):
    differs_T = np.asarray(before != after).any((0, 2))
    assert differs_T[5] and not np.delete(differs_T, 5).any()


def test_gates_of_bfloat16_activations_are_float32():
  module, x_BTD = token_gates(), jnp.ones((1, 2, 6), jnp.bfloat16)
  found = module.apply(module.init(jax.random.key(0), x_BTD), x_BTD)
  assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype("float32")}


OWN = (
  GateSpec("context", 4, init=0.3),
  GateSpec("share", init=0.5, max=2.0),
  GateSpec("threshold", kind="softplus", init=1.5),
  GateSpec("rates", 3, kind="softplus", init=0.01),
)


def test_a_rule_s_own_gates_start_where_they_are_told_and_stay_in_range():
  module, x_BTD = token_gates(more=OWN), jnp.zeros((2, 4, 6))
  params = module.init(jax.random.key(0), x_BTD)
  start = module.apply(params, x_BTD).more
  assert list(start) == [spec.name for spec in OWN]
  for spec in OWN:
    size = () if spec.size is None else (spec.size,)
    assert_close(start[spec.name], np.full((2, 4, 3, *size), spec.init), why=spec.name)
  wild_BTD = jnp.asarray(np.random.default_rng(0).normal(scale=100, size=(2, 9, 6)), jnp.float32)
  wild = module.apply(params, wild_BTD).more
  for spec in OWN:
    gate = np.asarray(wild[spec.name])
    assert np.isfinite(gate).all() and (gate >= 0).all() and np.ptp(gate) > 0.1, spec.name
    assert spec.kind == "softplus" or gate.max() <= spec.max, spec.name


def test_gates_that_a_rule_does_not_use_are_zero_and_have_no_parameters():
  module, x_BTD = token_gates(uses=("write_rate",)), jnp.ones((2, 4, 6))
  params = module.init(jax.random.key(0), x_BTD)
  found = module.apply(params, x_BTD)
  assert params["params"]["kernel"].shape == (6, 3) and params["params"]["bias"].shape == (3,)
  assert not np.asarray(found.log_retention).any() and not np.asarray(found.log_momentum).any()
  assert np.asarray(found.write_rate).all()
  none = token_gates(uses=(), more=OWN[:1])
  params = none.init(jax.random.key(0), x_BTD)["params"]
  assert sorted(params) == ["context_bias", "context_kernel"]
