"""Sizes of a scheduler and its programs: what does not fit is refused, and nothing compiles twice."""
import jax
import numpy as np
import pytest

from atlas_jax.language.decoding import programs, state_parts
from atlas_jax.language.decoding.prefix_store import PrefixStore, Root
from atlas_jax.language.decoding.programs import Shapes
from atlas_jax.language.decoding.prompt_reading import PromptReading, StatePlace
from atlas_jax.language.decoding.scheduler_settings import Settings
from atlas_jax.language.decoding.served_model import ServedModel
from atlas_jax.parallel import mesh as meshes
from tests import runs
from tests.helpers import quick_compilation
from tests.language.languages import tiny


@pytest.mark.parametrize("kind, fields, shapes, match", [
    ("memory", {}, Shapes(0, 8, None), "group_rows=0 must be at least 1"),
    ("memory", {}, Shapes(1, 0, None), "piece_tokens=0"),
    ("decoder", {}, Shapes(1, 8, None), "room_tokens=None must be the longest text"),
    ("decoder", {}, Shapes(1, 8, 7), "room_tokens=7 .* at least piece_tokens=8"),
    ("decoder", dict(attention_block_tokens=16), Shapes(1, 24, 64), "piece_tokens=24 must be at most"),
    ("decoder", dict(learned_positions=32), Shapes(1, 8, 40), "room_tokens=40 .* learned_positions=32")])
def test_sizes_that_do_not_fit_the_model_are_refused(kind, fields, shapes, match):
  with pytest.raises(ValueError, match=match):
    programs.make(tiny(kind, **fields)[0], shapes)


@pytest.mark.parametrize("fields, match", [
    (dict(slots=0), "slots=0"), (dict(queue_requests=0), "queue_requests=0"),
    (dict(store_bytes=-1), "store_bytes=-1"), (dict(time_limit_s=0), "time_limit_s=0"),
    (dict(piece_tokens=64, store_every_tokens=100), "store_every_tokens=100 must be a multiple"),
    (dict(store_folder="x"), "store_folder='x' is for a store")])
def test_settings_that_cannot_be_are_refused(fields, match):
  with pytest.raises(ValueError, match=match):
    Settings(**fields)


@pytest.mark.parametrize("kind", ["memory", "decoder"])
def test_a_state_from_the_store_is_read_on_by_the_same_program(kind):
  language, params = tiny(kind)
  mesh, room = runs.one_device(), 32 if kind == "decoder" else None
  model = ServedModel("base", 0, language, jax.device_put(params, meshes.replicated(mesh)))
  with quick_compilation():
    made = programs.make(language, Shapes(1, 8, room), mesh=mesh)
    parts = state_parts.of(language, room)
    place = StatePlace(PrefixStore(8, 2**24, None), Root("root", parts.grows), parts, 8, True)
    for size, cached in ((16, 0), (24, 16)):
      reading = PromptReading(model, made, np.arange(size, dtype=np.int32), place)
      reading.begin()
      assert reading.cached == cached
      while not reading.done:
        reading.turn()
  assert made.read.args[0]._cache_size() == 1
