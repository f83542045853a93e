"""The memory as a layer of its own: any length, any cut, any documents, any rule; what it refuses."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze

import atlas_jax
from atlas_jax import NeuralMemory, defaults
from atlas_jax.memory import rules
from tests.helpers import PAPER, SHIFTED, assert_close, noisy, quick_compilation

B, T, D, H, C = 2, 11, 12, 3, 4
DOCUMENTS = np.array([[3, 3, 4, 4, 4, 4, 4, -1, 4, 5, 5], [0, -1, -1, 1, 1, 1, 1, 1, 1, 2, -1]], np.int32)


with_the_shift = pytest.mark.parametrize("fields", [freeze(PAPER), freeze(SHIFTED)], ids=["paper", "shifted"])


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


@functools.lru_cache
def layer_of(dtype="float64", **fields):
  """A small layer of the papers' form, its parameters, and an input."""
  layer = NeuralMemory(**dict(dim=D, heads=H, chunk_size=C, conv_taps=4) | PAPER | fields)
  params = jax.jit(layer.init)(jax.random.key(0), jnp.zeros((1, 1, D), jnp.float32))
  x_BTD = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, D)), dtype)
  return layer, noisy(params, scale=0.2, dtype="float64" if dtype == "float64" else "float32"), x_BTD


@functools.partial(jax.jit, static_argnums=0)
def read(layer, params, x_BTD, state=None, doc_BT=None):
  return layer.apply(params, x_BTD, state, doc_BT)


@with_the_shift
@pytest.mark.parametrize("length", [1, 3, 4, 11])
def test_the_output_has_the_shape_and_type_of_the_input_at_any_length(length, fields):
  layer, params, x_BTD = layer_of("float32", **fields)
  y_BTD, state = read(layer, params, x_BTD[:, :length])
  assert y_BTD.shape == (B, length, D) and y_BTD.dtype == jnp.float32
  # With the shift there is no context before the first token under which anything could stand.
  assert np.array_equal(np.asarray(y_BTD).any(axis=-1), np.arange(length) >= np.full((B, 1), layer.shift))
  assert state.memory.running.position.tolist() == [length % C] * B


@pytest.mark.parametrize("rule", ["titans", "tnt", "lact", "shifted"])
def test_any_cut_into_calls_equals_one_call(x64, rule):
  layer, params, x_BTD = layer_of(**SHIFTED if rule == "shifted" else dict(rule=rule))
  whole_BTD, whole = read(layer, params, x_BTD)
  for cut in (4, 7) if rule == "titans" else (7,):
    left_BTD, middle = read(layer, params, x_BTD[:, :cut])
    right_BTD, end = read(layer, params, x_BTD[:, cut:], middle)
    assert_close(jnp.concatenate([left_BTD, right_BTD], axis=1), whole_BTD, why=f"cut at {cut}")
    assert_close(end, whole, why=f"cut at {cut}: ")


@with_the_shift
def test_documents_that_begin_anywhere_equal_documents_read_alone(x64, fields):
  layer, params, x_BTD = layer_of(**fields)
  y_BTD, _ = read(layer, params, x_BTD, None, DOCUMENTS)
  for row, number in ((0, 3), (0, 4), (0, 5), (1, 0), (1, 1), (1, 2)):
    at_S = np.flatnonzero(DOCUMENTS[row] == number)
    doc_BT = np.where(np.arange(T) < len(at_S), 0, -1)[None]  # One program for all of them.
    order = np.concatenate([at_S, np.zeros(T - len(at_S), int)])
    alone_BTD, _ = read(layer, params, x_BTD[row : row + 1, order], None, doc_BT)
    assert_close(y_BTD[row, at_S], alone_BTD[0, : len(at_S)], why=f"row {row}, document {number}")
  assert not np.asarray(y_BTD)[DOCUMENTS < 0].any()


def test_one_document_given_by_number_equals_none_given(x64):
  layer, params, x_BTD = layer_of()
  assert_close(read(layer, params, x_BTD, None, np.zeros((B, T), np.int32)), read(layer, params, x_BTD))


@with_the_shift
@pytest.mark.parametrize("cut", [2, 6, 8])
def test_documents_go_on_from_call_to_call(x64, cut, fields):
  layer, params, x_BTD = layer_of(**fields)
  whole_BTD, whole = read(layer, params, x_BTD, None, DOCUMENTS)
  left_BTD, middle = read(layer, params, x_BTD[:, :cut], None, DOCUMENTS[:, :cut])
  right_BTD, end = read(layer, params, x_BTD[:, cut:], middle, DOCUMENTS[:, cut:])
  assert_close(jnp.concatenate([left_BTD, right_BTD], axis=1), whole_BTD)
  assert_close(end, whole)


