"""Estimates of steps against those worked out by hand on a machine of round numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from atlas_jax.plan import count, roofline, targets
from atlas_jax.plan.roofline import Collective

MACHINE = targets.Target(
  name="round", kind="gpu", description="", memory_bytes=10**10, reserved_bytes=0,
  memory_bandwidth_bytes_s=1e9, flops_s={"bfloat16": 4e12, "float32": 2e12, "float32_highest": 1e12},
  vector_flops_s=1e12, launch_s=1e-5, ici_bytes_s=1e8, dcn_bytes_s=1e7)
N = 128
SQUARE = jax.ShapeDtypeStruct((N, N), jnp.float32)
BYTES = 4 * N * N


@pytest.fixture(scope="module")
def counts():
  def function(x):
    with jax.named_scope("products"):
      y = x @ x
    with jax.named_scope("sums"):
      return y + x
  return count.count(jax.make_jaxpr(function)(SQUARE))


def test_a_part_takes_the_longer_of_arithmetic_and_memory(counts):
  found = roofline.estimate(counts, MACHINE)
  arithmetic = {"products": 2 * N**3 / 2e12, "sums": N * N / 1e12}
  memory = {"products": 2 * BYTES / 1e9, "sums": 3 * BYTES / 1e9}
  for part in found.parts:
    assert part.arithmetic_s == pytest.approx(arithmetic[part.part])
    assert part.memory_s == pytest.approx(memory[part.part])
    assert part.bound == "memory" and part.seconds == pytest.approx(part.memory_s)
  assert found.step_s == pytest.approx(sum(memory.values()) + 2 * 1e-5)
  assert found.terms == pytest.approx({"arithmetic": sum(arithmetic.values()), "memory": sum(memory.values()),
                                       "launches": 2e-5, "interconnect": 0})
  quick = dataclasses.replace(MACHINE, memory_bandwidth_bytes_s=1e15)
  assert {part.bound for part in roofline.estimate(counts, quick).parts} == {"arithmetic"}


def test_the_largest_three_are_named(counts):
  found = roofline.estimate(counts, MACHINE)
  assert [name for name, _ in found.largest] == ["sums, forward: memory", "products, forward: memory",
                                              "launches"]
  many = roofline.estimate(counts, MACHINE, launches=1e6)
  assert many.largest[0] == ("launches", pytest.approx(10.0)) and many.launches == 1e6


def test_devices_divide_the_work_and_not_the_launches(counts):
  one, four = (roofline.estimate(counts, MACHINE, devices=devices) for devices in (1, 4))
  for name in ("arithmetic", "memory"):
    assert four.terms[name] == pytest.approx(one.terms[name] / 4)
  assert four.terms["launches"] == one.terms["launches"]


@pytest.mark.parametrize("kind, fraction", [
  ("all-reduce", 2 * 3 / 4), ("all-gather", 3 / 4), ("reduce-scatter", 3 / 4), ("all-to-all", 3 / 4),
  ("collective-permute", 1)])
def test_an_exchange_goes_around_a_ring(kind, fraction):
  assert roofline.collective_s(Collective(kind, 1e8, 4), MACHINE) == pytest.approx(fraction)
  far = Collective(kind, 1e8, 4, between_hosts=True, times=3)
  assert roofline.collective_s(far, MACHINE) == pytest.approx(3 * 10 * fraction)


def test_an_unknown_exchange_is_refused():
  with pytest.raises(ValueError, match="'gossip' is unknown; it must be one of all-reduce"):
    roofline.collective_s(Collective("gossip", 1, 2), MACHINE)


def test_products_are_rounded_up_to_the_tile_and_precision_sets_the_rate():
  product = count.Product("float32", 3, 130, 64, 128)
  tiled = dataclasses.replace(MACHINE, tile=128)
  assert roofline.product_s(product, MACHINE) == pytest.approx(product.flops / 2e12)
  assert roofline.product_s(product, tiled) == pytest.approx(3 * 2 * 256 * 128 * 128 / 2e12)
  assert roofline.product_s(product, MACHINE, "bfloat16") == pytest.approx(product.flops / 4e12)


def test_measured_rates_are_taken_between_sizes():
  measured = dataclasses.replace(MACHINE, rates=((10.0, 1e9), (1000.0, 1e11)))
  for side, rate in ((1, 1e9), (10, 1e9), (100, 1e10), (1000, 1e11), (5000, 1e11)):
    product = count.Product("float32", 7, 10_000, side, 20_000)
    assert roofline.product_s(product, measured) == pytest.approx(product.flops / rate, rel=0.01), side


def test_products_and_all_else_of_a_part_run_one_after_another():
  function = lambda x: jnp.tanh(x @ x)
  counts = count.count(jax.make_jaxpr(function)(SQUARE))
  slow = dataclasses.replace(MACHINE, flops_s=dict.fromkeys(targets.PRECISIONS, 1e9))
  (part,) = roofline.estimate(counts, slow).parts
  # The product is bound by arithmetic, what follows by memory; together they are longer than either bound.
  assert part.seconds == pytest.approx(2 * N**3 / 1e9 + 2 * BYTES / 1e9)
  assert part.seconds > max(part.arithmetic_s, part.memory_s)
