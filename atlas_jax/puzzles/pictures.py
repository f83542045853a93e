"""Pages of solved and unsolved puzzles: input, target and prediction of each, wrong cells crossed.

A page has solved puzzles on its left and unsolved ones on its right. The three grids of a puzzle are drawn
with cells of one size. A strip shows one Sudoku after every supervision step.
"""
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import image as images
from matplotlib import patheffects
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D

from atlas_jax.puzzles.solver import Result
from atlas_jax.puzzles.tracing import SolvingTrace

KINDS = ("arc", "sudoku", "maze")
# Colours 0 to 9 as the task viewers of ARC show them.
ARC_COLOURS = ("#000000", "#0074d9", "#ff4136", "#2ecc40", "#ffdc00", "#aaaaaa", "#f012be", "#ff851b",
               "#7fdbff", "#870c25")
# Tokens of a maze: padding, wall, free, start, goal, path; and a path where there should be none.
MAZE_COLOURS = ("#d9d9d9", "#30353d", "#f6f3ec", "#2e9e4f", "#c2338f", "#4c8fd6", "#f0a23b")
MAZE_PATH = 5
MAZE_WRONG_PATH = 6
GIVEN = "#111111"
PREDICTED = "#1f5fbf"
WRONG = "#c0211b"
SHADES = {GIVEN: "#ececec", PREDICTED: "#ffffff", WRONG: "#fbd9d6"}
INK = "#222222"
FAINT = "#777777"
GOOD = "#1a7f37"
BAD = "#b3261e"

DPI = 110
PANEL, GAP, MARGIN = 2.7, 0.18, 0.3  # Inches.
HEAD = 0.56
ROW_GAP = 0.36
COLUMN_GAP = 0.7
NAME_LETTERS = 44
CHANGED = "#e08600"
HALTS = "#2e9e4f"
UNKNOWN = "unknown"  # Said of a target that is not known, and of its verdict.
STRIP_GAP = 0.22  # Between boards, in widths of a board.


class GridPanel(NamedTuple):
  """One grid to draw.

  Attributes:
    caption: above it.
    colours: [height, width, 3] in [0, 1].
    wrong: [height, width] bool, cells to cross.
    digits: (row, column, text, colour) of what is written in cells.
    box: rows and columns of the boxes that thick lines divide; None: no thick lines.
    line: colour of the thin lines.
    absent: what is written in place of a grid without cells.
  """

  caption: str
  colours: np.ndarray
  wrong: np.ndarray
  digits: Sequence[tuple[int, int, str, str]] = ()
  box: tuple[int, int] | None = None
  line: str = "#5a5a5a"
  absent: str = "no grid"


def make_page(kind: str, shape: tuple[int, int], name_of: Callable[[Result], str], *,
              crop: Callable | None = None) -> Callable:
  """Makes the function that draws a page.

  Args:
    kind: "arc", "sudoku" or "maze", how tokens are read.
    shape: rows and columns of the tokens.
    name_of: gives the name to print over a puzzle.
    crop: of "arc": tokens -> grid of colours.

  Returns:
    page(solved, unsolved) of lists of Results -> uint8, height x width x 3.

  Raises:
    ValueError: if the kind is unknown, or a crop is missing.
  """
  if kind not in KINDS:
    raise ValueError(f"pictures of kind={kind!r} are not known; choose one of {', '.join(KINDS)}")
  if kind == "arc" and crop is None:
    raise ValueError("pictures of kind='arc' need crop, which cuts a grid out of tokens")
  panels_of: dict[str, Callable] = {"arc": lambda result: arc_panels(result, crop),
                                    "sudoku": lambda result: sudoku_panels(result, shape),
                                    "maze": lambda result: maze_panels(result, shape)}

  def page(solved: Sequence[Result], unsolved: Sequence[Result]) -> np.ndarray:
    return draw_page(solved, unsolved, name_of, panels_of[kind])

  return page


def write_png(path, image) -> None:
  """Writes a page, uint8 height x width x 3, to a file."""
  images.imsave(path, image, format="png")


