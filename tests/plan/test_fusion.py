"""Bytes and kernels of small programs against those counted by hand."""

import jax
import jax.numpy as jnp
from jax import lax

from atlas_jax.plan import count

N = 64
SQUARE = jax.ShapeDtypeStruct((N, N), jnp.float32)
ROW = jax.ShapeDtypeStruct((N,), jnp.float32)
SIZE, LINE = 4 * N * N, 4 * N  # bytes


def total(function, *args):
  return count.count(jax.make_jaxpr(function)(*args)).total()


def test_elementwise_operations_behind_a_product_are_one_kernel():
  found = total(lambda x, w, b: jnp.tanh(x @ w + b[None]) * 2, SQUARE, SQUARE, ROW)
  assert found.launches == 2
  assert found.fused_bytes == 3 * SIZE + (SIZE + LINE + SIZE)
  # Sum, tanh, product with 2, and the row repeated: operands and results.
  assert found.unfused_bytes > found.fused_bytes + 3 * SIZE


def test_a_softmax_reads_its_input_once_for_each_pass():
  found = total(lambda x: jax.nn.softmax(x, axis=-1), SQUARE)
  assert found.launches == 3
  assert found.fused_bytes == 4 * SIZE + (LINE + 2 * LINE + 2 * LINE)


def test_results_of_one_size_with_an_array_in_common_are_one_kernel():
  def moments(p, m, v, g):
    m = 0.9 * m + 0.1 * g
    v = 0.9 * v + 0.1 * g * g
    return p - m / (jnp.sqrt(v) + 1e-8), m, v
  found = total(moments, *[SQUARE] * 4)
  assert (found.launches, found.fused_bytes) == (1, 7 * SIZE)


def test_a_product_between_keeps_kernels_apart():
  def function(x):
    y = x + 1
    return y, (y @ y) + x
  found = total(function, SQUARE)
  assert found.launches == 3
  assert found.fused_bytes == 2 * SIZE + 2 * SIZE + 3 * SIZE


def test_views_and_numbers_move_nothing():
  assert total(lambda x: x.T.reshape(-1), SQUARE).fused_bytes == 0
  assert total(lambda: jnp.ones((N, N))).fused_bytes == SIZE


def test_a_slice_reads_what_it_takes():
  assert total(lambda x: x[:8] * 2, SQUARE).fused_bytes == 2 * 8 * LINE
  assert total(lambda x, i: lax.dynamic_slice(x, (i, 0), (4, N)) + 1, SQUARE,
               jax.ShapeDtypeStruct((), jnp.int32)).fused_bytes <= 2 * 4 * LINE + 8


def test_a_loop_moves_its_arrays_in_each_turn():
  def turn(x, row):
    x = x @ x
    return x, row * 2
  found = total(lambda x, rows: lax.scan(turn, x, rows), SQUARE, SQUARE)
  # A turn: the product and a row; before: the stacked results are cleared.
  assert found.fused_bytes == N * (2 * SIZE + 2 * LINE) + SIZE
  assert found.launches == N * (2 + 1) + 1


def test_rows_that_are_looked_up_or_added_count_alone():
  index = jax.ShapeDtypeStruct((8,), jnp.int32)
  assert total(lambda x, i: x[i], SQUARE, index).fused_bytes < 2 * 8 * LINE + 1000
  rows = jax.ShapeDtypeStruct((8, N), jnp.float32)
  assert total(lambda x, i, r: x.at[i].add(r), SQUARE, index, rows).fused_bytes < 3 * 8 * LINE + 1000
