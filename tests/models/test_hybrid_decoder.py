"""Hybrid decoders: any cut of a text into calls, padding, packed documents, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.models import head
from atlas_jax.models.hybrid_decoder import HybridDecoder
from tests.helpers import assert_close, assert_same_bits, quick_compilation

FIELDS = dict(
  vocab_size=17, width=16, depth=4, ff_width=24, pattern=("linear", "full"), heads=2, kv_heads=1, head_dim=8,
  rotary_dim=4, rope_base=10_000.0, key_heads=2, value_heads=4, key_dim=6, value_dim=5,
)  # fmt: skip
B, T, ROOM = 2, 11, 16


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


@functools.lru_cache
def drawn(**more):
  model = HybridDecoder(**FIELDS | more)
  params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  noise = np.random.default_rng(0)
  return model, jax.tree.map(lambda x: x + 0.1 * jnp.asarray(noise.normal(size=x.shape), x.dtype), params)


def tokens(seed=0, length=T):
  return jnp.asarray(np.random.default_rng(seed).integers(0, FIELDS["vocab_size"], (B, length)), jnp.int32)


@functools.partial(jax.jit, static_argnums=0, static_argnames="room_tokens")
def read(model, params, tokens_BT, cache=None, *, doc_BT=None, room_tokens=None):
  return model.apply({"params": params}, tokens_BT, cache, doc_BT=doc_BT, room_tokens=room_tokens)


@pytest.mark.parametrize("lengths", [(4, 7), (1, 1, 9)])
def test_calls_cut_anywhere_equal_one(lengths):
  model, params = drawn()
  whole = read(model, params, tokens(), room_tokens=ROOM)
  assert_close(whole.hidden_BTD, read(model, params, tokens()).hidden_BTD)
  cache, reads, start = None, [], 0
  for length in lengths:
    room = ROOM if cache is None else None
    out = read(model, params, tokens()[:, start : start + length], cache, room_tokens=room)
    cache, start = out.cache, start + length
    reads.append(out.hidden_BTD)
  assert_close(jnp.concatenate(reads, axis=1), whole.hidden_BTD)
  assert_close(cache, whole.cache)


def test_padding_leaves_no_trace_wherever_it_stands():
  """Also between two tokens of a document, over which a convolution would reach."""
  model, params = drawn()
  whole = read(model, params, tokens(), room_tokens=ROOM)
  at = np.array([0, 1, 2, 4, 5, 7, 8, 9, 11, 12, 13])
  doc_BS = jnp.full((B, 15), -1).at[:, at].set(0)
  padded = read(model, params, tokens(5, 15).at[:, at].set(tokens()), doc_BT=doc_BS, room_tokens=ROOM)
  assert_close(padded.hidden_BTD[:, at], whole.hidden_BTD)
  assert_close(padded.cache.parts[0], whole.cache.parts[0])
  np.testing.assert_array_equal(padded.cache.count_B, [T, T])
  none = read(model, params, tokens(5), whole.cache, doc_BT=jnp.full((B, T), -1))
  assert_same_bits(none.cache, whole.cache)


def test_packed_documents_equal_separate_ones():
  model, params = drawn()
  doc_BT = jnp.asarray(np.repeat([[3] * 5 + [8] * 6], B, axis=0), jnp.int32)
  packed = read(model, params, tokens(), doc_BT=doc_BT).hidden_BTD
  assert_close(packed[:, :5], read(model, params, tokens()[:, :5]).hidden_BTD)
  assert_close(packed[:, 5:], read(model, params, tokens()[:, 5:]).hidden_BTD)


def test_a_token_is_seen_from_its_place_on_and_never_before():
  model, params = drawn()
  before = read(model, params, tokens()).hidden_BTD
  after = read(model, params, tokens().at[:, 6].add(1)).hidden_BTD
  assert_same_bits(after[:, :6], before[:, :6])
  assert (np.asarray(after) != np.asarray(before))[:, 6:].any(axis=2).all()


def test_every_parameter_has_a_gradient():
  model, params = drawn()

  def loss(params):
    hidden_BTD = model.apply({"params": params}, tokens()).hidden_BTD
    return jnp.mean(jnp.square(head.logits(params, hidden_BTD)))

  for path, grad in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params)):
    assert np.isfinite(grad).all() and np.abs(grad).max() > 0, jax.tree_util.keystr(path)


def test_a_model_of_gated_delta_nets_alone_has_a_state_of_one_size():
  model, params = drawn(pattern=("linear",), depth=2)
  out = read(model, params, tokens(), room_tokens=3 * T)
  sizes = [jax.tree.map(np.shape, model.zero_cache(B, length)) for length in (1, 10_000)]
  assert sizes[0] == sizes[1] == jax.tree.map(np.shape, out.cache)


REFUSED = [
  (dict(pattern=("linear", "window")), "pattern=\\('linear', 'window'\\) must be of linear and full"),
  (dict(depth=3), "its length must divide depth=3"),
  (dict(value_heads=3), "value_heads=3 is not a multiple of key_heads=2"),
  (dict(rotary_dim=10), "rotary_dim=10 must be even, and at most head_dim=8"),
  (dict(remat="some"), "remat='some' is unknown"),
  (dict(lora={"rank": 2}), "config.lora.rank puts adapters into a decoder of full attention"),
]


@pytest.mark.parametrize("fields, words", REFUSED)
def test_fields_that_do_not_fit_are_refused(fields, words):
  with pytest.raises(ValueError, match=words):
    jax.eval_shape(HybridDecoder(**FIELDS | fields).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))


def test_a_text_beyond_the_room_is_refused():
  model, params = drawn()
  with pytest.raises(ValueError, match="11 tokens do not fit a cache of 4"):
    read(model, params, tokens(), room_tokens=4)
