"""The memory layer against its loop, across calls and documents; causality and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze

from atlas_jax.memory import layer as memory_layer
from atlas_jax.memory.layer import NO_DOC
from tests.helpers import (
  assert_close,
  assert_grads,
  assert_same_bits,
  quick_compilation,
  tiny_memory,
  trace_counter,
)
from tests.memory.layers import DOCUMENTS, assert_equals_loop, layer_of, oracle, packed, run, stream


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


# --- the layer equals the loop ---


@pytest.mark.core
@pytest.mark.parametrize("documents", ["one", "packed"])
def test_the_layer_equals_its_loop(x64, documents):
  layer, params, x_BTD = layer_of("float64")
  doc_BT = np.zeros((2, 12), np.int32) if documents == "one" else DOCUMENTS
  assert_equals_loop(layer, params, x_BTD, doc_BT)


# Gates of a rule's own, of each kind and size, and none of the common ones; learned constants; a chunk's end.
OTHERS = {
  "omega": freeze({"feature_map": "poly", "window_size": 6, "momentum": True}),
  "yaad": freeze({}),
  "ttt_linear": freeze({}),
  "lact": freeze({}),
  "tnt": freeze({"local_chunks": (2, 4)}),
}


@pytest.mark.parametrize("rule", OTHERS)
def test_layers_of_rules_with_gates_and_constants_of_their_own_equal_their_loop(x64, rule):
  layer, params, x_BTD = layer_of("float64", rule=rule, options=OTHERS[rule])
  assert_equals_loop(layer, params, x_BTD, DOCUMENTS)


@pytest.mark.parametrize("rule", ["lact", "tnt"])
def test_layers_of_rules_with_constants_or_chunk_ends_read_on_in_calls_cut_anywhere(x64, rule):
  layer, params, x_BTD = layer_of("float64", rule=rule, options=OTHERS[rule])
  whole_BTHM, whole = packed(layer, params, x_BTD)
  state, outs, start = None, [], 0
  for length in (5, 3, 4):
    part_BTD = jnp.zeros((2, 12, 7)).at[:, :length].set(x_BTD[:, start : start + length])
    out_BTHM, state = stream(layer, params, part_BTD, state, jnp.full(2, length))
    outs.append(out_BTHM[:, :length])
    start += length
  assert_close((jnp.concatenate(outs, axis=1), state), (whole_BTHM, whole))


def test_key_and_value_widths_may_differ(x64):
  layer, params, x_BTD = tiny_memory(
    dtype="float64", B=1, T=4, key_dim=5, value_dim=3, heads=2, options={"residual": False, "depth": 1}
  )
  doc_BT = np.zeros((1, 4), np.int32)
  assert_close(packed(layer, params, x_BTD)[0], oracle(layer, params, x_BTD, doc_BT)[0])


def test_outer_gradients_equal_finite_differences_of_the_loop(x64):
  """For every parameter: projections, convolutions, gates and the initial memory; and for the input."""
  layer, params, x_BTD = layer_of("float64")
  draw = np.random.default_rng(3)
  weight_BTHM = draw.normal(size=(2, 12, layer.heads, layer.value_dim))
  arguments = {"params": params, "x": x_BTD}

  def total(arguments):
    return jnp.sum(
      weight_BTHM * packed(layer, arguments["params"], arguments["x"], jnp.asarray(DOCUMENTS))[0]
    )

  def loop(arguments):
    return np.sum(weight_BTHM * oracle(layer, arguments["params"], arguments["x"], DOCUMENTS)[0])

  gradient = jax.jit(jax.grad(total))(arguments)
  for path, grad in jax.tree_util.tree_leaves_with_path(gradient):
    assert np.abs(grad).max() > 1e-6, f"{jax.tree_util.keystr(path)} has no effect"
  assert_grads(loop, arguments, gradient, tolerance=1e-6)


# --- state from call to call ---


@pytest.mark.parametrize("lengths", [(12,), (5, 7), (4, 8), (1, 2, 6, 3)], ids=str)
def test_any_cut_into_calls_equals_one_parallel_pass(x64, lengths):
  """Outputs, fast weights, momentum, base, convolution tail and position; calls are padded to one length."""
  layer, params, x_BTD = layer_of("float64")
  whole_BTHM, whole = packed(layer, params, x_BTD)
  state, outs, start = None, [], 0
  for length in lengths:
    part_BTD = jnp.zeros((2, 12, 7)).at[:, :length].set(x_BTD[:, start : start + length])
    out_BTHM, state = stream(layer, params, part_BTD, state, jnp.full(2, length))
    outs.append(out_BTHM[:, :length])
    start += length
  assert_close((jnp.concatenate(outs, axis=1), state), (whole_BTHM, whole), why=f"{lengths}")


def test_rows_of_a_call_may_bring_different_numbers_of_tokens(x64):
  """Padding after a row's real tokens, its content poison, leaves the row's state and the other row alone."""
  layer, params, x_BTD = layer_of("float64")
  whole_BTHM, whole = packed(layer, params, x_BTD)
  state, starts, outs = None, np.zeros(2, int), np.zeros(whole_BTHM.shape)
  for counts in ([3, 7], [0, 2], [6, 0], [3, 3]):
    part = np.full((2, 12, 7), 1e3)
    for b, count in enumerate(counts):
      part[b, :count] = x_BTD[b, starts[b] : starts[b] + count]
    if state is None:
      state, last = layer.zero_state(2, x_BTD.dtype), NO_DOC
    out, state = run(
      layer,
      params,
      jnp.asarray(part),
      state,
      jnp.zeros((2, 12), jnp.int32),
      jnp.full(2, last, jnp.int32),
      jnp.asarray(counts, jnp.int32),
      mode="stream",
    )
    last = 0
    for b, count in enumerate(counts):
      outs[b, starts[b] : starts[b] + count] = out[b, :count]
    starts += counts
  assert_close((outs, state), (whole_BTHM, whole))


def test_decoding_token_by_token_equals_the_parallel_pass_with_one_compilation(x64):
  """From nothing, and after a prefill of any length."""
  layer, params, x_BTD = layer_of("float64")
  whole_BTHM, whole = packed(layer, params, x_BTD)
  rows = jnp.zeros((2, 1), jnp.int32)
  step, traces = trace_counter(
    lambda params, x_B1D, state, last_doc_B: layer.apply(
      {"params": params}, x_B1D, state, rows, last_doc_B, None, mode="stream"
    )[:2]
  )
  for prefill in range(8):
    out_BTHM, state = stream(layer, params, x_BTD, None, jnp.full(2, prefill))
    outs = [out_BTHM[:, :prefill]]
    for t in range(prefill, 12):
      out_BTHM, state = step(params, x_BTD[:, t : t + 1], state, jnp.full(2, 0 if t else NO_DOC, jnp.int32))
      outs.append(out_BTHM)
    assert_close(
      (jnp.concatenate(outs, axis=1), state), (whole_BTHM, whole), why=f"prefill {prefill}", tolerance=1e-10
    )
  assert len(traces) == 1


def test_packed_segments_with_carried_state_equal_one_long_call(x64):
  """Three segments of a chunk: they go on with a document, end one in padding, meet a new one."""
  layer, params, x_BTD = layer_of("float64")
  doc_BT = jnp.asarray(
    [[4, 4, 4, 4, 4, 4, 4, 4, 9, 9, 9, -1], [2, 2, -1, -1, 5, 5, 5, 5, 5, 5, 5, -1]], jnp.int32
  )
  whole_BTHM, whole = packed(layer, params, x_BTD, doc_BT)
  state, outs, last_doc_B = layer.zero_state(2, x_BTD.dtype), [], jnp.full(2, NO_DOC, jnp.int32)
  for start, last in ((0, [4, 2]), (4, [4, 5]), (8, None)):
    part = slice(start, start + 4)
    out_BTHM, state = run(layer, params, x_BTD[:, part], state, doc_BT[:, part], last_doc_B, mode="packed")
    outs.append(out_BTHM)
    last_doc_B = jnp.asarray(last or [9, 5], jnp.int32)
  assert_close((jnp.concatenate(outs, axis=1), state), (whole_BTHM, whole))


def test_packed_documents_equal_separate_runs():
  layer, params, x_BTD = layer_of()
  together_BTHM, _ = packed(layer, params, x_BTD, jnp.asarray(DOCUMENTS))
  for b, start, stop in ((0, 0, 6), (0, 8, 11), (1, 0, 2), (1, 4, 12)):
    doc_BT = jnp.where(jnp.arange(12)[None] < stop - start, jnp.zeros((2, 12), jnp.int32), -1)
    alone_BTHM, _ = packed(layer, params, jnp.roll(x_BTD, -start, axis=1), doc_BT)
    assert_close(
      together_BTHM[b, start:stop], alone_BTHM[b, : stop - start], why=f"row {b}, tokens {start}:{stop}"
    )


def test_what_stands_at_padding_changes_no_bit_of_others_or_of_the_memory():
  layer, params, x_BTD = layer_of()
  padding = jnp.asarray(DOCUMENTS < 0)
  clean, dirty = (
    packed(layer, params, jnp.where(padding[..., None], junk, x_BTD), jnp.asarray(DOCUMENTS))
    for junk in (0.0, 1e3)
  )
  real = ~np.asarray(padding)
  assert_same_bits(dirty[0][real], clean[0][real], why="outputs")
  assert_same_bits(dirty[1].running, clean[1].running, why="memory")


def test_a_call_of_padding_alone_leaves_the_memory_as_it_was():
  layer, params, x_BTD = layer_of()
  _, used = packed(layer, params, x_BTD)
  _, after = packed(layer, params, x_BTD, jnp.full((2, 12), -1, jnp.int32), used, last_doc=0)
  assert_same_bits(after.running, used.running)


# --- causality ---


@pytest.mark.core
@pytest.mark.parametrize("changed", [0, 5, 8, 11])
def test_changing_a_token_changes_nothing_before_it_and_everything_after(changed):
  layer, params, x_BTD = layer_of()
  before, after = (np.asarray(packed(layer, params, x)[0]) for x in (x_BTD, x_BTD.at[:, changed].add(0.5)))
  assert_same_bits(after[:, :changed], before[:, :changed])
  assert (after[:, changed:] != before[:, changed:]).any(axis=-1).all(), "some head does not see the change"


def test_the_jacobian_of_outputs_by_inputs_is_lower_triangular():
  """Past the convolution's three rows only the memory connects tokens."""
  layer, params, x_BTD = layer_of()
  x_BTD = x_BTD[:1]
  reach = jax.jit(jax.jacfwd(lambda x_TD: packed(layer, params, x_TD[None])[0][0]))(x_BTD[0])
  reach_TT = np.abs(np.asarray(reach)).sum(axis=(1, 2, 4))
  assert not np.triu(reach_TT, 1).any()
  assert (reach_TT[np.tril_indices(12)] > 0).all()


def test_reading_by_stretches_or_in_turn_changes_no_value_and_no_gradient(x64, monkeypatch):
  """Documents end inside and between stretches; the last stretch's end is that of the whole."""
  doc_BT = jnp.asarray(DOCUMENTS)

  def value(layer, params, x_BTD):
    start = layer.zero_state(2, jnp.float64)
    out_BTHM, state, stats = layer.apply(
      {"params": params}, x_BTD, start, doc_BT, jnp.full((2,), NO_DOC), None, mode="packed"
    )
    return jnp.sum(jnp.sin(3 * out_BTHM)), (state, stats)

  results = []
  for remat_chunks, large in ((None, 2**15), (1, 2**15), (3, 2**15), (3, 0)):
    monkeypatch.setattr(memory_layer, "LARGE", large)
    layer, params, x_BTD = layer_of("float64", remat_chunks=remat_chunks)
    run = jax.jit(jax.value_and_grad(functools.partial(value, layer), (0, 1), has_aux=True))
    results.append(run(params, x_BTD))
  assert_close(results[1], results[0], why="a chunk each")
  assert_close(results[2], results[0], why="one stretch")
  assert_close(results[3], results[0], why="memories in turn")
