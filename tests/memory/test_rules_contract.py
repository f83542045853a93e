"""What every file in memory/rules must keep: it is collected, documented, and equal to its oracle."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from atlas_jax.memory import rules, scan
from atlas_jax.memory.types import Gates, GateSpec
from tests.helpers import (
  assert_close,
  assert_grads,
  assert_same_bits,
  cut,
  quick_compilation,
  random_tokens,
  results,
  trace_counter,
)
from tests.memory import contract
from tests.memory.contract import (
  CHUNK,
  FILES,
  GRIDS,
  VARIANT_IDS,
  VARIANTS,
  WIDTH,
  N,
  assert_equals_oracle,
  case,
  chunks_and_grads,
  chunks_of,
  gates_at,
  read_parts,
  resets_of,
  single,
  weighed,
)


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


every_rule = pytest.mark.parametrize("name", FILES)
every_variant = pytest.mark.parametrize("name,options", VARIANTS, ids=VARIANT_IDS)
# --- a rule's file ---


def test_every_file_is_a_rule_and_has_an_oracle():
  assert rules.names() == FILES
  assert FILES, "memory/rules has no rule"
  for name in FILES:
    contract.oracle_of(name)
  unknown = sorted(set(contract.OPTIONS) - set(FILES))
  assert not unknown, (
    f"tests/memory/contract.py has options of rules that are not there: {', '.join(unknown)}"
  )


@every_rule
def test_a_rule_names_its_source(name):
  assert "Source:" in importlib.import_module(f"{rules.__name__}.{name}").__doc__


@every_variant
def test_a_rule_names_its_gates_and_can_be_a_static_argument(name, options):
  rule = case(name, options).rule
  hash(rule)
  assert isinstance(rule.gates, tuple) and all(isinstance(spec, GateSpec) for spec in rule.gates)
  assert len({spec.name for spec in rule.gates}) == len(rule.gates)
  assert not {spec.name for spec in rule.gates} & {"retention", "momentum", "write_rate"}
  assert set(rule.uses) <= set(Gates._fields[:3]) and rule.reads in ("token", "chunk")
  for spec in rule.gates:
    assert spec.kind == "softplus" or (spec.kind == "sigmoid" and 0 < spec.init < spec.max)


@every_rule
def test_a_rule_starts_from_float32_weights_that_depend_on_the_key_alone(name):
  rule = case(name).rule
  first, again, other = (rule.init(jax.random.key(seed)) for seed in (0, 0, 1))
  assert_same_bits(first, again)
  assert {x.dtype for x in jax.tree.leaves(first)} == {jnp.dtype("float32")}
  leaves = zip(jax.tree.leaves(first), jax.tree.leaves(other))
  assert any((np.asarray(x) != np.asarray(y)).any() for x, y in leaves)
  state = rule.start(first)
  assert_same_bits(state.fast, first.fast)
  assert not any(np.asarray(s).any() for s in jax.tree.leaves(state.momentum))


# --- equal to the loop ---


@pytest.mark.core
@every_variant
def test_chunks_and_single_tokens_equal_the_oracle(x64, name, options):
  """With a momentum to start from, padding, a chunk without a real token, and a document that ends."""
  small = case(name, options)
  form = chunks_of(small)
  for why, (write_T, resets) in GRIDS.items():
    memory, out = form(small.arguments, *small.with_grid(write_T, resets))
    assert_equals_oracle(small, out.out_CM, memory, write_T, resets, why=f"chunks, {why}")
    if resets:
      continue
    end, out_TM = single(
      small.rule, small.start(), small.learned.slow, small.tokens, small.gates, jnp.asarray(write_T, bool)
    )
    assert_equals_oracle(small, out_TM, end.memory, write_T, why=f"single tokens, {why}")
    assert_close(memory, end.memory, why=f"state of chunks, {why}")


@every_rule
def test_chunks_equal_the_oracle_in_float32(name):
  small = case(name, dtype="float32")
  for why, (write_T, resets) in GRIDS.items():
    memory, out = chunks_of(small)(small.arguments, *small.with_grid(write_T, resets))
    assert {x.dtype for x in jax.tree.leaves((memory.fast, out.out_CM))} == {jnp.dtype("float32")}
    assert_equals_oracle(small, out.out_CM, memory, write_T, resets, why=why, tolerance=2e-5)


@every_rule
def test_outer_gradients_equal_finite_differences_of_the_oracle(x64, name):
  """By momentum, learned weights and constants, tokens and every gate; each has an effect."""
  small = case(name)
  # Where a chunk writes at its end and fades to the start, retention tells from the third chunk on.
  write_T, resets = GRIDS["whole" if name in ("atlas", "atlas_plus") else "a reset"]
  (value, _), grads = chunks_and_grads(small.rule, small.arguments, *small.with_grid(write_T, resets))

  def loop(arguments):
    end = small.oracle(arguments, write_T=write_T, reset_T=resets_of(resets))
    momentum = end.momentum if jax.tree.leaves(arguments[0]) else ()
    return float(weighed(end.out_TM * write_T[:, None], end._replace(momentum=momentum)))

  assert_close(value, np.float64(loop(small.arguments)))
  used = used_grads(small, grads)
  for path, grad in jax.tree_util.tree_leaves_with_path(used):
    assert np.abs(np.asarray(grad)).max() > 1e-7, f"{jax.tree_util.keystr(path)} has no effect"
  assert_grads(loop, small.arguments, grads, step=1e-7, tolerance=1e-6)


def used_grads(small, grads):
  """The gradients of all that the rule says it uses."""
  _, learned, tokens, gates = grads
  return learned, tokens, {name: getattr(gates, name) for name in small.rule.uses}, gates.more


# --- any cut, one by one ---


@every_rule
def test_two_calls_cut_inside_a_chunk_equal_one(x64, name):
  small = case(name)
  whole, whole_TM = single(
    small.rule, small.start(), small.learned.slow, small.tokens, small.gates, jnp.ones(N, bool)
  )
  for lengths in ((5, 7), (8, 4), (1, 2, 9)):
    end, out_TM = read_parts(small, small.start(), small.tokens, small.gates, lengths)
    assert_close((out_TM, end), (whole_TM, whole), why=f"{lengths}")


@every_rule
def test_decoding_after_any_prefill_equals_one_pass_with_one_compilation(x64, name):
  small = case(name)
  whole, whole_TM = single(
    small.rule, small.start(), small.learned.slow, small.tokens, small.gates, jnp.ones(N, bool)
  )
  step, traces = trace_counter(
    lambda running, slow, token, gates: scan.scan_stream(
      small.rule, running, slow, token, gates, jnp.ones((), jnp.int32), chunk_size=CHUNK
    )
  )
  for prefill in (0, 3, 4):
    running, out_TM = read_parts(small, small.start(), small.tokens, small.gates, (prefill,))
    reads = [out_TM]
    for t in range(prefill, N):
      running, out_1M = step(running, small.learned.slow, *cut((small.tokens, small.gates), t, t + 1))
      reads.append(out_1M)
    assert_close((np.concatenate(reads), running), (whole_TM, whole), why=f"prefill {prefill}")
  assert len(traces) == 1


@every_rule
@settings(
  max_examples=4, deadline=None, derandomize=True, database=None, phases=(Phase.explicit, Phase.generate)
)
@given(st.data())
def test_random_gates_cuts_and_padding_equal_the_oracle(name, data):
  """Gates are shut, open, or anything between; cuts and padding are free, shapes are not."""
  seed = data.draw(st.integers(0, 99), label="seed")
  total = data.draw(st.integers(1, N), label="real tokens")
  middle = data.draw(st.integers(0, total), label="cut")
  write_T = np.array(data.draw(st.lists(st.booleans(), min_size=N, max_size=N), label="write"))
  draw = np.random.default_rng(seed)
  extreme = lambda *shape: np.where(
    draw.uniform(size=shape) < 0.3, draw.choice([-30.0, 30.0], shape), draw.normal(size=shape, scale=2)
  )
  with jax.enable_x64(True):
    small = case(name)
    tokens = random_tokens(seed, N, key_dim=WIDTH, value_dim=WIDTH, dtype="float64")
    gates = small.as_used(gates_at(small.rule, extreme, dtype="float64"))
    arguments = (small.momentum, small.learned, tokens, gates)
    end, out_TM = read_parts(small, small.start(), tokens, gates, (middle, total - middle))
    real = (np.arange(N) < total).astype(float)
    read_TM = np.concatenate([out_TM, np.zeros((N - total, WIDTH))])
    if total == N:  # The loop runs to the end of the grid: shorter texts it must be given shorter.
      assert_equals_oracle(small, read_TM, end.memory, real, arguments=arguments, why="cut")
    else:
      expected = small.oracle((*arguments[:2], *cut(arguments[2:], 0, total)))
      assert_close(results(out_TM, end.memory), results(expected.out_TM, expected), why="cut")
    memory, out = chunks_of(small)(arguments, *small.with_grid(write_T))
    assert_equals_oracle(small, out.out_CM, memory, write_T, arguments=arguments, why="padding")


# --- documents, padding ---


@every_rule
def test_packed_documents_equal_separate_runs(name):
  small = case(name, dtype="float32")
  write_T = np.array([1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1])
  _, together = chunks_of(small)(small.arguments, *small.with_grid(write_T, (0, 2)))
  alone = (write_T * (np.arange(N) < 8), jax.tree.map(lambda x: jnp.roll(x, -8, axis=0), small.arguments[2:]))
  _, first = chunks_of(small)(small.arguments, *small.with_grid(alone[0], (0,)))
  _, second = chunks_of(small)((*small.arguments[:2], *alone[1]), *small.with_grid(np.arange(N) < 4, (0,)))
  assert_close(together.out_CM[:6], first.out_CM[:6], why="first document")
  assert_close(together.out_CM[8:], second.out_CM[:4], why="second document")


@every_rule
def test_what_stands_at_padding_changes_no_bit(name):
  small = case(name, dtype="float32")
  write_T = GRIDS["padded"][0]
  clean, dirty = (
    chunks_of(small)(
      (
        *small.arguments[:2],
        jax.tree.map(lambda x, j=junk: poisoned(x, write_T, j), small.tokens),
        small.gates,
      ),
      *small.with_grid(write_T),
    )
    for junk in (0.0, 1e3)
  )
  assert_same_bits(dirty[0], clean[0], why="memory")
  assert_same_bits(dirty[1].out_CM, clean[1].out_CM, why="reads")


def poisoned(x_TE, write_T, junk):
  return jnp.where(jnp.asarray(write_T[:, None] > 0), x_TE, jnp.asarray(junk, x_TE.dtype))


@every_rule
def test_a_call_without_real_tokens_changes_no_bit(x64, name):
  small = case(name)
  running, _ = read_parts(small, small.start(), small.tokens, small.gates, (5,))
  after, _ = read_parts(small, running, small.tokens, small.gates, (0,))
  assert_same_bits(after, running)


# --- causality ---


def reads_of(small, tokens=None, gates=None):
  arguments = (small.momentum, small.learned, tokens or small.tokens, gates or small.gates)
  return np.asarray(chunks_of(small)(arguments, *small.with_grid())[1].out_CM)


@every_rule
def test_a_write_is_seen_from_its_token_on_and_never_before(name):
  """Or, where reads are of the chunk's start, from the next chunk on; a query is nobody else's business."""
  small = case(name, dtype="float32")
  before, changed = reads_of(small), 6
  first = changed if small.rule.reads == "token" else 8
  move_E = jnp.asarray(np.random.default_rng(0).normal(size=WIDTH), jnp.float32)
  for field in ("k", "v"):
    value = getattr(small.tokens, field)
    after = reads_of(small, small.tokens._replace(**{field: value.at[changed].add(move_E)}))
    assert_same_bits(after[:first], before[:first], why=f"{field} of a later token")
    assert (after[first:] != before[first:]).any(axis=1).all(), f"{field} is not read"
  after = reads_of(small, small.tokens._replace(q=small.tokens.q.at[changed].add(move_E)))
  others = np.arange(N) != changed
  assert_same_bits(after[others], before[others], why="query of another token")
  assert (after[changed] != before[changed]).any()


@every_rule
def test_every_gate_that_a_rule_names_acts_and_never_on_tokens_before(name):
  small = case(name, dtype="float32")
  before, changed, first = reads_of(small), 6, 6 if small.rule.reads == "token" else 8
  moved = lambda gate: gate.at[changed].multiply(0.1)  # A threshold must fall below errors to act.
  others = {
    name: small.gates._replace(**{name: moved(getattr(small.gates, name))}) for name in small.rule.uses
  }
  own = dict(small.gates.more or {})
  others |= {name: small.gates._replace(more=own | {name: moved(gate)}) for name, gate in own.items()}
  for gate, gates in others.items():
    after = reads_of(small, gates=gates)
    assert_same_bits(after[:first], before[:first], why=f"{gate} of a later token")
    assert (after[first:] != before[first:]).any(), f"{gate} has no effect"


# --- hard inputs, memory use ---


@every_rule
def test_gates_shut_or_open_with_equal_or_zero_tokens_stay_finite(name):
  """Values, states and gradients; also with gates that are shut for one token and open for the next."""
  small = case(name, dtype="float32")
  equal = small.tokens._replace(k=jnp.broadcast_to(small.tokens.k[:1], small.tokens.k.shape))
  zero = jax.tree.map(jnp.zeros_like, small.tokens)
  draw = np.random.default_rng(0)
  logits = {"shut": -30.0, "open": 30.0, "mixed": lambda *shape: draw.choice([-30.0, 30.0], shape)}
  for why, z in logits.items():
    gates = small.as_used(gates_at(small.rule, z, dtype="float32", write_rate_max=0.1))
    for kind, tokens in (("random", small.tokens), ("equal keys", equal), ("zero tokens", zero)):
      found = chunks_and_grads(
        small.rule, (small.momentum, small.learned, tokens, gates), *small.with_grid()
      )
      for path, x in jax.tree_util.tree_leaves_with_path(found):
        assert np.isfinite(np.asarray(x)).all(), (
          f"gates {why}, {kind}: not finite: {jax.tree_util.keystr(path)}"
        )


# TNT reads all shards side by side: each has its own weights at a time, by design.
WEIGHTS_PER_SHARD = ("tnt",)


@pytest.mark.parametrize("name", [name for name in FILES if name not in WEIGHTS_PER_SHARD])
def test_forward_memory_grows_with_length_only_through_activations(name):
  """Were fast weights kept per chunk of two tokens, each token would cost half of their bytes."""
  width, chunk = 48, 2
  rule = rules.load(name, key_dim=width, value_dim=width, chunk_size=chunk)
  learned = jax.eval_shape(rule.init, jax.random.key(0))

  def temp_bytes(n):
    shape = lambda *axes: jax.ShapeDtypeStruct(axes, jnp.float32)
    tokens = scan.Token(shape(n, width), shape(n, width), shape(n, width))
    own = {spec.name: shape(n, *([spec.size] if spec.size else [])) for spec in rule.gates}
    read = lambda learned, tokens, gates: scan.scan_packed(
      rule,
      rule.start(learned),
      learned,
      tokens,
      gates,
      jnp.ones(n, bool),
      jnp.zeros(n // chunk, bool),
      chunk_size=chunk,
    )
    lowered = jax.jit(read).lower(learned, tokens, Gates(shape(n), shape(n), shape(n), own or ()))
    return lowered.compile().memory_analysis().temp_size_in_bytes

  per_token = (temp_bytes(512) - temp_bytes(128)) / 384
  weights = sum(x.size * 4 for x in jax.tree.leaves(learned.fast))
  assert per_token < max(weights / chunk / 2, 24 * 4 * width), f"{per_token:.0f} bytes per token"


def test_an_unknown_rule_or_option_is_refused_with_the_known_ones():
  sizes = dict(key_dim=5, value_dim=5, chunk_size=4)
  with pytest.raises(ValueError, match="titans"):
    rules.load("titan", **sizes)
  with pytest.raises(TypeError, match="depth"):
    rules.load("titans", **sizes, dept=2)


WRONG_TYPES = [
  ("titans", dict(residual="false"), "options.residual='false' must be True or False"),  # Text is true.
  ("titans", dict(depth=2.0), "options.depth=2.0 must be a whole number"),
  ("titans", dict(depth=True), "options.depth=True must be a whole number"),
  ("titans", dict(surprise_max="1"), "options.surprise_max='1' must be a number, or None"),
  ("titans", dict(activation=[1]), "must be text"),
  ("tnt", dict(local_chunks=4), "options.local_chunks=4 must be a list, or None"),
]


@pytest.mark.parametrize("rule, options, words", WRONG_TYPES)
def test_an_option_of_another_type_is_refused_by_name(rule, options, words):
  with pytest.raises(TypeError) as caught:
    rules.load(rule, key_dim=5, value_dim=5, chunk_size=4, **options)
  assert words in str(caught.value)


def test_an_option_whose_type_is_not_known_here_is_left_to_the_rule(tmp_path, monkeypatch):
  lines = ["from __future__ import annotations", "from atlas_jax.memory.rules import titans",
           "def make(*, key_dim, value_dim, mine: Elsewhere = 1):",
           "  return titans.make(key_dim=key_dim, value_dim=value_dim)"]  # fmt: skip
  (tmp_path / "newcomers_types").mkdir()
  (tmp_path / "newcomers_types/own.py").write_text("\n".join(lines))
  monkeypatch.syspath_prepend(tmp_path)
  assert rules.load("newcomers_types.own", key_dim=5, value_dim=5, chunk_size=4, mine="x")
