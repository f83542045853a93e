"""Counts against formulas written by hand: dense blocks, attention, memories, remat, loops, branches."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from atlas_jax.kernels.local_attention import local_attention
from atlas_jax.memory import rules
from atlas_jax.memory.layer import NO_DOC, Memory
from atlas_jax.models.layers import RMSNorm, SwiGLU
from atlas_jax.optim import accumulate
from atlas_jax.parallel import mesh as meshes
from atlas_jax.plan import count
from atlas_jax.recipes import LossOut

B, T, D, F = 2, 32, 48, 192  # rows, tokens, width, width of the feed-forward layer
H, K, W = 4, 16, 8  # heads, their width, window
CLOSE = pytest.approx


def traced(function, *args, **options):
  return count.count(jax.make_jaxpr(function)(*args), **options)


def shape(*sizes, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(sizes, dtype)


# ---------------------------------------------------------------------------------------------- blocks


@functools.cache
def block():
  layers = [RMSNorm(name="norm"), SwiGLU(F, name="mlp")]

  def apply(params, x_BTD):
    for layer in layers:
      with jax.named_scope(layer.name):
        x_BTD = layer.apply(params[layer.name], x_BTD)
    return x_BTD

  x_BTD = shape(B, T, D)
  params = {layer.name: jax.eval_shape(layer.init, jax.random.key(0), x_BTD) for layer in layers}
  return apply, params, x_BTD


def test_a_dense_block_costs_its_products_and_its_elementwise_operations():
  found = traced(*block()).total()
  assert found.product_flops == B * T * 6 * D * F
  # Of the norm x^2, its sum, and two products; of the other gate, logistic(gate) and another product.
  by_hand = B * T * (6 * D * F + 4 * D + 3 * F)
  assert found.flops == CLOSE(by_hand, rel=0.001)
  assert found.transcendentals == CLOSE(B * T * (F + 1))


def loss_of(apply):
  return lambda params, x_BTD: jnp.sum(apply(params, x_BTD) ** 2)


def test_a_gradient_costs_two_products_more_and_remat_the_forward_pass_again():
  apply, params, x_BTD = block()
  forward = B * T * 6 * D * F
  plain = traced(jax.grad(loss_of(apply), argnums=(0, 1)), params, x_BTD)
  assert plain.total().product_flops == 3 * forward
  again = traced(jax.grad(loss_of(jax.checkpoint(apply)), argnums=(0, 1)), params, x_BTD)
  # The last product is not needed again: its factors are.
  assert again.total().product_flops == 4 * forward - B * T * 2 * D * F
  passes = again.by_part(1)["mlp"]
  assert passes["forward"].product_flops == forward
  assert passes["backward"].product_flops == 2 * forward
  assert passes["recomputed"].product_flops == CLOSE(forward * 2 / 3)
  assert "recomputed" not in plain.by_part(1)["mlp"]


@pytest.mark.parametrize("tokens, keys", [(T, 2 * W), (W, W)], ids=["chunked", "reference"])
def test_attention_scores_the_keys_that_its_form_looks_at(tokens, keys):
  rows, docs = shape(B, tokens, H, K), shape(B, tokens, dtype=jnp.int32)
  attend = functools.partial(local_attention, window_tokens=W)
  pairs = B * H * tokens * keys
  found = traced(attend, rows, rows, rows, docs, docs).total()
  assert found.product_flops == 2 * pairs * 2 * K
  assert found.transcendentals == pairs
  # Scale, mask, largest, difference, exponential, sum and quotient of each pair, and the mask itself.
  assert found.flops == CLOSE(pairs * (4 * K + 7) + 2 * B * tokens * keys, rel=0.01)
  grads = jax.grad(lambda q, k, v, doc: jnp.sum(attend(q, k, v, doc, doc) ** 2), argnums=(0, 1, 2))
  assert traced(grads, rows, rows, rows, docs).total().product_flops == 3 * 2 * pairs * 2 * K


# -------------------------------------------------------------------------------------------- memories


def memory_flops(rule, options, impl, chunk, tokens=64, width=32, heads=2, size=16):
  layer = Memory(rule=rule, options=options, heads=heads, key_dim=size, value_dim=size, chunk_size=chunk,
                 conv_taps=4, impl=impl)
  x_BTD, docs, last = shape(B, tokens, width), shape(B, tokens, dtype=jnp.int32), shape(B, dtype=jnp.int32)
  state = jax.eval_shape(functools.partial(layer.zero_state, B, jnp.float32))
  call = functools.partial(layer.apply, mode="packed")
  params = jax.eval_shape(functools.partial(layer.init, mode="packed"), jax.random.key(0), x_BTD, state, docs,
                          last, None)
  assert NO_DOC < 0
  found = traced(lambda *given: call(*given, None)[:2], params, x_BTD, state, docs, last)
  assert not found.open_loops
  projections = B * tokens * 2 * width * heads * (3 * size)
  gates = sum(2 * B * tokens * leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(params)
              if "gate" in jax.tree_util.keystr(path) and leaf.ndim > 1)
  return found.total().product_flops - projections - gates, B * heads * tokens


def test_the_delta_memory_solves_a_triangle_for_each_chunk():
  chunk, size = 16, 16
  found, tokens = memory_flops("delta", {"momentum": False}, "chunked", chunk)
  # Reads of keys and queries and the write; keys with keys and with queries; the solution, and the reads of
  # what the chunk wrote; the inverse of the triangle by blocks of 1, 2, 4 and 8, two products for each pair;
  # and the sums of retention between all tokens of a chunk.
  by_hand = 6 * size * size + 4 * chunk * size + 4 * chunk * size + 2 * (chunk**2 - 1) / 3 + 2 * chunk**2
  assert found == CLOSE(tokens * by_hand, rel=0.01)


def test_the_titans_memory_costs_its_formula():
  chunk, size = 8, 16
  found, tokens = memory_flops("titans", {"depth": 1, "fade_to": "zero"}, "chunked", chunk)
  # The formula of the rule's own file; the rest is what gates are between all tokens of a chunk: sums of
  # retention, sums of momentum, their product, and the momentum's part in the weights.
  by_hand = rules.load("titans", key_dim=size, value_dim=size, chunk_size=chunk, depth=1).flops(chunk)
  assert by_hand == 10 * size**2 + 4 * chunk * size
  assert found == CLOSE(tokens * (by_hand + 3 * 2 * chunk**2 + 2 * chunk), rel=0.01)


def test_a_memory_that_reads_token_by_token_counts_every_token():
  size = 16
  found, tokens = memory_flops("delta", {"momentum": False}, "reference", 16)
  # Reads of the key and of the query, the outer product that is written, and, for tokens that are not
  # written, the read of what the chunk began with.
  assert found == CLOSE(tokens * 4 * 2 * size * size, rel=0.01)


# ----------------------------------------------------------------------------------- loops and branches


def test_accumulation_in_pieces_costs_what_the_batch_costs():
  apply, params, _ = block()

  def loss(params, batch, *, frozen, carry, rng):
    out_BTD = apply(params, batch["x_BTD"])
    return LossOut(jnp.mean(out_BTD**2), jnp.float32(out_BTD.size), (), {})

  def step(params, batch, rng, parts):
    return accumulate.gradients(loss, params, batch, (), frozen=(), rng=rng, parts=parts)[0]

  given = params, {"x_BTD": shape(4 * B, T, D)}, jax.eval_shape(lambda: jax.random.key(0))
  whole, pieces = (traced(functools.partial(step, parts=parts), *given) for parts in (1, 4))
  assert whole.total().product_flops == pieces.total().product_flops
  assert pieces.by_part(1)["mlp"].keys() == {"forward", "backward"}
  assert pieces.launches > 3 * whole.launches  # Each piece has its own kernels.


def test_a_scan_counts_by_its_length_also_inside_another():
  def turn(x, _):
    return lax.scan(lambda x, _: (x @ x, None), x, length=5)[0], None
  found = traced(lambda x: lax.scan(turn, x, length=3)[0], shape(D, D)).total()
  assert found.product_flops == 15 * 2 * D**3


def test_a_loop_of_unknown_length_is_listed_and_counts_as_often_as_one_says():
  def loop(x):
    with jax.named_scope("search"):
      return lax.while_loop(lambda x: jnp.sum(x) < 1, lambda x: x @ x, x)
  once = traced(loop, shape(D, D))
  assert once.open_loops == [("search", 2 * D**3)] and once.total().product_flops == 2 * D**3
  often = traced(loop, shape(D, D), turns={"search": 7})
  assert not often.open_loops and often.total().product_flops == 7 * 2 * D**3


def test_a_condition_counts_its_dearest_branch_and_lists_all():
  found = traced(lambda which, x: lax.cond(which, lambda: x @ x @ x, lambda: x @ x), shape(dtype=bool),
                 shape(D, D))
  assert found.total().product_flops == 2 * 2 * D**3
  assert [sorted(costs) for _, costs in found.branches] == [[2 * D**3, 4 * D**3]]


def test_what_no_result_needs_costs_nothing_unless_asked_for():
  def function(x):
    jnp.dot(x, x)
    return x + 1
  assert traced(function, shape(D, D)).total().product_flops == 0
  assert traced(function, shape(D, D), unused=True).total().product_flops == 2 * D**3


def test_shard_map_counts_all_devices():
  mesh = meshes.make()
  split = jax.shard_map(jnp.dot, mesh=mesh, in_specs=(PartitionSpec("data"), PartitionSpec()),
                        out_specs=PartitionSpec("data"))
  found = traced(split, shape(8 * len(jax.devices()), D), shape(D, F)).total()
  assert found.product_flops == 2 * 8 * len(jax.devices()) * D * F


# ------------------------------------------------------------------------------------ products and parts


def test_products_keep_their_sizes_and_precision():
  found = traced(lambda a, b: jnp.einsum("bmk,bnk->bmn", a, b), shape(B, T, K, dtype=jnp.bfloat16),
                 shape(B, W, K, dtype=jnp.bfloat16)).total()
  assert found.products == {count.Product("bfloat16", B, T, W, K): 1}
  exact = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
  for product, precision in ((jnp.matmul, "float32"), (exact, "float32_highest")):
    (made,) = traced(product, shape(T, K), shape(K, W)).total().products
    assert made == count.Product(precision, 1, T, W, K)


def test_a_convolution_is_the_product_of_its_patches():
  found = traced(lambda x, w: lax.conv(x, w, (1, 1), "SAME"), shape(B, 3, 8, 8), shape(5, 3, 3, 3)).total()
  assert found.product_flops == 2 * B * 8 * 8 * 5 * 3 * 9


def test_parts_are_called_by_their_scopes_and_numbered_ones_are_one():
  def function(x):
    for index in range(3):
      with jax.named_scope(f"layer_{index}/mlp"):
        x = jnp.tanh(x @ x)
    return x
  parts = traced(function, shape(D, D)).by_part()
  assert parts.keys() == {"layer/mlp"}
  assert parts["layer/mlp"]["forward"].product_flops == 3 * 2 * D**3
  assert traced(function, shape(D, D), path="model").by_part(1).keys() == {"model"}
  assert traced(function, shape(D, D)).flops == {"layer/mlp": 3 * (2 * D**3 + D**2)}
