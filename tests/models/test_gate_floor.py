"""The floor of the gate as an argument, rows without attention, and the use of memories with its gradient.

Faults of the system that this project follows, with which tests here fail: a floor without effect (6), a
clamp that leaves a shut gate without a gradient (7), a gate that is metered behind its floor (8).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.memory import rules, statistics
from atlas_jax.memory.layer import Memory
from atlas_jax.models.blocks import context, gate
from tests import oracles
from tests.helpers import (
  MEMORY,
  SHIFTED,
  assert_close,
  assert_same_bits,
  freeze,
  quick_compilation,
  random_gates,
  tiny_lm,
  trace_counter,
)
from tests.models.test_lm import DOCUMENTS

FLOORS = (0.0, 0.05, 0.1, 0.3, 0.9)
GATED = ("gate", "layer", "only", "context", "conv")
GIVEN = {"context": dict(window_tokens=4)}
SHUT = oracles.sigmoid(-6)


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


def model_of(name="gate", **given):
  return tiny_lm(memory_mix=name, **(GIVEN.get(name, {}) | given))


def read(model, params, tokens_BT, doc_BT=None, **given):
  """Reads whole chunks, of one document unless told."""
  doc_BT = jnp.zeros_like(tokens_BT) if doc_BT is None else jnp.asarray(doc_BT)
  return model.apply({"params": params}, tokens_BT, model.zero_state(len(tokens_BT)), doc_BT=doc_BT, **given)


def shut(params):
  """Nearly shuts every gate, whatever it reads."""

  def closed(path, x):
    name = jax.tree_util.keystr(path)
    if "mix_gate" not in name:
      return x
    return 0 * x - 6 if "bias" in name else 0 * x

  return jax.tree_util.tree_map_with_path(closed, params)


# --- the floor ---


@pytest.mark.parametrize("name", GATED)
def test_a_floor_that_is_given_takes_the_place_of_the_models(name):
  """As a model of that floor reads, with one compilation for all floors."""
  model, params, tokens_BT = model_of(name)
  given, traces = trace_counter(
    lambda floor: read(model, params, tokens_BT, DOCUMENTS, gate_floor=floor).hidden_BTD
  )
  found = {floor: np.asarray(given(jnp.float32(floor))) for floor in FLOORS}
  assert len(traces) == 1
  other = model.clone(gate_floor=0.3)
  of_model = jax.jit(lambda: read(other, params, tokens_BT, DOCUMENTS).hidden_BTD)()
  assert_close(found[0.3], of_model)
  for one, two in zip(FLOORS, FLOORS[1:]):
    assert np.abs(found[one] - found[two]).max() > 1e-3, f"floors {one} and {two} read alike"


def live_bias(floors=FLOORS, ff_width=20, **given):
  """Checks that the bias of every head of nearly shut gates has a gradient, whatever the floor."""
  model, params, tokens_BT = model_of(ff_width=ff_width, **given)
  total = lambda params, floor: jnp.sum(jnp.sin(read(model, params, tokens_BT, gate_floor=floor).hidden_BTD))
  gradient = jax.jit(jax.grad(total))
  for floor in floors:
    found = gradient(shut(params), jnp.float32(floor))
    named = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(found)}
    biases = [x for name, x in named.items() if "['mix_gate']['bias']" in name]
    assert biases and all((np.abs(bias) > 1e-7).all() for bias in biases), f"floor {floor}: no gradient"


@pytest.mark.parametrize("given", [{}, dict(depth=3, memory_layers=(0, 2)), dict(remat="block")],
                         ids=["all blocks", "two stacks", "remat"])  # fmt: skip
def test_a_nearly_shut_gate_has_a_gradient_at_every_floor(given):
  live_bias(**given)


def test_a_clamp_in_place_of_the_floor_is_noticed(monkeypatch):
  """Fault 7: where a clamp binds, what is below it has no gradient, and a shut gate stays shut."""
  monkeypatch.setattr(gate, "floored", lambda raw_BTH, floor: jnp.maximum(raw_BTH, floor))
  live_bias(floors=(0.0,))
  with pytest.raises(AssertionError, match="floor 0.05: no gradient"):
    live_bias()


class MeteredBehind(gate.MixGate):
  """A gate that hands on as raw what is behind the floor."""

  def __call__(self, x_BTD, floor=None):
    gate_BTH, _ = super().__call__(x_BTD, floor)
    return gate_BTH, gate_BTH


def metered(**given):
  """Checks that statistics and use are of the gate before the floor, in every block."""
  model, params, tokens_BT = model_of(**given)
  numbers = jax.jit(lambda floor: read(model, shut(params), tokens_BT, DOCUMENTS, gate_floor=floor)[2:])
  for floor in FLOORS:
    stats, usage = numbers(jnp.float32(floor))
    blocks = [f"layer_{i:02d}" for i in model.with_memory]
    assert_close(usage["read"], jnp.full(len(blocks), SHUT, jnp.float32), tolerance=1e-6)
    for block in blocks:
      assert_close(stats[f"mix_gate_raw_mean/{block}"], np.float32(SHUT), tolerance=1e-6)
      assert_close(stats[f"mix_gate_raw_below_0.1_frac/{block}"], 1.0)
      assert_close(stats[f"mix_gate_mean/{block}"], np.float32(floor + (1 - floor) * SHUT), tolerance=1e-6)


@pytest.mark.parametrize("given", [{}, dict(depth=3, memory_layers=(0, 2))], ids=["all blocks", "two stacks"])
def test_every_block_is_given_the_floor_and_reports_its_gate_before_it(given):
  metered(**given)


def test_a_gate_that_is_metered_behind_its_floor_is_noticed(monkeypatch):
  """Fault 8: a collapsed gate would look like one at the floor."""
  monkeypatch.setattr(gate, "MixGate", MeteredBehind)
  with pytest.raises(AssertionError):
    metered(ff_width=24)


def test_streams_take_the_floor_as_whole_texts_do():
  """In pieces, and one token at a time from states with rings."""
  model, params, tokens_BT = model_of()
  floor = jnp.float32(0.6)
  whole_BTD = jax.jit(lambda: read(model, params, tokens_BT, gate_floor=floor).hidden_BTD)()

  @jax.jit
  def go_on(tokens_BT, state):
    return model.apply({"params": params}, tokens_BT, state, gate_floor=floor, mode="stream")

  first = go_on(tokens_BT[:, :9], model.zero_state(2))
  assert first.usage == first.stats == {}
  assert_close(first.hidden_BTD, whole_BTD[:, :9])
  state = model.with_rings(first.state)
  for t in range(9, 12):
    out = go_on(tokens_BT[:, t:t + 1], state)
    state = out.state
    assert_close(out.hidden_BTD[:, 0], whole_BTD[:, t])


# --- rows without attention ---

# How far a token is carried by convolutions of two taps in two blocks, and with attention to three tokens.
REACH = {"none": (0, 4), "gate": (2, 4), "layer": (2, 6), "conv": (2, 4), "e2e": (0, 4)}


@pytest.mark.parametrize("name", REACH)
def test_a_row_without_attention_learns_of_earlier_tokens_from_its_memory_alone(name):
  model, params, tokens_BT = model_of(name, memory=dict(conv_taps=2))
  given = jax.jit(lambda tokens_BT, keep_B, writes: read(
    model, params, tokens_BT, attention_keep_B=keep_B, memory_writes=writes).hidden_BTD)  # fmt: skip
  at, keep_B = 2, jnp.asarray([1.0, 0.0])
  other_BT = tokens_BT.at[:, at].add(1) % model.vocab_size

  def moved(writes):
    one, two = (np.asarray(given(x, keep_B, jnp.asarray(writes))) for x in (tokens_BT, other_BT))
    return [row_T.nonzero()[0].tolist() for row_T in (one != two).any(-1)]

  without, beside = REACH[name]
  assert moved(False) == [list(range(at, at + reach + 1)) for reach in (beside, without)]
  if name in ("gate", "layer", "e2e"):
    assert moved(True)[1][-1] == 11, "what is written is not read"
  plain = jax.jit(lambda: read(model, params, tokens_BT, memory_writes=jnp.asarray(True)).hidden_BTD)()
  assert_close(given(tokens_BT, keep_B, jnp.asarray(True))[0], plain[0])
  assert_same_bits(given(tokens_BT, jnp.ones(2), jnp.asarray(True))[0],
                   given(tokens_BT, keep_B, jnp.asarray(True))[0], why="the other row")  # fmt: skip


def test_blocks_without_a_memory_lose_attention_too_and_streams_as_whole_texts_do():
  model, params, tokens_BT = model_of("only", depth=3, memory_layers=(1,))
  keep_B = jnp.asarray([1.0, 0.0])
  packed = jax.jit(lambda x: read(model, params, x, attention_keep_B=keep_B).hidden_BTD)
  stream = jax.jit(lambda x: model.apply({"params": params}, x, model.zero_state(2), mode="stream",
                                         attention_keep_B=keep_B).hidden_BTD)  # fmt: skip
  assert_close(stream(tokens_BT), packed(tokens_BT))
  still = jax.jit(lambda x: read(model, params, x, attention_keep_B=keep_B, memory_scale=0.0).hidden_BTD)
  moved_BT = np.abs(still(tokens_BT) - still(tokens_BT.at[:, 5].add(1) % 32)).max(-1) > 1e-5
  assert moved_BT.sum(axis=1).tolist() == [5, 1]  # Two blocks with a window of three; the token alone.


# --- refusals ---


@pytest.mark.parametrize("name,given,message", [
  ("none", dict(gate_floor=0.5), "gate_floor is .*, and config.model.memory_mix='none' has none; leave"),
  ("e2e", dict(gate_floor=0.5), "gate_floor is .*, and config.model.memory_mix='e2e' has none; leave"),
  ("only", dict(attention_keep_B=np.ones(2)), "memory_mix='only' no block has any; leave it out"),
  ("context", dict(attention_keep_B=np.ones(2)), "which config.model.memory_mix='context' reads its memory"),
  ("gate", dict(attention_keep_B=np.ones(1)), r"has the shape [(]1,[)], and the tokens have 2 rows"),
])  # fmt: skip
def test_what_nothing_would_read_is_refused(name, given, message):
  model, _, tokens_BT = model_of(name)
  with pytest.raises(ValueError, match=message):
    read(model, {}, tokens_BT, **given)


# --- the use of memories ---


@pytest.mark.parametrize("given", [{}, dict(depth=3, memory_layers=(0, 2)), dict(remat="block")],
                         ids=["all blocks", "two stacks", "remat"])  # fmt: skip
def test_use_is_what_is_logged_and_has_a_gradient(given):
  model, params, tokens_BT = model_of(**given)

  @jax.jit
  def numbers(params):
    """Statistics, use, and the gradients of the sum of statistics and of those of each kind of use."""

    def sums(params):
      out = read(model, params, tokens_BT, DOCUMENTS)
      total = jnp.sum(jnp.stack([*out.stats.values()]))
      return jnp.stack([total, jnp.sum(out.usage["read"]), jnp.sum(out.usage["write"])]), out[2:]

    _, back, found = jax.vjp(sums, params, has_aux=True)
    return *found, [back(unit_3)[0] for unit_3 in jnp.eye(3)]

  stats, usage, gradients = numbers(params)
  assert set(usage) == {"read", "write"} and not any(name.startswith("usage") for name in stats)
  for name, logged, most in (("read", "mix_gate_raw_mean", 1), ("write", "write_rate_mean", 0.4)):
    expected = [stats[f"{logged}/layer_{i:02d}"] / most for i in model.with_memory]
    assert_close(usage[name], jnp.stack(expected), why=name)
    assert 0.05 < usage[name].min() and usage[name].max() < 0.95

  by_stats, by_read, by_write = (
    {jax.tree_util.keystr(path): np.asarray(x)
     for path, x in jax.tree_util.tree_leaves_with_path(gradient) if np.any(x)} for gradient in gradients
  )  # fmt: skip
  assert not by_stats
  assert any("['mix_gate']['bias']" in path for path in by_read)
  # Gates of writing read the block's input, so that of the last block the write rate's alone has a gradient.
  last = max(path for path in by_write if "['gates']['bias']" in path)
  rate = by_write[last][-1].reshape(3, -1)  # Retention, momentum and write rate by head.
  assert not rate[:2].any() and (np.abs(rate[2]) > 1e-4).all()


OWN_STARTS = dict.fromkeys(("retention_init", "momentum_init", "write_rate_init", "write_rate_max"))
ABSENT = [
  ("conv", {}, ["read"]),
  ("gate", dict(memory=OWN_STARTS | dict(rule="lact")), ["read"]),
  ("gate", dict(memory=SHIFTED | dict(initial="learned", writes=False)), ["read"]),
  ("none", {}, []),
  ("e2e", {}, []),
  ("context", {}, ["read", "write"]),
  ("only", {}, ["read", "write"]),
]  # fmt: skip


@pytest.mark.parametrize("name,given,expected", ABSENT, ids=str)
def test_use_has_what_the_mix_and_the_rule_have(name, given, expected):
  model, params, tokens_BT = model_of(name, **given)
  usage = jax.eval_shape(lambda: read(model, params, tokens_BT).usage)
  assert {part: x.shape for part, x in usage.items()} == dict.fromkeys(expected, (2,))


def test_use_over_segments_counts_tokens_and_not_segments():
  doc_NBT = jnp.asarray([[[0, 0, 0]], [[0, -1, -1]], [[-1, -1, -1]]])
  found = context.mean_over_segments(jnp.float32([1, 0, 9]), doc_NBT)
  assert_close(found, np.float32(0.75))


@pytest.mark.parametrize("name", rules.names())
def test_every_rule_reports_its_bounded_gates_of_writing(name):
  rule = Memory(**freeze(MEMORY | OWN_STARTS | dict(rule=name)), parent=None).build_rule()
  gates = jax.tree.map(lambda x: jnp.stack([x, x], axis=1)[None], random_gates(0, 4, rule=rule))
  doc_BT = jnp.asarray([[0, 0, 0, -1]])
  found = statistics.write_usage(rule, gates, doc_BT)
  if name == "lact":
    assert found == {}  # Its rates have no bound.
    return
  most = {spec.name: spec.max for spec in rule.gates}
  own = {"gated_delta_2": ["write"], "tnt": ["local_rate"]}.get(name, [])
  parts = [np.asarray(gates.more[part])[0, :3] / most[part] for part in own]
  if name != "gated_delta_2":
    parts.append(np.asarray(gates.write_rate)[0, :3, :, None] / rule.starts.write_rate_max)
  assert_close(found["usage/write"], np.float32(np.concatenate(parts, axis=-1).mean()), tolerance=1e-6)


def test_use_that_nobody_asks_for_costs_nothing(monkeypatch):
  """The compiled gradient of a loss does as much and needs as much memory as one of a model without it."""

  def program(weight=0):
    model, params, tokens_BT = model_of(remat="block")

    def total(params):
      out = read(model, params, tokens_BT)
      return jnp.sum(jnp.sin(out.hidden_BTD)) + (weight * out.usage["write"].sum() if weight else 0)

    compiled = jax.jit(jax.grad(total)).lower(params).compile()
    return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes

  reported = program()
  assert program(weight=1)[0] > reported[0]
  monkeypatch.setattr(gate, "read_usage", lambda *args: {})
  monkeypatch.setattr(statistics, "write_usage", lambda *args: {})
  assert program() == reported
