"""The language model against its loop, across calls and documents; causality, gradients, random tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from atlas_jax.losses.next_token import next_token_loss
from atlas_jax.memory.layer import Memory
from atlas_jax.models import head
from atlas_jax.models.blocks import gate as gate_block
from tests import oracles
from tests.helpers import (
  assert_close,
  assert_grads,
  assert_same_bits,
  quick_compilation,
  tiny_lm,
  trace_counter,
)


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


DOCUMENTS = np.array(
  [[4, 4, 4, 4, 4, 4, -1, -1, 9, 9, 9, -1], [2, 2, -1, -1, 5, 5, 5, 5, 5, 5, 5, 5]], np.int32
)
SHIFT_FIELDS = ("shift", "shared_qk", "activation", "value_source", "initial", "read_norm")
MEMORY_FIELDS = ("rule", "heads", "key_dim", "value_dim", "chunk_size", "write_rate_max", "options")


@functools.lru_cache
def model_of(dtype="float32", **fields):
  return tiny_lm(dtype=dtype, **fields)


@functools.partial(jax.jit, static_argnums=0, static_argnames="mode")
def run(model, params, tokens_BT, state, doc_BT=None, count_B=None, memory_scale=1.0, *, mode):
  out = model.apply(
    {"params": params}, tokens_BT, state, doc_BT=doc_BT, count_B=count_B, memory_scale=memory_scale, mode=mode
  )
  return head.logits(params, out.hidden_BTD), out.state, out.stats


def packed(model, params, tokens_BT, doc_BT=None, state=None, memory_scale=1.0):
  """Reads whole chunks, of one document unless told; gives logits and the state."""
  doc_BT = jnp.zeros_like(tokens_BT) if doc_BT is None else jnp.asarray(doc_BT)
  state = model.zero_state(len(tokens_BT)) if state is None else state
  state = wide_as(params, state)
  return run(model, params, tokens_BT, state, doc_BT, memory_scale=memory_scale, mode="packed")[:2]


def stream(model, params, tokens_BT, state=None, count_B=None):
  state = model.zero_state(len(tokens_BT)) if state is None else state
  return run(model, params, tokens_BT, wide_as(params, state), None, count_B, mode="stream")[:2]


def wide_as(params, state):
  """Returns a zero state float64 leaves where the parameters have them."""
  if params["embed"].dtype != jnp.float64:
    return state
  return jax.tree.map(lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)


def oracle(model, params, tokens_BT, doc_BT, memory_scale=1.0):
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  memory = {name: model.memory[name] for name in (*MEMORY_FIELDS, *SHIFT_FIELDS) if name in model.memory}
  rule = Memory(**model.memory, parent=None).build_rule()
  memory |= dict(uses=rule.uses, own=rule.gates)
  fields = dict(window_tokens=model.window_tokens, gate_floor=model.gate_floor, memory_scale=memory_scale)
  rows = zip(np.asarray(tokens_BT), np.asarray(doc_BT))
  return np.stack([oracles.lm(params, *row, memory=memory, **fields) for row in rows])


def loss_of(model, params, head_DV, tokens_BT, doc_BT, weight_BT):
  """Predicts each token's next, for the last the first; the output weights are an argument of their own."""
  state = wide_as(params, model.zero_state(len(tokens_BT)))
  out = model.apply({"params": params}, tokens_BT, state, doc_BT=doc_BT, mode="packed")
  return next_token_loss(out.hidden_BTD, head_DV, jnp.roll(tokens_BT, -1, axis=1), weight_BT)[0]


# The loss and its gradient by parameters and output weights: one compilation for every test of one model.
descent = jax.jit(jax.value_and_grad(loss_of, (1, 2)), static_argnums=0)


def gradient_of(model, params, tokens_BT, doc_BT=None, weight_BT=None):
  """Returns the loss, and its gradient by every parameter; the output weights are the embedding."""
  doc_BT = jnp.zeros_like(tokens_BT) if doc_BT is None else jnp.asarray(doc_BT)
  weight_BT = (doc_BT >= 0).astype(jnp.float32) if weight_BT is None else weight_BT
  loss, (gradient, head_DV) = descent(model, params, head.head_weights(params), tokens_BT, doc_BT, weight_BT)
  return loss, gradient | {"embed": gradient["embed"] + head_DV.T}, gradient["embed"]


