"""The optimizer chain against plain AdamW and by its parts."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from atlas_jax import tree
from atlas_jax.optim import build

FIELDS = dict(name="adamw", decay_of="matrices", lr=0.1, warmup_steps=0, steps=10, schedule="cosine",
              decay_frac=0.2, final_lr_frac=1.0, beta1=0.9, beta2=0.95, eps=1e-8,
              weight_decay=0.5, clip_norm=None, ema_decay=None)


def small_params():
  memory = {
      "query": {"kernel": jnp.ones((2, 3, 3))}, "query_conv": {"kernel": jnp.ones((2, 4, 3))},
      "gates": {"kernel": jnp.ones((2, 3, 4)), "retention_bias": jnp.ones((2, 2, 2))},
      "initial_fast": {"w0": jnp.ones((2, 2, 3, 3)), "b0": jnp.ones((2, 2, 1, 3))},
      "slow": {"place_rate": jnp.ones((2, 2, 4)), "projection": jnp.ones((2, 2, 3, 4)),
               "sharpness": jnp.ones((2, 2))}}
  return {
      "embed": {"embedding": jnp.ones((5, 3))},
      "blocks": {"memory": memory, "mix_gate": {"kernel": jnp.ones((2, 3, 2)), "bias": jnp.ones((2, 2))},
                 "norm_mlp": {"scale": jnp.ones((2, 3))}},
      "final_norm": {"scale": jnp.ones((3,))},
      "head": {"kernel": jnp.ones((3, 5))},
  }


def update_once(params, grads, **changes):
  optimizer = build.build(params, **{**FIELDS, **changes})
  return optimizer.update(grads, optimizer.init(params), params)[0]


def test_only_matrices_are_decayed():
  mask = dict(tree.named_leaves(build.decay_mask(jax.eval_shape(small_params))))
  assert {name for name, decayed in mask.items() if decayed} == {
      "embed/embedding", "blocks/memory/query/kernel", "blocks/memory/initial_fast/w0",
      "blocks/memory/slow/projection", "head/kernel"}


def test_decay_moves_matrices_by_rate_times_decay_and_leaves_vectors():
  params = small_params()
  updates = update_once(params, jax.tree.map(jnp.zeros_like, params))
  np.testing.assert_allclose(updates["head"]["kernel"], -0.1 * 0.5, rtol=1e-6)
  np.testing.assert_array_equal(updates["blocks"]["norm_mlp"]["scale"], 0)


def test_gates_learn_at_their_own_rate():
  params = small_params()
  grads = jax.tree.map(jnp.ones_like, params)
  scaled, plain = (dict(tree.named_leaves(update_once(params, grads, weight_decay=0.0, gate_lr_scale=scale)))
                   for scale in (5.0, 1.0))
  gates = {"blocks/memory/gates/kernel", "blocks/memory/gates/retention_bias", "blocks/mix_gate/kernel",
           "blocks/mix_gate/bias"}
  assert gates < set(plain)
  for name, update in plain.items():
    np.testing.assert_allclose(scaled[name], update * (5 if name in gates else 1), rtol=1e-6, err_msg=name)


def test_a_rate_of_gates_is_refused_where_none_is_trained():
  with pytest.raises(ValueError, match="config.optim.gate_lr_scale=2.0 has nothing to scale"):
    build.build({"w": jnp.ones((2, 2))}, **FIELDS, gate_lr_scale=2.0)


def test_the_chain_is_adamw_where_nothing_is_clipped():
  params = small_params()
  key = jax.random.key(0)
  grads = tree.map_named(
      lambda name, leaf: jax.random.normal(jax.random.fold_in(key, len(name)), leaf.shape), params)
  oracle = optax.adamw(0.1, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.5,
                       mask=build.decay_mask(params))
  ours = build.build(params, **FIELDS)
  state, oracle_state = ours.init(params), oracle.init(params)
  for _ in range(3):
    updates, state = ours.update(grads, state, params)
    expected, oracle_state = oracle.update(grads, oracle_state, params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), updates, expected)


def test_large_gradients_are_clipped_before_adam():
  params = {"w": jnp.zeros((2, 2))}
  optimizer = build.build(params, **{**FIELDS, "clip_norm": 1.0})
  state = optimizer.update({"w": jnp.full((2, 2), 1e3)}, optimizer.init(params), params)[1]
  mu = next(leaf for name, leaf in tree.named_leaves(state) if name.endswith("mu/w"))
  np.testing.assert_allclose(mu, 0.1 * 0.5, rtol=1e-5)  # A gradient of norm 1 has 0.5 in each of four places.


def test_moments_are_float32_for_bfloat16_gradients():
  params = {"w": jnp.zeros((2, 2))}
  optimizer = build.build(params, **FIELDS)
  _, state = optimizer.update({"w": jnp.ones((2, 2), jnp.bfloat16)}, optimizer.init(params), params)
  moments = [leaf for name, leaf in tree.named_leaves(state) if name.endswith(("mu/w", "nu/w"))]
  assert [leaf.dtype for leaf in moments] == [jnp.float32] * 2


def test_the_logged_rate_is_the_one_applied():
  params = {"w": jnp.ones((2, 2))}
  fields = {**FIELDS, "warmup_steps": 4, "ema_decay": 0.9}
  updates = update_once(params, {"w": jnp.zeros((2, 2))}, **fields)
  np.testing.assert_allclose(updates["w"], -0.5 * float(build.learning_rate(**fields)(0)), rtol=1e-6)
  assert build.learning_rate(**fields)(0) > 0


@pytest.mark.parametrize("changes", [
    dict(beta1=1.0), dict(beta2=-0.1), dict(eps=0.0), dict(weight_decay=-1.0), dict(clip_norm=0.0),
    dict(ema_decay=1.0), dict(lr=-1.0),
    dict(gate_lr_scale=0.0)])
def test_fields_out_of_range_are_named(changes):
  (name, value), = changes.items()
  with pytest.raises(ValueError, match=f"config.optim.{name}={value}"):
    build.build(small_params(), **{**FIELDS, **changes})
