"""Activations stay split by rows where parameters are split: fewer bytes are exchanged, at equal results."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from atlas_jax.parallel import by_rows
from atlas_jax.parallel import mesh as meshes
from atlas_jax.plan import hlo

B, T, D = 4, 64, 32


@pytest.fixture(scope="module")
def mesh():
  return meshes.make(1, 4, 1, devices=jax.devices()[:4])


def layers(params, x_BTD):
  for w_DD in params:
    x_BTD = by_rows.keep(jnp.tanh(x_BTD @ w_DD))
  return jnp.sum(x_BTD**2)


def compiled(mesh, function):
  rows = jax.ShapeDtypeStruct((B, T, D), np.float32, sharding=meshes.batch_sharding(mesh))
  # Split along what a product sums over, as the rule of placement may have it.
  split = NamedSharding(mesh, PartitionSpec("fsdp"))
  params = [jax.ShapeDtypeStruct((D, D), np.float32, sharding=split)] * 3
  return jax.jit(jax.grad(function), out_shardings=[split] * 3).lower(params, rows).compile()


def exchanged(program, mesh):
  return sum(one.bytes for one in hlo.read(program.as_text(), mesh.shape).collectives)


def test_parameters_are_exchanged_and_activations_are_not(mesh):
  def kept(params, x_BTD):
    with by_rows.over(mesh, meshes.ROW_AXES):
      return layers(params, x_BTD)

  program, free = compiled(mesh, kept), compiled(mesh, layers)
  weights, activations = 3 * D * D * 4, B * T * D * 4
  assert exchanged(program, mesh) <= 3 * weights  # Gathered for both passes, and their gradients summed.
  assert exchanged(program, mesh) < exchanged(free, mesh) + 1
  found = hlo.read(program.as_text(), mesh.shape).collectives
  assert all(one.bytes / one.times < activations / 2 for one in found)
  draws = np.random.default_rng(0)
  params = [draws.normal(size=(D, D)).astype(np.float32) / D**0.5 for _ in range(3)]
  x_BTD = draws.normal(size=(B, T, D)).astype(np.float32)
  placed = jax.device_put((params, x_BTD), program.input_shardings[0])
  for one, other in zip(program(*placed), jax.grad(layers)(params, x_BTD), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_outside_of_a_mesh_and_where_rows_do_not_divide_nothing_is_asked(mesh):
  x = jnp.ones((3, 2))
  assert by_rows.keep(x) is x
  with by_rows.over(mesh, meshes.ROW_AXES):
    assert by_rows.keep(x) is x  # Three rows on four devices.
  with by_rows.over(meshes.make(1, 1, 1, devices=jax.devices()[:1]), meshes.ROW_AXES):
    assert by_rows.keep(jnp.ones((4, 2))).sharding.is_fully_replicated
