"""Weights of the original are read by name; the parity tests show that they mean the same."""

import jax
import numpy as np
import pytest

from atlas_jax.puzzles import trm_import
from tests import trm_fixture as fixture
from tests.helpers import assert_same_bits


@pytest.mark.parametrize("name", ["model_att_rope", "model_mlp_t"])
def test_parameters_have_the_form_that_init_gives(name):
  model, params, reset, table_NE = fixture.loaded(name)
  inputs_BT = np.zeros((1, model.seq_len), np.int32)
  made = jax.eval_shape(model.init, jax.random.key(0), inputs_BT, table_NE[:1], model.zero_latents(1))
  assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
    lambda x: (x.shape, x.dtype), made["params"])  # fmt: skip
  assert [vector.shape for vector in reset] == [(model.width,)] * 2
  assert table_NE.shape == (7, model.row_width)


def test_the_prefix_of_a_saved_training_state_is_taken_off():
  model, params, *_ = fixture.loaded("model_mlp_t")
  saved = {f"_orig_mod.model.inner.{key}": value for key, value in fixture.weights("model_mlp_t").items()}
  assert_same_bits(trm_import.params_of(saved, model)[0], params)


@pytest.mark.parametrize("change, message", [
  (lambda named: named.pop("lm_head.weight"), "the weights have no 'lm_head.weight'"),
  (lambda named: named.update({"ema.inner.lm_head.weight": 0}), "'lm_head.weight' is there twice, once as"),
  (lambda named: named.update(more=np.zeros(2)), "the model has no place for more"),
  (lambda named: named.update({"puzzle_emb.weights": np.float32(1)}), r"emb.weights is of shape \(\), and"),
  (lambda named: named.update({"q_head.bias": np.zeros(3)}), r"q_head.bias is of shape \(3,\), but"),
])  # fmt: skip
def test_weights_of_another_model_are_refused(change, message):
  named = fixture.weights("model_mlp_t")
  change(named)
  with pytest.raises(ValueError, match=message):
    trm_import.params_of(named, fixture.model_of("model_mlp_t"))
