"""The memory layer against its loop, across calls and documents; causality, gradients, memory use."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze

from atlas_jax import config
from atlas_jax.memory.layer import NO_DOC
from tests import oracles
from tests.helpers import (
  assert_close,
  assert_same_bits,
  assert_slopes,
  quick_compilation,
  tiny_memory,
  trace_counter,
)


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


FIELDS = ("rule", "heads", "key_dim", "value_dim", "chunk_size", "write_rate_max", "options")


@functools.lru_cache
def layer_of(dtype="float32", **fields):
  return tiny_memory(dtype=dtype, **fields)


@functools.partial(jax.jit, static_argnums=0, static_argnames="mode")
def run(layer, params, x_BTD, state, doc_BT, last_doc_B, count_B=None, *, mode):
  out_BTHM, state, _ = layer.apply({"params": params}, x_BTD, state, doc_BT, last_doc_B, count_B, mode=mode)
  return out_BTHM, state


def packed(layer, params, x_BTD, doc_BT=None, state=None, last_doc=NO_DOC):
  """Reads whole chunks, of one document unless told."""
  rows, length, _ = x_BTD.shape
  doc_BT = jnp.zeros((rows, length), jnp.int32) if doc_BT is None else doc_BT
  state = layer.zero_state(rows, x_BTD.dtype) if state is None else state
  return run(layer, params, x_BTD, state, doc_BT, jnp.full(rows, last_doc, jnp.int32), mode="packed")


def stream(layer, params, x_BTD, state=None, count_B=None):
  """Reads on in one document per row; a state of None begins it."""
  rows, length, _ = x_BTD.shape
  last_doc_B = jnp.full(rows, NO_DOC if state is None else 0, jnp.int32)
  state = layer.zero_state(rows, x_BTD.dtype) if state is None else state
  return run(
    layer, params, x_BTD, state, jnp.zeros((rows, length), jnp.int32), last_doc_B, count_B, mode="stream"
  )


def oracle(layer, params, x_BTD, doc_BT):
  """The loop of every row: out_BTHM, and fast weights and momentum with leading B, H."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  rule = layer.the_rule()
  fields = {name: getattr(layer, name) for name in FIELDS} | dict(options=dict(layer.options))
  fields |= dict(uses=rule.uses, own=rule.gates)
  rows = [
    oracles.memory_layer(params, np.asarray(x, np.float64), np.asarray(doc), **fields)
    for x, doc in zip(x_BTD, doc_BT)
  ]
  join = lambda field: jax.tree.map(
    lambda *xs: np.stack(xs),
    *[jax.tree.map(lambda *xs: np.stack(xs), *[getattr(head, field) for head in heads]) for _, heads in rows],
  )
  return np.stack([out for out, _ in rows]), join("fast"), join("momentum") or ()


DOCUMENTS = np.array(
  [[4, 4, 4, 4, 4, 4, -1, -1, 9, 9, 9, -1], [2, 2, -1, -1, 5, 5, 5, 5, 5, 5, 5, 5]], np.int32
)


# --- the layer equals the loop ---


@pytest.mark.core
@pytest.mark.parametrize("documents", ["one", "packed"])
def test_the_layer_equals_its_loop(x64, documents):
  layer, params, x_BTD = layer_of("float64")
  doc_BT = np.zeros((2, 12), np.int32) if documents == "one" else DOCUMENTS
  assert_equals_loop(layer, params, x_BTD, doc_BT)


def assert_equals_loop(layer, params, x_BTD, doc_BT):
  out_BTHM, state = packed(layer, params, x_BTD, jnp.asarray(doc_BT))
  memory = state.running.memory
  assert_close(
    (out_BTHM, memory.fast, memory.momentum),
    oracle(layer, params, x_BTD, doc_BT),
    why="(output, fast, momentum)",
  )


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
  for path, slope in jax.tree_util.tree_leaves_with_path(gradient):
    assert np.abs(slope).max() > 1e-6, f"{jax.tree_util.keystr(path)} has no effect"
  assert_slopes(loop, arguments, gradient, tolerance=1e-6)


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


# --- precision, hard inputs, memory ---


def test_bfloat16_activations_stay_near_float32_over_4096_tokens():
  """The state stays float32; activations lose 8 bits, the outputs have unit mean square."""
  layer, params, x_BTD = tiny_memory(
    B=1,
    T=4096,
    D=16,
    heads=2,
    key_dim=8,
    value_dim=8,
    chunk_size=64,
    noise=0.02,
    retention_init=0.99,
    momentum_init=0.8,
    write_rate_init=0.02,
    write_rate_max=0.1,
  )
  exact_BTHM, exact = packed(layer, params, x_BTD)
  rough_BTHM, rough = packed(layer, params, x_BTD.astype(jnp.bfloat16))
  assert {x.dtype for x in jax.tree.leaves(rough.running.memory)} == {jnp.dtype("float32")}
  error_T = np.sqrt(
    np.mean((np.asarray(rough_BTHM, np.float32) - np.asarray(exact_BTHM)) ** 2, axis=(0, 2, 3))
  )
  assert np.isfinite(error_T).all()
  assert error_T.max() < 0.05 and error_T.mean() < 2e-2, (
    f"worst token {error_T.max():.3f}, mean {error_T.mean():.3f}"
  )
  assert error_T[-512:].mean() < 2 * error_T[:512].mean() + 1e-3, "the error grows along the text"
  for name, weights in exact.running.memory.fast.items():
    error = np.linalg.norm(rough.running.memory.fast[name] - weights) / np.linalg.norm(weights)
    assert error < 2e-2, f"{name} differs by {error:.3f}"


