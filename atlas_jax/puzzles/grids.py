"""Grids of the Abstraction and Reasoning Corpus (ARC): transforms and colours, their 900 tokens, digests.

A grid is uint8 [height, width], at most 30 x 30, of colours 0-9. As tokens it is a square canvas, row by row,
whose side is 30 but for studies of small grids: 0 where nothing is, 1 for the border just below the grid and
just right of it where there is room, colour + 2 inside. An augmentation permutes colours (0 stays), then it
transforms.

Source: Jolicoeur-Martineau 2025, arXiv:2510.04871, and its program, whose formats these are.
"""
import hashlib
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

SIDE = 30
SEQ_LEN = SIDE * SIDE
COLOURS = 10
PAD = 0
EDGE = 1
FIRST_COLOUR = 2
VOCAB_SIZE = FIRST_COLOUR + COLOURS
# Two quarter turns undo each other as 1 and 3; a reflection, and the half turn, undo themselves.
INVERSE = (0, 3, 2, 1, 4, 5, 6, 7)
SEPARATOR = "|||"

# Transforms that exchange rows and columns, and those that read the source's rows or columns backwards.
SWAPS = np.array([0, 1, 0, 1, 0, 0, 1, 1], bool)
_ROWS_BACK = np.array([0, 0, 1, 1, 0, 1, 0, 1], bool)
_COLUMNS_BACK = np.array([0, 1, 1, 0, 1, 0, 0, 1], bool)
_IDENTITY = np.arange(COLOURS, dtype=np.uint8)


def transform(grid: np.ndarray, kind: int) -> np.ndarray:
  """Returns one of the eight rotations and reflections of a grid.

  Args:
    grid: any array of two axes.
    kind: 0 nothing; 1, 2, 3 rotations by 90, 180, 270 degrees counter-clockwise; 4 left and right exchanged;
      5 top and bottom exchanged; 6 transposed; 7 mirrored at the other diagonal.
  """
  if not 0 <= kind < 8:
    raise ValueError(f"transform {kind} is unknown, there are 0 to 7")
  # The two tables speak of the source's rows and columns; once transposed, the source's columns run along the
  # new rows, so they exchange their parts.
  turned = grid.T if SWAPS[kind] else grid
  rows, columns = (_COLUMNS_BACK, _ROWS_BACK) if SWAPS[kind] else (_ROWS_BACK, _COLUMNS_BACK)
  return turned[::-1 if rows[kind] else 1, ::-1 if columns[kind] else 1]


def augment(grid: np.ndarray, kind: int, permutation) -> np.ndarray:
  """Permutes the colours of a grid (colour c becomes permutation[c]), then transforms it."""
  return transform(np.asarray(permutation, np.uint8)[grid], kind)


def augmentation_name(task_id: str, kind: int, permutation) -> str:
  """Names an augmentation of a task: TASK|||tKIND|||the ten colours."""
  return f"{task_id}{SEPARATOR}t{kind}{SEPARATOR}{''.join(map(str, np.asarray(permutation).tolist()))}"


def parse_name(name: str) -> tuple[str, int, np.ndarray]:
  """Returns (task id, transform, permutation) of a name; a name without marks is the task as it stands.

  Raises:
    ValueError: if the marks are not an augmentation's.
  """
  task_id, *marks = name.split(SEPARATOR)
  if not marks:
    return task_id, 0, _IDENTITY.copy()
  # The names are the format: the reference parses them to take augmentations back, and its files have them.
  fits = len(marks) == 2 and len(marks[0]) == 2 and marks[0][0] == "t" and marks[0][1] in "01234567"
  if not fits or sorted(marks[1]) != list("0123456789"):
    raise ValueError(f"the name {name!r} is not of the form TASK{SEPARATOR}tK{SEPARATOR}PERMUTATION "
                     "with K in 0..7 and a permutation of the ten digits")
  return task_id, int(marks[0][1]), np.array([int(digit) for digit in marks[1]], np.uint8)


