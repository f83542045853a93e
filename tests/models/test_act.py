"""The pool refills slots that halted, and halting follows its rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.models import act
from tests import trm_fixture as fixture
from tests.helpers import assert_close, assert_same_bits

ROWS = 4


def offered(start):
  """A batch of puzzles that can be told apart."""
  tokens_BT = jnp.arange(start, start + ROWS * 6, dtype=jnp.int32).reshape(ROWS, 6)
  return {"inputs_BT": tokens_BT, "labels_BT": tokens_BT + 1, "ids_B": jnp.arange(start, start + ROWS)}


def working(halted):
  """A pool in the middle of its work."""
  model, *_, latents = fixture.tiny(B=ROWS)
  pool = act.refill(act.empty_pool(model, ROWS, model.seq_len), offered(0), model.reset(jax.random.key(0)))
  steps_B = jnp.arange(1, ROWS + 1, dtype=jnp.int32)
  return model, pool._replace(latents=latents, steps_B=steps_B, halted_B=jnp.asarray(halted))


def test_an_empty_pool_takes_every_puzzle_and_starts_from_the_reset_vectors():
  model = fixture.tiny(B=ROWS)[0]
  reset = model.reset(jax.random.key(0))
  pool = act.refill(act.empty_pool(model, ROWS, model.seq_len), offered(7), reset)
  for start_D, latent_BTD in zip(reset, pool.latents, strict=True):
    assert_same_bits(latent_BTD, jnp.broadcast_to(start_D, latent_BTD.shape))
  assert_same_bits((pool.inputs_BT, pool.labels_BT, pool.ids_B), tuple(offered(7).values()))
  assert not pool.steps_B.any() and not pool.halted_B.any()


def test_slots_at_work_keep_everything_and_pass_over_what_is_offered():
  model, pool = working([True, False, False, True])
  after = act.refill(pool, offered(100), model.reset(jax.random.key(0)))
  at_work = lambda tree: jax.tree.map(lambda x: x[1:3], tree._replace(halted_B=tree.steps_B))
  assert_same_bits(at_work(after), at_work(pool))
  np.testing.assert_array_equal(after.ids_B, [100, 1, 2, 103])
  np.testing.assert_array_equal(after.steps_B, [0, 2, 3, 0])
  assert not after.halted_B.any()


def test_every_leaf_of_a_pool_leads_with_its_rows():
  _, pool = working([True] * ROWS)
  assert {leaf.shape[0] for leaf in jax.tree.leaves(pool)} == {ROWS}


def halted(steps, logits, explore=0.0, n=16, seed=0, **more):
  steps_B, logit_B = jnp.asarray(steps, jnp.int32), jnp.asarray(logits, jnp.float32)
  steps_B, halted_B = act.halt(steps_B, logit_B, jax.random.key(seed), n_supervision=n,
                               explore_prob=explore, **more)  # fmt: skip
  np.testing.assert_array_equal(steps_B, np.asarray(steps) + 1)
  return halted_B


def test_a_slot_halts_when_its_logit_is_above_zero_or_its_steps_are_used_up():
  np.testing.assert_array_equal(halted([0, 0, 0, 15, 14], [0.1, 0.0, -1, -1, -1]), [1, 0, 0, 1, 0])


def test_with_a_continue_logit_the_larger_one_decides():
  other_B = jnp.asarray([2.0, -3.0, 1.0])
  np.testing.assert_array_equal(halted([0, 0, 0], [1, -2, 1], continue_logit_B=other_B), [0, 1, 0])


def test_exploration_only_postpones_and_never_past_the_last_step():
  many = np.zeros(500, np.int32)
  eager = np.asarray(halted(many, many + 1, explore=1.0))
  assert not eager.any()  # At least two steps are drawn, and this is the first.
  second = np.asarray(halted(many + 1, many + 1, explore=1.0)).mean()
  np.testing.assert_allclose(second, 1 / 15, atol=0.04)  # One of 2 .. 16 was drawn.
  assert not np.asarray(halted(many + 5, many - 1, explore=1.0)).any()
  assert np.asarray(halted(many + 15, many - 1, explore=1.0)).all()
  np.testing.assert_allclose(np.asarray(halted(many, many + 1, explore=0.3)).mean(), 0.7, atol=0.08)


def test_exploration_depends_on_the_key_alone():
  first, again, other = (halted([1] * 64, [1] * 64, explore=0.5, seed=seed) for seed in (1, 1, 2))
  assert_same_bits(first, again)
  assert not np.array_equal(first, other)


def test_one_supervision_step_halts_all():
  np.testing.assert_array_equal(halted([0, 0], [-1, 1], explore=1.0, n=1), [1, 1])


@pytest.mark.parametrize("threshold, expected", [(None, [0, 0, 1]), (0.5, [0, 1, 1])])
def test_evaluation_halts_at_the_last_step_or_above_a_threshold(threshold, expected):
  logit_B = jnp.asarray([0.4, 0.6, -9.0])
  steps_B, halted_B = act.halt_eval(jnp.asarray([0, 0, 3]), logit_B, n_supervision=4, threshold=threshold)
  np.testing.assert_array_equal(halted_B, expected)
  np.testing.assert_array_equal(steps_B, [1, 1, 4])


def test_the_continue_target_is_the_better_of_what_is_left():
  target_B = act.continue_target(*(jnp.asarray(x) for x in ([0.0, 1.0, 1.0], [2.0, -1.0, 3.0])),
                                 jnp.asarray([False, False, True]))  # fmt: skip
  assert_close(target_B, 1 / (1 + np.exp(-np.asarray([2.0, 1.0, 1.0], np.float32))))
