"""The memory layer at its limits: narrow floats over long texts, hard inputs, memory use."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import config
from tests.helpers import assert_close, quick_compilation, tiny_memory
from tests.memory.layers import layer_of, packed, stream


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


def test_bfloat16_activations_stay_near_float32_over_4096_tokens():
  """The state stays float32; activations lose 8 bits, the outputs have unit mean square."""
  layer, params, x_BTD = tiny_memory(
    B=1,
    T=4096,
    D=16,
    heads=2,
    key_dim=8,
    value_dim=8,
    chunk_size=64,
    noise=0.02,
    retention_init=0.99,
    momentum_init=0.8,
    write_rate_init=0.02,
    write_rate_max=0.1,
  )
  exact_BTHM, exact = packed(layer, params, x_BTD)
  rough_BTHM, rough = packed(layer, params, x_BTD.astype(jnp.bfloat16))
  assert {x.dtype for x in jax.tree.leaves(rough.running.memory)} == {jnp.dtype("float32")}
  error_T = np.sqrt(
    np.mean((np.asarray(rough_BTHM, np.float32) - np.asarray(exact_BTHM)) ** 2, axis=(0, 2, 3))
  )
  assert np.isfinite(error_T).all()
  assert error_T.max() < 0.05 and error_T.mean() < 2e-2, (
    f"worst token {error_T.max():.3f}, mean {error_T.mean():.3f}"
  )
  assert error_T[-512:].mean() < 2 * error_T[:512].mean() + 1e-3, "the error grows along the text"
  for name, weights in exact.running.memory.fast.items():
    error = np.linalg.norm(rough.running.memory.fast[name] - weights) / np.linalg.norm(weights)
    assert error < 2e-2, f"{name} differs by {error:.3f}"


def test_gates_shut_or_open_with_equal_or_zero_tokens_stay_finite_at_the_default_rates():
  """Eight heads hold every corner of the three gates, the ninth the default ones; inputs are as after a norm.

  Row 0 is random, row 1 zero, the others each one token over and over (a run of blanks). Equal keys are the
  hard case: all writes of a chunk are computed at its start and push the same way.
  """
  own = dict.fromkeys(("retention_init", "momentum_init", "write_rate_init", "write_rate_max"))
  fields = own | {"chunk_size": config.default().model.memory.chunk_size, "options": {"surprise_max": 1.0}}
  layer, params, x_BTD = tiny_memory(B=5, T=512, D=32, heads=9, key_dim=16, value_dim=16, noise=0.0, **fields)
  x_BTD = x_BTD.at[1].set(0).at[2:].set(x_BTD[2:, :1])
  corners_GH = np.array(list(itertools.product((-30.0, 30.0), repeat=3))).T
  bias_GH = np.concatenate([corners_GH, np.asarray(params["gates"]["bias"]).reshape(3, 9)[:, 8:]], axis=1)
  bias = jnp.asarray(bias_GH.ravel(), jnp.float32)
  params = params | {"gates": {"kernel": 0 * params["gates"]["kernel"], "bias": bias}}

  def total(params, x_BTD):
    out_BTHM, state = packed(layer, params, x_BTD)
    return jnp.sum(jnp.sin(out_BTHM)), (out_BTHM, state)

  (_, (out_BTHM, state)), gradient = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(params, x_BTD)
  bad_BH = ~np.isfinite(out_BTHM).all((1, 3))
  assert not bad_BH.any(), (
    f"not finite (row, head): {np.argwhere(bad_BH).tolist()}, gates {bias_GH.T.round()}"
  )
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state)), "state not finite"
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient)), "gradient not finite"


def test_a_call_shorter_than_a_chunk_is_read(x64):
  layer, params, x_BTD = layer_of("float64")
  whole_BTHM, _ = packed(layer, params, x_BTD)
  out_BTHM, state = stream(layer, params, x_BTD[:, :3])
  assert_close(out_BTHM, whole_BTHM[:, :3])
  assert (np.asarray(state.running.position) == 3).all()


def test_forward_memory_grows_with_length_only_through_activations():
  """Were fast weights kept per chunk, a token would cost heads * |W| / chunk_size floats."""
  heads, width, hidden, chunk = 2, 32, 256, 4
  layer, params, _ = tiny_memory(
    B=1,
    T=4,
    D=64,
    heads=heads,
    key_dim=width,
    value_dim=width,
    chunk_size=chunk,
    options={"expansion": hidden // width},
  )

  def temp_bytes(length):
    shapes = (
      jnp.zeros((1, length, 64)),
      layer.zero_state(1),
      jnp.zeros((1, length), jnp.int32),
      jnp.zeros(1, jnp.int32),
    )
    compiled = (
      jax.jit(lambda params, *xs: layer.apply({"params": params}, *xs, None, mode="packed")[:2])
      .lower(params, *shapes)
      .compile()
    )
    return compiled.memory_analysis().temp_size_in_bytes

  short, long = temp_bytes(512), temp_bytes(2048)
  kept_per_chunk = heads * 2 * width * hidden * 4 / chunk
  activations = (
    4 * 12 * heads * (3 * width + 2 * chunk)
  )  # float32; twelve arrays as wide as q, k, v and gate tables
  assert activations < kept_per_chunk / 2
  per_token = (long - short) / 1536
  assert per_token < activations, f"{per_token:.0f} bytes per token"
  assert long - 2048 * activations <= 1.3 * max(short - 512 * activations, heads * 4 * width * hidden * 4)