def undo(grid: np.ndarray, kind: int, permutation) -> np.ndarray:
  """Takes an augmentation back: `undo(augment(grid, k, p), k, p)` is the grid."""
  # argsort of a permutation is its inverse. Colours and places do not touch each
  # other, so their order is free.
  return np.argsort(permutation).astype(np.uint8)[transform(grid, INVERSE[kind])]


def encode(grid: np.ndarray, shift: tuple[int, int] = (0, 0), canvas: int = SIDE) -> np.ndarray:
  """Returns the canvas * canvas tokens of a grid whose top left cell lies at (row, column) `shift`, uint8."""
  (row, column), (height, width) = shift, grid.shape
  if min(shift) < 0 or row + height > canvas or column + width > canvas:
    raise ValueError(f"a grid of {height} x {width} at {shift} leaves the canvas of {canvas} x {canvas}")
  tokens = np.zeros((canvas, canvas), np.uint8)
  tokens[row:row + height, column:column + width] = grid + FIRST_COLOUR
  # Slices, not indices: where the grid reaches the canvas' edge they are empty, and there is no border. The
  # corner between the two borders stays 0, as in the reference.
  tokens[row + height:row + height + 1, column:column + width] = EDGE
  tokens[row:row + height, column + width:column + width + 1] = EDGE
  return tokens.reshape(-1)


def crop(tokens: np.ndarray) -> np.ndarray:
  """Returns the grid that starts at the top left of a canvas, also untidy ones: its largest clean rectangle.

  Of rectangles of colours that hold the top left cell, the one of largest area is taken, of equal ones the
  least tall; there is none if that cell holds no colour, and the grid is then 0 x 0.
  """
  side = math.isqrt(np.size(tokens))
  canvas = np.asarray(tokens).reshape(side, side)
  clean = (canvas >= FIRST_COLOUR) & (canvas < VOCAB_SIZE)
  # The reference's rule, which lets untidy predictions vote: of every row the leading run of colours,
  # then the least of the rows so far; height x width is largest where the grid likely ends. argmax
  # takes the first of equal areas.
  widths = np.minimum.accumulate(np.logical_and.accumulate(clean, axis=1).sum(axis=1))
  areas = widths * np.arange(1, side + 1)
  height = int(np.argmax(areas)) + 1
  if not areas[height - 1]:
    return np.zeros((0, 0), np.uint8)
  return (canvas[:height, :widths[height - 1]] - FIRST_COLOUR).astype(np.uint8)


