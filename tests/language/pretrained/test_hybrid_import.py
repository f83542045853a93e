"""A tiny hybrid checkpoint against what transformers computes from it, written back, and bad settings.

The folder was made by tests/record_hybrid.py; the tests need neither torch nor transformers.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.language.decoding import engine
from atlas_jax.language.pretrained import hf_config, hf_export, hf_import
from atlas_jax.models import language as languages
from tests import hf_fixture
from tests.helpers import assert_close, quick_compilation
from tests.language.pretrained.test_hf_import import continue_greedily

NAME = "qwen3_5_tiny"
FOLDER = hf_fixture.FOLDER / NAME


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


def test_logits_equal_the_reference_with_padding_on_either_side():
  tokens_BT, doc_BT, real_BT, expected_BTV = hf_fixture.batch(NAME)
  assert not real_BT[1, 0] and not real_BT[2, -1]
  model, params = hf_fixture.load(NAME)
  assert model.pattern == ("linear", "full")
  logits_BTV = np.asarray(hf_fixture.score(model, params, tokens_BT, doc_BT))
  assert np.abs(expected_BTV).max() > 1
  assert np.abs(logits_BTV - expected_BTV)[real_BT].max() < hf_fixture.TOLERANCE


@pytest.mark.parametrize("padding", ["left", "right"])
def test_greedy_continuation_with_a_cache_equals_the_reference(padding):
  recorded = hf_fixture.reference(NAME)
  tokens_BT, real_BT = recorded["greedy_prompt_ids"], recorded["greedy_prompt_mask"].astype(bool)
  if padding == "right":
    order_BT = np.argsort(~real_BT, axis=1, kind="stable")
    tokens_BT, real_BT = (np.take_along_axis(x, order_BT, axis=1) for x in (tokens_BT, real_BT))
  model, params = hf_fixture.load(NAME)
  doc_BT = jnp.where(real_BT, 0, -1).astype(jnp.int32)
  expected_BT = recorded["greedy_new_ids"]
  token_BT, logprob_BT = continue_greedily(
    model, params, jnp.asarray(tokens_BT, jnp.int32), doc_BT, expected_BT.shape[1])
  np.testing.assert_array_equal(token_BT, expected_BT)
  assert np.abs(np.asarray(logprob_BT) - recorded["greedy_logps"]).max() < hf_fixture.TOLERANCE


def test_prefill_then_decoding_gives_the_vectors_of_one_pass():
  """Rows of two lengths, as samplers hold them: the functions that a decoder has."""
  model, params = hf_fixture.load(NAME)
  language = languages.from_decoder(model)
  tokens_BT = hf_fixture.batch(NAME)[0][:2, :8]
  whole_BTD, _ = language.read(params, tokens_BT, jnp.zeros_like(tokens_BT))
  count_B = jnp.asarray([5, 3], jnp.int32)
  state, hidden_BD = language.prefill(params, tokens_BT[:, :5], count_B, room_tokens=16)
  for _ in range(3):
    rows_B = jnp.arange(2)
    assert_close(hidden_BD, whole_BTD[rows_B, count_B - 1])
    state, hidden_BD = language.decode(params, state, tokens_BT[rows_B, count_B])
    count_B = count_B + 1
  rows = engine.by_rows(lambda axis, leaf: leaf.shape[axis], language.row_axes, state)
  assert set(jax.tree.leaves(rows)) == {2}


def test_written_back_it_has_the_bytes_it_was_read_from(tmp_path):
  model, params = hf_fixture.load(NAME)
  hf_export.save(tmp_path / "out", model, params, like=FOLDER)
  for name in ("model.safetensors", "config.json"):
    assert (tmp_path / "out" / name).read_bytes() == (FOLDER / name).read_bytes(), name
  with pytest.raises(ValueError, match="a hybrid model is written as one that was read: give like=FOLDER"):
    hf_export.save(tmp_path / "new", model, params, max_tokens=8)


def changed(tmp_path, **changes):
  return hf_fixture.copy(FOLDER, tmp_path / "model", **changes) / "config.json"


def test_an_interval_and_a_list_of_layers_say_the_same(tmp_path):
  folder = changed(tmp_path, layer_types=None, full_attention_interval=2)
  assert hf_config.read(folder) == hf_config.read(FOLDER / "config.json")


def test_the_pattern_is_the_shortest_that_repeats(tmp_path):
  types = ["full_attention", "linear_attention", "linear_attention", "full_attention"]
  assert hf_config.read(changed(tmp_path, layer_types=types))[1]["pattern"] == (
    "full", "linear", "linear", "full")


REFUSED = [
  (dict(layer_types=["linear_attention"] * 3), "layer_types has 3 layers, num_hidden_layers is 4"),
  (dict(layer_types=["sliding_attention"] * 4), "layer_types has sliding_attention; supported are"),
  (dict(linear_num_value_heads=3), "linear_num_value_heads=3 is not a multiple of linear_num_key_heads=2"),
  (dict(linear_key_head_dim=0), "linear_key_head_dim"),
  (dict(rope_parameters={"partial_rotary_factor": 0.2}), "partial_rotary_factor=0.2 rotates 3 of 16"),
  (dict(rope_parameters={"rope_type": "linear", "factor": 2.0}), "rope_type='linear' is not supported"),
  (dict(hidden_act="gelu"), "hidden_act='gelu' is not supported"),
]


@pytest.mark.parametrize("changes, words", REFUSED)
def test_settings_that_are_not_supported_are_refused_by_name(tmp_path, changes, words):
  with pytest.raises(ValueError) as caught:
    hf_config.read(changed(tmp_path, **changes))
  assert words in str(caught.value) and "config.json" in str(caught.value)


def test_a_tensor_that_is_missing_is_named(tmp_path):
  file = changed(tmp_path, num_hidden_layers=6, layer_types=["linear_attention", "full_attention"] * 3)
  assert json.loads(file.read_text())["num_hidden_layers"] == 6
  with pytest.raises(ValueError, match=r"has no tensor 'model\.layers\.4\."):
    hf_import.load(str(file.parent))