def test_a_state_of_documents_is_read_on_without_numbers(x64):
  """The last document of each row goes on."""
  layer, params, x_BTD = layer_of()
  _, middle = read(layer, params, x_BTD, None, DOCUMENTS)
  number_BT = np.repeat(DOCUMENTS[[0, 1], [-1, -2]][:, None], T, axis=1)
  assert_close(
    read(layer, params, x_BTD, middle, number_BT), read(layer, params, x_BTD, middle), why="the text after"
  )


def test_documents_are_counted_where_they_are_known_and_bounded_where_they_are_not(x64):
  layer, params, x_BTD = layer_of()
  expected = read(layer, params, x_BTD, None, DOCUMENTS)
  assert_close(layer.apply(params, x_BTD, None, DOCUMENTS), expected, why="counted")
  assert_close(read(layer.clone(max_documents=3), params, x_BTD, None, DOCUMENTS), expected, why="bounded")
  few_BTD, _ = read(layer.clone(max_documents=1), params, x_BTD, None, np.tile(np.arange(T), (B, 1)))
  assert np.isnan(few_BTD[:, -1]).all()
  with pytest.raises(ValueError, match="has 3 documents, more than max_documents=2; raise it"):
    layer.clone(max_documents=2).apply(params, x_BTD, None, DOCUMENTS)


@pytest.mark.parametrize("rule", rules.names())
def test_every_rule_is_a_layer_by_its_name(rule):
  layer = NeuralMemory(dim=D, heads=H, chunk_size=8, rule=rule)
  x_BTD = jax.ShapeDtypeStruct((B, T, D), jnp.float32)
  params = jax.eval_shape(layer.init, jax.random.key(0), x_BTD)
  y_BTD, state = jax.eval_shape(layer.apply, params, x_BTD)
  assert y_BTD.shape == (B, T, D)
  y_BTD, after = jax.eval_shape(layer.apply, params, x_BTD, state, jax.ShapeDtypeStruct((B, T), jnp.int32))
  assert y_BTD.shape == (B, T, D) and jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


def test_gradients_reach_every_parameter_and_the_input(x64):
  layer, params, x_BTD = layer_of()
  total = lambda params, x_BTD: jnp.sum(jnp.sin(layer.apply(params, x_BTD, None, DOCUMENTS)[0]))
  for path, grad in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(total, (0, 1)))(params, x_BTD)):
    assert np.isfinite(grad).all() and np.abs(grad).max() > 1e-9, jax.tree_util.keystr(path)


def test_rows_may_be_lifted_by_vmap(x64):
  layer, params, x_BTD = layer_of()
  alone = lambda x_TD, doc_T: layer.apply(params, x_TD[None], None, doc_T[None])[0][0]
  y_BTD = jax.jit(jax.vmap(alone))(x_BTD, DOCUMENTS)
  assert_close(y_BTD, read(layer, params, x_BTD, None, DOCUMENTS)[0])


def test_bfloat16_inputs_keep_their_type_and_fast_weights_are_float32():
  layer, params, x_BTD = layer_of("float32")
  exact_BTD, _ = read(layer, params, x_BTD)
  y_BTD, state = read(layer, params, x_BTD.astype(jnp.bfloat16))
  assert y_BTD.dtype == jnp.bfloat16
  assert {x.dtype for x in jax.tree.leaves(state.memory.running.memory)} == {jnp.dtype("float32")}
  assert_close(y_BTD.astype(jnp.float32), exact_BTD, tolerance=0.1)
  y_BTD, _ = read(layer, params, x_BTD.astype(jnp.bfloat16), state)
  assert y_BTD.dtype == jnp.bfloat16


