"""The layer's shift and what goes with it: shared projections, cells, tokens as values, lengths of reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze

from atlas_jax.memory import rules
from atlas_jax.memory.layer import NO_DOC
from atlas_jax.memory.projections import ProjectionForm, ngram_taps
from tests.helpers import (
  SHIFTED,
  assert_close,
  assert_grads,
  assert_same_bits,
  quick_compilation,
  tiny_memory,
)
from tests.memory.layers import DOCUMENTS, assert_equals_loop, layer_of, oracle, packed, run, stream

CHOICES = {
  "shift": dict(shift=True),
  "shared": dict(shared_qk=True),
  "shift, shared": dict(shift=True, shared_qk=True, activation="none"),
  "token values": dict(shift=True, value_source="token"),
  "token values, no shift": dict(value_source="token", read_norm="none"),
  "all": SHIFTED,
  "groups": SHIFTED | dict(options=freeze(dict(SHIFTED["options"]) | {"cell_groups": 2})),
}
LEGAL = {"tnt": freeze({"local_chunks": (2, 4)})}  # A chunk of four is short for its own.


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


def cut_anywhere(layer, params, x_BTD, lengths):
  """Reads a text by calls of these lengths, each padded to that of the whole."""
  state, outs, start = None, [], 0
  for length in lengths:
    part_BTD = jnp.zeros_like(x_BTD).at[:, :length].set(x_BTD[:, start : start + length])
    out_BTHM, state = stream(layer, params, part_BTD, state, jnp.full(2, length))
    outs.append(out_BTHM[:, :length])
    start += length
  return jnp.concatenate(outs, axis=1), state


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_equals_the_loop_on_packed_documents(x64, name):
  layer, params, x_BTD = layer_of("float64", **CHOICES[name])
  assert_equals_loop(layer, params, x_BTD, DOCUMENTS)


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("lengths", [(1, 1, 2, 5, 3), (7, 5)], ids=str)
def test_every_choice_reads_on_in_calls_cut_anywhere(x64, name, lengths):
  """The row before a call, which its first token writes under, is in the state."""
  layer, params, x_BTD = layer_of("float64", **CHOICES[name])
  assert_close(cut_anywhere(layer, params, x_BTD, lengths), packed(layer, params, x_BTD))


@pytest.mark.parametrize("rule", rules.names())
def test_shifted_layers_of_every_rule_equal_their_loop_and_themselves_in_calls(x64, rule):
  layer, params, x_BTD = layer_of("float64", rule=rule, options=LEGAL.get(rule, freeze({})), shift=True)
  if rule == "f_divergence":  # Whose weights are masses.
    params = params | {"initial_fast": jax.tree.map(jnp.abs, params["initial_fast"])}
  doc_BT = np.zeros((2, 12), np.int32)
  assert_equals_loop(layer, params, x_BTD, doc_BT)
  assert_close(cut_anywhere(layer, params, x_BTD, (1, 4, 7)), packed(layer, params, x_BTD), why=rule)


@pytest.mark.parametrize(
  ("rule", "options"),
  [
    ("omega", {"window_size": 3, "feature_map": "poly"}),
    ("delta", {"feature_map": "sketch", "feature_dim": 3}),
    ("dla", {"feature_map": "projected", "feature_dim": 3}),
    ("retention", {"feature_map": "power"}),
  ],
)
def test_what_is_lifted_once_for_keys_and_queries_equals_the_loop_that_lifts_each(x64, rule, options):
  layer, params, x_BTD = layer_of("float64", rule=rule, options=freeze(options), shift=True, shared_qk=True)
  assert_equals_loop(layer, params, x_BTD, DOCUMENTS)
  doc_BT = jnp.zeros((2, 12), jnp.int32)
  assert_close(cut_anywhere(layer, params, x_BTD, (1, 4, 7)), packed(layer, params, x_BTD, doc_BT))


def test_segments_that_carry_the_state_equal_one_call(x64):
  """A document goes on, ends, and begins at the border of a call."""
  layer, params, x_BTD = layer_of("float64", **SHIFTED)
  doc_BT = jnp.asarray([[4] * 8 + [9, 9, 9, -1], [2, 2, -1, -1] + [5] * 7 + [-1]], jnp.int32)
  whole = packed(layer, params, x_BTD, doc_BT)
  state, outs, last_B = None, [], [NO_DOC, NO_DOC]
  for part, after_B in ((slice(0, 4), [4, 2]), (slice(4, 8), [4, 5]), (slice(8, 12), None)):
    state = layer.zero_state(2, x_BTD.dtype) if state is None else state
    last_B = jnp.asarray(last_B, jnp.int32)
    out, state = run(layer, params, x_BTD[:, part], state, doc_BT[:, part], last_B, mode="packed")
    outs.append(out)
    last_B = after_B
  assert_close((jnp.concatenate(outs, axis=1), state), whole)


def test_gradients_of_every_parameter_equal_finite_differences_of_the_loop(x64):
  layer, params, x_BTD = layer_of("float64", **SHIFTED)
  weight_BTHM = np.random.default_rng(3).normal(size=(2, 12, layer.heads, layer.value_dim))
  arguments = {"params": params, "x": x_BTD}

  def total(arguments):
    out = packed(layer, arguments["params"], arguments["x"], jnp.asarray(DOCUMENTS))[0]
    return jnp.sum(weight_BTHM * out)

  def loop(arguments):
    return np.sum(weight_BTHM * oracle(layer, arguments["params"], arguments["x"], DOCUMENTS)[0])

  gradient = jax.jit(jax.grad(total))(arguments)
  for path, of_one in jax.tree_util.tree_leaves_with_path(gradient):
    assert np.abs(of_one).max() > 1e-8, f"{jax.tree_util.keystr(path)} has no effect"
  assert_grads(loop, arguments, gradient, tolerance=1e-6)


@pytest.mark.parametrize("changed", [0, 5, 11])
def test_a_token_changes_nothing_before_it(changed):
  layer, params, x_BTD = layer_of(**SHIFTED)
  before, after = (np.asarray(packed(layer, params, x)[0]) for x in (x_BTD, x_BTD.at[:, changed].add(0.5)))
  assert_same_bits(after[:, :changed], before[:, :changed])
  assert (after[:, changed + 1 :] != before[:, changed + 1 :]).any(axis=(-1, -2)).all()


@pytest.mark.parametrize("rule", ["titans", "omega", "ttt_linear"])
def test_the_first_token_of_a_document_neither_writes_nor_reads(rule):
  """There is no context before it: the memory stays as it was, to the bit, and nothing is recalled."""
  layer, params, x_BTD = layer_of(rule=rule, shift=True)
  start = stream(layer, params, 0 * x_BTD[:, :1])[1].running.memory
  out_BTHM, after = stream(layer, params, x_BTD[:, :1])
  assert not np.asarray(out_BTHM).any()
  assert_same_bits(after.running.memory, start)


def copying(shift: bool):
  """A layer whose keys and values are the tokens themselves, so that it can be told what a read is of."""
  layer, params, _ = tiny_memory(
    **SHIFTED | dict(shift=shift, options=freeze({"momentum": False}), conv_init="identity"),
    heads=1, key_dim=8, value_dim=8, chunk_size=16, D=8, noise=0.0,
  )  # fmt: skip
  eye = jnp.eye(8)[:, None]
  gates = {"kernel": 0 * params["gates"]["kernel"], "bias": jnp.asarray([-20.0, 20.0])}
  params |= {"qkv_kernel": eye, "value_kernel": eye, "gates": gates}
  params["conv_kernel"] = jnp.zeros_like(params["conv_kernel"]).at[-1].set(1)
  return layer.clone(write_rate_max=1.0), params


@pytest.mark.parametrize("shift", [True, False])
def test_with_the_shift_a_read_gives_what_came_after_and_without_it_what_is_there(shift):
  """A text of four tokens read twice: the second time the memory knows each one's successor."""
  layer, params = copying(shift)
  text = np.array([3, 1, 4, 6] * 2 + [0] * 8)
  x_BTD = jnp.eye(8)[text][None]
  out_BTHM, _ = packed(layer, params, x_BTD, jnp.asarray([[0] * 8 + [-1] * 8], jnp.int32))
  told_T = np.asarray(out_BTHM)[0, :, 0].argmax(-1)
  assert told_T[4:7].tolist() == ([1, 4, 6] if shift else [3, 1, 4])
  right = np.asarray(out_BTHM)[0, 4:7, 0].max(-1)
  np.testing.assert_allclose(right, np.sqrt(8), rtol=1e-2, err_msg="a perfect recall has unit mean square")


