"""A memory that is never written reads its start, with every rule, in every mode, behind the same keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze

from atlas_jax.memory import rules, scan
from atlas_jax.memory.layer import NO_DOC
from atlas_jax.memory.types import Gates
from tests.helpers import SHIFTED, assert_close, assert_same_bits, quick_compilation, random_tokens, tiny_rule
from tests.memory.layers import DOCUMENTS, layer_of, packed, run, stream

LEARNED = SHIFTED | dict(initial="learned", writes=False)
OPTIONS = {"tnt": dict(local_chunks=(2, 4), project_queries=False), "ttt_linear": dict(rope=True)}
SHUT = {"local_retention": 1.0}  # Gates of a rule's own that keep where they are open; others are rates.


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


def silent_gates(rule, n, dtype):
  """Gates that keep all and write nothing."""
  full = lambda value, spec: jnp.full((n,) if spec.size is None else (n, spec.size), value, dtype)
  own = {spec.name: full(SHUT.get(spec.name, 0.0), spec) for spec in rule.gates}
  zero_T = jnp.zeros((n,), dtype)
  return Gates(zero_T, zero_T, zero_T, own or ())


@pytest.mark.parametrize("name", rules.names())
def test_with_every_rule_a_read_is_that_of_a_text_written_at_rate_zero(x64, name):
  """Token by token, a chunk and a half: also the place in the chunk is the same."""
  options = {} if name == "elastic_net" else OPTIONS.get(name, {})
  rule, learned = tiny_rule(name, dtype="float64", **options)
  n = 4 if name == "elastic_net" else 6  # It shrinks its weights at the end of a chunk, without writes too.
  tokens = random_tokens(1, n, key_dim=5, value_dim=5, dtype="float64")
  gates = silent_gates(rule, n, "float64")
  position_T = jnp.arange(n, dtype=jnp.int32) % 4
  start = scan.start(rule, learned)
  found_TM = jax.jit(lambda: rule.still(learned.slow, start.base, tokens.q, position_T))()
  ones_T = jnp.ones((n,), bool)
  expected_TM = jax.jit(
    lambda: scan.scan_tokens(rule, start, learned.slow, tokens, gates, ones_T, chunk_size=4)[1]
  )()
  assert_close(found_TM, expected_TM, why=name)
  assert np.abs(np.asarray(found_TM)).max() > 1e-2


def test_a_delta_memory_reads_its_table_and_no_document_leaves_a_trace(x64):
  layer, params, x_BTD = layer_of("float64", initial="learned", writes=False, rule="delta", read_norm="none")
  out_BTHM, state = packed(layer, params, x_BTD, jnp.asarray(DOCUMENTS))
  assert not np.asarray(out_BTHM)[DOCUMENTS < 0].any()
  alone_BTHM, _ = packed(layer, params, jnp.roll(x_BTD, -8, axis=1))  # Row 0's second document, by itself.
  assert_close(out_BTHM[0, 8:11], alone_BTHM[0, :3])
  for row in range(2):
    assert_same_bits(state.running.memory.fast["w0"][row], params["initial_fast"]["w0"])


@pytest.mark.parametrize("fields", [LEARNED, dict(rule="titans", writes=False)], ids=["shift", "titans"])
def test_calls_cut_anywhere_and_documents_read_what_packed_text_reads(x64, fields):
  layer, params, x_BTD = layer_of("float64", **fields)
  whole = packed(layer, params, x_BTD)
  state, outs, start = None, [], 0
  for length in (1, 5, 6):
    part_BTD = jnp.zeros_like(x_BTD).at[:, :length].set(x_BTD[:, start : start + length])
    out_BTHM, state = stream(layer, params, part_BTD, state, jnp.full(2, length))
    outs.append(out_BTHM[:, :length])
    start += length
  assert_close((jnp.concatenate(outs, axis=1), state), whole)
  last_B = jnp.full(2, NO_DOC, jnp.int32)
  together = run(
    layer, params, x_BTD, layer.zero_state(2, x_BTD.dtype), jnp.asarray(DOCUMENTS), last_B, mode="documents"
  )
  assert_close(together[0], packed(layer, params, x_BTD, jnp.asarray(DOCUMENTS))[0])


def test_gates_and_values_have_no_gradient_and_all_else_has_one():
  layer, params, x_BTD = layer_of(**LEARNED)
  gradient = jax.grad(lambda params: jnp.sum(jnp.square(packed(layer, params, x_BTD)[0])))(params)
  shapes = jax.tree.map(jnp.shape, params)
  other = layer_of(**LEARNED | dict(writes=True))[1]
  assert jax.tree.map(jnp.shape, other) == shapes, "as many parameters as with writes"
  for path, grad in jax.tree_util.tree_leaves_with_path(gradient):
    name = jax.tree_util.keystr(path)
    idle = "gates" in name or "value_kernel" in name
    assert np.any(np.asarray(grad)) != idle, name


def test_a_start_of_zero_that_is_never_written_is_refused():
  layer, _, _ = layer_of()
  bad = layer.clone(rule="delta", options=freeze({}), initial="zero", writes=False)
  with pytest.raises(ValueError, match="writes=False reads the start.*set initial='learned'"):
    bad.build_rule()