# --- the model equals the loop ---


@pytest.mark.core
@pytest.mark.parametrize("memory_scale", [1.0, 0.0])
@pytest.mark.parametrize("documents", ["one", "packed"])
def test_logits_equal_the_loop(x64, documents, memory_scale):
  model, params, tokens_BT = model_of("float64")
  doc_BT = np.zeros((2, 12), np.int32) if documents == "one" else DOCUMENTS
  logits_BTV, _ = packed(model, params, tokens_BT, doc_BT, memory_scale=memory_scale)
  expected_BTV = oracle(model, params, tokens_BT, doc_BT, memory_scale)
  assert_close(logits_BTV[doc_BT >= 0], expected_BTV[doc_BT >= 0])


def test_gradients_of_the_loss_equal_finite_differences_of_the_loop(x64):
  """For every parameter of the model, along one random direction."""
  model, params, tokens_BT = model_of("float64")
  real, targets_BT1 = DOCUMENTS >= 0, np.roll(np.asarray(tokens_BT), -1, axis=1)[..., None]

  def loop(params):
    logits_BTV = oracle(model, params, tokens_BT, DOCUMENTS)
    nll_BT = np.log(np.exp(logits_BTV).sum(-1)) - np.take_along_axis(logits_BTV, targets_BT1, -1)[..., 0]
    return nll_BT[real].mean()

  value, gradient, _ = gradient_of(model, params, tokens_BT, DOCUMENTS)
  assert_close(value, np.float64(loop(params)))
  assert_grads(loop, params, gradient)


def test_every_parameter_of_every_block_receives_a_gradient_from_the_start(x64):
  model, params, tokens_BT = model_of("float64", noise=0.0)
  _, gradient, _ = gradient_of(model, params, tokens_BT)
  for path, grad in jax.tree_util.tree_leaves_with_path(gradient):
    name, grad = jax.tree_util.keystr(path), np.asarray(grad)
    assert np.isfinite(grad).all(), f"{name}: not finite"
    for layer in grad if "blocks" in name else [grad]:
      assert np.abs(layer).max() > 1e-8, f"{name}: no gradient"
      if "embed" not in name:
        assert (layer != 0).mean() > 0.95, f"{name}: {(layer == 0).mean():.0%} have no gradient"


# --- state from call to call ---


@pytest.mark.core
@pytest.mark.parametrize("lengths", [(12,), (5, 7), (1, 2, 6, 3)], ids=str)
def test_any_cut_into_calls_equals_one_parallel_pass(x64, lengths):
  """Logits and the whole state: attention's window, memory, base, convolution tail, position, document."""
  model, params, tokens_BT = model_of("float64")
  whole_BTV, whole = packed(model, params, tokens_BT)
  state, outs, start = None, [], 0
  for length in lengths:
    part_BT = jnp.full((2, 12), 31, jnp.int32).at[:, :length].set(tokens_BT[:, start : start + length])
    logits_BTV, state = stream(model, params, part_BT, state, jnp.full(2, length, jnp.int32))
    outs.append(logits_BTV[:, :length])
    start += length
  assert_close((jnp.concatenate(outs, axis=1), state), (whole_BTV, whole), why=f"{lengths}")


@pytest.mark.core
def test_decoding_token_by_token_equals_the_parallel_pass_with_one_compilation(x64):
  """From nothing, and after a prefill of any length."""
  model, params, tokens_BT = model_of("float64")
  whole_BTV, whole = packed(model, params, tokens_BT)
  step, traces = trace_counter(
    lambda params, tokens_B1, state: model.apply({"params": params}, tokens_B1, state, mode="stream")[:2]
  )
  for prefill in (0, 1, 3, 4, 6):
    logits_BTV, state = stream(model, params, tokens_BT, None, jnp.full(2, prefill, jnp.int32))
    outs = [logits_BTV[:, :prefill]]
    for t in range(prefill, 12):
      hidden_BTD, state = step(params, tokens_BT[:, t : t + 1], state)
      outs.append(head.logits(params, hidden_BTD))
    assert_close((jnp.concatenate(outs, axis=1), state), (whole_BTV, whole), why=f"prefill {prefill}")
  assert len(traces) == 1


