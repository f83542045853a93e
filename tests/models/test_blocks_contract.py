"""What every file in models/blocks must keep: facts, states, calls cut anywhere, documents, causality."""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import pytest

from atlas_jax import fields
from atlas_jax.models import blocks, lm, mixing
from tests.helpers import assert_close, quick_compilation, tiny_lm
from tests.models.reading import check_causality, check_cut_calls, check_documents
from tests.models.test_lm import packed

FILES = sorted(path.stem for path in pathlib.Path(blocks.__file__).parent.glob("[!_]*.py"))
every_file = pytest.mark.parametrize("name", FILES)


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


# Segments and mini-batches of a chunk, so that documents may begin where they do in the others.
GIVEN = {"context": dict(window_tokens=4)}


def model_of(name, **given):
  return tiny_lm(memory_mix=name, **(GIVEN.get(name, {}) | given))


@every_file
def test_a_file_declares_its_facts_where_configs_read_them(name):
  assert blocks.names() == FILES
  mix = blocks.load(name)
  assert set(fields.MIXES[name]) == mix.has <= set(mixing.FACTS)
  assert mix.has >= {"memory"} or not mix.has & {"fast_weights", "gate", "segments"}
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
  assert bool(jax.tree.leaves(state.memory)) == bool({"memory", "inner_steps"} & model.mix.has)
  assert bool(jax.tree.leaves(state.attention)) == bool(model.with_attention)
  given = {"doc_BT": jnp.zeros_like(tokens_BT)} if mode == "packed" else {}
  read = lambda: model.apply({"params": params}, tokens_BT, state, **given, mode=mode)
  out = jax.eval_shape(read)
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert shapes(out.state) == shapes(state)
  assert not out.stats or mode == "packed"


@every_file
def test_calls_cut_anywhere_equal_one_parallel_pass(x64, name):
  check_cut_calls(*model_of(name, dtype="float64"))


@every_file
def test_documents_are_read_as_if_alone_and_across_segments(x64, name):
  check_documents(*model_of(name, dtype="float64"))


@every_file
def test_a_token_changes_nothing_before_it(x64, name):
  check_causality(*model_of(name, dtype="float64"))


@every_file
def test_a_new_document_does_not_see_the_state_of_an_old_one(x64, name):
  model, params, tokens_BT = model_of(name, dtype="float64")
  fresh = packed(model, params, tokens_BT)
  _, used = packed(model, params, tokens_BT[:, ::-1], jnp.full_like(tokens_BT, 7))
  assert_close(packed(model, params, tokens_BT, None, used), fresh)