def test_defaults_are_those_of_the_config_and_options_those_of_the_rule():
  memory = defaults.default().model.memory
  found = NeuralMemory(dim=384).memory_fields()
  assert found == memory.to_dict() | {"key_dim": 384 // memory.heads, "value_dim": 384 // memory.heads}
  given = NeuralMemory(dim=64, heads=2, rule="atlas", chunk_size=16, write_rate_max=0.2).memory_fields()
  assert (given["rule"], given["options"], given["key_dim"]) == ("atlas", {}, 32)
  assert (given["chunk_size"], given["write_rate_max"]) == (16, 0.2)
  lifted = NeuralMemory(dim=D, heads=H, options=freeze({"feature_map": "poly"})).memory_fields()
  assert lifted["options"] == {"feature_map": "poly"}


WRONG = [
  (dict(dim=10, heads=3), "dim=10 is not a multiple of heads=3; nearest are 9 and 12"),
  (dict(dim=12, heads=0), "dim=12 is not a multiple of heads=0"),
  (dict(dim=-12, heads=3), "dim=-12 is not a multiple of heads=3"),
  (dict(rule="titan"), "rule='titan' is unknown; rules are"),
  (dict(options=freeze({"dept": 3})), "rule 'delta' does not know dept; it knows"),
  (dict(chunk_size=0), "config.model.memory.chunk_size=0"),
  (dict(write_rate_init=0.5, write_rate_max=0.4), "write_rate_init=0.5 must be above 0 and below config."),
  (dict(write_rate_init=7.0), "with config.model.memory.rule='delta' they are 7.0 and "),
  (dict(impl="fast"), "config.model.memory.impl='fast'"),
  (dict(impl="pallas", rule="delta"), "is not offered by config.model.memory.rule='delta'"),
  (dict(max_documents=0), "max_documents=0 must be at least 1"),
  (dict(max_documents=1.5), "max_documents=1.5 must be a whole number"),
  (dict(dim=12.0), "dim=12.0 must be a whole number"),
  (dict(heads="3"), "heads='3' must be a whole number"),
  (dict(chunk_size=4.0), "config.model.memory.chunk_size=4.0 must be a whole number"),
  (dict(rule=3), "config.model.memory.rule=3 must be text"),
  (dict(options=("depth",)), "config.model.memory.options=('depth',) must be options by name"),
  (dict(rule="titans", options=freeze({"surprise_max": "1"})), "surprise_max='1' must be a number, or None"),
]


@pytest.mark.parametrize("fields, message", WRONG)
def test_attributes_that_do_not_fit_are_refused_by_name(fields, message):
  layer = NeuralMemory(**dict(dim=D, heads=H) | fields)
  with pytest.raises((ValueError, TypeError)) as caught:
    layer.init(jax.random.key(0), jnp.zeros((B, T, int(layer.dim) if layer.dim > 0 else D)))
  assert message in str(caught.value)


def test_inputs_that_do_not_fit_are_refused_by_name():
  layer, params, x_BTD = layer_of("float32")
  _, state = jax.eval_shape(layer.apply, params, x_BTD)
  other = NeuralMemory(dim=D, heads=H, chunk_size=8)
  for inputs, message in (
    ((x_BTD[..., :7],), "x has shape (2, 11, 7); it must be [rows, tokens, dim=12]"),
    ((x_BTD[0],), "x has shape (11, 12)"),
    ((x_BTD[:, :0],), "with at least one token"),
    ((jnp.zeros((B, T, D), jnp.int32),), "x is of int32; give floats"),
    ((x_BTD[:1], state), "the state is not one of this layer (rule='titans', dim=12, heads=3) for 1 rows"),
    ((x_BTD, other.zero_state(B)), "the state is not one of this layer"),
    ((x_BTD, None, DOCUMENTS[:, :4]), "doc_BT has shape (2, 4); x has (2, 11)"),
    ((x_BTD, None, DOCUMENTS.astype(np.float32)), "doc_BT is of float32; documents have whole numbers"),
    ((x_BTD, None, DOCUMENTS > 0), "doc_BT is of bool; documents have whole numbers"),
  ):
    with pytest.raises((ValueError, TypeError)) as caught:
      jax.eval_shape(layer.apply, params, *inputs)
    assert message in str(caught.value)


def test_numbers_and_inputs_that_would_be_read_wrongly_are_refused():
  layer, params, x_BTD = layer_of("float32")
  with pytest.raises(ValueError, match="doc_BT has the number 8589934592; it must be below 2[*][*]31"):
    layer.apply(params, x_BTD, None, np.full((B, T), 2**33))  # Cut to 32 bits, all would be document 0.
  with pytest.raises(TypeError, match="x is a list; give an array of"):
    layer.apply(params, x_BTD.tolist())


def test_options_of_a_group_within_a_group_replace_the_default_ones():
  model = atlas_jax.language_model("memory", width=64, memory={"rule": "delta", "options": {}})
  assert model.module.memory["rule"] == "delta" and not model.module.memory["options"]


def test_attributes_may_be_numbers_of_numpy():
  assert NeuralMemory(dim=np.int64(D), heads=np.int32(H)).memory_fields()["heads"] == H


def test_a_state_that_has_read_nothing_is_the_same_as_none(x64):
  layer, params, x_BTD = layer_of()
  zero = layer.zero_state(B, x_BTD.dtype)
  assert_close(read(layer, params, x_BTD, zero), read(layer, params, x_BTD))


# --- the names of the package ---


def test_importing_the_package_loads_nothing_and_its_names_load_when_used():
  code = "import sys, atlas_jax; assert 'jax' not in sys.modules; print(dir(atlas_jax))"
  code += "; from atlas_jax import *"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert all(repr(name) in done.stdout for name in atlas_jax.__all__)


def test_every_public_name_is_described_and_an_unknown_one_is_refused():
  for name in atlas_jax.__all__:
    assert getattr(atlas_jax, name).__doc__, name
  with pytest.raises(AttributeError, match="no attribute 'Memories'; it has NeuralMemory"):
    atlas_jax.Memories  # noqa: B018  Looking it up is the test.
