"""Attention to the last window, a token at a time and many at once."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.models.attention import LocalAttention
from tests.helpers import assert_close, quick_compilation

W, H, D, T = 5, 3, 12, 11


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("seen", [None, 1, 3])
def test_token_by_token_is_all_at_once(rows, seen):
  """Over a document's end too, and with windows that are not full yet."""
  layer = LocalAttention(H, W)
  draw = np.random.default_rng(0)
  x_BTD = jnp.asarray(draw.normal(size=(rows, T, D)), jnp.float32)
  doc_BT = jnp.asarray(np.sort(draw.integers(0, 3, (rows, T)), axis=1), jnp.int32)
  start = layer.zero_state(rows, D, jnp.float32)
  seen = None if seen is None else jnp.int32(seen)
  params = layer.init(jax.random.key(1), x_BTD, start, doc_BT, None)
  whole_BTD, end, _ = layer.apply(params, x_BTD, start, doc_BT, None, seen)
  step = jax.jit(lambda x, state, doc: layer.apply(params, x, state, doc, None, seen))
  state, outs = start, []
  for t in range(T):
    out_BTD, state, _ = step(x_BTD[:, t:t + 1], state, doc_BT[:, t:t + 1])
    outs.append(out_BTD)
  assert_close(jnp.concatenate(outs, axis=1), whole_BTD, tolerance=1e-5)
  assert_close(state, end, tolerance=1e-6)
