"""The pieces of a block are the original's: norm, rotary positions, hidden widths and initial weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.models import rope, trm_blocks
from tests import trm_fixture as fixture
from tests.helpers import assert_close

EPS = 1e-5


@pytest.mark.parametrize("dtype, key", [("float32", "rms/y"), ("bfloat16", "rms_bf16/y_as_f32")])
def test_the_norm_is_taken_in_float32_and_cast_back(dtype, key):
  misc = fixture.arrays("misc")
  y = trm_blocks.rms_normalize(jnp.asarray(misc["rms/x"], dtype), EPS)
  assert y.dtype == dtype
  np.testing.assert_allclose(y.astype(jnp.float32), misc[key], rtol=0, atol=1e-6 if dtype == "float32" else 0)


def test_heads_turn_by_the_original_s_angles():
  misc = fixture.arrays("misc")
  length, size = misc["rope/cos"].shape
  cos_sin = rope.cos_sin(jnp.arange(length), *rope.inverse_frequencies(size, 10_000.0), jnp.float32)
  for ours, theirs in zip(cos_sin, (misc["rope/cos"], misc["rope/sin"])):
    assert_close(jnp.concatenate([ours, ours], axis=-1), theirs)
  for name in ("q", "k"):
    x_BHTK, turned_BHTK = (jnp.swapaxes(misc[key], 1, 2) for key in (f"rope/{name}", f"rope/{name}_rot"))
    assert_close(trm_blocks.rotate(x_BHTK, cos_sin), turned_BHTK)
    assert_close(trm_blocks.rotate(turned_BHTK, cos_sin, back=True), x_BHTK)


def test_hidden_widths_follow_the_original_s_rule():
  misc = fixture.arrays("misc")
  widths = [trm_blocks.hidden_width(int(size), 4.0) for size in misc["swiglu/in_dims"]]
  np.testing.assert_array_equal(widths, misc["swiglu/inter_dims"])


def test_a_cut_normal_has_the_deviation_asked_for_and_the_original_s_bound():
  misc = fixture.arrays("misc")
  draws = np.asarray(trm_blocks.truncated_normal(jax.random.key(0), (200_000,), 1.0))
  assert np.abs(draws).max() <= misc["trunc_normal/max_abs"] + 1e-4
  np.testing.assert_allclose(draws.std(), misc["trunc_normal/sample_std"], rtol=0.01)
  assert abs(draws.mean()) < 0.01