def test_packed_segments_with_carried_state_equal_one_long_call(x64):
  """Three segments of a chunk: they go on with a document, end one in padding, meet a new one."""
  model, params, tokens_BT = model_of("float64")
  doc_BT = jnp.asarray(
    [[4, 4, 4, 4, 4, 4, 4, 4, 9, 9, 9, -1], [2, 2, -1, -1, 5, 5, 5, 5, 5, 5, 5, -1]], jnp.int32
  )
  whole_BTV, whole = packed(model, params, tokens_BT, doc_BT)
  state, outs = None, []
  for start in (0, 4, 8):
    part = slice(start, start + 4)
    logits_BTV, state = packed(model, params, tokens_BT[:, part], doc_BT[:, part], state)
    outs.append(logits_BTV)
  assert_close((jnp.concatenate(outs, axis=1), state), (whole_BTV, whole))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["packed", "stream"])
def test_the_state_keeps_its_shapes_and_dtypes(dtype, mode):
  """So a step compiled once serves for ever, and a carry can be donated and scanned."""
  model, params, tokens_BT = model_of(dtype)
  state = model.zero_state(2)
  doc_BT = jnp.zeros_like(tokens_BT) if mode == "packed" else None
  after = jax.eval_shape(lambda: run(model, params, tokens_BT, state, doc_BT, mode=mode)[1])
  describe = lambda tree: [
    (jax.tree_util.keystr(path), x.shape, x.dtype) for path, x in jax.tree_util.tree_leaves_with_path(tree)
  ]
  assert describe(after) == describe(state)


def test_the_fast_weights_stay_float32_under_bfloat16_activations():
  model, params, tokens_BT = model_of()
  exact_BTV, _ = packed(model, params, tokens_BT)
  rough_BTV, state = packed(*model_of("bfloat16"))
  assert {x.dtype for x in jax.tree.leaves(state.memory.running.memory)} == {jnp.dtype("float32")}
  error = np.abs(np.asarray(rough_BTV - exact_BTV)).mean() / np.abs(np.asarray(exact_BTV)).mean()
  assert error < 2e-2, f"logits differ by {error:.3f} of their size"


# --- documents and padding ---


def test_packed_documents_equal_separate_runs():
  model, params, tokens_BT = model_of()
  together_BTV, _ = packed(model, params, tokens_BT, DOCUMENTS)
  for b, start, stop in ((0, 0, 6), (0, 8, 11), (1, 0, 2), (1, 4, 12)):
    doc_BT = jnp.where(jnp.arange(12)[None] < stop - start, jnp.zeros((2, 12), jnp.int32), -1)
    alone_BTV, _ = packed(model, params, jnp.roll(tokens_BT, -start, axis=1), doc_BT)
    assert_close(together_BTV[b, start:stop], alone_BTV[b, : stop - start], why=f"row {b} from {start}")


def test_tokens_at_padding_change_no_bit_of_others_or_of_the_memory():
  model, params, tokens_BT = model_of()
  padding = DOCUMENTS < 0
  clean, dirty = (packed(model, params, jnp.where(padding, junk, tokens_BT), DOCUMENTS) for junk in (0, 31))
  assert_same_bits(dirty[0][~padding], clean[0][~padding], why="logits")
  assert_same_bits(dirty[1].memory.running, clean[1].memory.running, why="memory")
  assert_same_bits(dirty[1].doc_B, clean[1].doc_B, why="document")


def test_a_used_state_meeting_a_new_document_is_as_good_as_a_fresh_one():
  model, params, tokens_BT = model_of()
  fresh_BTV, fresh = packed(model, params, tokens_BT, jnp.full((2, 12), 8))
  _, used = packed(model, params, tokens_BT[:, ::-1], jnp.full((2, 12), 7))
  again_BTV, again = packed(model, params, tokens_BT, jnp.full((2, 12), 8), used)
  assert_close((again_BTV, again.memory, again.doc_B), (fresh_BTV, fresh.memory, fresh.doc_B))


# --- causality ---


