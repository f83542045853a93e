"""Placement of parameters, optimizer moments and carried state."""
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec

from atlas_jax import tree
from atlas_jax.models import decoder, placement
from atlas_jax.parallel import mesh as meshes
from atlas_jax.parallel import place

DEPTH, WIDTH, HEADS, KEY, FF, VOCAB = 4, 64, 6, 32, 128, 320


def make_params():
  def deep(*shape):
    return jnp.zeros((DEPTH, *shape))
  return {
      "embed": jnp.zeros((VOCAB, WIDTH)),
      "blocks": {
          "attention": {"qkv_kernel": deep(WIDTH, HEADS, 3 * KEY),
                        "out": {"kernel": deep(HEADS, KEY, WIDTH)}},
          "memory": {"qkv_kernel": deep(WIDTH, HEADS, 3 * KEY), "conv_kernel": deep(4, HEADS, 3 * KEY),
                     "initial_fast": {"w0": deep(HEADS, KEY, KEY)}, "gates": {"bias": deep(3 * HEADS)}},
          "memory_out": {"kernel": deep(HEADS, KEY, WIDTH)},
          "mlp": {"gate_kernel": deep(WIDTH, FF), "up_kernel": deep(WIDTH, FF),
                  "out_kernel": deep(FF, WIDTH)},
          "norm_mlp": {"scale": deep(WIDTH)}},
      "head": {"kernel": jnp.zeros((WIDTH, VOCAB))},
  }


def abstract(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def specs(mesh, params):
  return {name: sharding.spec for name, sharding in tree.named_leaves(placement.shardings(mesh, params))}


@pytest.fixture
def cube():
  return meshes.make(data=2, fsdp=2, tensor=2)


def test_projections_split_heads_over_tensor_and_never_depth(cube):
  spec = specs(cube, jax.eval_shape(make_params))
  for name in ("attention/qkv_kernel", "memory/qkv_kernel", "memory/conv_kernel"):
    assert spec[f"blocks/{name}"][0] is None
    assert spec[f"blocks/{name}"][2] == "tensor"
    assert "fsdp" in spec[f"blocks/{name}"]
  for name in ("attention/out/kernel", "memory_out/kernel"):
    assert spec[f"blocks/{name}"] == PartitionSpec(None, "tensor", None, "fsdp")
  assert spec["blocks/memory/initial_fast/w0"] == PartitionSpec(None, "tensor", "fsdp", None)
  for name in ("gate_kernel", "up_kernel"):
    assert spec[f"blocks/mlp/{name}"] == PartitionSpec(None, "fsdp", "tensor")
  assert spec["blocks/mlp/out_kernel"] == PartitionSpec(None, "tensor", "fsdp")
  assert spec["embed"] == PartitionSpec("tensor", "fsdp")
  assert spec["head/kernel"] == PartitionSpec("fsdp", "tensor")


def test_small_leaves_stay_whole(cube):
  assert specs(cube, jax.eval_shape(make_params))["blocks/norm_mlp/scale"] == PartitionSpec(None, None)


def test_an_odd_vocabulary_splits_the_width_instead(cube):
  assert specs(cube, {"embed": abstract(257, WIDTH)})["embed"] == PartitionSpec(None, "tensor")


def test_heads_that_do_not_divide_leave_a_kernel_to_the_default_rule(cube):
  odd = {"blocks": {"attention": {"qkv_kernel": abstract(DEPTH, WIDTH, 5, 3 * KEY)}}}
  assert specs(cube, odd)["blocks/attention/qkv_kernel"] == PartitionSpec(None, None, None, "fsdp")


def decoder_params():
  """Returns shapes of a pretrained decoder with biases, adapters on every projection and 4 heads over 2."""
  adapters = dict(rank=8, alpha=8, targets=("q", "k", "v", "out", "gate", "up", "down"), scaling="rank")
  model = decoder.Decoder(vocab_size=VOCAB, width=WIDTH, depth=DEPTH, heads=4, kv_heads=2, head_dim=KEY,
                          ff_width=FF, qkv_bias=True, mlp_bias=True, lora=adapters)
  return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def test_projections_of_a_published_decoder_split_heads_and_widths_over_tensor(cube):
  spec = specs(cube, decoder_params())
  for name in ("q", "k", "v"):
    assert spec[f"blocks/attention/{name}/kernel"] == PartitionSpec(None, "fsdp", "tensor", None)
    assert spec[f"blocks/attention/{name}/bias"] == PartitionSpec(None, "tensor", None)
    assert spec[f"blocks/attention/{name}/lora_b"][2] == "tensor"
  assert spec["blocks/attention/out/kernel"] == PartitionSpec(None, "tensor", None, "fsdp")
  assert spec["blocks/attention/out/lora_a"][1] == "tensor"
  for name in ("gate", "up"):
    assert spec[f"blocks/mlp/{name}/kernel"] == PartitionSpec(None, "fsdp", "tensor")
    assert spec[f"blocks/mlp/{name}/lora_b"][2] == "tensor"
  assert spec["blocks/mlp/down/kernel"] == PartitionSpec(None, "tensor", "fsdp")
  assert spec["blocks/mlp/down/lora_a"][1] == "tensor"
  assert spec["head/kernel"] == PartitionSpec("fsdp", "tensor")


def test_exceptions_split_the_first_axis_that_divides_and_keep_leaves_whole(cube):
  exceptions = place.Exceptions((("wide", (-1, -2)),), ("table",))
  leaves = {"wide": abstract(8, 6), "a": {"wide": abstract(8, 5)}, "table": abstract(1024, 512)}
  spec = {name: one.spec for name, one in tree.named_leaves(place.shardings(cube, leaves, exceptions))}
  assert spec == {"wide": PartitionSpec(None, "tensor"), "a/wide": PartitionSpec("tensor", None),
                  "table": PartitionSpec(None, None)}
  assert place.large_replicated(cube, leaves, exceptions) == []
  assert place.large_replicated(cube, {"table": abstract(1001, 999)}, exceptions) == []


def test_the_default_rule_splits_the_largest_axis_that_divides():
  mesh = meshes.make(data=1, fsdp=8, tensor=1)
  other = {"a": abstract(80, 100), "b": abstract(7, 999)}
  assert specs(mesh, other) == {"a": PartitionSpec("fsdp", None), "b": PartitionSpec(None, None)}


def test_moments_and_averages_follow_their_parameters(cube):
  params = jax.eval_shape(make_params)
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())
  state = {"params": params, "ema": params, "opt_state": jax.eval_shape(optimizer.init, params)}
  spec = specs(cube, state)
  moments = [name for name in spec if "/mu/" in name or "/nu/" in name]
  assert len(moments) == 2 * len(jax.tree.leaves(params))
  for name in moments:
    assert spec[name] == spec["params/" + name.split("/mu/")[-1].split("/nu/")[-1]], name
  assert all(spec["ema" + name[len("params"):]] == spec[name] for name in spec if name.startswith("params/"))


