"""Transforms, names, tokens, crops and digests of grids equal the reference's, and undo each other."""
import pathlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from hypothesis.extra import numpy as arrays

from atlas_jax.puzzles import grids
from atlas_jax.puzzles.arc.legacy_random import LegacyRandom

FIXTURE = np.load(pathlib.Path(__file__).parents[1] / "fixtures/trm/arc_grids.npz")
SHAPES = strategies.tuples(strategies.integers(1, 30), strategies.integers(1, 30))
GRIDS = SHAPES.flatmap(lambda shape: arrays.arrays(np.uint8, shape, elements=strategies.integers(0, 9)))
KINDS = strategies.integers(0, 7)
PERMUTATIONS = strategies.permutations(range(1, 10)).map(lambda rest: np.array([0, *rest], np.uint8))


@pytest.mark.core
@pytest.mark.parametrize("kind", range(8))
def test_transforms_equal_the_references(kind):
  for name in ("rect", "square"):
    np.testing.assert_array_equal(grids.transform(FIXTURE[name], kind), FIXTURE[f"{name}_t{kind}"])


def test_inverses_equal_the_references():
  np.testing.assert_array_equal(grids.INVERSE, FIXTURE["inverse_of"])


def test_an_unknown_transform_is_refused():
  with pytest.raises(ValueError, match="transform 8"):
    grids.transform(FIXTURE["rect"], 8)


@pytest.mark.core
def test_drawn_augmentations_and_their_names_equal_the_references():
  kinds, permutations, _ = LegacyRandom(123).augmentations(6)
  for k, (kind, permutation) in enumerate(zip(kinds, permutations, strict=True)):
    np.testing.assert_array_equal(grids.augment(FIXTURE["rect"], kind, permutation), FIXTURE[f"aug{k}_rect"])
    name = grids.augmentation_name("toy", kind, permutation)
    assert name == FIXTURE["aug_names"][k]
    assert grids.parse_name(name)[:2] == ("toy", kind)
    np.testing.assert_array_equal(grids.parse_name(name)[2], permutation)


@pytest.mark.core
def test_tokens_with_and_without_a_shift_equal_the_references():
  draws = LegacyRandom(321)
  for k in range(5):
    pair = FIXTURE[f"enc{k}_in"], FIXTURE[f"enc{k}_out"]
    room = [31 - max(grid.shape[axis] for grid in pair) for axis in (0, 1)]
    shift = draws.below(room[0]), draws.below(room[1])
    for grid, side in zip(pair, ("in", "out"), strict=True):
      np.testing.assert_array_equal(grids.encode(grid), FIXTURE[f"enc{k}_{side}_seq"])
      np.testing.assert_array_equal(grids.encode(grid, shift), FIXTURE[f"enc{k}_{side}_seq_shift"])
    np.testing.assert_array_equal(grids.crop(FIXTURE[f"enc{k}_out_seq"]), FIXTURE[f"enc{k}_crop"])


@pytest.mark.parametrize("name", FIXTURE["crop_names"].tolist())
def test_crops_of_untidy_tokens_equal_the_references(name):
  np.testing.assert_array_equal(grids.crop(FIXTURE[f"crop_in/{name}"]), FIXTURE[f"crop_out/{name}"])


def test_digests_equal_the_references():
  for name in ("rect", "square"):
    assert grids.grid_digest(FIXTURE[name]) == FIXTURE[f"hash_{name}"]
  assert grids.grid_digest(np.zeros((0, 0), np.uint8)) == FIXTURE["hash_empty"]


def test_the_digest_of_a_puzzle_ignores_the_order_of_its_pairs():
  rect, square = FIXTURE["rect"], FIXTURE["square"]
  assert grids.puzzle_digest([(rect, square), (square, rect)]) == grids.puzzle_digest(
      [(square, rect), (rect, square)])
  assert grids.puzzle_digest([(rect, square)]) != grids.puzzle_digest([(square, rect)])


@hypothesis.given(GRIDS, KINDS, PERMUTATIONS)
@hypothesis.settings(deadline=None, max_examples=60)
def test_an_augmentation_is_undone_by_its_name(grid, kind, permutation):
  _, *marks = grids.parse_name(grids.augmentation_name("a", kind, permutation))
  np.testing.assert_array_equal(grids.undo(grids.augment(grid, kind, permutation), *marks), grid)


@hypothesis.given(GRIDS)
@hypothesis.settings(deadline=None, max_examples=60)
def test_a_grid_is_cropped_from_its_tokens(grid):
  np.testing.assert_array_equal(grids.crop(grids.encode(grid)), grid)


@hypothesis.given(strategies.lists(strategies.tuples(GRIDS, KINDS, PERMUTATIONS), min_size=1, max_size=4),
                  strategies.randoms(use_true_random=False), strategies.integers(0, 4))
@hypothesis.settings(deadline=None, max_examples=40)
def test_many_grids_are_encoded_as_each_alone(cases, random, spare):
  many, kinds, permutations = zip(*cases, strict=True)
  augmented = [grids.augment(*case) for case in cases]
  canvas = min(30, spare + max(max(grid.shape) for grid in augmented))
  shifts = [[random.randint(0, canvas - side) for side in grid.shape] for grid in augmented]
  tokens = grids.encode_many(grids.store(list(many)), np.arange(len(cases)), np.array(kinds),
                             np.array(permutations), np.array(shifts), canvas)
  assert tokens.dtype == np.uint8
  for row, grid, shift in zip(tokens, augmented, shifts, strict=True):
    np.testing.assert_array_equal(row, grids.encode(grid, tuple(shift), canvas))


@pytest.mark.parametrize("name", ["a|||t8|||0123456789", "a|||t1", "a|||1|||0123456789", "a|||t1|||012345678",
                                  "a|||t1|||0123456788"])
def test_a_name_of_another_form_is_refused(name):
  with pytest.raises(ValueError, match="is not of the form"):
    grids.parse_name(name)


def test_a_shift_off_the_canvas_is_refused():
  with pytest.raises(ValueError, match="leaves the canvas"):
    grids.encode(FIXTURE["rect"], (28, 0))
