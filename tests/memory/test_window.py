"""The rows of a window across chunk borders and padding, against a list."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.memory import window
from atlas_jax.memory.types import Token
from tests.helpers import assert_close

C, K, M = 4, 3, 2


def rows_of(pairs, size):
  """Rows that hold these (key, value) pairs, newest last."""
  rows = window.empty(size, K, M, jnp.float64)
  for k, v in pairs[-size:] if size else []:
    kept = window.append(rows, Token(jnp.zeros(K), jnp.asarray(k), jnp.asarray(v)))
    rows = jax.tree.map(lambda x: x[1:], kept)
  return rows


def pairs_of(rows):
  return [(np.asarray(k), np.asarray(v)) for k, v, here in zip(*rows) if here > 0]


@pytest.mark.parametrize("write_C", [[1, 1, 1, 1], [1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0]], ids=str)
@pytest.mark.parametrize("before", [0, 2, 9])
@pytest.mark.parametrize("size", [1, 3, 4, 7])
def test_each_token_reaches_the_last_real_tokens_weighed_by_how_long_ago_they_were(
  x64, size, before, write_C
):
  draw = np.random.default_rng(0)
  old = [(draw.normal(size=K), draw.normal(size=M)) for _ in range(before)]
  tokens = Token(*(jnp.asarray(draw.normal(size=(C, width))) for width in (K, K, M)))
  context_CW = draw.uniform(0.1, 1, size=(C, size))
  every, weight_CS, keep = window.reach(
    rows_of(old, size - 1), tokens, jnp.asarray(context_CW), jnp.asarray(write_C, jnp.float64)
  )
  read = list(old)
  for t in range(C):
    if write_C[t]:
      read.append((np.asarray(tokens.k[t]), np.asarray(tokens.v[t])))
      outer = [context_CW[t, lag] * np.outer(*pair) for lag, pair in enumerate(read[::-1][:size])]
      found = np.einsum(
        "s,sk,sm->km", np.asarray(weight_CS[t]), np.asarray(every.k_WK), np.asarray(every.v_WM)
      )
      assert_close(found, sum(outer), why=f"token {t}")
  kept = read[len(read) - min(len(read), size - 1) :]
  assert len(pairs_of(keep)) == len(kept)
  assert_close(pairs_of(keep), kept, why="rows for the next chunk")
  absent = np.asarray(keep.here_W) == 0
  assert not np.asarray(keep.k_WK)[absent].any() and not np.asarray(keep.v_WM)[absent].any()


def test_what_stands_at_padding_and_before_the_text_weighs_nothing(x64):
  tokens = Token(*(jnp.full((C, width), 1e6) for width in (K, K, M)))
  _, weight_CS, keep = window.reach(
    rows_of([], 2), tokens, jnp.ones((C, 3)), jnp.asarray([0, 1, 0, 0], jnp.float64)
  )
  weight_CS = np.asarray(weight_CS)
  assert not weight_CS[:, :2].any(), "rows before the text"
  assert not weight_CS[:, [2, 4, 5]].any(), "padding"
  assert_close(weight_CS[1:, 3], np.ones(3) * 1.0)
  assert np.asarray(keep.here_W).tolist() == [0, 1]
