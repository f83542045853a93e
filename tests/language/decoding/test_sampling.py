"""Drawing: distributions equal those that sorting gives, every id comes as often as it should."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from atlas_jax.language.decoding import sampling
from atlas_jax.language.decoding.sampler import SamplingOptions
from atlas_jax.language.decoding.sampling import SamplingParams
from atlas_jax.parallel import mesh as meshes
from tests.helpers import assert_close

V = 37


def distribution(logits_V, options, seen=()):
  """Returns the probabilities that ids are drawn with, by sorting, one row at a time, in float64."""
  logits_V = np.array(logits_V, np.float64)
  for token in set(seen):
    logits_V[token] *= options.repetition_penalty ** (-1 if logits_V[token] > 0 else 1)
  if options.temperature == 0:
    return np.eye(len(logits_V))[logits_V.argmax()]
  share_V = np.exp((logits_V - logits_V.max()) / options.temperature)
  share_V[share_V < (options.min_p or 0) * share_V.max()] = 0
  order = np.argsort(-share_V)
  if options.top_k is not None:
    share_V[share_V < share_V[order[options.top_k - 1]]] = 0
  sum_V = np.cumsum(share_V[order]) / share_V.sum()
  last = int(np.argmax(sum_V >= (options.top_p or 1) - 1e-12))
  share_V[share_V < share_V[order[last]]] = 0
  return share_V / share_V.sum()


def logits(rows=3, seed=0):
  return (2 * np.random.default_rng(seed).normal(size=(rows, V))).astype(np.float32)


@jax.jit
def all_drawn(logits_BV, uniform_pair, settings, seen_BV):
  return sampling.draw(logits_BV, uniform_pair, settings, seen_BV, filtered=True)


def drawn_often(logits_V, options, seen=(), rows=20_000):
  """Draws from one row of scores many times."""
  seen_BV = np.zeros((rows, V), bool)
  seen_BV[:, list(seen)] = True
  uniform = jnp.asarray(np.random.default_rng(5).random((2, rows)), jnp.float32)
  return all_drawn(np.tile(logits_V, (rows, 1)), (uniform[0], uniform[1]), SamplingParams.of(options, V),
                   seen_BV)


@pytest.mark.parametrize("options, seen", [
    ({}, ()), (dict(temperature=0.6), ()), (dict(temperature=2.0, top_k=5), ()), (dict(top_k=1), ()),
    (dict(top_p=0.7), ()), (dict(top_p=0.01), ()), (dict(top_p=1.0), ()), (dict(min_p=0.1), ()),
    (dict(top_k=9, top_p=0.8, temperature=1.7), ()), (dict(min_p=0.02, top_k=12, top_p=0.9), ()),
    (dict(repetition_penalty=1.8), (1, 2, 3, 30)), (dict(repetition_penalty=0.5, top_p=0.8), (4, 5, 36)),
    (dict(temperature=0.0, repetition_penalty=4.0), range(0, V, 2)),
    (dict(temperature=0.5, top_k=7, top_p=0.9, min_p=0.01, repetition_penalty=1.3), (0, 8, 20))])
def test_ids_come_as_often_as_sorting_says_and_with_that_probability(options, seen):
  options = SamplingOptions(**options)
  for logits_V in logits():
    expected_V, full_V = distribution(logits_V, options, seen), distribution(
        logits_V, SamplingOptions(temperature=options.temperature or 1))
    drawn = drawn_often(logits_V, options, seen)
    often_V = np.bincount(drawn.token_B, minlength=V) / len(drawn.token_B)
    assert (often_V > 0).sum() <= (expected_V > 0).sum() and not often_V[expected_V == 0].any()
    np.testing.assert_allclose(often_V, expected_V, atol=0.015)
    np.testing.assert_allclose(drawn.sampler_logprob_B, np.log(expected_V[drawn.token_B]), atol=1e-5)
    np.testing.assert_allclose(drawn.full_logprob_B, np.log(full_V[drawn.token_B]), atol=1e-5)


def test_what_is_left_is_what_sorting_leaves_and_equals_stay_together():
  for seed in range(20):
    logits_BV = logits(rows=8, seed=seed).round(1)  # Rounded, so that many are equal.
    options = SamplingOptions(top_k=1 + seed, top_p=0.3 + seed / 30, min_p=seed / 300)
    kept_BV = np.asarray(sampling.keep_mask(logits_BV, SamplingParams.of(options, V)))
    for kept_V, logits_V in zip(kept_BV, logits_BV):
      np.testing.assert_array_equal(kept_V, distribution(logits_V, options) > 0)


def test_settings_that_are_off_leave_every_id():
  assert np.asarray(sampling.keep_mask(logits(), SamplingParams.of(SamplingOptions(), V))).all()
  pair = (jnp.linspace(0, 0.99, 3), jnp.linspace(0.99, 0, 3))
  plain = sampling.draw(jnp.asarray(logits()), pair, SamplingParams.of(SamplingOptions(), V), filtered=False)
  filtered = sampling.draw(jnp.asarray(logits()), pair, SamplingParams.of(SamplingOptions(), V),
                           filtered=True)
  np.testing.assert_array_equal(plain.token_B, filtered.token_B)
  assert_close(plain, filtered)


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000])
def test_no_id_of_no_share_is_drawn_at_the_edges(size):
  draws = np.random.default_rng(size)
  share_BV = draws.random((200, size)).astype(np.float32) ** 8 * (draws.random((200, size)) < 0.2)
  share_BV[np.arange(200), draws.integers(0, size, 200)] += np.float32(1e-6)
  for edge in (0.0, float(np.nextafter(np.float32(1), np.float32(0)))):
    edge_B = jnp.full((200,), edge, jnp.float32)
    token_B = np.asarray(sampling.sample_inverse_cdf(jnp.asarray(share_BV), edge_B, edge_B))
    assert (share_BV[np.arange(200), token_B] > 0).all()


def test_draws_depend_on_seed_place_number_and_position_alone():
  def at(seed, position_B, number_B, position):
    keys = sampling.row_keys(sampling.root_words(seed), jnp.array(position_B), jnp.array(number_B))
    return sampling.uniforms(keys, position)

  many, alone = at(3, [0, 0, 1, 1], [0, 1, 0, 1], 7), at(3, [1], [0], 7)
  np.testing.assert_array_equal([x[2] for x in many], [x[0] for x in alone])
  others = [at(3, [1], [0], 8), at(3, [0], [0], 7), at(3, [1], [1], 7), at(4, [1], [0], 7),
            at(3 + 2**40, [1], [0], 7)]
  assert len({float(first_B[0]) for first_B, _ in [alone, *others]}) == 6


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_that_do_not_fit_a_key_are_refused(seed):
  with pytest.raises(ValueError, match=r"must lie in 0\.\.2\*\*64"):
    sampling.root_words(seed)


def test_more_ids_than_there_are_cannot_be_left():
  with pytest.raises(ValueError, match="config.sampler.top_k=38 is more than the model's vocabulary of 37"):
    SamplingParams.of(SamplingOptions(top_k=38), V)


@pytest.mark.parametrize("options", [
    {}, dict(top_k=1), dict(top_k=3), dict(top_p=0.01), dict(min_p=0.9), dict(repetition_penalty=1.5)])
def test_of_equal_scores_the_lowest_id_is_the_likeliest(options):
  logits_BV = np.full((3, V), -1, np.float32)
  for row, best in enumerate(([4, 9, 30], [0, V - 1], [17, 18])):
    logits_BV[row, best] = 2
  settings = SamplingParams.of(SamplingOptions(temperature=0.0, **options), V)
  seen_BV = np.zeros((3, V), bool)
  uniform_pair = jnp.full((2, 3), 0.99)
  assert all_drawn(logits_BV, uniform_pair, settings, seen_BV).token_B.tolist() == [4, 0, 17]
  # Also where the vocabulary is split, and each device knows the best of its own ids alone.
  mesh = meshes.make(tensor=8)
  wide_BV = jnp.pad(jnp.asarray(logits_BV), ((0, 0), (0, 3)), constant_values=-9)
  split_BV = jax.device_put(wide_BV, NamedSharding(mesh, PartitionSpec(None, "tensor")))
  settings = SamplingParams.of(SamplingOptions(temperature=0.0, **options), V + 3)
  wide = jnp.zeros((3, V + 3), bool)
  assert all_drawn(split_BV, uniform_pair, settings, wide).token_B.tolist() == [4, 0, 17]
