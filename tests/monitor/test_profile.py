"""FLOPs against counts by hand; peaks and memory."""
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from atlas_jax.monitor import profile
from atlas_jax.parallel import mesh as meshes

N, K, M = 3, 5, 7
A, X = jax.ShapeDtypeStruct((N, K), jnp.float32), jax.ShapeDtypeStruct((K, M), jnp.float32)
ONE = 2 * N * K * M  # One product A @ X.


def flops(function, *args):
  assert profile.count_flops(function, *args).open_loops == 0
  return profile.matmul_flops(function, *args)


def test_one_product_is_twice_its_three_sizes():
  assert flops(jnp.dot, A, X) == ONE


def test_batched_and_mapped_products_count_every_row():
  rows = jax.ShapeDtypeStruct((4, N, K), jnp.float32)
  assert flops(lambda a, x: jnp.einsum("bnk,km->bnm", a, x), rows, X) == 4 * ONE
  assert flops(jax.vmap(jnp.dot, in_axes=(0, None)), rows, X) == 4 * ONE
  both = jax.ShapeDtypeStruct((4, K, M), jnp.float32)
  assert flops(jnp.matmul, rows, both) == 4 * ONE


def test_a_gradient_has_two_products_more():
  def loss(a, x):
    return jnp.sum(jnp.dot(a, x) ** 2)
  assert flops(jax.grad(loss, argnums=(0, 1)), A, X) == 3 * ONE


def test_a_scan_counts_by_its_length_also_backwards():
  square = jax.ShapeDtypeStruct((K, K), jnp.float32)
  def loss(w):
    return jnp.sum(lax.scan(lambda x, _: (jnp.dot(w, x), None), jnp.ones((K, K)), length=6)[0])
  assert flops(loss, square) == 6 * 2 * K**3
  assert flops(jax.grad(loss), square) == 3 * 6 * 2 * K**3


def test_jit_and_custom_derivatives_are_entered_once():
  @jax.custom_vjp
  def product(a, x):
    return jnp.dot(a, x)
  product.defvjp(lambda a, x: (jnp.dot(a, x), (a, x)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))
  assert flops(jax.jit(product), A, X) == ONE
  assert flops(jax.grad(lambda a, x: jnp.sum(product(a, x)), argnums=(0, 1)), A, X) == 3 * ONE

  @jax.custom_jvp
  def scaled(a, x):
    return jnp.dot(a, x)
  scaled.defjvp(lambda primals, tangents: (scaled(*primals), jnp.dot(tangents[0], primals[1])))
  assert flops(scaled, A, X) == ONE


def test_remat_counts_what_is_computed_again():
  def loss(a, x):
    return jnp.sum(jnp.sin(jnp.dot(a, x)))
  assert flops(jax.grad(jax.checkpoint(loss), argnums=(0, 1)), A, X) == 4 * ONE


def test_a_condition_counts_its_dearest_branch():
  def either(flag, a, x):
    return lax.cond(flag, lambda: jnp.dot(a, x), lambda: jnp.dot(2 * a, x) + jnp.dot(a, jnp.dot(x, x.T) @ x))
  more = ONE + ONE + 2 * K * M * K + 2 * K * K * M
  assert flops(either, jax.ShapeDtypeStruct((), bool), A, X) == more


def test_a_loop_of_unknown_length_counts_once_and_says_so(caplog):
  def loop(a, x):
    return lax.while_loop(lambda s: jnp.sum(s) < 9, lambda s: s + jnp.dot(a, x), jnp.zeros((N, M)))
  assert profile.count_flops(loop, A, X) == profile.FlopCount(ONE, 1)
  with caplog.at_level("WARNING", logger="absl"):
    assert profile.matmul_flops(loop, A, X) == ONE
  assert "1 loops of unknown length" in caplog.text


def test_shard_map_counts_all_devices():
  mesh = meshes.make()
  rows = jax.ShapeDtypeStruct((8 * N, K), jnp.float32)
  split = jax.shard_map(jnp.dot, mesh=mesh, in_specs=(PartitionSpec("data"), PartitionSpec()),
                        out_specs=PartitionSpec("data"))
  assert flops(split, rows, X) == 8 * ONE


@pytest.mark.parametrize(("kind", "peak"), [
    ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H200", 989e12),
    ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA GeForce RTX 5090", 209.5e12), ("TPU v5 lite", 197e12),
    ("TPU v5p", 459e12), ("TPU v4", 275e12), ("TPU v6 lite", 918e12), ("Abacus 3000", None)])
def test_peaks_are_known_by_device_kind(kind, peak):
  assert profile.device_peak_flops(SimpleNamespace(platform="gpu", device_kind=kind)) == peak


def test_a_cpu_is_measured_and_its_virtual_devices_are_one_machine(monkeypatch):
  measured = profile.measured_flops(jax.devices()[0], n=128, repeats=3)
  assert measured > 1e8
  # A process measures once: a second run in it neither waits nor finds another peak.
  assert profile.measured_flops(jax.devices()[0], n=128, repeats=3) == measured
  monkeypatch.setattr(profile, "measured_flops", lambda device: 5.0)
  assert profile.device_peak_flops() == profile.run_peak_flops() == 5.0


def test_memory_says_whose_it_is():
  block = np.ones(2**24)  # 128 MiB, so that the figure cannot be a leftover zero.
  metrics = profile.device_memory()
  assert list(metrics) == ["perf/host_memory_gib"]
  assert block.nbytes / 2**30 < metrics["perf/host_memory_gib"] < 512