def arc_panels(result: Result, crop: Callable | None) -> list[GridPanel]:
  """Returns the grids of an ARC example; cells are wrong where they differ or one of the grids has none."""
  assert crop is not None
  # Cells that are not scored are -100 in a batch; to `crop` they are what they were in the file, padding.
  tokens = (result.input_T, np.where(result.labels_T < 0, 0, result.labels_T), result.prediction_T)
  given, target, prediction = (np.asarray(crop(tokens_T), np.int64) for tokens_T in tokens)
  # Cells beyond the target's size are wrong whatever they hold: the size is part of an ARC answer.
  wrong = np.ones(prediction.shape, bool)
  if target.size:
    rows, columns = (min(sizes) for sizes in zip(target.shape, prediction.shape))
    wrong[:rows, :columns] = target[:rows, :columns] != prediction[:rows, :columns]
  palette = np.array([to_rgb(colour) for colour in ARC_COLOURS])

  def none(grid):
    return np.zeros(grid.shape, bool)

  marks = (none(given), none(target), wrong if target.size else none(prediction))
  panels = zip(("input", "target", "prediction"), (given, target, prediction), marks)
  found = [GridPanel(f"{caption}  {_size(grid)}", palette[grid], mark) for caption, grid, mark in panels]
  return _with_known_target(found, result)


def _with_known_target(panels: list[GridPanel], result: Result) -> list[GridPanel]:
  """Returns the three panels of a result, the second without a grid if its target is unknown."""
  if result.labelled:
    return panels
  unknown = GridPanel(f"target  {UNKNOWN}", np.zeros((0, 0, 3)), np.zeros((0, 0), bool), absent=UNKNOWN)
  return [panels[0], unknown, panels[2]]


def _size(grid) -> str:
  return f"{grid.shape[0]}\N{MULTIPLICATION SIGN}{grid.shape[1]}" if grid.size else "none"


def sudoku_panels(result: Result, shape: tuple[int, int]) -> list[GridPanel]:
  """Returns the boards of a Sudoku; a digit's colour says whether it was given, predicted or wrong."""
  # Tokens are digit + 1: a blank is 0 here, predicted padding -1, shown as "?", and an unscored label -101.
  given, target, prediction = (np.asarray(tokens_T).reshape(shape) - 1 for tokens_T in
                               (result.input_T, result.labels_T, result.prediction_T))
  wrong = (target != prediction) & (target >= 0)
  is_given = given > 0
  kinds = (np.where(is_given, GIVEN, ""), np.where(is_given, GIVEN, FAINT),
           np.where(wrong, WRONG, np.where(is_given, GIVEN, PREDICTED)))
  boards = (("input", given, kinds[0]), ("target", target, kinds[1]), ("prediction", prediction, kinds[2]))
  return _with_known_target([_board(caption, digits, kind) for caption, digits, kind in boards], result)


def _board(caption: str, digits, kinds) -> GridPanel:
  height, width = digits.shape
  shades = [[to_rgb(SHADES.get(str(kind), "#ffffff")) for kind in row] for row in kinds]

  def text(digit):
    return str(digit) if digit > 0 else "?"

  written = [(row, column, text(digits[row, column]), str(kinds[row, column]))
             for row in range(height) for column in range(width) if kinds[row, column]]
  marks = np.zeros(digits.shape, bool)
  return GridPanel(caption, np.array(shades), marks, written, box_of(height), "#b5b5b5")


def box_of(side: int) -> tuple[int, int]:
  """Returns rows and columns of a Sudoku's boxes: 2 x 2, 2 x 3, 3 x 3 of sides 4, 6, 9."""
  rows = max(rows for rows in range(1, int(side**0.5) + 1) if side % rows == 0)
  return rows, side // rows


