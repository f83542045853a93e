"""Both kinds of language model give tuning the same things: they read packed rows, and go on one by one."""
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import atlas_jax
from atlas_jax.models import language
from tests.helpers import assert_close
from tests.language import languages

KINDS = ("decoder", "memory")
T = 24  # A multiple of the memory's chunks.


def tokens(rows=2, length=T):
  return jnp.asarray(np.random.default_rng(5).integers(0, 256, (rows, length)), jnp.int32)


@pytest.mark.parametrize("kind", KINDS)
def test_reading_one_by_one_equals_reading_at_once(kind):
  model, params = languages.tiny(kind)
  tokens_BT = tokens()
  whole_BTD, _ = jax.jit(model.read)(params, tokens_BT, jnp.zeros_like(tokens_BT))
  count_B = jnp.asarray([7, 3])
  start = jax.jit(lambda *args: model.prefill(*args, room_tokens=T))
  state, hidden_BD = start(params, tokens_BT[:, :9], count_B)
  assert_close(hidden_BD, whole_BTD[jnp.arange(2), count_B - 1], tolerance=1e-5)
  step = jax.jit(model.decode)
  for n in range(3):
    position_B = count_B + n
    state, hidden_BD = step(params, state, tokens_BT[jnp.arange(2), position_B])
    assert_close(hidden_BD, whole_BTD[jnp.arange(2), position_B], tolerance=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_read_in_parts_equals_reading_at_once(kind):
  """Rows may have no tokens in a part: what they have read stays."""
  model, params = languages.tiny(kind)
  tokens_BT, zeros_BT = tokens(), jnp.zeros((2, T), jnp.int32)
  whole_BTD, _ = jax.jit(model.read)(params, tokens_BT, zeros_BT)
  state, extend = model.zero_state(2, T), jax.jit(model.extend)
  for first, count_B in ((0, [5, 5]), (5, [3, 0]), (8, [5, 1])):
    count_B = jnp.asarray(count_B)
    other = min(first, 5)  # The second row stood still in the part before.
    part_BT = jnp.stack([tokens_BT[0, first:first + 5], tokens_BT[1, other:other + 5]])
    state, hidden_BD = extend(params, state, part_BT, count_B)
  assert_close(hidden_BD, jnp.stack([whole_BTD[0, 12], whole_BTD[1, 5]]), tolerance=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_row_reads_as_its_documents_alone(kind):
  model, params = languages.tiny(kind)
  size = model.align_tokens
  tokens_BT = tokens(1)
  doc_BT = (jnp.arange(T) // (T // size // 2 * size) % 2)[None]
  both_BTD, _ = model.read(params, tokens_BT, doc_BT)
  cut = int(jnp.argmax(doc_BT[0]))
  alone_BTD, _ = model.read(params, tokens_BT[:, cut:], jnp.zeros((1, T - cut), jnp.int32))
  assert_close(both_BTD[:, cut:], alone_BTD, tolerance=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_completions_are_predicted_from_the_place_before(kind):
  model, params = languages.tiny(kind)
  tokens_BS = tokens()
  batch = {"tokens_BS": tokens_BS, "doc_BS": jnp.zeros_like(tokens_BS), "start_B": jnp.asarray([4, T - 2]),
           "completion_BT": jnp.zeros((2, 5), jnp.int32)}
  found_BTD, _ = language.read_completions(model, params, batch)
  whole_BSD, _ = model.read(params, tokens_BS, batch["doc_BS"])
  assert_close(found_BTD[0], whole_BSD[0, 4:9], tolerance=1e-6)
  assert_close(found_BTD[1, :2], whole_BSD[1, T - 2:], tolerance=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_parameters_have_the_shapes_that_reading_takes(kind):
  model, params = languages.tiny(kind)
  drawn = jax.eval_shape(model.init, jax.random.key(0))
  assert jax.tree.map(lambda x: x.shape, drawn) == jax.tree.map(lambda x: x.shape, params)
  assert model.head(params).shape[1] == model.vocab_size


def test_nobody_asks_which_kind_of_language_model_it_is():
  """What differs is a field of `Language`."""
  asked = re.compile(r"isinstance\([^)]*\b(Decoder|LM)\b")
  package = pathlib.Path(atlas_jax.__file__).parent
  assert [path.name for path in package.rglob("*.py") if asked.search(path.read_text())] == []
