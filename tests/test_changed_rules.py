"""Rules with one part of their inner training changed do just that, by chunks as by steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import config as configs
from atlas_jax.memory import rules, scan
from atlas_jax.memory.types import Gates, Token, by_steps
from atlas_jax.models import lm
from experiments.is_it_linear_attention import changed, run
from experiments.is_it_linear_attention.config import RULES, get_config

SIZES = {"key_dim": 4, "value_dim": 4, "chunk_size": 3}
ONE = ("titans", {"depth": 1, "fade_to": "zero"})


def made(change: str, rule: str, options):
  return rules.load("experiments.is_it_linear_attention.changed", rule=rule, change=change, options=options,
                    **SIZES)


def read(rule, learned, tokens, gates):
  length = tokens.q.shape[0]
  memory, out = scan.scan_packed(rule, rule.start(learned), learned, tokens, gates, jnp.ones((length,), bool),
                                 jnp.zeros((length // 3,), bool), chunk_size=3, remat=False)
  return memory, out.out_CM


@functools.cache
def text(length=6):
  draw = np.random.default_rng(0)
  tokens = Token(*(jnp.asarray(draw.normal(size=(length, 4)), jnp.float32) for _ in range(3)))
  gate_T = lambda low, high: jnp.asarray(draw.uniform(low, high, length), jnp.float32)
  return tokens, Gates(jnp.log(gate_T(0.8, 1.0)), jnp.log(gate_T(0.3, 0.6)), gate_T(0.05, 0.1))


@pytest.mark.parametrize("change", changed.CHANGES)
@pytest.mark.parametrize("name", ["titans", "titans_matrix", "delta", "ttt_mlp"])
def test_a_changed_rule_reads_by_chunks_as_by_steps(name, change):
  rule, options, _ = RULES[name]
  if change == "no_momentum" and name == "ttt_mlp":
    with pytest.raises(ValueError, match="needs a gate log_momentum that rule 'ttt_mlp'"):
      made(change, rule, options)
    return
  one = made(change, rule, options)
  learned = jax.jit(one.init)(jax.random.key(0))
  fast, slow = read(one, learned, *text()), read(by_steps(one), learned, *text())
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), fast, slow)


def test_ascent_moves_the_weights_the_other_way_and_constants_are_of_no_token():
  learned = made("none", *ONE).init(jax.random.key(0))
  tokens, gates = text(3)
  gates = gates._replace(log_retention=jnp.zeros(3))
  moved = lambda change: read(made(change, *ONE), learned, tokens, gates)[0].fast["w0"] - learned.fast["w0"]
  np.testing.assert_allclose(moved("ascent"), -moved("none"), atol=1e-6)
  for change in ("constant_rate", "constant_gates"):
    one = made(change, *ONE)
    given = one.init(jax.random.key(0))
    other = gates._replace(write_rate=2 * gates.write_rate)
    same = [read(one, given, tokens, each)[0].fast["w0"] for each in (gates, other)]
    np.testing.assert_array_equal(*same)
    rate = one.starts.write_rate_max * jax.nn.sigmoid(given.slow["constant_write_rate"])
    np.testing.assert_allclose(rate, one.starts.write_rate, rtol=1e-5)
    assert "write_rate" not in one.uses


def test_without_momentum_a_token_writes_at_once_what_it_wrote_over_time():
  learned = made("none", *ONE).init(jax.random.key(0))
  tokens, gates = text(3)
  moved = read(made("no_momentum", *ONE), learned, tokens, gates)[0]
  shut = read(made("none", *ONE), learned, tokens, gates._replace(log_momentum=jnp.full(3, -1e3)))[0]
  np.testing.assert_allclose(moved.fast["w0"], shut.fast["w0"], atol=1e-6)
  starts = made("no_momentum", *ONE).starts
  assert (starts.write_rate, starts.write_rate_max) == (0.1, 0.2)


@pytest.mark.parametrize("setting, rule, change", run.jobs(("recall", "language"), RULES, run.CHANGES))
def test_every_arm_can_be_built(setting, rule, change):
  arg = f"rule={rule},change={change}{',recall' if setting == 'recall' else ''}"
  model = lm.build(configs.resolve(get_config(arg)).model.to_dict())
  own = change == "own_queries"
  assert model.memory["shift"] and model.memory["shared_qk"] != own
  assert model.memory["options"]["change"] == ("none" if own else change)
