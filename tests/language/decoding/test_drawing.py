"""The choice of the next id in slots: penalties, biases, lists, and rows that know nothing of others."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.language.decoding import drawing
from tests.helpers import quick_compilation
from tests.language.decoding.serving import request

V = 23


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


@functools.cache
def drawn():
  return jax.jit(drawing.draw)


def stacked(requests):
  states = [drawing.start(asked, number, V) for number, asked in enumerate(requests)]
  return jax.tree.map(lambda *rows: jnp.concatenate([jnp.asarray(row) for row in rows]), *states)


def scores(rows, seed=0):
  return jnp.asarray(2 * np.random.default_rng(seed).normal(size=(rows, V)), jnp.float32)


REQUESTS = [request([1, 2, 3]), request([4], temperature=0.0, top_logprobs=4),
            request([5, 6], temperature=0.7, top_k=5, presence_penalty=1.5),
            request([7], top_p=0.6, repetition_penalty=1.7, logit_bias={3: 5.0, 4: -50}),
            request([8], min_p=0.05, frequency_penalty=0.8, seed=2**64 - 1)]


def test_rows_draw_the_same_whoever_else_is_there():
  """To the last bit: of five rows each, in another order and beside others."""
  state, logits_BV = stacked(REQUESTS), scores(5)
  for _ in range(3):
    state, ids = drawn()(logits_BV, state)
  order = np.array([4, 2, 0, 1, 3])
  turned = jax.tree.map(lambda x: x[order], stacked(REQUESTS))
  for _ in range(3):
    turned, moved = drawn()(logits_BV[order], turned)
  for name in ids._fields:
    np.testing.assert_array_equal(getattr(ids, name)[order], getattr(moved, name))
  # Without the row that lists its likeliest ids the others draw the same.
  unlisted = stacked(REQUESTS)._replace(lists_B=jnp.zeros(5, bool))
  for _ in range(3):
    unlisted, others = drawn()(logits_BV, unlisted)
  np.testing.assert_array_equal(ids.token_B, others.token_B)
  np.testing.assert_array_equal(ids.sampler_logprob_B, others.sampler_logprob_B)


def repeated(x, seen):
  """Returns scores under a repetition penalty of 2."""
  return np.where(seen, np.where(x > 0, x / 2, x * 2), x)


@pytest.mark.parametrize("fields, formula", [
    (dict(presence_penalty=1.5), lambda x, count, prompt: x - 1.5 * (count > 0)),
    (dict(frequency_penalty=-0.8), lambda x, count, prompt: x + 0.8 * count),
    (dict(logit_bias={3: 5.0, 4: -50}), lambda x, count, prompt: x + 5.0 * (np.arange(V) == 3)
     - 50.0 * (np.arange(V) == 4)),
    (dict(repetition_penalty=2.0), lambda x, count, prompt: repeated(x, (count > 0) | prompt)),
    (dict(repetition_penalty=2.0, presence_penalty=1.0, logit_bias={2: 1.0}),
     lambda x, count, prompt: repeated(x + (np.arange(V) == 2), (count > 0) | prompt) - (count > 0))])
def test_scores_are_changed_as_the_field_defines_it(fields, formula):
  """Read off the log-probability of what was drawn, over many draws."""
  asked = request([2, 9], **fields)
  state, count, prompt = stacked([asked]), np.zeros(V), np.isin(np.arange(V), [2, 9])
  for seed in range(12):
    logits_BV = scores(1, seed)
    state, ids = drawn()(logits_BV, state)
    changed = formula(np.asarray(logits_BV[0], np.float64), count, prompt)
    token = int(ids.token_B[0])
    expected = changed[token] - np.log(np.exp(changed).sum())
    np.testing.assert_allclose(ids.sampler_logprob_B[0], expected, atol=1e-5)
    raw = np.asarray(logits_BV[0], np.float64)
    np.testing.assert_allclose(ids.logprob_B[0], raw[token] - np.log(np.exp(raw).sum()), atol=1e-5)
    count[token] += 1


def test_the_likeliest_ids_are_listed_by_the_models_own_scores():
  state = stacked([request([1], top_logprobs=5, temperature=0.2, logit_bias={0: 99})])
  _, ids = drawn()(scores(1), state)
  logprob = np.asarray(jax.nn.log_softmax(scores(1)[0]))
  order = np.argsort(-logprob)[:20]
  np.testing.assert_array_equal(ids.top_BE[0], order)
  np.testing.assert_allclose(ids.top_logprob_BE[0], logprob[order], atol=1e-5)


def test_only_allowed_ids_are_drawn_and_one_must_be():
  allowed_V = np.isin(np.arange(V), [4, 17])
  state = stacked([request([1])])._replace(
      bias_BV=jnp.asarray(drawing.with_allowed(np.zeros(V, np.float32), allowed_V)[None]))
  found = set()
  for seed in range(20):
    state, ids = drawn()(scores(1, seed), state)
    found.add(int(ids.token_B[0]))
  assert found == {4, 17}
  with pytest.raises(ValueError, match="leaves no id that may come next"):
    drawing.with_allowed(np.zeros(V, np.float32), np.zeros(V, bool))
  with pytest.raises(ValueError, match="float64 of shape"):
    drawing.with_allowed(np.zeros(V, np.float32), np.ones(V))


def test_scores_that_are_no_numbers_are_told():
  state = stacked([request([1]), request([1])])
  _, ids = drawn()(scores(2).at[1, 3].set(jnp.nan), state)
  assert ids.finite_B.tolist() == [True, False]
