"""Sign descent moves the rows of a batch as the original does, and touches no other row."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from atlas_jax.optim import sign_rows
from tests import trm_fixture as fixture
from tests.helpers import assert_same_bits

WIDTH = 6


def made(B=5, N=16, seed=0):
  draw = np.random.default_rng(seed)
  table_NE, grad_BE = (jnp.asarray(draw.normal(size=(rows, WIDTH)), jnp.float32) for rows in (N, B))
  return table_NE, jnp.asarray([3, 9, 3, 15, 9][:B], jnp.int32), grad_BE


def test_rows_move_as_in_the_original():
  misc = fixture.arrays("misc")
  rate, decay = misc["signsgd/lr_wd"]
  given = (jnp.asarray(misc[f"signsgd/{name}"]) for name in ("w", "ids", "grad"))
  new_NE = sign_rows.update(*given, rate=float(rate), weight_decay=float(decay))
  np.testing.assert_allclose(new_NE, misc["signsgd/w_new"], rtol=1e-6)


def test_gradients_that_cancel_leave_a_row_to_its_decay():
  table_NE, ids_B, grad_BE = made(B=3)
  grad_BE = grad_BE.at[2].set(-grad_BE[0])
  new_NE = sign_rows.update(table_NE, ids_B, grad_BE, rate=0.1, weight_decay=0.5)
  np.testing.assert_allclose(new_NE[3], table_NE[3] * 0.95, rtol=1e-6)
  np.testing.assert_allclose(new_NE[9], table_NE[9] * 0.95 - 0.1 * np.sign(grad_BE[1]), rtol=1e-5, atol=1e-7)


def test_no_other_row_is_touched():
  table_NE, ids_B, grad_BE = made()
  new_NE = sign_rows.update(table_NE, ids_B, grad_BE, rate=0.1, weight_decay=0.5)
  others = np.setdiff1d(np.arange(16), ids_B)
  assert_same_bits(new_NE[others], table_NE[others])
  assert (np.asarray(new_NE[ids_B]) != np.asarray(table_NE[ids_B])).all()


def test_a_rate_of_zero_leaves_the_table_bit_for_bit():
  table_NE, ids_B, grad_BE = made()
  table_NE = table_NE.at[3, 0].set(-0.0)
  new_NE = jax.jit(sign_rows.update)(table_NE, ids_B, grad_BE, rate=jnp.float32(0), weight_decay=0.5)
  np.testing.assert_array_equal(np.asarray(new_NE).view(np.int32), np.asarray(table_NE).view(np.int32))


def test_a_table_split_over_devices_is_changed_in_place_and_never_gathered():
  mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
  split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("fsdp",), ()))
  table_NE, ids_B, grad_BE = made(N=64)
  expected_NE = sign_rows.update(table_NE, ids_B, grad_BE, rate=0.1, weight_decay=0.5)
  placed = jax.device_put(table_NE, split), *jax.device_put((ids_B, grad_BE), whole)
  step = jax.jit(lambda *args: sign_rows.update(*args, rate=0.1, weight_decay=0.5), donate_argnums=0,
                 out_shardings=split)  # fmt: skip
  compiled = step.lower(*placed).compile()
  text = compiled.as_text()
  assert "all-gather" not in text
  assert not re.search(r"f32\[64,6\]", text.split("ENTRY")[1])
  assert "input_output_alias" in text
  new_NE = compiled(*placed)
  assert placed[0].is_deleted() and new_NE.sharding.is_equivalent_to(split, 2)
  np.testing.assert_allclose(new_NE, expected_NE, rtol=1e-6)
