"""Adam-atan2 is the rule of the optimizer that the original uses, also in a chain with decay and rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from atlas_jax.optim import adam_atan2
from tests import trm_fixture as fixture


def chain(rate, decay, b1, b2):
  rate, decay, b1, b2 = map(float, (rate, decay, b1, b2))
  return optax.chain(adam_atan2.scale_by_adam_atan2(b1, b2), optax.add_decayed_weights(decay),
                     optax.scale_by_learning_rate(rate))  # fmt: skip


def steps(dtype, tolerance):
  """Four updates against the fixture's float64 ones."""
  misc = fixture.arrays("misc")
  optimizer = chain(*misc["atan2/lr_wd_b1_b2"])
  params = {"w": jnp.asarray(misc["atan2/p0"], dtype)}
  state = optimizer.init(params)
  for grad, after in zip(misc["atan2/grads"], misc["atan2/p_after"]):
    updates, state = optimizer.update({"w": jnp.asarray(grad, dtype)}, state, params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"], after, rtol=0, atol=tolerance * np.abs(after).max())
  assert params["w"].dtype == dtype


def test_four_updates_are_the_rule_s_in_float32():
  steps("float32", 1e-6)


def test_four_updates_are_the_rule_s_in_float64(x64):
  steps("float64", 1e-12)


def test_a_zero_gradient_moves_nothing_and_the_first_step_is_nearly_the_sign():
  rule = adam_atan2.scale_by_adam_atan2()
  params = {"w": jnp.zeros(4)}
  update, state = rule.update({"w": jnp.asarray([0.0, 1e-10, -1e10, 1e-25])}, rule.init(params))
  np.testing.assert_allclose(update["w"], [0, 0.997, -0.997, 0], atol=1e-3)  # The last one's square is 0.
  assert int(state.count) == 1 and all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_moments_are_float32_for_narrow_parameters():
  state = adam_atan2.scale_by_adam_atan2().init({"w": jnp.zeros(3, jnp.bfloat16)})
  assert {leaf.dtype for leaf in (state.mu["w"], state.nu["w"])} == {jnp.dtype("float32")}
