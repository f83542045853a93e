"""Memory caching: room for so many checkpoints, what happens beyond it, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

from atlas_jax.memory import rules, scan
from tests.helpers import (
  assert_close,
  assert_same_bits,
  for_oracle,
  quick_compilation,
  random_gates,
  random_tokens,
  results,
  tiny_rule,
)
from tests.memory import layers
from tests.memory.oracles import memory_caching as oracle

CHUNK, LONG = 2, 16


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


@functools.partial(jax.jit, static_argnums=(0,))
def read(rule, learned, tokens, gates):
  size = tokens.q.shape[0]
  memory, out = scan.scan_packed(rule, rule.start(learned), learned, tokens, gates, jnp.ones(size, bool),
                                 jnp.zeros(size // CHUNK, bool), chunk_size=CHUNK)
  return memory, out.out_CM


@functools.partial(jax.jit, static_argnums=(0,))
def stream(rule, running, slow, tokens, gates, count):
  return scan.scan_stream(rule, running, slow, tokens, gates, count, chunk_size=CHUNK)


def inputs(options, dtype="float64", length=LONG):
  rule, learned = tiny_rule("memory_caching", dtype=dtype, chunk_size=CHUNK, **options)
  gates = random_gates(3, length, rule=rule, dtype=dtype)
  unused = {name: 0 * gates.write_rate for name in gates._fields[:3] if name not in rule.uses}
  tokens = random_tokens(3, length, key_dim=5, value_dim=5, dtype=dtype)
  return rule, learned, tokens, gates._replace(**unused)


def expected(rule, learned, tokens, gates, options):
  learned, tokens, every = for_oracle(learned, tokens, gates)
  used = [name.removeprefix("log_") for name in rule.uses] + [spec.name for spec in rule.gates]
  return oracle.run(learned, tokens, {name: every[name] for name in used}, chunk_size=CHUNK, **options)


# Eight chunks: more segments than there is room for.
BEYOND = [
  dict(rule="gated_delta", segments=3),
  dict(rule="gated_delta", segments=3, when_full="first"),
  dict(rule="gated_delta", segments=2, segment=4, read="residual", restart=True),
  dict(rule="gated_delta", segments=3, read="sparse", restart=True, when_full="first"),
]


@pytest.mark.parametrize("options", BEYOND, ids=lambda options: "-".join(map(str, options.values())))
def test_beyond_its_room_the_named_checkpoints_are_given_up(x64, options):
  """By chunks, and as a stream in calls that end anywhere."""
  rule, learned, tokens, gates = inputs(options)
  wanted = expected(rule, learned, tokens, gates, options)
  memory, out_TM = read(rule, learned, tokens, gates)
  assert_close(results(out_TM, memory), results(wanted.out_TM, wanted), why="chunks: ")
  running, reads, start = scan.start(rule, learned), [], 0
  for length in (5, 1, 7, 3):
    part = jax.tree.map(lambda x, start=start: jnp.roll(x, -start, axis=0), (tokens, gates))
    running, part_TM = stream(rule, running, learned.slow, *part, length)
    reads.append(part_TM[:length])
    start += length
  out_TM = jnp.concatenate(reads)
  assert_close(results(out_TM, running.memory), results(wanted.out_TM, wanted), why="stream: ")


def test_the_two_ways_of_giving_up_differ(x64):
  reads = [read(*inputs(options))[1] for options in BEYOND[:2]]
  assert np.abs(reads[0] - reads[1])[: 4 * CHUNK].max() == 0
  assert np.abs(reads[0] - reads[1])[4 * CHUNK :].max() > 1e-3


@pytest.mark.parametrize("read_by", ["residual", "gate", "sparse"])
def test_before_a_segment_ends_it_is_the_rule_itself_bit_for_bit(read_by):
  rule, learned, tokens, gates = inputs(dict(rule="delta", segment=LONG, read=read_by), dtype="float32")
  plain = rules.load("delta", key_dim=5, value_dim=5, chunk_size=CHUNK)
  memory, out_TM = read(rule, learned, tokens, gates)
  alone, alone_TM = read(plain, learned._replace(slow={}), tokens, gates)
  assert_same_bits((memory.fast, memory.momentum, out_TM), (alone.fast, alone.momentum, alone_TM))


def test_its_state_has_one_size_however_long_the_text(x64):
  options = dict(rule="gated_delta", segments=3)
  rule, learned, tokens, gates = inputs(options)
  shapes = lambda memory: jax.tree.map(lambda x: (x.shape, x.dtype), memory)
  memory, _ = read(rule, learned, tokens, gates)
  assert shapes(memory) == shapes(rule.start(learned))
  checkpoints = memory.kept.checkpoints
  assert checkpoints.bases["w0"].shape == (3, 5, 5) and int(checkpoints.filled) == LONG // CHUNK


def test_options_of_the_rule_reach_it():
  load = functools.partial(rules.load, "memory_caching", key_dim=5, value_dim=5, chunk_size=CHUNK)
  fast = load(rule="titans", options={"depth": 3}).init(jax.random.key(0)).fast
  assert sorted(fast) == ["w0", "w1", "w2"]
  with pytest.raises(TypeError, match="'titans' does not know dept"):
    load(rule="titans", options={"dept": 3})


REFUSED = [
  (dict(rule="titan"), ValueError, "rule='titan' is unknown; rules are"),
  (dict(options=3), TypeError, "options.options=3 must be the options of rule='titans' by name"),
  (dict(segment=3), ValueError, "segment=3 must be a multiple of config.model.memory.chunk_size=2"),
  (dict(segments=0), ValueError, "segments=0 must be at least 1"),
  (dict(read="soup"), ValueError, "read='soup' is unknown; known are residual, gate, sparse"),
  (dict(when_full="last"), ValueError, "when_full='last' is unknown; known are oldest, first"),
  (dict(choose=2), ValueError, "choose=2 must be between 1 and segments=8, and is for read='sparse'"),
  (dict(read="sparse", choose=9), ValueError, "choose=9 must be between 1 and segments=8"),
]


@pytest.mark.parametrize("options, error, words", REFUSED)
def test_an_option_that_does_not_fit_is_refused_by_name(options, error, words):
  with pytest.raises(error) as caught:
    rules.load("memory_caching", key_dim=5, value_dim=5, chunk_size=CHUNK, **options)
  assert words in str(caught.value)


def test_a_layer_takes_the_options_of_the_rule_and_streams():
  """As a config has them: a mapping in a mapping."""
  options = {"rule": "delta", "options": {"momentum": False}, "segments": 2}
  layer, params, x_BTD = layers.layer_of(rule="memory_caching", options=FrozenDict(options), chunk_size=4)
  assert layer.build_rule().uses == ("log_retention", "write_rate")
  whole_BTHM, end = layers.packed(layer, params, x_BTD)
  left_BTHM, state = layers.stream(layer, params, x_BTD[:, :5])
  right_BTHM, state = layers.stream(layer, params, x_BTD[:, 5:], state)
  assert_close(jnp.concatenate([left_BTHM, right_BTHM], axis=1), whole_BTHM)
  assert_close(state.running.memory, end.running.memory)
  assert int(state.running.memory.kept.checkpoints.filled[0, 0]) == x_BTD.shape[1] // 4
