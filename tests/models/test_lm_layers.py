"""A language model with memories in chosen blocks and tokens as values: against its loop, and in calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import tree
from atlas_jax.models import memories, placement
from atlas_jax.optim import build as optim
from atlas_jax.parallel import mesh as meshes
from tests.helpers import SHIFTED, assert_close, quick_compilation, tiny_lm
from tests.models.test_lm import DOCUMENTS, oracle, packed, stream


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


def model_of(layers, dtype="float32"):
  return tiny_lm(dtype=dtype, depth=4, memory_layers=layers, memory=SHIFTED)


@pytest.mark.parametrize("layers", [(1,), (0, 3), None], ids=str)
def test_memories_in_chosen_blocks_equal_the_loop(x64, layers):
  model, params, tokens_BT = model_of(layers, "float64")
  logits_BTV, state = packed(model, params, tokens_BT, DOCUMENTS)
  expected = oracle(model, params, tokens_BT, DOCUMENTS)
  real_BT = DOCUMENTS >= 0
  assert_close(np.asarray(logits_BTV)[real_BT], expected[real_BT])
  held = {leaf.shape[1] for leaf in jax.tree.leaves(state.memory)}
  assert held == {4 if layers is None else len(layers)}


def test_a_model_with_chosen_blocks_reads_on_in_calls_cut_anywhere(x64):
  model, params, tokens_BT = model_of((1,), "float64")
  whole_BTV, whole = packed(model, params, tokens_BT)
  state, outs, start = None, [], 0
  for length in (1, 6, 5):
    out_BTV, state = stream(model, params, tokens_BT[:, start : start + length], state)
    outs.append(out_BTV)
    start += length
  assert_close((jnp.concatenate(outs, axis=1), state), (whole_BTV, whole))


def test_stacks_are_named_by_their_first_block_and_only_chosen_ones_have_a_memory():
  model, params, tokens_BT = model_of((1, 2))
  assert [(one.name, list(one.memories)) for one in model.stacks] == [
    ("blocks_0", []), ("blocks_1", [0, 1]), ("blocks_3", [])
  ]  # fmt: skip
  with_memory = {name.split("/")[0] for name, _ in tree.named_leaves(params) if "/memory/" in name}
  assert with_memory == {"blocks_1"}
  out = model.apply({"params": params}, tokens_BT, model.zero_state(2), doc_BT=jnp.zeros_like(tokens_BT))
  layers = {name.split("/")[1] for name in out.stats}
  assert layers == {"layer_01", "layer_02"}


def test_learned_memories_come_in_the_order_of_their_blocks():
  model, params, _ = tiny_lm(depth=4, memory_layers=(0, 3))
  learned = memories.learned_memory(model, params)
  for name, w in learned.fast.items():
    for place_, stack in enumerate(("blocks_0", "blocks_3")):
      assert_close(w[place_], params[stack]["memory"]["initial_fast"][name][0])
  model, params, _ = model_of((1,))
  zero = memories.learned_memory(model, params).fast["w0"]
  assert zero.shape == (1, 3, 6, 4) and not np.asarray(zero).any()


def test_stacks_of_any_name_are_decayed_and_placed_alike():
  """No vector becomes a matrix by the axis of depth, and depth is never split."""
  shapes = {}
  for layers in (None, (1,)):
    model, params, _ = model_of(layers)
    decayed = dict(tree.named_leaves(optim.decay_mask(params)))
    shapes[layers] = {
      name.split("/", 1)[1]: value for name, value in decayed.items() if name.startswith("blocks")
    }
  assert shapes[(1,)] == shapes[None]
  mesh = meshes.make(data=2, fsdp=2, tensor=2)
  for name, sharding in tree.named_leaves(placement.shardings(mesh, params)):
    if name.startswith("blocks"):
      assert not sharding.spec or sharding.spec[0] is None, name