@pytest.mark.core
@pytest.mark.parametrize("changed", [1, 5, 8])
def test_changing_a_token_changes_no_bit_before_it_and_everything_after(changed):
  """Past the reach of attention, two blocks of window 3, only the memory carries the change."""
  model, params, tokens_BT = model_of()
  other_BT = tokens_BT.at[:, changed].set((tokens_BT[:, changed] + 1) % model.vocab_size)
  reach = model.depth * (model.window_tokens - 1)
  for scale in (1.0, 0.0):
    before, after = (packed(model, params, x, memory_scale=scale)[0] for x in (tokens_BT, other_BT))
    differs_BT = (np.asarray(after) != np.asarray(before)).any(-1)
    assert not differs_BT[:, :changed].any(), "a token sees the future"
    assert differs_BT[:, changed : changed + reach + 1].all()
    assert (differs_BT[:, changed + reach + 1 :] == bool(scale)).all()


@pytest.mark.parametrize("place", [0, 6, 11])
def test_gradients_of_a_token_by_embeddings_are_zero_for_later_tokens_alone(x64, place):
  """All tokens differ: each row of the embedding stands for one place, and one place counts in the loss."""
  model, params, _ = model_of("float64")
  tokens_V = np.random.default_rng(0).permutation(model.vocab_size)
  tokens_BT = jnp.asarray(tokens_V[:24].reshape(2, 12), jnp.int32)
  weight_BT = jnp.zeros((2, 12), jnp.float32).at[0, place].set(1)
  _, _, inputs_VD = gradient_of(model, params, tokens_BT, weight_BT=weight_BT)
  seen = np.unique(np.flatnonzero(np.abs(np.asarray(inputs_VD)).sum(-1)))
  assert set(seen) == set(np.asarray(tokens_BT[0, : place + 1]))


# --- the gate, and models without memory ---


def test_the_floor_of_the_gate_is_no_clamp():
  """Far below the floor the gate still follows its input, with the gradient of a scaled sigmoid."""
  gate = gate_block.MixGate(heads=1, floor=0.25)
  params = lambda z: {"params": {"kernel": jnp.zeros((2, 1)), "bias": z[None]}}
  value = lambda z: gate.apply(params(z), jnp.zeros((1, 1, 2)))[0].sum()
  for z in (-6.0, -3.0, 0.0, 4.0):
    share = oracles.sigmoid(z)
    opened, grad = jax.value_and_grad(value)(jnp.float32(z))
    assert_close(opened, np.float64(0.25 + 0.75 * share), tolerance=1e-6)
    assert_close(grad, np.float64(0.75 * share * (1 - share)), tolerance=1e-6)
    assert float(grad) > 1e-3


def test_a_nearly_shut_gate_still_learns_and_lets_the_floor_through(x64):
  model, params, tokens_BT = model_of("float64")
  gate = params["blocks"]["mix_gate"]
  gate = {"kernel": 0 * gate["kernel"], "bias": 0 * gate["bias"] - 6}
  shut = params | {"blocks": params["blocks"] | {"mix_gate": gate}}
  _, gradient, _ = gradient_of(model, shut, tokens_BT)
  assert (np.abs(gradient["blocks"]["mix_gate"]["bias"]) > 1e-9).all()
  assert (np.abs(gradient["blocks"]["memory"]["qkv_kernel"]) > 0).mean() > 0.95
  state = wide_as(params, model.zero_state(2))
  stats = run(model, shut, tokens_BT, state, jnp.zeros_like(tokens_BT), memory_scale=1.0, mode="packed")[2]
  for layer in ("layer_00", "layer_01"):
    assert_close(stats[f"mix_gate_mean/{layer}"], 0.1 + 0.9 * oracles.sigmoid(-6), tolerance=1e-6)
    assert_close(stats[f"mix_gate_raw_mean/{layer}"], oracles.sigmoid(-6), tolerance=1e-6)
    assert_close(stats[f"mix_gate_raw_below_0.1_frac/{layer}"], 1.0)


def test_a_model_without_memory_is_the_model_with_its_memory_scaled_to_zero(x64):
  model, params, tokens_BT = model_of("float64")
  bare = model.clone(memory_mix="none")
  extra = ("memory", "mix_gate", "memory_out")
  bare_params = params | {"blocks": {name: x for name, x in params["blocks"].items() if name not in extra}}
  init = functools.partial(bare.init, mode="stream")
  wanted = jax.eval_shape(init, jax.random.key(0), tokens_BT, bare.zero_state(2))["params"]
  assert jax.tree.structure(wanted) == jax.tree.structure(bare_params)
  expected_BTV, _ = packed(model, params, tokens_BT, DOCUMENTS, memory_scale=0.0)
  assert_close(packed(bare, bare_params, tokens_BT, DOCUMENTS)[0], expected_BTV)


