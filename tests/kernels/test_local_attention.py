"""Local attention: both forms against loops, at every edge of window, tail, document and block."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.kernels.local_attention import FORMS, local_attention
from tests import oracles
from tests.helpers import assert_close, assert_grads, assert_same_bits, quick_compilation, trace_counter


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


B, H, K = 2, 3, 4
every_form = pytest.mark.parametrize("impl", sorted(set(FORMS) - {"cudnn", "xla"}))

every_traced_form = pytest.mark.parametrize("impl", sorted(set(FORMS) - {"cudnn"}))

attend = jax.jit(local_attention, static_argnames=("window_tokens", "impl"))


def inputs(length, tail, *, dtype="float32", seed=0):
  draw = np.random.default_rng(seed)
  q_BTHK = jnp.asarray(draw.normal(size=(B, length, H, K)), dtype)
  k_BSHK, v_BSHK = (jnp.asarray(draw.normal(size=(B, tail + length, H, K)), dtype) for _ in range(2))
  return q_BTHK, k_BSHK, v_BSHK


def one_document(length, tail):
  return jnp.zeros((B, length), jnp.int32), jnp.zeros((B, tail + length), jnp.int32)


def packed_documents(length, tail):
  """Row 0: documents of three rows, then padding; row 1: one since the tail, whose oldest rows are empty."""
  doc_BS = np.zeros((B, tail + length), np.int32)
  doc_BS[0] = np.arange(tail + length) // 3
  doc_BS[0, -2:], doc_BS[1, : tail // 2] = -1, -2
  return jnp.asarray(doc_BS[:, tail:]), jnp.asarray(doc_BS)


@pytest.mark.core
@every_form
@pytest.mark.parametrize(
  "length,tail,window_tokens", [(9, 0, 1), (9, 4, 4), (8, 3, 4), (9, 6, 4), (5, 7, 7), (1, 4, 4)]
)
@pytest.mark.parametrize("documents", [one_document, packed_documents], ids=["one", "packed"])
def test_attention_equals_the_loop(x64, impl, length, tail, window_tokens, documents):
  arrays, docs = inputs(length, tail, dtype="float64"), documents(length, tail)
  actual = attend(*arrays, *docs, window_tokens=window_tokens, impl=impl)
  assert_close(
    actual, oracles.local_attention(*arrays, *(np.asarray(x) for x in docs), window_tokens=window_tokens)
  )


@every_form
def test_a_window_as_long_as_the_text_is_full_causal_attention(impl):
  q_BTHK, k_BTHK, v_BTHK = inputs(7, 0)
  full = jax.nn.dot_product_attention(q_BTHK, k_BTHK, v_BTHK, is_causal=True)
  for window_tokens in (7, 9):
    assert_close(
      attend(q_BTHK, k_BTHK, v_BTHK, *one_document(7, 0), window_tokens=window_tokens, impl=impl), full
    )


@every_form
def test_nothing_outside_window_or_document_changes_a_bit(impl):
  """Key and value of row 5 reach the queries from 5 to 5 + window - 1 of their document: these change."""
  (q_BTHK, k_BTHK, v_BTHK), (doc_BT, _) = inputs(12, 0), packed_documents(12, 0)
  run = lambda k, v: np.asarray(attend(q_BTHK, k, v, doc_BT, doc_BT, window_tokens=4, impl=impl))
  before, after = run(k_BTHK, v_BTHK), run(k_BTHK.at[:, 5].add(1.0), v_BTHK.at[:, 5].add(1.0))
  for b in range(B):
    reached = [t for t in range(5, 9) if doc_BT[b, t] == doc_BT[b, 5]]
    assert (after[b, reached] != before[b, reached]).all()
    others = [t for t in range(12) if t not in reached]
    assert_same_bits(after[b, others], before[b, others])


def test_both_forms_have_the_same_gradients(x64):
  arrays, docs = inputs(9, 4, dtype="float64"), packed_documents(9, 4)

  def total(impl, arrays):
    return jnp.sum(jnp.sin(local_attention(*arrays, *docs, window_tokens=4, impl=impl)))

  actual, expected = (
    jax.jit(jax.grad(functools.partial(total, impl)))(arrays) for impl in ("chunked", "reference")
  )
  assert_close(actual, expected)
  assert all(np.isfinite(x).all() and np.asarray(x).any() for x in actual)


def test_the_reference_gradient_equals_finite_differences_of_the_loop(x64):
  arrays, docs = inputs(4, 2, dtype="float64"), one_document(4, 2)
  weight_BTHK = np.random.default_rng(1).normal(size=arrays[0].shape)
  total = lambda attend, arrays: (weight_BTHK * attend(*arrays, *docs, window_tokens=3)).sum()
  gradient = jax.jit(jax.grad(functools.partial(total, local_attention)))(arrays)
  assert_grads(functools.partial(total, oracles.local_attention), arrays, gradient)


@every_form
def test_bfloat16_inputs_give_bfloat16_near_float32(impl):
  arrays, docs = inputs(9, 4), one_document(9, 4)
  exact = attend(*arrays, *docs, window_tokens=4, impl=impl)
  rough = attend(*(x.astype(jnp.bfloat16) for x in arrays), *docs, window_tokens=4, impl=impl)
  assert rough.dtype == jnp.bfloat16
  assert_close(rough.astype(jnp.float32), exact, tolerance=3e-2)


@every_form
def test_scores_beyond_the_range_of_exp_give_finite_outputs_and_gradients(impl):
  (q_BTHK, k_BSHK, v_BSHK), docs = inputs(9, 4), packed_documents(9, 4)
  total = lambda q, k: jnp.sum(attend(1e3 * q, k, v_BSHK, *docs, window_tokens=4, impl=impl) ** 2)
  value, gradient = jax.value_and_grad(total, (0, 1))(q_BTHK, k_BSHK)
  assert np.isfinite(value) and all(np.isfinite(x).all() for x in gradient)


@every_traced_form
@pytest.mark.parametrize("length,tail", [(9, 4), (9, 6), (1, 4)])
def test_fewer_tokens_seen_are_a_shorter_window_in_outputs_and_gradients(impl, length, tail):
  """In float32, as the library's form has its softmax; one compilation serves all lengths."""
  arrays, docs = inputs(length, tail), packed_documents(length, tail)

  def total(arrays, seen_tokens, window_tokens, impl):
    fields = dict(window_tokens=window_tokens, seen_tokens=seen_tokens, impl=impl)
    out_BTHK = local_attention(*arrays, *docs, **fields)
    return jnp.sum(jnp.sin(out_BTHK)), out_BTHK

  grads = jax.value_and_grad(total, has_aux=True)
  narrowed, traces = trace_counter(lambda arrays, seen_tokens: grads(arrays, seen_tokens, 4, impl))
  for seen_tokens in (1, 2, 4):
    expected = grads(arrays, None, seen_tokens, "reference")
    assert_close(narrowed(arrays, jnp.int32(seen_tokens)), expected, why=f"{seen_tokens} of 4")
  assert len(traces) == 1


