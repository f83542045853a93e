"""What pictures show: grids as they are, wrong cells crossed, names and verdicts within the page."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from atlas_jax.puzzles import grids, pictures, tracing
from tests.evals.answers import answer


def arc_answer(target, prediction, given=((1, 2), (3, 4))):
  encode = lambda grid: grids.encode(np.array(grid, np.uint8)).astype(np.int32)
  labels = np.where(encode(target) == 0, -100, encode(target))
  return answer(encode(given), labels, encode(prediction) if len(prediction) else np.zeros(900))


def arc_page(**more):
  return pictures.make_page("arc", (30, 30), lambda result: "0a1b2c3d", crop=grids.crop, **more)


def maze(text):
  return np.array(["?# SGo".index(letter) for letter in text])


def test_colours_of_arc_are_those_of_the_grids():
  given, target, prediction = pictures.arc_panels(arc_answer([[5, 6, 7]], [[5, 6, 7]]), grids.crop)
  np.testing.assert_array_equal(target.colours, [[to_rgb(pictures.ARC_COLOURS[i]) for i in (5, 6, 7)]])
  np.testing.assert_array_equal(target.colours, prediction.colours)
  assert given.colours.shape == (2, 2, 3) and (given.caption, target.caption) == ("input  2×2", "target  1×3")
  assert not any(panel.wrong.any() for panel in (given, target, prediction))


def test_wrong_cells_of_arc_are_those_that_differ_or_lie_outside():
  prediction = pictures.arc_panels(arc_answer([[5, 6], [7, 8]], [[5, 1, 6]]), grids.crop)[2]
  np.testing.assert_array_equal(prediction.wrong, [[False, True, True]])


def test_a_missing_target_makes_nothing_wrong():
  unknown = arc_answer([[5]], [[6]])._replace(labels_T=np.full(900, -100), labelled=False)
  assert not pictures.arc_panels(unknown, grids.crop)[2].wrong.any()
  assert pictures._verdict(unknown).startswith("unknown")
  target = pictures.arc_panels(unknown, grids.crop)[1]
  assert (target.caption, target.absent, target.colours.size) == ("target  unknown", "unknown", 0)


def test_a_board_without_a_target_says_so():
  boards = pictures.sudoku_panels(answer([3, 1, 1, 1], [-100] * 4, [3, 2, 3, 1]), (2, 2))
  mazes = pictures.maze_panels(answer(maze("S G# #"), [-100] * 6, maze("S G#o#")), (2, 3))
  for given, target, prediction in (boards, mazes):
    assert (target.caption, target.colours.size) == ("target  unknown", 0)
    assert given.colours.size and not prediction.wrong.any()


def test_digits_of_a_sudoku_say_whether_they_were_given_predicted_or_wrong():
  result = answer([3, 1, 1, 1], [3, 2, 2, 3], [3, 2, 3, 1])
  given, target, prediction = pictures.sudoku_panels(result, (2, 2))
  assert given.digits == [(0, 0, "2", pictures.GIVEN)]
  assert [digit[2] for digit in target.digits] == ["2", "1", "1", "2"]
  kinds = (pictures.GIVEN, pictures.PREDICTED, pictures.WRONG, pictures.WRONG)
  assert [digit[2:] for digit in prediction.digits] == list(zip("212?", kinds))


@pytest.mark.parametrize("side, box", [(4, (2, 2)), (6, (2, 3)), (9, (3, 3))])
def test_boxes_fit_the_side(side, box):
  assert pictures.box_of(side) == box


def test_a_maze_shows_the_path_and_where_it_leaves_the_right_one():
  result = answer(maze("S G# #"), maze("SoG# #"), maze("S G#o#"))
  _, target, prediction = pictures.maze_panels(result, (2, 3))
  colour = lambda index: to_rgb(pictures.MAZE_COLOURS[index])
  assert tuple(target.colours[0, 1]) == colour(pictures.MAZE_PATH)
  assert tuple(prediction.colours[1, 1]) == colour(pictures.MAZE_WRONG_PATH)
  np.testing.assert_array_equal(prediction.wrong, [[False, True, False], [False, True, False]])


def test_the_verdict_names_share_of_tokens_halting_and_steps():
  wrong = arc_answer([[5, 6]], [[5, 1]])  # Two cells and three of the border.
  assert pictures._verdict(wrong) == "unsolved   80% of tokens   halting 0.50   3 steps"
  right = arc_answer([[5]], [[5]])
  right.metrics["steps"] = 1.0
  assert pictures._verdict(right) == "solved   halting 0.50   1 step"


@pytest.mark.parametrize("side", [1, 3, 30])
def test_a_grid_is_drawn_in_its_colours_inside_the_page(side):
  grid = np.full((side, side), 3)
  image = arc_page()([arc_answer(grid, grid, given=grid)], [])
  green = np.all(image == np.round(255 * np.array(to_rgb(pictures.ARC_COLOURS[3]))).astype(np.uint8), axis=-1)
  panel = (pictures.PANEL * pictures.DPI) ** 2
  assert 0.6 * 3 * panel < green.sum() <= 3 * panel
  edges = np.concatenate([image[:5].ravel(), image[-5:].ravel(), image[:, :5].ravel(), image[:, -5:].ravel()])
  assert np.all(edges == 255)


def test_a_page_is_as_tall_as_its_longer_half_and_equal_answers_give_equal_pages():
  one, two = arc_answer([[5]], [[5]]), arc_answer([[5]], [[6]])
  page = arc_page()
  small, large = page([one], [two]), page([one], [two, two, two])
  assert small.shape[1] == large.shape[1] and small.shape[0] < large.shape[0]
  np.testing.assert_array_equal(page([one], [two]), small)
  assert page([], []).shape == small.shape


def test_a_prediction_without_grid_is_drawn():
  assert arc_page()([], [arc_answer([[5]], [])]).dtype == np.uint8


def test_a_kind_that_does_not_exist_is_refused():
  with pytest.raises(ValueError, match="kind='chess' are not known; choose one of arc, sudoku, maze"):
    pictures.make_page("chess", (8, 8), str)
  with pytest.raises(ValueError, match="need crop"):
    pictures.make_page("arc", (30, 30), str)


def strip(prediction_NT, halt_N, chance=1.0):
  """The figure of a 2 x 2 Sudoku, of which the first digit is given."""
  prediction_NBT = np.array(prediction_NT)[:, None]
  chance_NBT = np.full(prediction_NBT.shape, chance)
  trace = tracing.SolvingTrace(prediction_NBT, chance_NBT, np.array(halt_N)[:, None])
  batch = {"inputs_BT": np.array([[3, 1, 1, 1]]), "labels_BT": np.array([[3, 2, 2, 3]])}
  figure = Figure(figsize=pictures.strip_inches(len(halt_N), 1), layout="constrained")
  pictures.thinking_strip(figure.subplots(), trace, batch, 0, (2, 2))
  pictures.strip_legend(figure)
  return figure


def cells(figure):
  """The colours of cells from left to right and top to bottom, of one board after the other."""
  squares = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
  squares = [patch for patch in squares if patch.get_fill() and patch.get_width() == patch.get_height() == 1]
  return [to_rgb(patch.get_facecolor()) for patch in squares]


def frames(figure):
  """The corners of the frames around changed cells."""
  rectangles = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
  return [patch.get_xy() for patch in rectangles if to_rgb(patch.get_edgecolor()) == to_rgb(pictures.CHANGED)]


def test_a_strip_shades_digits_by_what_they_are_and_how_sure_the_model_is():
  given, right, wrong = to_rgb(pictures.SHADES[pictures.GIVEN]), pictures.PREDICTED, pictures.WRONG
  sure, unsure = (cells(strip([[3, 2, 3, 3]], [0.2], chance=chance)) for chance in (1.0, 0.4))
  assert sure[:4] == unsure[:4] == [given, (1, 1, 1), (1, 1, 1), (1, 1, 1)]
  for found, chance in ((sure, 1.0), (unsure, 0.4)):
    shades = [given] + [pictures._shade(colour, chance) for colour in (right, wrong, right)]
    np.testing.assert_allclose(found[4:], shades)
  assert np.mean(unsure[5]) > np.mean(sure[5])


def test_a_strip_frames_the_digits_that_a_step_has_changed():
  assert frames(strip([[3, 2, 2, 3]], [0.5])) == []
  found = frames(strip([[3, 2, 2, 2], [3, 2, 2, 3]], [0.5, 0.6]))
  board = 2 * 2 * (1 + pictures.STRIP_GAP)  # The second step's.
  np.testing.assert_allclose(found, [(board + 1.09, 1.09)])


def test_a_strip_has_a_bar_per_step_in_green_where_the_model_would_halt():
  patches = strip([[3, 2, 2, 2], [3, 2, 2, 3]], [0.25, 0.75]).axes[0].patches
  low = [patch for patch in patches if isinstance(patch, Rectangle) and patch.get_y() > 2]
  bars = [patch for patch in low if patch.get_fill()]
  assert [bar.get_width() for bar in bars] == [0.5, 1.5]
  green = [to_rgb(bar.get_facecolor()) == to_rgb(pictures.HALTS) for bar in bars]
  assert green == [False, True]


def test_a_given_digit_that_the_model_overwrites_is_wrong():
  assert cells(strip([[2, 2, 2, 3]], [0.5]))[4] == pictures._shade(pictures.WRONG, 1)


def test_a_strip_lies_within_its_figure():
  figure = strip([[3, 2, 2, 2], [3, 2, 2, 3]], [0.25, 0.75])
  FigureCanvasAgg(figure).draw()
  image = np.asarray(figure.canvas.buffer_rgba())[..., :3]
  assert np.all(image[:2] == 255) and np.all(image[-2:] == 255)
  assert np.all(image[:, :1] == 255) and np.all(image[:, -1:] == 255) and image.min() < 50
