"""What every file in models/blocks must keep: facts, states, calls cut anywhere, documents, causality."""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import fields
from atlas_jax.models import blocks, lm, mixing
from tests.helpers import assert_close, assert_same_bits, quick_compilation, tiny_lm
from tests.models.test_lm import DOCUMENTS, packed, stream

FILES = sorted(path.stem for path in pathlib.Path(blocks.__file__).parent.glob("[!_]*.py"))
every_file = pytest.mark.parametrize("name", FILES)


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


def model_of(name, **given):
  return tiny_lm(memory_mix=name, **given)


@every_file
def test_a_file_declares_its_facts_where_configs_read_them(name):
  assert blocks.names() == FILES
  mix = blocks.load(name)
  assert set(fields.MIXES[name]) == mix.has <= set(mixing.FACTS)
  assert mix.has >= {"memory"} or not mix.has & {"fast_weights", "gate"}
  assert importlib.import_module(mix.mix.__module__).__doc__


def test_a_name_without_a_file_is_refused_with_the_known_ones():
  known = ", ".join(blocks.names())
  with pytest.raises(ValueError, match=f"memory_mix='gated' is unknown; known are {known}$"):
    blocks.load("gated")


@every_file
@pytest.mark.parametrize("memory_layers", [None, (1,)], ids=["all blocks", "one block"])
@pytest.mark.parametrize("mode", lm.MODES)
def test_a_state_is_what_the_facts_say_and_keeps_its_shapes_and_dtypes(name, memory_layers, mode):
  model, params, tokens_BT = model_of(name, dtype="bfloat16", memory_layers=memory_layers)
  state = model.zero_state(2)
  assert bool(jax.tree.leaves(state.memory)) == ("memory" in model.mix.has)
  assert bool(jax.tree.leaves(state.attention)) == bool(model.with_attention)
  given = {"doc_BT": jnp.zeros_like(tokens_BT)} if mode == "packed" else {}
  read = lambda: model.apply({"params": params}, tokens_BT, state, **given, mode=mode)
  out = jax.eval_shape(read)
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert shapes(out.state) == shapes(state)
  assert not out.stats or mode == "packed"


@every_file
def test_calls_cut_anywhere_equal_one_parallel_pass(x64, name):
  """By calls of one shape, whose first tokens count: outputs, and the whole state."""
  model, params, tokens_BT = model_of(name, dtype="float64")
  whole_BTV, whole = packed(model, params, tokens_BT)
  state, outs, start = None, [], 0
  for length in (1, 2, 6, 3):
    part_BT = jnp.full((2, 12), 31, jnp.int32).at[:, :length].set(tokens_BT[:, start : start + length])
    out_BTV, state = stream(model, params, part_BT, state, jnp.full(2, length, jnp.int32))
    outs.append(out_BTV[:, :length])
    start += length
  assert_close((jnp.concatenate(outs, axis=1), state), (whole_BTV, whole))


@every_file
def test_documents_are_read_as_if_alone_and_across_segments(x64, name):
  model, params, tokens_BT = model_of(name, dtype="float64")
  together_BTV, _ = packed(model, params, tokens_BT, DOCUMENTS)
  for b, start, stop in ((0, 0, 6), (0, 8, 11), (1, 4, 12)):
    doc_BT = jnp.where(jnp.arange(12)[None] < stop - start, jnp.zeros((2, 12), jnp.int32), -1)
    alone_BTV, _ = packed(model, params, jnp.roll(tokens_BT, -start, axis=1), doc_BT)
    assert_close(together_BTV[b, start:stop], alone_BTV[b, : stop - start], why=f"row {b} from {start}")
  state, outs = None, []
  for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
    out_BTV, state = packed(model, params, tokens_BT[:, part], DOCUMENTS[:, part], state)
    outs.append(np.asarray(out_BTV))
  assert_close(np.concatenate(outs, axis=1)[DOCUMENTS >= 0], np.asarray(together_BTV)[DOCUMENTS >= 0])


@every_file
def test_a_token_changes_nothing_before_it(x64, name):
  model, params, tokens_BT = model_of(name, dtype="float64")
  other_BT = tokens_BT.at[:, 5].set((tokens_BT[:, 5] + 1) % model.vocab_size)
  before, after = (np.asarray(packed(model, params, x)[0]) for x in (tokens_BT, other_BT))
  assert_same_bits(after[:, :5], before[:, :5])
  assert (after[:, 5] != before[:, 5]).any()


@every_file
def test_a_new_document_does_not_see_the_state_of_an_old_one(x64, name):
  model, params, tokens_BT = model_of(name, dtype="float64")
  fresh = packed(model, params, tokens_BT)
  _, used = packed(model, params, tokens_BT[:, ::-1], jnp.full_like(tokens_BT, 7))
  assert_close(packed(model, params, tokens_BT, None, used), fresh)