def test_recomputing_and_unrolling_change_no_loss_and_no_gradient(x64):
  """Policies of recomputation differ in what they keep alone; the one that keeps nothing stands for all."""
  model, params, tokens_BT = model_of("float64")
  other = model.clone(remat="block", scan_unroll=2)
  assert_close(*(gradient_of(m, params, tokens_BT, DOCUMENTS) for m in (other, model)))


WRONG = [
  (12, dict(mode="parallel"), "packed, stream"),
  (12, dict(mode="packed"), "doc_BT"),
  (12, dict(mode="stream", doc_BT=np.zeros((2, 12), np.int32)), "doc_BT"),
  (10, dict(mode="packed", doc_BT=np.zeros((2, 10), np.int32)), "chunk_size"),
]


@pytest.mark.parametrize("length,arguments,said", WRONG)
def test_wrong_arguments_are_refused(length, arguments, said):
  model, params, tokens_BT = model_of()
  with pytest.raises(ValueError, match=said):
    model.apply({"params": params}, tokens_BT[:, :length], model.zero_state(2), **arguments)


# --- what cannot be learnt is not learnt ---

STEPS, ROWS, LENGTH, VOCAB = 60, 8, 24, 8
OPTIMIZER = optax.adam(1e-2)


@functools.partial(jax.jit, static_argnums=0)
def train_step(model, params, opt_state, tokens_BT):
  """Descends once; gives also the loss and its standard error over the batch's tokens."""
  inputs_BT, targets_BT, doc_BT = tokens_BT[:, :-1], tokens_BT[:, 1:], jnp.zeros((ROWS, LENGTH), jnp.int32)

  def total(params):
    out = model.apply({"params": params}, inputs_BT, model.zero_state(ROWS), doc_BT=doc_BT, mode="packed")
    weight_BT = jnp.ones((ROWS, LENGTH))
    loss, _, nll_BT = next_token_loss(out.hidden_BTD, head.head_weights(params), targets_BT, weight_BT)
    return loss, jnp.std(nll_BT) * nll_BT.size**-0.5

  (loss, error), gradient = jax.value_and_grad(total, has_aux=True)(params)
  with jax.numpy_dtype_promotion("standard"):  # The optimizer counts its steps in integers.
    updates, opt_state = OPTIMIZER.update(gradient, opt_state)
  return optax.apply_updates(params, updates), opt_state, jnp.stack([loss, error])


def train(draw_tokens):
  """Trains a tiny model on a fresh batch per step; returns each step's loss and its standard error."""
  memory = dict(write_rate_init=0.05, write_rate_max=0.1)
  model, params, _ = tiny_lm(vocab_size=VOCAB, noise=0.0, window_tokens=6, memory=memory)
  opt_state, rows = OPTIMIZER.init(params), []
  for tokens_BT in draw_tokens:
    params, opt_state, row = train_step(model, params, opt_state, jnp.asarray(tokens_BT, jnp.int32))
    rows.append(row)
  return np.stack(rows).T


def test_random_tokens_are_never_predicted_better_than_their_entropy():
  """Uniform tokens cost log V in expectation whatever the model; a look at the future would soon show."""
  draw = np.random.default_rng(0)
  loss, error = train(draw.integers(0, VOCAB, size=(STEPS, ROWS, LENGTH + 1)))
  assert (loss > np.log(VOCAB) - 4.5 * error).all(), (
    f"lowest loss {loss.min():.3f} nats of {np.log(VOCAB):.3f}"
  )
  late = slice(STEPS // 2, None)
  assert loss[late].mean() > np.log(VOCAB) - 4 * np.sqrt((error[late] ** 2).mean() / len(error[late]))


def test_repeating_tokens_are_soon_predicted_better_than_their_entropy():
  """The control of the test above: what is there to be learnt is learnt in as many steps."""
  draw = np.random.default_rng(0)
  parts = draw.integers(0, VOCAB, size=(STEPS, ROWS, 3))
  loss, _ = train(np.tile(parts, (1, 1, LENGTH // 3 + 1))[:, :, : LENGTH + 1])
  assert loss[-10:].mean() < 0.7 * np.log(VOCAB), f"{loss[-10:].mean():.3f} nats of {np.log(VOCAB):.3f}"