def maze_panels(result: Result, shape: tuple[int, int]) -> list[GridPanel]:
  """Returns the mazes; a predicted path that leaves the right one has another colour."""
  # Unscored labels become padding, which has a colour of its own.
  given, target, prediction = (np.maximum(np.asarray(tokens_T).reshape(shape), 0) for tokens_T in
                               (result.input_T, result.labels_T, result.prediction_T))
  wrong = (target != prediction) & (result.labels_T.reshape(shape) >= 0)
  palette = np.array([to_rgb(colour) for colour in MAZE_COLOURS])
  # A wrong path has a colour of its own besides the cross; a wall or free cell that is wrong keeps its own.
  shown = np.where(wrong & (prediction == MAZE_PATH), MAZE_WRONG_PATH, np.minimum(prediction, MAZE_PATH))
  none = np.zeros(shape, bool)
  grids = (("input  from green to pink", given, none), ("target", target, none), ("prediction", shown, wrong))
  panels = [GridPanel(caption, palette[grid], mark, line="#8d9096") for caption, grid, mark in grids]
  return _with_known_target(panels, result)


def draw_page(solved: Sequence[Result], unsolved: Sequence[Result], name_of: Callable,
              panels_of: Callable) -> np.ndarray:
  """Draws solved results in the left half, unsolved ones in the right half."""
  n_rows = max(len(solved), len(unsolved), 1)
  half = 3 * PANEL + 2 * GAP
  width = 2 * MARGIN + 2 * half + COLUMN_GAP
  height = 2 * MARGIN + n_rows * (HEAD + PANEL) + (n_rows - 1) * ROW_GAP
  # Not pyplot, which keeps every figure in a global list and may open a display: evaluations draw in a
  # process that trains for days.
  figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
  canvas = FigureCanvasAgg(figure)
  for column, (results, absent) in enumerate(((solved, "none solved"), (unsolved, "none unsolved"))):
    left = MARGIN + column * (half + COLUMN_GAP)
    if not results:
      figure.text((left + half / 2) / width, 0.5, absent, color=FAINT, size=13, ha="center", va="center")
    for row, result in enumerate(results):
      top = height - MARGIN - row * (HEAD + PANEL + ROW_GAP)
      _draw_puzzle(figure, left, top, name_of(result), result, panels_of(result))
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw_puzzle(figure: Figure, left: float, top: float, name: str, result: Result,
                 panels: list[GridPanel]) -> None:
  """Draws a puzzle whose upper left corner lies at so many inches from the lower left of the page."""
  width, height = figure.get_size_inches()
  name = name if len(name) <= NAME_LETTERS else f"{name[:NAME_LETTERS - 1]}\N{HORIZONTAL ELLIPSIS}"
  place: dict[str, Any] = dict(va="top", transform=figure.dpi_scale_trans)
  figure.text(left, top, name, size=11, weight="bold", color=INK, **place)
  figure.text(left + 3 * PANEL + 2 * GAP, top, _verdict(result), size=10.5, ha="right",
              color=GOOD if result.solved else BAD if result.labelled else FAINT, **place)
  # One cell size for the three grids of a puzzle, so that their sizes can be compared by eye.
  side = max(max(panel.colours.shape[:2]) for panel in panels) or 1
  for i, panel in enumerate(panels):
    x = left + i * (PANEL + GAP)
    figure.text(x, top - 0.32, panel.caption, size=9, color=FAINT, **place)
    axes = figure.add_axes((x / width, (top - HEAD - PANEL) / height, PANEL / width, PANEL / height))
    _draw_panel(axes, panel, side)


def _verdict(result: Result) -> str:
  words = ["solved" if result.solved else "unsolved" if result.labelled else UNKNOWN]
  if result.labelled and not result.solved:
    words.append(f"{result.metrics['accuracy']:.0%} of tokens")
  steps = round(result.metrics["steps"])
  words += [f"halting {result.q:.2f}", f"{steps} step{'s' * (steps != 1)}"]
  return "   ".join(words)


