"""A rule that is a file with `init` and `step` alone reads, streams, trains and is a layer."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import NeuralMemory
from atlas_jax.memory import rules, scan
from tests import program
from tests.helpers import assert_close, quick_compilation, random_gates, random_tokens

FILE = '''
"""Writing a key replaces what it recalled at the start of the chunk."""
import jax
import jax.numpy as jnp

from atlas_jax.memory.types import Learned, MemoryRule, MemoryState


def make(*, key_dim, value_dim):
  def init(key):
    return Learned(fast=0.1 * jax.random.normal(key, (key_dim, value_dim)), slow={})

  def step(slow, state, base, token, gates, place):
    error = token.v - token.k @ base
    fast = gates.retention * state.fast + gates.write_rate * jnp.outer(token.k, error)
    return MemoryState(fast), token.q @ fast

  return MemoryRule(init=init, step=step, uses=("log_retention", "write_rate"))
'''
NAME = "newcomers.replace"


@pytest.fixture
def rule(tmp_path, monkeypatch):
  """Writes the file where Python finds it, and loads it."""
  (tmp_path / "newcomers").mkdir()
  (tmp_path / "newcomers/replace.py").write_text(FILE)
  monkeypatch.syspath_prepend(tmp_path)
  with quick_compilation():
    yield rules.load(NAME, key_dim=5, value_dim=3, chunk_size=4)


def test_a_rule_of_init_and_step_recalls_with_its_weights_on_any_number_of_axes(rule):
  learned = rule.init(jax.random.key(0))
  x_BTK = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 5)), jnp.float32)
  assert_close(rule.apply({}, learned.fast, x_BTK), x_BTK @ learned.fast)
  assert_close(rule.apply({}, learned.fast, x_BTK[0, 0]), x_BTK[0, 0] @ learned.fast)


def test_chunks_of_a_rule_of_init_and_step_equal_its_steps(rule):
  learned, length = rule.init(jax.random.key(0)), 8
  tokens = random_tokens(1, length, key_dim=5, value_dim=3)
  gates, write_T = random_gates(1, length, rule=rule), jnp.ones(length, bool)
  running = scan.start(rule, learned)
  after, out_TM = scan.scan_tokens(rule, running, {}, tokens, gates, write_T, chunk_size=4)
  memory, out = scan.scan_packed(
    rule, running.memory, learned, tokens, gates, write_T, jnp.zeros(2, bool), chunk_size=4
  )
  assert_close((memory, out.out_CM), (after.memory, out_TM))


def test_a_rule_of_init_and_step_is_a_layer_and_trains(rule, tmp_path):
  layer = NeuralMemory(dim=12, heads=3, chunk_size=8, rule=NAME)
  x_BTD = jnp.ones((2, 7, 12))
  y_BTD, _ = jax.jit(layer.apply)(jax.jit(layer.init)(jax.random.key(0), x_BTD), x_BTD)
  assert y_BTD.shape == x_BTD.shape and np.isfinite(y_BTD).all()
  flags = program.tiny(program.write_texts(tmp_path / "texts"), optim__steps=2)
  flags[0] += f",rule={NAME}"
  done = program.run(*flags, f"--workdir={tmp_path / 'run'}")
  assert done.code == 0, done.err
  rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
  assert any("memory/surprise_norm_mean" in name for row in rows for name in row), rows[0]
