"""The reader of compiled programs counts what a hand counts in small ones."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from atlas_jax.parallel import mesh as meshes
from atlas_jax.plan import hlo

ONE = {"data": 1, "fsdp": 1, "tensor": 1}

# A loop of 16 turns, in each a product, a fusion that reads a slice of a large array, and a sum over pairs.
LOOP = """HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%slice_and_double (large: f32[16,8,8], turn: s32[]) -> f32[8,8] {
  %large = f32[16,8,8]{2,1,0} parameter(0)
  %turn = s32[] parameter(1)
  %zero.0 = s32[] constant(0)
  %one_of = f32[1,8,8]{2,1,0} dynamic-slice(%large, %turn, %zero.0, %zero.0), dynamic_slice_sizes={1,8,8}
  %flat = f32[8,8]{1,0} bitcast(%one_of)
  ROOT %twice = f32[8,8]{1,0} add(%flat, %flat)
}

%body (p: (s32[], f32[16,8,8], f32[8,8])) -> (s32[], f32[16,8,8], f32[8,8]) {
  %p = (s32[], f32[16,8,8]{2,1,0}, f32[8,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[16,8,8]{2,1,0} get-tuple-element(%p), index=1
  %w = f32[8,8]{1,0} get-tuple-element(%p), index=2
  %s = f32[8,8]{1,0} fusion(%x, %i), kind=kLoop, calls=%slice_and_double MLP
  %y = f32[8,8]{1,0} dot(%s, %w), lhs_contracting_dims={1} MLP
  %z = f32[8,8]{1,0} all-reduce(%y), replica_groups=GROUPS, to_apply=%add MLP
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one), metadata={op_name="jit(step)/while/body/add"}
  ROOT %t = (s32[], f32[16,8,8]{2,1,0}, f32[8,8]{1,0}) tuple(%next, %x, %z)
}

%cond (p.1: (s32[], f32[16,8,8], f32[8,8])) -> pred[] {
  %p.1 = (s32[], f32[16,8,8]{2,1,0}, f32[8,8]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %end = s32[] constant(19)
  ROOT %less = pred[] compare(%i.1, %end), direction=LT
}

ENTRY %main (x.0: f32[16,8,8], w.0: f32[8,8]) -> f32[8,8] {
  %x.0 = f32[16,8,8]{2,1,0} parameter(0)
  %w.0 = f32[8,8]{1,0} parameter(1)
  %start = s32[] constant(3)
  %copied = s32[] copy(%start)
  %in = (s32[], f32[16,8,8]{2,1,0}, f32[8,8]{1,0}) tuple(%copied, %x.0, %w.0)
  %out = (s32[], f32[16,8,8]{2,1,0}, f32[8,8]{1,0}) while(%in), condition=%cond, body=%body KNOWN
  ROOT %result = f32[8,8]{1,0} get-tuple-element(%out), index=2
}
"""
SQUARE = 8 * 8 * 4  # bytes


def loop(groups="{{0,1},{2,3}}", known=""):
  named = ', metadata={op_name="jit(step)/jvp(LM)/blocks_0/mlp/dot_general"}'
  return LOOP.replace("GROUPS", groups).replace(" KNOWN", known).replace(" MLP", named)


@pytest.mark.parametrize("known", ["", ', backend_config={"known_trip_count":{"n":"16"}}'])
def test_loops_count_by_their_length_and_slices_by_their_size(known):
  found = hlo.read(loop(known=known), {"data": 2, "fsdp": 2, "tensor": 1})
  assert found.kernels_by_part["LM/blocks/mlp"] == 16 * 3  # The fusion, the product and the sum.
  assert found.kernels_by_part["update"] == 16  # The counter; the copy before the loop has no name.
  assert found.kernels == 16 * 4 + 1 and found.open_loops == 0
  fusion = SQUARE + 4 + SQUARE  # One of 16 slices, the turn, and the result.
  assert found.bytes_by_part["LM/blocks/mlp"] == 16 * (fusion + 3 * SQUARE + 2 * SQUARE)


def test_a_loop_of_unknown_length_counts_once_and_is_named():
  found = hlo.read(loop().replace("constant(19)", "parameter(1)"), ONE)
  assert found.open_loops == 1 and found.kernels_by_part["LM/blocks/mlp"] == 3


@pytest.mark.parametrize(("groups", "axes"), [
    ("{{0,1},{2,3},{4,5},{6,7}}", ("tensor",)),
    ("{{0,2},{1,3},{4,6},{5,7}}", ("fsdp",)),
    ("[2,4]<=[8]", ("fsdp", "tensor")),
    ("[4,2]<=[2,4]T(1,0)", ("data",)),
    ("[2,4]<=[2,2,2]T(1,0,2)", ("data", "tensor")),
    ("mesh['a'=2,'b'=2,'c'=2] {'a'}", ("data",)),
    ("mesh['a'=2,'b'=4] {'b'}", ("fsdp", "tensor")),
    ("{}", ("data", "fsdp", "tensor")),
])
def test_groups_of_devices_become_axes_of_the_mesh(groups, axes):
  [one] = hlo.read(loop(groups), {"data": 2, "fsdp": 2, "tensor": 2}).collectives
  assert one == hlo.Transfer("all-reduce", axes, "LM/blocks/mlp", 16, 16 * SQUARE)


def test_what_slices_of_tpus_exchange_by_their_hosts_is_seen():
  text = loop().replace("%z = f32[8,8]{1,0} all-reduce(%y), replica_groups={{0,1},{2,3}}, to_apply=%add",
                        "%z = (f32[8,8]{1,0}, u32[], token[]) send(%y), is_host_transfer=true, "
                        'frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}')
  [one] = hlo.read(text, {"data": 2, "fsdp": 2, "tensor": 1}).collectives
  assert one == hlo.Transfer("all-reduce", ("data",), "LM/blocks/mlp", 16, 16 * SQUARE)


def test_what_stays_on_the_chip_is_no_traffic():
  text = loop().replace("%y = f32[8,8]{1,0} dot", "%y = f32[8,8]{1,0:T(8,128)S(1)} dot")
  before, after = (hlo.read(each, ONE).bytes for each in (loop(), text))
  assert before - after == 16 * 2 * SQUARE  # Written by the product, read by the sum.


def test_the_dearest_branch_of_a_condition_counts():
  text = """HloModule m

%cheap (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %n = f32[8]{0} negate(%p)
}

%dear (q: f32[8]) -> f32[8] {
  %q = f32[8]{0} parameter(0)
  %m = f32[8]{0} negate(%q)
  ROOT %o = f32[8]{0} exponential(%m)
}

ENTRY %main (i: s32[], x: f32[8]) -> f32[8] {
  %i = s32[] parameter(0)
  %x = f32[8]{0} parameter(1)
  ROOT %r = f32[8]{0} conditional(%i, %x, %x), branch_computations={%cheap, %dear}
}
"""
  found = hlo.read(text, ONE)
  assert found.kernels == 2 and found.bytes == 4 * 32


def test_text_that_is_no_program_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    hlo.read("HloModule m\n", ONE)


@pytest.mark.skipif(len(jax.devices()) < 4, reason="four devices")
def test_a_program_of_this_machine_is_read():
  mesh = meshes.make(2, 2, 1, devices=jax.devices()[:4])

  def step(x_BT, w_TT):
    def turn(carry_BT, _):
      return jnp.tanh(carry_BT @ w_TT), None

    return jnp.sum(jax.lax.scan(turn, x_BT, None, length=7)[0])

  rows = jax.ShapeDtypeStruct((8, 16), np.float32, sharding=meshes.batch_sharding(mesh))
  split = jax.ShapeDtypeStruct((16, 16), np.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
  text = jax.jit(step, out_shardings=meshes.replicated(mesh)).lower(rows, split).compile().as_text()
  found = hlo.read(text, mesh.shape)
  assert found.open_loops == 0 and found.kernels >= 7
  assert {one.kind for one in found.collectives} >= {"all-reduce"}
  assert all(one.axes and one.bytes for one in found.collectives)


@pytest.mark.parametrize(("path", "name"), [
    ("jit(step)/while/body/closed_call/transpose(jvp(LM))/while/body/closed_call/checkpoint/"
     "rematted_computation/blocks_0/norm_mix/mul", "LM/blocks/norm_mix"),
    ("jit(step)/jvp(LM)/while/body/blocks_1/memory/memory._packed/dot_general", "LM/blocks/memory"),
    ("jit(step)/jvp()/reduce_sum", "loss"), ("jit(step)/add", "update"),
])
def test_parts_are_named_by_modules(path, name):
  assert hlo.name_of(path) == name
