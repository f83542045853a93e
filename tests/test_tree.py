"""Names, counts and norms of pytrees."""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import tree


class Pair(NamedTuple):
  left: Any
  right: Any


def small_params():
  return {
      "embed": {"embedding": jnp.full((2, 3), 2.0)},
      "blocks": {"memory": {"query": {"kernel": jnp.ones((2, 3, 5))}, "norm": {"scale": jnp.ones(2)}},
                 "norm_memory": {"scale": jnp.zeros((2, 3))}},
  }


def test_names_follow_dicts_fields_and_positions():
  nested = Pair(left={"a": (jnp.zeros(1), jnp.zeros(2))}, right=None)
  assert [name for name, _ in tree.named_leaves(nested)] == ["left/a/0", "left/a/1"]


def test_map_named_sees_the_name_and_keeps_the_form():
  named = tree.map_named(lambda name, leaf: name, small_params())
  assert named["blocks"]["memory"]["query"]["kernel"] == "blocks/memory/query/kernel"


def test_cast_leaves_integers_and_keys_alone():
  low = tree.cast({"w": jnp.ones(2), "n": jnp.ones(2, jnp.int32), "key": jax.random.key(0)}, jnp.bfloat16)
  assert low["w"].dtype == jnp.bfloat16
  assert low["n"].dtype == jnp.int32
  assert jnp.issubdtype(low["key"].dtype, jax.dtypes.prng_key)


def test_count_and_bytes_work_on_abstract_trees():
  abstract = jax.eval_shape(small_params)
  assert tree.count(abstract) == 6 + 30 + 2 + 6
  assert tree.size_bytes(abstract) == 4 * 44
  assert tree.size_bytes(jax.random.key(0)) == 8


def test_global_norm_is_the_norm_of_all_numbers_in_float32():
  values = {"a": jnp.arange(3.0), "b": jnp.full((2, 2), 3.0, jnp.bfloat16), "n": jnp.ones(3, jnp.int32)}
  norm = tree.global_norm(values)
  assert norm.dtype == jnp.float32
  np.testing.assert_allclose(norm, np.sqrt(0 + 1 + 4 + 4 * 9), rtol=1e-6)
  assert tree.global_norm({}) == 0


@pytest.mark.parametrize(("name", "group"), [
    ("embed/embedding", "embed"), ("blocks/attention/query/kernel", "attention"),
    ("embed", "embed"), ("blocks/memory_out/kernel", "memory"),
    ("blocks/memory/norm/scale", "memory"), ("blocks/mix_gate/kernel", "mix_gate"),
    ("params/blocks/mlp/up/kernel", "mlp"), ("blocks/norm_memory/scale", "norm"),
    ("final_norm/scale", "final_norm"), ("head/kernel", "head"), ("something/else", "other")])
def test_group_is_the_first_part_that_names_one(name, group):
  assert tree.group_of(name) == group


def test_group_norms_add_up_to_the_global_norm():
  params = small_params()
  norms = tree.group_norms(params)
  assert list(norms) == ["embed", "memory", "norm"]
  np.testing.assert_allclose(norms["memory"], np.sqrt(32), rtol=1e-6)
  together = np.sqrt(sum(float(norm) ** 2 for norm in norms.values()))
  np.testing.assert_allclose(together, tree.global_norm(params), rtol=1e-6)


def test_ratio_compares_update_and_weight_by_group():
  params = small_params()
  ratio = tree.update_to_weight_ratio(jax.tree.map(lambda leaf: 0.01 * leaf, params), params)
  np.testing.assert_allclose(ratio["embed"], 0.01, rtol=1e-5)
  np.testing.assert_allclose(ratio["memory"], 0.01, rtol=1e-5)
  assert ratio["norm"] == 0  # All weights of this group are zero.


def test_all_finite_sees_one_bad_number():
  good = {"a": jnp.ones(2), "n": jnp.ones(2, jnp.int32)}
  assert tree.all_finite(good)
  assert not tree.all_finite({**good, "b": jnp.array([1.0, jnp.nan])})
  assert not tree.all_finite({**good, "b": jnp.array([1.0, -jnp.inf])})


def test_the_largest_change_is_of_one_number_in_float32():
  old = {"a": jnp.zeros((2, 3), jnp.bfloat16), "b": jnp.ones(4), "n": jnp.arange(3)}
  new = {"a": old["a"].at[1, 2].set(-0.25), "b": old["b"] * 1.125, "n": old["n"] + 5}
  assert tree.largest_change(old, new) == 0.25
  assert tree.largest_change(old, old) == 0 and tree.largest_change({}, {}) == 0