def test_an_empty_memory_adds_nothing_if_reads_keep_their_length():
  """With unit mean square the same layer returns vectors of full length."""
  silent = {}
  for read_norm in ("none", "rms"):
    fields = dict(shift=True, read_norm=read_norm, options=freeze({"residual": False}))
    layer, params, x_BTD = layer_of(**fields)
    gates = params["gates"] | {"bias": params["gates"]["bias"].at[-layer.heads :].set(-60)}
    faded = jax.tree.map(lambda w: 0.01 * w, params["initial_fast"])
    empty = params | {"initial_fast": faded, "gates": gates}
    silent[read_norm] = np.abs(np.asarray(packed(layer, empty, x_BTD)[0])).max()
  assert silent["none"] < 1e-3 and silent["rms"] > 100 * silent["none"], silent


def test_keys_start_as_signatures_of_ngrams_that_grow_from_head_to_head():
  form = ProjectionForm(5, 3, 6, True, True, "none", "input")
  taps_SHE = np.asarray(ngram_taps(form, jax.random.key(0), (6, 3, form.channels), jnp.float32))
  sizes_SH = np.abs(taps_SHE[..., :5]).max(-1)
  assert [(sizes_SH[:, h] > 0.1).sum() for h in range(3)] == [2, 4, 6]
  np.testing.assert_allclose(sizes_SH[-1], 1)
  np.testing.assert_allclose(sizes_SH[-2], 0.9)
  own = ProjectionForm(5, 3, 6, True, False, "none", "input")
  taps_SHE = np.asarray(ngram_taps(own, jax.random.key(0), (6, 3, own.channels), jnp.float32))
  assert_same_bits(taps_SHE[..., :5], taps_SHE[..., 5:10], why="queries start as keys")


def test_a_memory_of_several_matrices_does_not_start_at_zero():
  layer, params, x_BTD = layer_of()
  with pytest.raises(ValueError, match="config.model.memory.initial='zero'.*'titans'"):
    packed(layer.clone(initial="zero"), params, x_BTD)


@pytest.mark.parametrize("name", ["activation", "value_source", "conv_init", "initial", "read_norm"])
def test_an_unknown_choice_is_refused_by_name(name):
  layer, _, _ = layer_of()
  with pytest.raises(ValueError, match=f"config.model.memory.{name}='other' is unknown; known are"):
    layer.clone(**{name: "other"}).build_rule()