@pytest.mark.parametrize("seen_tokens", [0, 5])
def test_a_number_of_tokens_seen_that_no_window_holds_is_refused(seen_tokens):
  with pytest.raises(ValueError, match=f"seen_tokens={seen_tokens} must be from 1 to window_tokens=4"):
    local_attention(*inputs(4, 0), *one_document(4, 0), window_tokens=4, seen_tokens=seen_tokens)


def test_auto_gives_what_the_forms_give():
  for length, window_tokens in ((9, 4), (4, 9)):
    arrays, docs = inputs(length, 0), one_document(length, 0)
    assert_close(
      *(attend(*arrays, *docs, window_tokens=window_tokens, impl=impl) for impl in ("auto", "reference"))
    )


def test_an_unknown_form_is_refused_with_the_known_ones():
  with pytest.raises(ValueError, match="chunked"):
    local_attention(*inputs(4, 0), *one_document(4, 0), window_tokens=2, impl="flash")


@pytest.mark.parametrize("dtype,said", [("float32", "bfloat16, float16"), ("bfloat16", "multiple of 8")])
def test_cudnn_is_refused_where_it_cannot_run(dtype, said, monkeypatch):
  arrays, docs = inputs(6, 0, dtype=dtype), one_document(6, 0)
  with pytest.raises(ValueError, match="NVIDIA GPU.*chunked"):
    local_attention(*arrays, *docs, window_tokens=3, impl="cudnn")
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  with pytest.raises(ValueError, match=said):
    local_attention(*arrays, *docs, window_tokens=3, impl="cudnn")


@pytest.mark.parametrize("length,tail,window_tokens", [(9, 4, 4), (1, 4, 4)])
def test_the_form_of_the_library_equals_the_definition_in_float32(length, tail, window_tokens):
  """Its softmax is in float32 whatever the inputs, so that float64 would not tell more."""
  arguments = (*inputs(length, tail), *packed_documents(length, tail))
  assert_close(*(attend(*arguments, window_tokens=window_tokens, impl=impl) for impl in ("xla", "reference")))
