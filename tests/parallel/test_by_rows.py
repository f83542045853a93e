"""Activations stay split by rows where parameters are split: fewer bytes are exchanged, at equal results."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from atlas_jax.parallel import by_rows
from atlas_jax.parallel import mesh as meshes
from atlas_jax.plan import hlo

B, T, D, V = 4, 64, 32, 40


@pytest.fixture(scope="module")
def mesh():
  return meshes.make(1, 4, 1, devices=jax.devices()[:4])


def loss(params, tokens_BT):
  # Rows of a table that is split by its width: what is read of it is split by its width, too.
  x_BTD = by_rows.keep(params["table"][tokens_BT])
  for w_DD in params["layers"]:
    x_BTD = by_rows.keep(x_BTD + jnp.tanh(x_BTD @ w_DD))
  logits_NV = by_rows.keep(x_BTD.reshape(-1, D) @ params["table"].T)
  return jnp.mean(jax.nn.logsumexp(logits_NV, axis=-1))


def kept(mesh):
  def function(params, tokens_BT):
    with by_rows.over(mesh, meshes.ROW_AXES):
      return loss(params, tokens_BT)

  return function


def compiled(mesh, function):
  rows = jax.ShapeDtypeStruct((B, T), np.int32, sharding=meshes.batch_sharding(mesh))
  split = {"table": NamedSharding(mesh, PartitionSpec(None, "fsdp")),
           "layers": [NamedSharding(mesh, PartitionSpec("fsdp"))] * 3}
  shapes = {"table": (V, D), "layers": [(D, D)] * 3}
  params = jax.tree.map(lambda where, shape: jax.ShapeDtypeStruct(shape, np.float32, sharding=where), split,
                        shapes, is_leaf=lambda x: isinstance(x, NamedSharding))
  return jax.jit(jax.grad(function), out_shardings=split).lower(params, rows).compile()


def exchanges(program, mesh):
  return hlo.read(program.as_text(), mesh.shape).collectives


def test_activations_are_exchanged_less_and_gradients_stay_as_they_are(mesh):
  program, free = compiled(mesh, kept(mesh)), compiled(mesh, loss)
  parameters = (V * D + 3 * D * D) * 4
  assert _sum(program, mesh) <= 3 * parameters  # Gathered for both passes, and their gradients summed.
  assert _sum(free, mesh) > 4 * _sum(program, mesh)  # Without, whole activations and logits.
  draws = np.random.default_rng(0)
  params = {"table": draws.normal(size=(V, D)).astype(np.float32),
            "layers": [draws.normal(size=(D, D)).astype(np.float32) / D**0.5 for _ in range(3)]}
  tokens_BT = draws.integers(0, V, (B, T)).astype(np.int32)
  placed = jax.device_put((params, tokens_BT), program.input_shardings[0])
  for one, other in zip(jax.tree.leaves(program(*placed)), jax.tree.leaves(jax.grad(loss)(params, tokens_BT)),
                        strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def _sum(program, mesh):
  return sum(one.bytes for one in exchanges(program, mesh))


def test_outside_of_a_mesh_and_where_rows_do_not_divide_nothing_is_asked(mesh):
  x = jnp.ones((3, 2))
  assert by_rows.keep(x) is x
  with by_rows.over(mesh, meshes.ROW_AXES):
    assert by_rows.keep(x) is x  # Three rows on four devices.
  with by_rows.over(meshes.make(1, 1, 1, devices=jax.devices()[:1]), meshes.ROW_AXES):
    assert by_rows.keep(jnp.ones((4, 2))).sharding.is_fully_replicated
