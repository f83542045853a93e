"""Every memory that is shipped lasts, is moved by a write and recalls, at the gates it starts from.

Each rule is measured with its defaults, keys of width 32 and chunks of 32, over 16,384 tokens (65,536 in the
tests marked slow), and so is the memory of every config in every variant, with its own sizes, over 4,096: the
heads of the shortest and of the longest half-life.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import fields
from atlas_jax.memory import liveness, rules, scan
from atlas_jax.memory.layer import Memory
from atlas_jax.memory.types import GateStarts
from tests.helpers import freeze
from tests.memory.contract import FILES
from tests.test_configs import ALL, resolved

SIZES = dict(key_dim=32, value_dim=32, chunk_size=32)
SPREAD = 16.0  # Of half-lives over heads, as in the default config.
every_rule = pytest.mark.parametrize("name", FILES)


@functools.lru_cache
def rule_of(name, options=()):
  return rules.load(name, **SIZES, **dict(options))


def ends_of(rule, heads=2, spread=SPREAD):
  """The rule with the gates of its first and of its last head."""
  return [rule._replace(starts=rule.starts.of_head(head, heads, spread)) for head in {0, heads - 1}]


@every_rule
def test_a_rule_is_alive_after_16384_tokens(name):
  for rule in ends_of(rule_of(name)):
    faults = liveness.faults(liveness.measure(rule, **SIZES, steps=4))
    assert not faults, f"{rule.starts}: {'; '.join(faults)}"


@pytest.mark.slow
@every_rule
def test_a_rule_is_alive_after_65536_tokens(name):
  for rule in ends_of(rule_of(name)):
    faults = liveness.faults(liveness.measure(rule, **SIZES, steps=16))
    assert not faults, f"{rule.starts}: {'; '.join(faults)}"


@every_rule
def test_a_run_of_equal_tokens_stays_finite_at_the_defaults(name):
  """As blanks in a row are: all of a chunk push the same way from one base."""
  rule = rules.load(name, key_dim=32, value_dim=32, chunk_size=64)
  one = liveness.random_pairs(liveness.STREAMS, jax.random.key(1), 1, 32, 32)
  tokens = jax.tree.map(lambda x: jnp.repeat(x, 1024, axis=0), one)
  learned, gates = rule.init(jax.random.key(0)), liveness.constant_gates(rule, 1024)
  every_T, reset_N = jnp.ones(1024, bool), jnp.zeros(16, bool)
  memory, out = jax.jit(
    lambda start: scan.scan_packed(rule, start, learned, tokens, gates, every_T, reset_N, chunk_size=64)
  )(rule.start(learned))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((memory, out.out_CM)))


# --- what is shipped ---


def shipped() -> dict:
  """The memories of all configs, by the first variant that has it."""
  found: dict = {}
  for file, arg in ALL:
    config = resolved(file, arg)
    has = config.model.kind == "memory" and config.model.memory_mix in fields.mixes("memory")
    if has and config.recipe != "trm" and config.model.path is None:
      memory = config.model.memory.to_dict()  # Of its heads the first and the last are measured.
      found.setdefault(freeze(memory | {"heads": min(memory["heads"], 2)}), f"{file.stem}:{arg}")
  return {where: memory for memory, where in found.items()}


SHIPPED = shipped()


@pytest.mark.parametrize("where", SHIPPED)
def test_a_shipped_memory_is_alive(where):
  layer = Memory(**SHIPPED[where], parent=None)
  sizes = {name: getattr(layer, name) for name in SIZES}
  for rule in ends_of(layer.build_rule(), layer.heads, layer.half_life_spread):
    faults = liveness.faults(liveness.measure(rule, **sizes, zero=layer.initial == "zero"))
    assert not faults, f"{rule.starts}: {'; '.join(faults)}"


# --- the measure itself ---

OLD = GateStarts(retention=0.995, momentum=0.6, write_rate=0.01, write_rate_max=0.1)
PAPERS = (("fade_to", "zero"), ("residual", True))


@pytest.mark.parametrize("name", ["titans", "omega", "dla", "atlas"])
def test_the_gates_that_once_were_every_rule_s_are_reported_dead(name):
  rule = rule_of(name, PAPERS)._replace(starts=OLD)
  life = liveness.measure(rule, **SIZES)
  assert any("one write" in fault for fault in liveness.faults(life))
  if name != "atlas":  # Its norm falls to a fiftieth; nothing is written.
    assert any("its norm" in fault for fault in liveness.faults(life))


def test_a_memory_that_is_not_finite_is_dead():
  life = liveness.measure(rule_of("dla", (("surprise_max", None),))._replace(
    starts=GateStarts(retention=0.9999, write_rate=2.0, write_rate_max=3.0)), **SIZES)
  assert len(liveness.faults(life)) == 3


def test_an_exact_memory_of_few_pairs_loses_only_the_noise():
  """Delta with a rate near 1 replaces a pair; the others are nearly orthogonal."""
  rule = rule_of("delta", (("momentum", False),))
  rule = rule._replace(starts=GateStarts(retention=0.999999, write_rate=0.9, write_rate_max=1.0))
  streams = liveness.Streams(pairs=4, noise=0.0)
  life = liveness.measure(rule, **SIZES, streams=streams, segment=512)
  assert float(life.loss[-1]) < 0.02


def test_keys_have_the_cosine_that_is_asked_for():
  k_TK = np.asarray(liveness.keys(jax.random.key(0), 0.5, 400, 32))
  cosine_TT = k_TK @ k_TK.T
  assert abs(cosine_TT[~np.eye(400, dtype=bool)].mean() - 0.5) < 0.02
  np.testing.assert_allclose(np.diag(cosine_TT), 1, rtol=1e-5)
