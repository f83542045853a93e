"""The models that a memory is compared with: its convolutions alone, and embeddings of n-grams."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import freeze

from atlas_jax import tree
from atlas_jax.models import ngrams
from atlas_jax.models.blocks.conv import ConvMix
from atlas_jax.optim import build as optim
from tests.helpers import SHIFTED, assert_close, assert_same_bits, quick_compilation, tiny_lm
from tests.models.reading import check_causality, check_cut_calls, check_documents
from tests.models.test_lm import gradient_of, packed

MODELS = {
  "conv": dict(memory_mix="conv", memory_layers=(1,), memory=SHIFTED),
  "conv, no shift": dict(memory_mix="conv"),
  "ngram": dict(memory_mix="none", ngram_embed=freeze({"max_n": 4, "table_rows": 16})),
  "ngram, memory": dict(ngram_embed=freeze({"max_n": 3, "table_rows": 16}), memory=SHIFTED),
  "static": dict(memory=SHIFTED | dict(initial="learned", writes=False)),
}
each = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


def model_of(name, dtype="float64"):
  return tiny_lm(dtype=dtype, **MODELS[name])


@each
def test_calls_cut_anywhere_equal_one_parallel_pass(x64, name):
  state, whole = check_cut_calls(*model_of(name))
  assert_same_bits(state.ngram, whole.ngram)


@each
def test_packed_documents_and_segments_equal_documents_read_alone(x64, name):
  check_documents(*model_of(name))


@each
def test_a_token_changes_nothing_before_it(name):
  check_causality(*model_of(name, "float32"))


@pytest.mark.parametrize("name", ["conv", "conv, no shift", "ngram"])
def test_every_parameter_of_a_control_has_a_gradient_from_the_start(x64, name):
  model, params, tokens_BT = tiny_lm(dtype="float64", noise=0.0, **MODELS[name])
  for path, grad in jax.tree_util.tree_leaves_with_path(gradient_of(model, params, tokens_BT)[1]):
    assert np.abs(np.asarray(grad)).max() > 1e-8, jax.tree_util.keystr(path)


def test_convolutions_alone_are_a_memory_of_one_token(x64):
  """A linear memory whose every token is a document: without the shift it reads v (k . q)."""
  fields = dict(rule="linear_attention", read_norm="none", options={}, conv_taps=2, chunk_size=1)
  model, params, tokens_BT = tiny_lm(dtype="float64", memory_mix="conv", depth=1, memory=fields)
  memory = params["blocks"]["memory"]
  assert set(memory) == {"qkv_kernel", "conv_kernel"}
  layer_in_BTD = jax.random.normal(jax.random.key(0), (2, 12, 12), jnp.float64)
  layer = ConvMix(**model.memory)
  one = jax.tree.map(lambda x: x[0], memory)
  doc_BT = jnp.zeros((2, 12), jnp.int32)
  state = layer.zero_state(2, jnp.float64)
  out_BTHM, _, _ = layer.apply(
    {"params": one}, layer_in_BTD, state, doc_BT, jnp.full(2, -2, jnp.int32), None, mode="packed"
  )
  x = np.einsum("btd,dhe->bthe", layer_in_BTD, one["qkv_kernel"])
  taps = np.asarray(one["conv_kernel"])
  mixed = x * taps[1] + np.concatenate([0 * x[:, :1], x[:, :-1]], axis=1) * taps[0]
  mixed = mixed / (1 + np.exp(-mixed))
  q, k, v = (part / np.sqrt((part**2).sum(-1, keepdims=True) + 1e-6) for part in np.split(mixed, 3, axis=-1))
  assert_close(out_BTHM, v * (k * q).sum(-1, keepdims=True) * 2)


# --- n-grams ---


def rows_of(tokens_T, max_n, table_rows):
  """What `lookups` finds for a document, one row."""
  tail_BS = ngrams.zero_tail(1, max_n)
  last_B = jnp.zeros(1, jnp.int32)
  doc_BT = jnp.zeros((1, len(tokens_T)), jnp.int32)
  return np.asarray(
    ngrams.lookups(jnp.asarray([tokens_T]), tail_BS, doc_BT, last_B, None, table_rows=table_rows)[0]
  )[0]


def test_equal_ngrams_and_no_others_meet_in_a_table_with_room():
  tokens_T = np.random.default_rng(0).integers(0, 3, 200)
  row_TS = rows_of(tokens_T, 4, 2**30)
  for n in (2, 3, 4):
    seen = {}
    for t in range(len(tokens_T)):
      row = row_TS[t, n - 2]
      assert (row == ngrams.NONE) == (t < n - 1)
      if t >= n - 1:
        assert seen.setdefault(tuple(tokens_T[t - n + 1 : t + 1]), row) == row
    assert len(set(seen.values())) == len(seen)


def test_a_small_table_is_filled_evenly():
  tokens_T = np.random.default_rng(0).integers(0, 256, 8000)
  row_TS = rows_of(tokens_T, 3, 64)
  for n in (2, 3):
    counts = np.bincount(row_TS[n - 1 :, n - 2], minlength=64)
    assert counts.min() > 60 and counts.max() < 200, "8,000 n-grams over 64 rows, 125 each"


def test_tables_of_ngrams_are_decayed_counted_and_learnt_as_embeddings():
  _, params, _ = model_of("ngram", "float32")
  assert params["ngram_embed"].shape == (3, 16, 12)
  assert optim.decay_mask(params)["ngram_embed"] == optim.decay_mask(params)["embed"] is True
  assert tree.group_of("ngram_embed") == "embed"


def test_values_that_a_memory_writes_are_of_the_token_alone(x64):
  """Tables that differ change what is asked for and when, but the values are projections of the embedding."""
  model, params, tokens_BT = model_of("ngram, memory")
  plain = model.clone(ngram_embed=None)
  without = {name: part for name, part in params.items() if name != "ngram_embed"}
  zero = params | {"ngram_embed": 0 * params["ngram_embed"]}
  assert_close(packed(model, zero, tokens_BT)[0], packed(plain, without, tokens_BT)[0])
