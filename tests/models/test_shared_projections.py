"""A memory whose queries, keys and values are projected by the attention beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.memory.layer import NO_DOC, Memory
from tests.helpers import PAPER, SHIFTED, assert_close, assert_grads, quick_compilation, tiny_lm
from tests.models.test_lm import DOCUMENTS, gradient_of, oracle, packed, stream

SHARED = dict(heads=2, key_dim=6, value_dim=6, qkv_source="attention")
FORMS = {
  "shifted": SHIFTED,
  "shifted, values of the input": SHIFTED | dict(value_source="input"),
  "paper": PAPER,
}


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


def shared(name, **fields):
  return tiny_lm(dtype="float64", memory=FORMS[name] | SHARED, **fields)


@pytest.mark.parametrize("name", FORMS)
def test_logits_equal_the_loop_and_a_text_read_in_calls(x64, name):
  model, params, tokens_BT = shared(name)
  assert "qkv_kernel" not in params["blocks"]["memory"]
  logits_BTV, _ = packed(model, params, tokens_BT, DOCUMENTS)
  expected_BTV = oracle(model, params, tokens_BT, DOCUMENTS)
  assert_close(logits_BTV[DOCUMENTS >= 0], expected_BTV[DOCUMENTS >= 0])
  whole_BTV, _ = packed(model, params, tokens_BT)
  first_BTV, state = stream(model, params, tokens_BT[:, :5])
  rest_BTV, _ = stream(model, params, tokens_BT[:, 5:], state)
  assert_close(jnp.concatenate([first_BTV, rest_BTV], axis=1), whole_BTV)


def test_the_gradient_reaches_the_projections_through_the_memory_too(x64):
  model, params, tokens_BT = shared("shifted")
  real, targets_BT1 = DOCUMENTS >= 0, np.roll(np.asarray(tokens_BT), -1, axis=1)[..., None]

  def loop(params):
    logits_BTV = oracle(model, params, tokens_BT, DOCUMENTS)
    nll_BT = np.log(np.exp(logits_BTV).sum(-1)) - np.take_along_axis(logits_BTV, targets_BT1, -1)[..., 0]
    return nll_BT[real].mean()

  _, gradient, _ = gradient_of(model, params, tokens_BT, DOCUMENTS)
  assert_grads(loop, params, gradient)


def test_the_convolutions_without_a_memory_share_them_too(x64):
  model, params, tokens_BT = shared("shifted", memory_mix="conv")
  assert "qkv_kernel" not in params["blocks"]["memory"]
  whole_BTV, _ = packed(model, params, tokens_BT)
  assert_close(stream(model, params, tokens_BT)[0], whole_BTV)


def test_a_memory_without_attention_beside_it_says_so():
  layer = Memory(**tiny_lm(memory=SHIFTED | SHARED)[0].memory, parent=None)
  x_BTD, doc_BT = jnp.zeros((1, 4, 12)), jnp.zeros((1, 4), jnp.int32)
  args = x_BTD, layer.zero_state(1), doc_BT, jnp.full(1, NO_DOC), None
  call = lambda key: layer.init(key, *args, mode="packed")
  with pytest.raises(ValueError, match="qkv_source='attention' needs an attention beside the memory"):
    jax.eval_shape(call, jax.random.key(0))
