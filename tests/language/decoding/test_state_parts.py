"""States taken to the host and put together again are the same to the last bit."""
import jax
import numpy as np
import pytest

from atlas_jax.language.decoding import state_parts
from atlas_jax.language.decoding.programs import Shapes
from atlas_jax.language.decoding.served_model import ServedModel
from atlas_jax.models import language as languages
from atlas_jax.models.hybrid_decoder import HybridDecoder
from tests.helpers import assert_same_bits, quick_compilation
from tests.language.decoding import serving
from tests.models.test_hybrid_decoder import FIELDS


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


def served(kind):
  """Returns a tiny model; hybrids have parts that grow beside parts of fixed size."""
  if kind != "hybrid":
    return serving.served(kind)
  language = languages.from_decoder(HybridDecoder(**FIELDS))
  return ServedModel("hybrid", 0, language, jax.jit(language.init)(jax.random.key(0)))


@pytest.mark.parametrize("kind", [*serving.KINDS, "hybrid"])
def test_a_state_of_parts_is_the_state(kind):
  model = served(kind)
  room = None if kind == "memory" else serving.ROOM
  programs = serving.shared_programs(model.language, Shapes(serving.ROWS, serving.PIECE, room))
  parts = state_parts.of(model.language, serving.ROOM)
  tokens = np.random.default_rng(0).integers(0, 17, 3 * serving.PIECE).astype(np.int32)
  row, captured = programs.blank(), []
  for at in range(0, len(tokens), serving.PIECE):
    row, _ = programs.read(model.params, row, tokens[at:at + serving.PIECE])
    captured.append(parts.capture(row, at, at + serving.PIECE))
  assert parts.grows == (kind != "memory")
  assert_same_bits(parts.restore(captured if parts.grows else captured[-1:]), row)


def test_parts_of_a_cache_are_as_large_as_their_tokens_and_states_of_a_memory_as_large_as_ever():
  sizes = {}
  for kind in serving.KINDS:
    model = serving.served(kind)
    parts = state_parts.of(model.language, serving.ROOM)
    row = model.language.zero_state(1, serving.ROOM)
    sizes[kind] = [sum(array.nbytes for array in parts.capture(row, 8, stop)) for stop in (16, 24)]
  assert sizes["memory"][0] == sizes["memory"][1]
  cache = serving.served("decoder").language.zero_state(1, 1)
  per_token = cache.k.nbytes + cache.v.nbytes
  assert sizes["decoder"] == [8 * per_token + 4, 16 * per_token + 4]
