"""Solves Sudokus of side 4, 6 and 9, counts their solutions, and measures how hard they are.

A candidate is a digit in a cell. The open candidates of a board are one Python integer, in which candidate
(digit d, cell c) is bit (d - 1) * cells + c. A house is a set of candidates of which exactly one is true: a
cell, or a digit in a row, a column or a box. All houses are counted at once by shifting that integer.
"""
import dataclasses
import functools
from typing import NamedTuple

import numpy as np

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # side -> rows and columns of a box


@dataclasses.dataclass(frozen=True)
class Layout:
  """The houses of one size of Sudoku.

  Attributes:
    side: rows, columns and digits.
    box_rows, box_cols: shape of a box.
    n_cells: side * side.
    every: all candidates of the empty board.
    houses: per kind of house the first candidates of its houses, the shifts that lead to the other ones, and
      what a set of first candidates is multiplied by to give all candidates of their houses.
    keep: per candidate, the candidates that stay possible when it is true, itself among them.
  """
  side: int
  box_rows: int
  box_cols: int
  n_cells: int
  every: int
  houses: tuple[tuple[int, tuple[int, ...], int], ...]
  keep: tuple[int, ...]


class Outcome(NamedTuple):
  """The outcome of a search."""
  solutions: list[list[int]]  # each a list of digits by cell
  backtracks: int             # branches of the search that ended in a contradiction


@functools.cache
def layout(side: int) -> Layout:
  """Returns the houses of Sudokus of a side.

  Raises:
    ValueError: if the side is not 4, 6 or 9.
  """
  if side not in BOXES:
    raise ValueError(f"side={side} has no Sudoku; it must be one of {', '.join(map(str, BOXES))}")
  box_rows, box_cols = BOXES[side]
  n_cells = side * side
  line = range(side)
  digits = [digit * n_cells for digit in line]
  corners = [row * side + col for row in range(0, side, box_rows) for col in range(0, side, box_cols)]
  inside = [row * side + col for row in range(box_rows) for col in range(box_cols)]
  kinds = (  # first candidates of all houses, shifts to the other candidates of a house
      (range(n_cells), digits),
      ([digit + row * side for digit in digits for row in line], list(line)),
      ([digit + col for digit in digits for col in line], [row * side for row in line]),
      ([digit + corner for digit in digits for corner in corners], inside))
  every = (1 << side * n_cells) - 1
  keep = [every] * (side * n_cells)
  for firsts, shifts in kinds:
    for first in firsts:
      house = [first + shift for shift in shifts]
      for candidate in house:
        # A true candidate rules out all others of its four houses: placing a digit is then one `&`.
        keep[candidate] &= ~(bits(house) ^ 1 << candidate)
  houses = tuple((bits(firsts), tuple(shifts), bits(shifts)) for firsts, shifts in kinds)
  return Layout(side, box_rows, box_cols, n_cells, every, houses, tuple(keep))


def bits(places) -> int:
  """Returns the integer that has these bits."""
  return sum(1 << place for place in places)


def solve(board, *, limit: int = 2) -> Outcome:
  """Searches for solutions and counts backtracks.

  The search fills in singles (the only candidate of a house of any kind) until there are none. It then
  branches on the first cell of the fewest candidates, digits ascending, and a branch that comes upon a house
  without candidates is one backtrack. For a board of one solution the whole tree is searched with limit 2,
  so its number of backtracks, the board's rating, depends on no luck; boards that singles solve have 0.

  Args:
    board: digits by cell, flat or square, 0 for a blank.
    limit: the search stops when it has found so many solutions.

  Returns:
    Outcome; no solutions if the givens contradict each other.

  Raises:
    ValueError: if the board has no known size, or digits outside 0..side.
  """
  cells = np.asarray(board).ravel()
  sizes = layout(round(len(cells) ** 0.5))
  if len(cells) != sizes.n_cells or not 0 <= cells.min() <= cells.max() <= sizes.side:
    raise ValueError(f"a board of side {sizes.side} has {sizes.n_cells} cells with 0..{sizes.side}, "
                     f"got {len(cells)} cells with {cells.min()}..{cells.max()}")
  givens = [(int(digit) - 1) * sizes.n_cells + cell for cell, digit in enumerate(cells) if digit]
  left = place(sizes, givens)
  if left & bits(givens) != bits(givens):
    return Outcome([], 1)
  found: list[int] = []
  backtracks = search(sizes, left, bits(givens), found, limit)
  return Outcome([digits_of(sizes, one) for one in found], backtracks)