def _draw_panel(axes, panel: GridPanel, side: int) -> None:
  """Draws a grid into the upper left of its axes, of which `side` cells fill the width."""
  rows, columns = panel.colours.shape[:2]
  axes.set_xlim(0, side)
  axes.set_ylim(side, 0)
  axes.set_axis_off()
  if not rows or not columns:
    axes.text(side / 2, side / 2, panel.absent, color=FAINT, size=10, ha="center", va="center")
    return
  axes.imshow(panel.colours, extent=(0, columns, rows, 0), interpolation="nearest", aspect="auto")
  axes.set_xlim(0, side)
  axes.set_ylim(side, 0)
  # Text, lines and marks are sized in points: they must shrink with the cells, of which a side has 4 to 30.
  points = PANEL * 72 / side  # Per cell.
  _draw_lines(axes, rows, columns, (1, 1), panel.line, min(0.8, 0.04 * points))
  if panel.box:
    _draw_lines(axes, rows, columns, panel.box, INK, 1.6)
  for row, column, text, colour in panel.digits:
    axes.text(column + 0.5, row + 0.53, text, size=0.52 * points, color=colour, ha="center", va="center",
              weight="bold" if colour in (GIVEN, WRONG) else "normal")
  y, x = np.nonzero(panel.wrong)
  stroke = max(0.9, 0.07 * points)
  # White on black shows on all ten colours of ARC.
  outline = patheffects.withStroke(linewidth=2.2 * stroke, foreground="black")
  axes.scatter(x + 0.5, y + 0.5, marker="x", s=(0.42 * points) ** 2, c="white", linewidths=stroke,
               clip_on=False, path_effects=[outline])


def _draw_lines(axes, rows: int, columns: int, every: tuple[int, int], colour: str, width: float) -> None:
  segments: list[Any] = [((0, y), (columns, y)) for y in range(0, rows + 1, every[0])]
  segments += [((x, 0), (x, rows)) for x in range(0, columns + 1, every[1])]
  axes.add_collection(LineCollection(segments, colors=colour, linewidths=width, clip_on=False,
                                     capstyle="projecting"))


def thinking_strip(axes, trace: SolvingTrace, batch: dict, row: int, shape: tuple[int, int]) -> None:
  """Draws a Sudoku, and next to it the model's board after each supervision step.

  Digits are black where given, blue where right, red where wrong; the deeper the shade behind a digit, the
  surer the model is of it. A frame marks what the step has changed. The bar below a board is how likely the
  model takes the whole board to be right; it is filled in green where an early halt would stop.

  Args:
    axes: of matplotlib, empty; the strip keeps its proportions in it, see `strip_inches`.
    trace: see `tracing.trace`.
    batch: what was traced, with inputs_BT and labels_BT.
    row: which puzzle of the batch.
    shape: rows and columns of the board.
  """
  given, target = (np.asarray(batch[name][row]).reshape(shape) - 1 for name in ("inputs_BT", "labels_BT"))
  boards = [(given, np.where(given > 0, 1.0, 0.0), np.zeros(shape, bool))]
  boards += [(prediction_T.reshape(shape) - 1, chance_T.reshape(shape), changed_T.reshape(shape))
             for prediction_T, chance_T, changed_T in
             zip(trace.prediction_NBT[:, row], trace.chance_NBT[:, row], trace.changed()[:, row])]
  for i, (digits, chance, changed) in enumerate(boards):
    left = i * shape[1] * (1 + STRIP_GAP)
    size = 0.14 * shape[0]
    # A model answers for all cells, also for given ones: a given that it
    # overwrites is an error like any other.
    kept = (given > 0) & (digits == given)
    right = (digits == target) | (target < 0)
    kinds = np.where(kept, GIVEN, np.where(right, PREDICTED, WRONG))
    _strip_board(axes, left, np.where((i == 0) & (given <= 0), 0, digits), kinds, chance, changed)
    _write(axes, left + shape[1] / 2, -0.14 * shape[0], f"step {i}" if i else "puzzle", size, INK)
    if i:
      _strip_bar(axes, left, shape, float(trace.halt_NB[i - 1, row]))
  axes.set_xlim(-0.1, len(boards) * shape[1] * (1 + STRIP_GAP) - STRIP_GAP * shape[1] + 0.1)
  axes.set_ylim(1.36 * shape[0], -0.3 * shape[0])
  axes.set_aspect("equal")
  axes.set_axis_off()


def strip_inches(n_steps: int, n_strips: int, *, board_inches: float = 1.3) -> tuple[float, float]:
  """Returns width and height of a figure for strips one above the other, with room for a legend."""
  return ((n_steps + 1) * (1 + STRIP_GAP) * board_inches, n_strips * 1.75 * board_inches + 0.5)


