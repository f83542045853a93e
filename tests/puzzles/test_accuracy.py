"""What is measured of answers: means over labelled examples, cost per example, and which are drawn."""

import numpy as np
import pytest
from matplotlib import image as images

from atlas_jax.puzzles import accuracy, pictures
from tests.evals.answers import answer

BOARD = [[2, 3, 4, 5], [4, 5, 2, 3], [3, 2, 5, 4], [5, 4, 3, 2]]  # A 4x4 Sudoku in tokens.


def board(example, n_wrong, **more):
  solution = np.array(BOARD).ravel()
  given, prediction = np.where(np.arange(16) % 3, 1, solution), solution.copy()
  prediction[:n_wrong] = prediction[:n_wrong] % 4 + 2
  return answer(given, solution, prediction, example=example, **more)


def answers():
  return [
    board(0, 0, steps=2, lm_loss=0.5, q_halt_accuracy=1.0, calls=2),
    board(1, 4, steps=4, lm_loss=1.5, calls=4),
    board(2, 8, steps=4, lm_loss=2.5, calls=4),
    answer(np.ones(16), np.full(16, -100), np.ones(16), example=3, lm_loss=9.0, calls=5),
  ]


def test_means_are_over_labelled_examples_and_cost_is_over_all():
  run = accuracy.make(lambda trained: iter(answers()), batch_rows=6)
  out = run(None, step=1)
  expected = dict(count=3.0, accuracy=0.75, exact_accuracy=1 / 3, q_halt_accuracy=1 / 3, steps=10 / 3,
                  lm_loss=1.5, q_halt_loss=0.0, steps_spent=5 * 6 / 4)  # fmt: skip
  assert out.scalars == pytest.approx({f"eval/all/{name}": value for name, value in expected.items()})
  assert out.images == {}


def test_examples_that_are_trained_on_are_also_left_out_of_a_score():
  run = accuracy.make(lambda trained: iter(answers()), batch_rows=6, trained_on=frozenset({0}))
  found = run(None, step=1).scalars
  assert found["eval/all/count"] == 3 and found["eval/all/exact_accuracy"] == pytest.approx(1 / 3)
  assert found["eval/unseen/count"] == 2 and found["eval/unseen/exact_accuracy"] == 0


def test_no_example_gives_a_count_of_zero_and_no_mean():
  run = accuracy.make(lambda trained: iter(()), batch_rows=6)
  assert run(None, step=1).scalars == {"eval/all/count": 0.0}


def test_one_picture_is_one_of_each_kind():
  drawn = []
  page = lambda solved, unsolved: drawn.append((len(solved), len(unsolved))) or np.zeros((1, 1, 3), np.uint8)
  run = accuracy.make(lambda trained: iter(answers()), batch_rows=6, n_pictures=1, page=page)
  run(None, step=1)
  assert drawn == [(1, 1)]


def test_what_was_trained_reaches_the_solver():
  seen = []
  run = accuracy.make(lambda trained: seen.append(trained) or iter(()), batch_rows=6)
  run("trained", step=1)
  assert seen == ["trained"]


def test_a_page_is_returned_and_left_in_the_folder_of_the_step(tmp_path):
  page = pictures.make_page("sudoku", (4, 4), lambda result: f"board {result.example}")
  run = accuracy.make(lambda trained: iter(answers()), batch_rows=6, n_pictures=4, page=page)
  image = run(None, step=12, workdir=tmp_path).images["eval/puzzles"]
  assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
  written = images.imread(tmp_path / "evals" / "step_00000012" / "puzzles.png")
  np.testing.assert_array_equal(np.round(written[..., :3] * 255).astype(np.uint8), image)
  assert not run(None, step=13).images.keys() - {"eval/puzzles"}
  assert [path.name for path in (tmp_path / "evals").iterdir()] == ["step_00000012"]


def test_examples_without_labels_are_drawn_where_there_is_room():
  gallery = accuracy.Gallery(2)
  for example in range(3):
    gallery.add(answer(np.ones(16), np.full(16, -100), np.ones(16), example=example))
  assert [result.example for result in gallery.unsolved] == [0, 1]
  gallery.add(board(7, 5))
  assert [result.example for result in gallery.unsolved] == [7, 0]
  assert gallery.solved == []


def test_a_gallery_keeps_the_first_of_both_kinds_one_per_subject():
  gallery = accuracy.Gallery(2, lambda result: None if result.example == 1 else result.example // 2)
  for example, n_wrong in enumerate([0, 0, 5, 0, 0, 5, 5, 0]):
    gallery.add(board(example, n_wrong))
  assert [result.example for result in gallery.solved] == [0, 3]
  assert [result.example for result in gallery.unsolved] == [2, 5]
