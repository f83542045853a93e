"""Checks of how a language model reads, for whoever has one: cut calls, documents, causality."""

import jax.numpy as jnp
import numpy as np

from tests.helpers import assert_close, assert_same_bits
from tests.models.test_lm import DOCUMENTS, packed, stream


def check_cut_calls(model, params, tokens_BT):
  """Calls of one shape, whose first tokens count, equal one parallel pass; returns both states."""
  whole_BTV, whole = packed(model, params, tokens_BT)
  state, outs, start = None, [], 0
  for length in (1, 2, 6, 3):
    part_BT = jnp.full((2, 12), 31, jnp.int32).at[:, :length].set(tokens_BT[:, start : start + length])
    out_BTV, state = stream(model, params, part_BT, state, jnp.full(2, length, jnp.int32))
    outs.append(out_BTV[:, :length])
    start += length
  assert_close((jnp.concatenate(outs, axis=1), state), (whole_BTV, whole))
  return state, whole


def check_documents(model, params, tokens_BT):
  """Packed documents are read as if alone, and across segments."""
  together_BTV, _ = packed(model, params, tokens_BT, DOCUMENTS)
  for b, start, stop in ((0, 0, 6), (0, 8, 11), (1, 4, 12)):
    doc_BT = jnp.where(jnp.arange(12)[None] < stop - start, jnp.zeros((2, 12), jnp.int32), -1)
    alone_BTV, _ = packed(model, params, jnp.roll(tokens_BT, -start, axis=1), doc_BT)
    assert_close(together_BTV[b, start:stop], alone_BTV[b, : stop - start], why=f"row {b} from {start}")
  state, outs = None, []
  for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
    out_BTV, state = packed(model, params, tokens_BT[:, part], DOCUMENTS[:, part], state)
    outs.append(np.asarray(out_BTV))
  assert_close(np.concatenate(outs, axis=1)[DOCUMENTS >= 0], np.asarray(together_BTV)[DOCUMENTS >= 0])


def check_causality(model, params, tokens_BT):
  """A token changes nothing before it, and something from it on."""
  other_BT = tokens_BT.at[:, 5].set((tokens_BT[:, 5] + 1) % model.vocab_size)
  before, after = (np.asarray(packed(model, params, x)[0]) for x in (tokens_BT, other_BT))
  assert_same_bits(after[:, :5], before[:, :5])
  assert (after[:, 5] != before[:, 5]).any()