def strip_legend(figure) -> None:
  """Says below a figure of strips what their colours mean."""
  def box(face, label, edge="#b5b5b5", **more):
    return Rectangle((0, 0), 1, 1, facecolor=face, label=label, edgecolor=edge, **more)

  figure.legend(
      handles=[box(SHADES[GIVEN], "given"), box(_shade(PREDICTED, 1), "right, sure"),
               box(_shade(PREDICTED, 0.5), "right, unsure"), box(_shade(WRONG, 1), "wrong, sure"),
               box(_shade(WRONG, 0.5), "wrong, unsure"),
               box("white", "changed by this step", CHANGED, linewidth=2),
               box(HALTS, "halting probability above a half")],
      loc="outside lower center", ncols=max(1, int(figure.get_figwidth() / 1.8)), frameon=False,
      handlelength=1.1, handleheight=1.1)


def _strip_board(axes, left: float, digits, kinds, chance, changed) -> None:
  """Draws a board whose upper left corner is at (left, 0), with cells of size 1; 0 is an empty cell."""
  height, width = digits.shape
  for (y, x), digit in np.ndenumerate(digits):
    kind = str(kinds[y, x])
    shade = SHADES[GIVEN] if kind == GIVEN else _shade(kind, chance[y, x]) if digit else "white"
    axes.add_patch(Rectangle((left + x, y), 1, 1, facecolor=shade, edgecolor="#b5b5b5", linewidth=0.6))
    if digit:
      text = str(digit) if digit > 0 else "?"
      dark = tuple(0.75 * np.array(to_rgb(kind)))
      _write(axes, left + x + 0.5, y + 0.5, text, 0.5, dark, bold=kind in (GIVEN, WRONG))
  box_rows, box_columns = box_of(height)
  for y in range(0, height, box_rows):
    for x in range(0, width, box_columns):
      box = Rectangle((left + x, y), box_columns, box_rows, fill=False, edgecolor=INK, linewidth=1.2)
      axes.add_patch(box)
  for y, x in np.argwhere(changed):
    frame = Rectangle((left + x + 0.09, y + 0.09), 0.82, 0.82, fill=False, edgecolor=CHANGED, linewidth=2)
    axes.add_patch(frame)


def _strip_bar(axes, left: float, shape: tuple[int, int], halt: float) -> None:
  height, width = shape
  place = (left, 1.07 * height)
  thick = 0.07 * height
  axes.add_patch(Rectangle(place, width * halt, thick, facecolor=HALTS if halt > 0.5 else "#9aa0a6"))
  axes.add_patch(Rectangle(place, width, thick, fill=False, edgecolor=FAINT, linewidth=0.7))
  _write(axes, left + width / 2, 1.25 * height, f"{halt:.0%}", 0.12 * height, INK)


def _shade(colour: str, chance: float) -> tuple[float, ...]:
  """Mixes a colour with white, the less of it the less likely."""
  # Squared, so that unsure answers turn pale early; at most 0.45 of the colour, so that the digit on it, in
  # the same colour but darker, can be read.
  opacity = 0.45 * float(np.clip(chance, 0, 1)) ** 2
  return tuple(opacity * np.array(to_rgb(colour)) + 1 - opacity)


def _write(axes, x: float, y: float, text: str, height: float, colour, *, bold: bool = False) -> None:
  """Writes text centred at a place, its digits so high in units of the axes, whatever size they have."""
  font = FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
  # As a path in units of the axes, not as text in points: strips are drawn into figures of any size, and
  # digits keep their place in the cell. The height of a digit is the measure, whatever letters the text has.
  digit, path = (TextPath((0, 0), letters, size=1, prop=font) for letters in ("0", text))
  scale = height / digit.get_extents().height
  box = path.get_extents()
  move = Affine2D().translate(-(box.x0 + box.x1) / 2, -digit.get_extents().y1 / 2).scale(scale, -scale)
  axes.add_patch(PathPatch(path.transformed(move.translate(x, y)), facecolor=colour, linewidth=0))
