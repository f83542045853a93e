"""Attention that sees less than its window: as a model of that window, in every mode, by one compilation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.models import head, lm
from tests.helpers import SHIFTED, assert_close, quick_compilation, tiny_lm, trace_counter
from tests.models.test_lm import DOCUMENTS, wide_as

LENGTHS = (1, 2, 3, 6)
MODELS = {
  "memory": dict(memory=SHIFTED, memory_layers=(1,)),
  "none": dict(memory_mix="none"),
  "remat": dict(memory=SHIFTED, remat="block"),
}


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


def read(model, params, tokens_BT, seen_tokens, mode="packed"):
  """Logits of a text read by three calls."""
  state, outs = wide_as(params, model.zero_state(2)), []
  for start in (0, 4, 8):
    given = {"doc_BT": jnp.asarray(DOCUMENTS[:, start:start + 4])} if mode == "packed" else {}
    out = model.apply({"params": params}, tokens_BT[:, start:start + 4], state, **given,
                      seen_tokens=seen_tokens, mode=mode)  # fmt: skip
    state = out.state
    outs.append(head.logits(params, out.hidden_BTD))
  return jnp.concatenate(outs, axis=1)


@pytest.mark.core
@pytest.mark.parametrize("mode", lm.MODES)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_sees_less_is_a_model_of_that_window(x64, name, mode):
  model, params, tokens_BT = tiny_lm(dtype="float64", **MODELS[name] | dict(window_tokens=6))
  narrowed, traces = trace_counter(lambda seen_tokens: read(model, params, tokens_BT, seen_tokens, mode))
  real_BT = DOCUMENTS >= 0 if mode == "packed" else np.ones_like(DOCUMENTS, bool)
  found = {}
  for length in LENGTHS:
    found[length] = np.asarray(narrowed(jnp.int32(length)))[real_BT]
    other = model.clone(window_tokens=length)
    alone_BTV = jax.jit(read, static_argnums=(0, 4))(other, params, tokens_BT, None, mode)
    assert_close(found[length], np.asarray(alone_BTV)[real_BT], why=f"{length} of 6")
  assert len(traces) == 1
  assert np.abs(found[1] - found[6]).max() > 1e-3


def test_gradients_are_those_of_a_model_of_that_window(x64):
  model, params, tokens_BT = tiny_lm(dtype="float64", **MODELS["memory"] | dict(window_tokens=6))
  total = lambda model, params, seen_tokens: jnp.sum(jnp.sin(read(model, params, tokens_BT, seen_tokens)))
  narrowed = jax.jit(lambda params: jax.grad(total, argnums=1)(model, params, jnp.int32(3)))
  alone = jax.jit(lambda params: jax.grad(total, argnums=1)(model.clone(window_tokens=3), params, None))
  assert_close(narrowed(params), alone(params))