def place(sizes: Layout, candidates) -> int:
  """Returns what is possible when the candidates are true."""
  left = sizes.every
  for candidate in candidates:
    left &= sizes.keep[candidate]
  return left


def digits_of(sizes: Layout, solution: int) -> list[int]:
  """Turns the candidates of a solution into digits by cell."""
  digits = [0] * sizes.n_cells
  while solution:
    digit, cell = divmod((solution & -solution).bit_length() - 1, sizes.n_cells)
    digits[cell] = digit + 1
    solution &= solution - 1
  return digits


def search(sizes: Layout, left: int, placed: int, found: list[int], limit: int, order=None) -> int:
  """Appends the solutions among the candidates `left` to `found`, up to `limit`, and counts backtracks.

  Args:
    sizes: the houses.
    left: candidates still possible.
    placed: those of them whose consequences `left` has already.
    found: grows by solutions, as candidates.
    limit: length of `found` at which to stop.
    order: per cell the order in which its digits, from 0, are tried; None is ascending.
  """
  # No copy of a board is made or undone: two integers are all of its state, and a branch has its own.
  left, placed = _fill_singles(sizes, left, placed)
  if not left:
    return 1
  if left == placed:
    found.append(left)
    return 0
  cell = _fewest(sizes, left)
  backtracks = 0
  for digit in range(sizes.side) if order is None else order[cell]:
    candidate = digit * sizes.n_cells + cell
    if left >> candidate & 1:
      backtracks += search(sizes, left & sizes.keep[candidate], placed | 1 << candidate, found, limit, order)
      if len(found) >= limit:
        break
  return backtracks


def _fill_singles(sizes: Layout, left: int, placed: int) -> tuple[int, int]:
  """Makes singles true until there are none; gives (0, 0) if a house has no candidate."""
  while True:
    singles = 0
    # All houses of a kind at once. Shifted by `shift`, the candidates at one place of every house stand at
    # the bits of `firsts`; added up bit by bit, `once` has the houses with a candidate or more, `twice`
    # those with two or more. A house without any is a contradiction. Houses of a kind have no candidate in
    # common, so the product with `spread` has no carries: it is all candidates of the houses that have
    # exactly one, and `left` says which.
    for firsts, shifts, spread in sizes.houses:
      once = twice = 0
      for shift in shifts:
        here = left >> shift & firsts
        twice |= once & here
        once |= here
      if once != firsts:
        return 0, 0
      if once != twice:
        singles |= left & (once ^ twice) * spread
    singles &= ~placed
    if not singles:
      return left, placed
    placed |= singles
    while singles:
      left &= sizes.keep[(singles & -singles).bit_length() - 1]
      singles &= singles - 1


def _fewest(sizes: Layout, left: int) -> int:
  """Returns the first of the cells that have the fewest candidates, among those with two at least."""
  firsts, shifts, _ = sizes.houses[0]
  at_least = [0] * (sizes.side + 2)  # Cells with so many candidates.
  at_least[0] = firsts
  for n_seen, shift in enumerate(shifts, start=1):
    here = left >> shift & firsts
    # From the top, or the candidate at hand would be counted on several levels.
    for count in range(n_seen, 0, -1):
      at_least[count] |= at_least[count - 1] & here
  for count in range(2, sizes.side + 1):
    cells = at_least[count] & ~at_least[count + 1]
    if cells:
      return (cells & -cells).bit_length() - 1
  raise AssertionError("every cell is decided, yet some of their candidates are not placed")