def find(tokens: np.ndarray) -> np.ndarray | None:
  """Returns the grid that lies anywhere on a canvas; None if colours are missing or form no rectangle."""
  side = math.isqrt(np.size(tokens))
  canvas = np.asarray(tokens).reshape(side, side)
  rows, columns = (np.flatnonzero((canvas >= FIRST_COLOUR).any(axis=axis)) for axis in (1, 0))
  if not len(rows):
    return None
  inside = canvas[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
  is_tidy = inside.min() >= FIRST_COLOUR and inside.max() < VOCAB_SIZE
  return (inside - FIRST_COLOUR).astype(np.uint8) if is_tidy else None


def grid_digest(grid: np.ndarray) -> str:
  """Returns SHA-256 of height, width (a byte each) and cells."""
  height, width = grid.shape
  return hashlib.sha256(bytes((height, width)) + np.ascontiguousarray(grid, np.uint8).tobytes()).hexdigest()


def puzzle_digest(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> str:
  """Returns a digest of (input, output) pairs that does not depend on their order."""
  # These bytes, separators included, are what the reference hashes: it drops augmentations by equal digests.
  digests = sorted(f"{grid_digest(left)}|{grid_digest(right)}" for left, right in pairs)
  return hashlib.sha256("|".join(digests).encode()).hexdigest()


class GridStore(NamedTuple):
  """Many grids, one after another.

  Attributes:
    cells: uint8, all cells row by row.
    starts, heights, widths: int32 per grid.
  """

  cells: np.ndarray
  starts: np.ndarray
  heights: np.ndarray
  widths: np.ndarray


def store(many: list[np.ndarray]) -> GridStore:
  """Puts grids into one array; a cell follows the last one, as a grid without cells is read there."""
  heights, widths = np.array([grid.shape for grid in many], np.int32).reshape(-1, 2).T
  starts = np.cumsum(heights * widths, dtype=np.int32) - heights * widths
  cells = np.concatenate([*(grid.reshape(-1) for grid in many), np.zeros(1, np.uint8)])
  return GridStore(cells, starts, heights, widths)


def shapes(grids: GridStore, which: np.ndarray, kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns heights and widths of the transformed grids."""
  heights = grids.heights[which]
  widths = grids.widths[which]
  return np.where(SWAPS[kinds], widths, heights), np.where(SWAPS[kinds], heights, widths)


def encode_many(grids: GridStore, which, kinds, permutations, shifts, canvas: int = SIDE) -> np.ndarray:
  """Augments and encodes many grids at once.

  Args:
    grids: where the grids are.
    which: [n] which of them.
    kinds: [n] transforms.
    permutations: [n, 10] colours.
    shifts: [n, 2] row and column of the top left cell; the grid must stay on the canvas.
    canvas: its side.

  Returns:
    [n, canvas * canvas] uint8, row k equal to `encode(augment(grid k, kind, permutation), shift, canvas)`.
  """
  heights, widths = shapes(grids, which, kinds)
  swaps = SWAPS[kinds]
  source_widths = grids.widths[which]
  places = np.arange(canvas, dtype=np.int32)
  back_rows = _ROWS_BACK[kinds]
  back_columns = _COLUMNS_BACK[kinds]
  # `_axis` gets for each new axis the length and stride of the source's axis that runs along it.
  rows, row_kind = _axis(places, heights, shifts[:, 0], np.where(swaps, back_columns, back_rows),
                         np.where(swaps, 1, source_widths))
  columns, column_kind = _axis(places, widths, shifts[:, 1], np.where(swaps, back_rows, back_columns),
                               np.where(swaps, source_widths, 1))
  rows += grids.starts[which][:, None]
  codes = grids.cells.take(rows[:, :, None] + columns[:, None, :])
  # All choices of a cell become one code: 0-9 its colour, 10 the border, 11 or more nothing. The sum of the
  # two axes does it: inside is 0 + 0; the border 0 + 1; beyond, and the corner of two borders, 2 or more.
  outside = row_kind[:, :, None] + column_kind[:, None, :]
  np.copyto(codes, outside + np.uint8(COLOURS - 1), where=outside > 0)
  # One row of 16 tokens per example: colours permuted already, then the border, then zeros for the
  # codes 11 to 13. A single `take` then permutes and encodes a whole batch; grid by grid, a batch of
  # 768 pairs would be 1,536 calls.
  tokens = np.zeros((len(codes), 16), np.uint8)  # Of each code: ten colours, the border, the rest.
  tokens[:, :COLOURS] = np.asarray(permutations, np.uint8) + FIRST_COLOUR
  tokens[:, COLOURS] = EDGE
  lines = np.arange(0, 16 * len(codes), 16, dtype=np.int32)[:, None, None]
  return tokens.reshape(-1).take(lines + codes).reshape(-1, canvas * canvas)


def _axis(places, lengths, shifts, backwards, strides) -> tuple[np.ndarray, np.ndarray]:
  """Returns what places of one axis add to a cell's index, and 0 for inside, 1 for border, 2 for beyond."""
  places = places - np.asarray(shifts, np.int32)[:, None]
  lengths = lengths[:, None]
  inside = (places >= 0) & (places < lengths)
  source = np.where(backwards[:, None], lengths - 1 - places, places)
  offsets = np.where(inside, source * strides[:, None], 0).astype(np.int32)
  return offsets, np.where(inside, 0, np.where(places == lengths, 1, 2)).astype(np.uint8)