def test_gates_shut_or_open_with_equal_or_zero_tokens_stay_finite_at_the_default_rates():
  """Eight heads hold every corner of the three gates, the ninth the default ones; inputs are as after a norm.

  Row 0 is random, row 1 zero, the others each one token over and over (a run of blanks). Equal keys are the
  hard case: all writes of a chunk are computed at its start and push the same way.
  """
  memory = config.default().model.memory
  names = ("chunk_size", "retention_init", "momentum_init", "write_rate_init", "write_rate_max")
  fields = {name: memory[name] for name in names} | {"options": memory.options.to_dict()}
  layer, params, x_BTD = tiny_memory(B=5, T=512, D=32, heads=9, key_dim=16, value_dim=16, noise=0.0, **fields)
  x_BTD = x_BTD.at[1].set(0).at[2:].set(x_BTD[2:, :1])
  corners_GH = np.array(list(itertools.product((-30.0, 30.0), repeat=3))).T
  bias_GH = np.concatenate([corners_GH, np.asarray(params["gates"]["bias"]).reshape(3, 9)[:, 8:]], axis=1)
  bias = jnp.asarray(bias_GH.ravel(), jnp.float32)
  params = params | {"gates": {"kernel": 0 * params["gates"]["kernel"], "bias": bias}}

  def total(params, x_BTD):
    out_BTHM, state = packed(layer, params, x_BTD)
    return jnp.sum(jnp.sin(out_BTHM)), (out_BTHM, state)

  (_, (out_BTHM, state)), gradient = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(params, x_BTD)
  bad_BH = ~np.isfinite(out_BTHM).all((1, 3))
  assert not bad_BH.any(), (
    f"not finite (row, head): {np.argwhere(bad_BH).tolist()}, gates {bias_GH.T.round()}"
  )
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state)), "state not finite"
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient)), "gradient not finite"


def test_a_call_shorter_than_a_chunk_is_read(x64):
  layer, params, x_BTD = layer_of("float64")
  whole_BTHM, _ = packed(layer, params, x_BTD)
  out_BTHM, state = stream(layer, params, x_BTD[:, :3])
  assert_close(out_BTHM, whole_BTHM[:, :3])
  assert (np.asarray(state.running.position) == 3).all()


def test_forward_memory_grows_with_length_only_through_activations():
  """Were fast weights kept per chunk, a token would cost heads * |W| / chunk_size floats."""
  heads, width, hidden, chunk = 2, 32, 256, 4
  layer, params, _ = tiny_memory(
    B=1,
    T=4,
    D=64,
    heads=heads,
    key_dim=width,
    value_dim=width,
    chunk_size=chunk,
    options={"expansion": hidden // width},
  )

  def temp_bytes(length):
    shapes = (
      jnp.zeros((1, length, 64)),
      layer.zero_state(1),
      jnp.zeros((1, length), jnp.int32),
      jnp.zeros(1, jnp.int32),
    )
    compiled = (
      jax.jit(lambda params, *xs: layer.apply({"params": params}, *xs, None, mode="packed")[:2])
      .lower(params, *shapes)
      .compile()
    )
    return compiled.memory_analysis().temp_size_in_bytes

  short, long = temp_bytes(512), temp_bytes(2048)
  kept_per_chunk = heads * 2 * width * hidden * 4 / chunk
  activations = (
    4 * 12 * heads * (3 * width + 2 * chunk)
  )  # float32; twelve arrays as wide as q, k, v and gate tables
  assert activations < kept_per_chunk / 2
  per_token = (long - short) / 1536
  assert per_token < activations, f"{per_token:.0f} bytes per token"
  assert long - 2048 * activations <= 1.3 * max(short - 512 * activations, heads * 4 * width * hidden * 4)


def test_reading_by_stretches_changes_no_value_and_no_gradient(x64):
  """Documents end inside and between stretches; the last stretch's end is that of the whole."""
  doc_BT = jnp.asarray(DOCUMENTS)

  def value(layer, params, x_BTD):
    start = layer.zero_state(2, jnp.float64)
    out_BTHM, state, stats = layer.apply(
      {"params": params}, x_BTD, start, doc_BT, jnp.full((2,), NO_DOC), None, mode="packed"
    )
    return jnp.sum(jnp.sin(3 * out_BTHM)), (state, stats)

  results = []
  for remat_chunks in (None, 1, 3):
    layer, params, x_BTD = layer_of("float64", remat_chunks=remat_chunks)
    run = jax.jit(jax.value_and_grad(functools.partial(value, layer), (0, 1), has_aux=True))
    results.append(run(params, x_BTD))
  assert_close(results[1], results[0], why="a chunk each")
  assert_close(results[2], results[0], why="one stretch")
