"""Sizes of a scheduler and its programs: what does not fit is refused before anything compiles."""
import pytest

from atlas_jax.language.decoding import programs
from atlas_jax.language.decoding.programs import Shapes
from atlas_jax.language.decoding.scheduler_settings import Settings
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
