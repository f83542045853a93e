"""Programs as lists: calls are put in place, loops stay, and scopes say part and pass."""

import jax
import jax.numpy as jnp
import pytest

from atlas_jax.plan import walk
from atlas_jax.plan.walk import BACKWARD, FORWARD, RECOMPUTED, Scope

ROOT = Scope()


@pytest.mark.parametrize("stack, names, pass_", [
  ("model/layer_0", ("model", "layer_0"), FORWARD),
  ("jvp(model)/layer_0", ("model", "layer_0"), FORWARD),
  ("transpose(jvp(model))/layer_0", ("model", "layer_0"), BACKWARD),
  ("transpose(jvp(loss))/model/jvp(loss)/model", ("loss", "model"), BACKWARD),
  ("transpose(jvp(model))/rematted_computation/layer_0", ("model", "layer_0"), RECOMPUTED),
  ("jvp(model)/memory/transpose(jvp(recall))/error", ("model", "memory", "recall", "error"), FORWARD),
  ("vmap(jvp(model))/head", ("model", "head"), FORWARD),
  ("", (), FORWARD)])
def test_names_of_scopes_say_part_and_pass(stack, names, pass_):
  found = walk.inner_scope(ROOT, stack)
  assert (found.names, found.pass_) == (names, pass_)


def test_what_is_inside_a_backward_loop_is_of_the_backward_pass():
  outside = walk.inner_scope(ROOT, "transpose(jvp(model))/scan")
  assert walk.inner_scope(outside, "rule").names == ("model", "scan", "rule")
  assert walk.inner_scope(outside, "jvp(rule)").pass_ == BACKWARD


def read(function, *args):
  return walk.program(jax.make_jaxpr(function)(*args), ROOT)


def test_calls_are_put_in_place_and_arrays_keep_their_names():
  @jax.jit
  def square(x):
    return x * x
  found = read(lambda x: jax.checkpoint(square)(square(x)) + 1, jnp.ones(3))
  assert [node.name for node in found.nodes] == ["mul", "mul", "add"]
  first, second, last = found.nodes
  assert first.inputs == (found.inputs[0],) * 2
  assert second.inputs == first.outputs * 2 and first.outputs != second.outputs
  assert last.inputs[0] == second.outputs[0] and last.inputs[1].key is None
  assert found.outputs == last.outputs


def test_loops_and_branches_keep_their_programs():
  def function(x):
    x, _ = jax.lax.scan(lambda x, _: (jnp.sin(x), None), x, length=3)
    return jax.lax.cond(x[0] > 0, jnp.cos, jnp.tan, x)
  programs = {node.name: node.programs for node in read(function, jnp.ones(3)).nodes}
  assert [node.name for node in programs["scan"][0].nodes] == ["sin"]
  assert [each.nodes[0].name for each in programs["cond"]] == ["tan", "cos"]


def test_arrays_know_their_bytes():
  found = read(lambda x, key: (x, jax.random.split(key)), jnp.ones((2, 3), jnp.bfloat16), jax.random.key(0))
  assert found.inputs[0].bytes == 12 and found.inputs[0].elements == 6
  assert found.inputs[1].bytes == 8