def test_a_carry_splits_its_rows_and_the_rest_of_the_state_is_whole(cube):
  state = {"step": jax.ShapeDtypeStruct((), jnp.int32), "rng": jax.random.key(0),
           "carry": {"memory": {"query": {"kernel": abstract(4, 6, 500)}}}}
  spec = specs(cube, state)
  assert spec["carry/memory/query/kernel"] == PartitionSpec(("data", "fsdp"))
  assert spec["step"] == spec["rng"] == PartitionSpec()
  placed = jax.device_put(jnp.zeros((4, 6, 500)), place.row_shardings(cube, jnp.zeros((4, 6, 500))))
  assert placed.sharding.shard_shape((4, 6, 500)) == (1, 6, 500)


def test_rows_of_a_carry_that_do_not_divide_are_refused(cube):
  with pytest.raises(ValueError, match=r"carry/fast has 6 rows.*= 4 .*config.data.batch_rows"):
    placement.shardings(cube, {"carry": {"fast": abstract(6, 2)}})


def test_large_leaves_that_nothing_splits_are_named(cube):
  trees = {"odd": abstract(1001, 999), "small": abstract(3), "even": abstract(1000, 1000)}
  assert placement.large_replicated(cube, trees) == ["odd"]
  assert placement.large_replicated(cube, jax.eval_shape(make_params)) == []


def test_every_placement_can_be_made(cube):
  params = make_params()
  placed = jax.device_put(params, placement.shardings(cube, params))
  up_LDF = placed["blocks"]["mlp"]["up_kernel"]
  assert up_LDF.addressable_shards[0].data.shape == (DEPTH, WIDTH // 2, FF // 2)
  joined = placement.abstract(cube, jax.eval_shape(make_params))
  assert joined["head"]["kernel"].sharding == placed["head"]["kernel"].sharding
