"""The pretrained decoder: packed and separate, cached and whole, run options that change nothing, limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import tree
from atlas_jax.models import decoder, head, lora, rope
from tests.helpers import assert_close, assert_same_bits, quick_compilation

FIELDS = dict(vocab_size=29, width=12, depth=3, heads=4, kv_heads=2, head_dim=6, ff_width=10)
ADAPTERS = dict(rank=2, alpha=5, targets=("q", "v", "out", "down"), scaling="rank")
TOKENS_BT = np.random.default_rng(1).integers(0, 29, (2, 12)).astype(np.int32)


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


def frozen(**settings):
  """Returns settings that can be hashed."""
  return decoder.nn.FrozenDict(settings)


@functools.lru_cache
def tiny(**fields):
  """Returns a decoder with every part that a family may have, and random parameters, biases among them."""
  model = decoder.Decoder(**{**FIELDS, "qk_norm": True, "qkv_bias": True, "mlp_bias": True, **fields})
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  draw = np.random.default_rng(2)
  return model, jax.tree.map(lambda leaf: jnp.asarray(draw.normal(0, 0.4, leaf.shape), jnp.float32), shapes)


@functools.partial(jax.jit, static_argnums=0, static_argnames="room_tokens")
def read(model, params, tokens_BT, cache=None, doc_BT=None, position_BT=None, *, room_tokens=None):
  return model.apply({"params": params}, tokens_BT, cache, doc_BT=doc_BT, position_BT=position_BT,
                     room_tokens=room_tokens)


@functools.partial(jax.jit, static_argnums=0)
def grads(model, params):
  """Returns a loss that every parameter enters, and its gradients."""
  def loss(params):
    hidden_BTD = model.apply({"params": params}, TOKENS_BT).hidden_BTD
    return jnp.mean(jnp.square(head.logits(params, hidden_BTD)))
  return jax.value_and_grad(loss)(params)


def test_packed_documents_are_read_as_separate_ones():
  model, params = tiny()
  doc_BT = np.array([[3, 3, 3, 3, 3, -1, -1, 7, 7, 7, 7, 7], [0, 0, 1, 1, 1, 1, 1, -1, 2, 2, 2, 2]], np.int32)
  packed_BTD = read(model, params, TOKENS_BT, None, doc_BT).hidden_BTD
  for row, first, last in ((0, 0, 5), (0, 7, 12), (1, 0, 2), (1, 2, 7), (1, 8, 12)):
    alone = np.zeros((1, 12), np.int32)
    alone[0, : last - first] = TOKENS_BT[row, first:last]
    hidden_BTD = read(model, params, alone).hidden_BTD
    assert_close(packed_BTD[row, first:last], hidden_BTD[0, : last - first])


@pytest.mark.parametrize("side", ["left", "right", "scattered"])
def test_rows_of_any_length_read_on_with_a_cache_equal_whole_texts(side):
  model, params = tiny()
  whole_BTD = read(model, params, TOKENS_BT).hidden_BTD
  real_BT = {"left": [[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]], "right": [[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]],
             "scattered": [[1, 0, 1, 0, 0], [0, 1, 1, 0, 1]]}[side]
  real_BT = np.array(real_BT, bool)
  tokens_BT = np.full((2, 5), 11, np.int32)
  for row in range(2):
    tokens_BT[row, real_BT[row]] = TOKENS_BT[row, : real_BT[row].sum()]
  out = read(model, params, tokens_BT, None, np.where(real_BT, 0, -1), room_tokens=12)
  for row in range(2):
    assert_close(out.hidden_BTD[row, real_BT[row]], whole_BTD[row, : real_BT[row].sum()])
  np.testing.assert_array_equal(out.cache.count_B, real_BT.sum(1))
  for step in range(7):
    count_B = np.asarray(out.cache.count_B)
    out = read(model, params, TOKENS_BT[np.arange(2), count_B][:, None], out.cache)
    assert_close(out.hidden_BTD[:, 0], whole_BTD[np.arange(2), count_B], why=f"step {step} ")


def test_a_row_that_is_done_leaves_its_cache_as_it_was():
  model, params = tiny()
  before = read(model, params, TOKENS_BT[:, :5], room_tokens=12).cache
  after = read(model, params, TOKENS_BT[:, 5:6], before, np.array([[0], [-1]])).cache
  np.testing.assert_array_equal(after.count_B, [6, 5])
  assert_same_bits(after.k[:, 1], before.k[:, 1])
  assert np.any(np.asarray(after.k[:, 0] != before.k[:, 0]))


def test_completions_of_one_prompt_go_on_from_copies_of_its_row():
  model, params = tiny()
  start = read(model, params, TOKENS_BT[:, :5], room_tokens=12).cache
  row_B = np.array([1, 0, 1])
  cache = jax.tree.map(lambda x, axis: jnp.take(x, row_B, axis), start, decoder.ROW_AXES)
  hidden_BTD = read(model, params, np.repeat(TOKENS_BT[:1, 5:6], 3, axis=0), cache).hidden_BTD
  assert_same_bits(hidden_BTD[0], hidden_BTD[2])
  texts = np.array(TOKENS_BT)
  texts[:, 5] = TOKENS_BT[0, 5]
  assert_close(hidden_BTD[:2, 0], read(model, params, texts).hidden_BTD[::-1, 5])


@pytest.mark.parametrize("fields", [
  dict(remat="block"), dict(remat="dots"), dict(scan_unroll=3), dict(attention_block_tokens=4),
  dict(attention_block_tokens=5)])  # Two blocks of twelve tokens, and two tokens that are left.
def test_how_a_model_is_run_changes_neither_loss_nor_gradient(fields):
  model, params = tiny()
  assert_close(grads(model.copy(**fields), params), grads(model, params))


def test_activations_may_be_narrow():
  model, params = tiny()
  narrow = read(model.copy(dtype="bfloat16"), params, TOKENS_BT, room_tokens=12)
  assert narrow.hidden_BTD.dtype == narrow.cache.k.dtype == jnp.bfloat16
  wide_BTD = read(model, params, TOKENS_BT).hidden_BTD
  # Three blocks of products in 8 bits of mantissa.
  assert_close(narrow.hidden_BTD.astype(jnp.float32), wide_BTD, tolerance=0.1)


def test_the_preset_of_ranked_training_has_its_number_of_parameters():
  model = decoder.Decoder(vocab_size=52_000, width=1536, depth=36, heads=24, kv_heads=24, head_dim=64,
                          ff_width=4096, tied=True, learned_positions=2048)
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  assert tree.count(shapes) == 1_102_345_728


def test_learned_positions_start_anew_with_each_document():
  model, params = tiny(learned_positions=12)
  doc_BT = np.array([[0] * 12, [4] * 5 + [9] * 7], np.int32)
  packed_BTD = read(model, params, TOKENS_BT, None, doc_BT).hidden_BTD
  moved = np.concatenate([TOKENS_BT[:, 5:], TOKENS_BT[:, :5]], axis=1)
  assert_close(packed_BTD[1, 5:], read(model, params, moved).hidden_BTD[1, :7])
  cache = read(model, params, TOKENS_BT[:, :5], room_tokens=12).cache
  assert_close(read(model, params, TOKENS_BT[:, 5:], cache).hidden_BTD[0], packed_BTD[0, 5:])


def test_fields_and_arguments_that_contradict_are_refused():
  model, params = tiny()
  refused = [(model.copy(kv_heads=3), {}, "heads=4 is not a multiple of kv_heads=3"),
             (model.copy(head_dim=5), {}, "head_dim=5 must be even"),
             (model.copy(remat="all"), {}, "remat='all' is unknown; known are none"),
             (model, dict(room_tokens=11), "12 tokens do not fit a cache of 11"),
             (model, dict(cache=model.zero_cache(2, 12), room_tokens=12), "room_tokens=12 starts a cache")]
  for bad, arguments, message in refused:
    with pytest.raises(ValueError, match=message):
      jax.eval_shape(functools.partial(bad.apply, **arguments), {"params": params}, TOKENS_BT)


def test_linear_scaling_turns_as_far_as_at_nearer_positions():
  speed_K, factor = rope.inverse_frequencies(6, 100.0, dict(rope_type="linear", factor=4.0))
  assert factor == 1
  np.testing.assert_allclose(speed_K * 4, rope.inverse_frequencies(6, 100.0, None)[0], rtol=1e-6)


def yarn_oracle(head_dim, base, factor, length, fast=32, slow=1):
  """Walks over pairs: those that turn often in `length` tokens keep their speed, slow ones are slowed."""
  place_of = lambda turns: head_dim * np.log(length / (turns * 2 * np.pi)) / (2 * np.log(base))
  first, last = max(np.floor(place_of(fast)), 0), min(np.ceil(place_of(slow)), head_dim - 1)
  speeds = []
  for pair in range(head_dim // 2):
    speed = base ** (-2 * pair / head_dim)
    slowed = min(max((pair - first) / (last - first), 0), 1)
    speeds.append((1 - slowed) * speed + slowed * speed / factor)
  return speeds


def test_yarn_keeps_fast_pairs_slows_slow_ones_and_sharpens_attention():
  scaling = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=512)
  speed_K, factor = rope.inverse_frequencies(64, 10_000.0, scaling)
  np.testing.assert_allclose(speed_K, yarn_oracle(64, 10_000.0, 4.0, 512), rtol=1e-5)
  plain_K, _ = rope.inverse_frequencies(64, 10_000.0, None)
  assert speed_K[0] == plain_K[0]
  np.testing.assert_allclose(speed_K[-1] * 4, plain_K[-1], rtol=1e-6)
  assert factor == pytest.approx(0.1 * np.log(4) + 1)
  assert rope.inverse_frequencies(64, 10_000.0, {**scaling, "attention_factor": 1.5})[1] == 1.5


def test_a_scaled_model_sees_distances_only():
  model, params = tiny(rope_scaling=frozen(rope_type="yarn", factor=2.0, original_max_position_embeddings=8))
  at_BT = jnp.broadcast_to(jnp.arange(12)[None], (2, 12))
  near_BTD = read(model, params, TOKENS_BT, None, None, at_BT).hidden_BTD
  assert_close(read(model, params, TOKENS_BT, None, None, at_BT + 5).hidden_BTD, near_BTD)


def adapted():
  model, both = tiny(lora=frozen(**ADAPTERS))
  return model, *lora.split(both)


def test_adapters_and_base_join_to_the_whole():
  model, adapters, base = adapted()
  _, both = tiny(lora=frozen(**ADAPTERS))
  assert_same_bits(lora.join(adapters, base), both)
  names = {name for name, _ in tree.named_leaves(adapters)}
  projections = ("attention/q", "attention/v", "attention/out", "mlp/down")
  assert names == {f"blocks/{one}/{part}" for one in projections for part in ("lora_a", "lora_b")}
  assert not names & {name for name, _ in tree.named_leaves(base)}
  assert tree.count(base) == tree.count(tiny()[1])


def test_fresh_adapters_change_nothing():
  model, _, base = adapted()
  fresh = lora.start(model, jax.random.key(4))
  assert_same_bits(read(model, lora.join(fresh, base), TOKENS_BT).hidden_BTD,
                   read(tiny()[0], base, TOKENS_BT).hidden_BTD)
  # The deviation of A by which x A is smaller than x by the root of three.
  assert 0.5 < np.std(fresh["blocks"]["mlp"]["down"]["lora_a"]) * (3 * 10) ** 0.5 < 1.5


@pytest.mark.parametrize("scaling", lora.SCALINGS)
def test_merged_adapters_compute_what_adapters_beside_do(scaling):
  model, adapters, base = adapted()
  model = model.copy(lora={**ADAPTERS, "scaling": scaling})
  merged = lora.merge(lora.join(adapters, base), model.lora)
  assert jax.tree.structure(merged) == jax.tree.structure(base)
  beside_BTD = read(model, lora.join(adapters, base), TOKENS_BT).hidden_BTD
  assert_close(read(tiny()[0], merged, TOKENS_BT).hidden_BTD, beside_BTD)
  assert np.abs(np.asarray(beside_BTD - read(tiny()[0], base, TOKENS_BT).hidden_BTD)).max() > 0.1


def test_training_adapters_needs_and_changes_no_base():
  model, adapters, base = adapted()

  @jax.jit
  def step(adapters, base):
    def loss(adapters):
      out = model.apply({"params": lora.join(adapters, base)}, TOKENS_BT)
      return jnp.mean(jnp.square(out.hidden_BTD))
    value, gradient = jax.value_and_grad(loss)(adapters)
    return value, jax.tree.map(lambda x, grad: x - 0.1 * grad, adapters, gradient)

  first, after = step(adapters, base)
  assert jax.tree.structure(after) == jax.tree.structure(adapters)
  assert step(after, base)[0] < first


@pytest.mark.parametrize("changes, message", [
  (dict(rank=0), "lora.rank=0 must be at least 1"), (dict(targets=("q", "x")), "must be some of q, k, v"),
  (dict(targets=()), "must be some of"), (dict(scaling="none"), "lora.scaling='none' is unknown"),
  (dict(dropout=0.1), "it needs alpha, rank, scaling, targets")])
def test_adapters_that_cannot_be_made_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    lora.check({**ADAPTERS, **changes})
  with pytest.raises(ValueError, match="the model has no adapters"):
    lora.start(tiny()[0], jax.random.key(0))
