"""Symmetries of Sudoku: shuffles that make new boards, and forms that tell equal ones.

The symmetries of a side are: to rename the digits, to permute the bands (rows of boxes) and the rows within
each band, to permute the stacks (columns of boxes) and the columns within each stack, and to transpose,
where boxes are square. Two boards are equivalent if a symmetry turns one into the other.
"""
import functools
import itertools
from typing import NamedTuple

import numpy as np

from atlas_jax.puzzles.boards import hashing
from atlas_jax.puzzles.boards.sudoku_solver import Layout, layout

_AT_ONCE = 65_536  # Boards whose traits are found at the same time.


class Shuffle(NamedTuple):
  """Symmetries of one side, n of them: cell j of the new board is `digits[old.ravel()[cells[j]]]`."""
  cells: np.ndarray   # [n, side * side]
  digits: np.ndarray  # [n, side + 1], 0 stays 0


def draw(side: int, random: np.random.RandomState) -> Shuffle:
  """Draws one symmetry: digits, transposition, bands, rows within each, stacks, columns within each.

  Source: the augmentation of TRM's Sudoku data, arXiv:2510.04871, in its order of draws for side 9; other
  sides skip the draws they have no use for.
  """
  sizes = layout(side)
  digits = np.pad(random.permutation(np.arange(1, side + 1)), (1, 0))
  transposed = sizes.box_rows == sizes.box_cols and random.rand() < 0.5
  rows, cols = (_draw_line(side // part, part, random) for part in (sizes.box_rows, sizes.box_cols))
  return Shuffle(_cells(side, rows[None], cols[None], np.array([transposed])), digits[None])


def _draw_line(n_parts: int, part: int, random: np.random.RandomState) -> np.ndarray:
  return np.concatenate([n * part + random.permutation(part) for n in random.permutation(n_parts)])


def hashed(side: int, seed: int, boards: np.ndarray, copies: np.ndarray) -> Shuffle:
  """Returns the symmetry of each (board, copy): chosen by a hash of seed and both, copy 0 changes nothing.

  Args:
    side: of the boards.
    seed: of the whole set.
    boards, copies: [n] integers.
  """
  sizes = layout(side)
  counts = [1, side, side // sizes.box_rows, side, side // sizes.box_cols, side]
  drawn = hashing.draws(seed, boards, copies, count=sum(counts))
  # Numbers to sort by: argsort makes a permutation of each group of them, for all copies at once. The coin is
  # one bit. What copy 0 drew is thrown away, so that it is the board itself.
  coin, digits, bands, rows, stacks, cols = np.split(drawn, np.cumsum(counts)[:-1], axis=1)
  same = copies == 0
  transposed = (coin[:, 0] >> np.uint64(63) == 1) & (sizes.box_rows == sizes.box_cols) & ~same
  line = np.arange(side)
  digits = np.where(same[:, None], line, np.argsort(digits, axis=1)) + 1
  rows = np.where(same[:, None], line, _permute_line(bands, rows, sizes.box_rows))
  cols = np.where(same[:, None], line, _permute_line(stacks, cols, sizes.box_cols))
  return Shuffle(_cells(side, rows, cols, transposed), np.pad(digits, ((0, 0), (1, 0))))


def _permute_line(parts: np.ndarray, members: np.ndarray, part: int) -> np.ndarray:
  """Orders parts, and members within each part, by their random numbers."""
  parts = np.argsort(parts, axis=1)[:, :, None]
  inside = np.argsort(members.reshape(len(members), -1, part), axis=2)
  return (parts * part + inside).reshape(members.shape)


def _cells(side: int, rows: np.ndarray, cols: np.ndarray, transposed: np.ndarray) -> np.ndarray:
  """Returns the old cell of each new one: first transposed, then gathered by rows and columns."""
  rows = rows[:, :, None]
  cols = cols[:, None, :]
  # Gathered in one step: transposing first only exchanges the parts of row and column in the old index.
  cells = np.where(transposed[:, None, None], cols * side + rows, rows * side + cols)
  return cells.reshape(len(cells), side * side)


def apply(shuffle: Shuffle, boards: np.ndarray) -> np.ndarray:
  """Shuffles boards [n, side * side], question or answer, each by its own symmetry."""
  return np.take_along_axis(shuffle.digits, np.take_along_axis(boards, shuffle.cells, 1).astype(int), 1)


def canonical(side: int, question: np.ndarray, answer: np.ndarray) -> bytes:
  """Returns a form that is equal for two boards exactly if they are equivalent.

  It is the least of the boards that symmetries make, answers compared before givens. All symmetries need not
  be tried: a choice of transposition, of the row on top and of the order of columns leaves one way to name
  the digits (the top row reads 1, 2, 3...) and one to order the other rows (by their first digit) that can
  lead to the least.

  Args:
    side: of the board.
    question, answer: [side * side] digits; the answer is complete and the question's only one.
  """
  sizes = layout(side)
  line = np.arange(side)
  # For side 9 these are 6**4 = 1296 orders, by 9 top rows and 2 ways to lie 23,328 forms, of which only the
  # first two rows are written out at once; the few that lead to the least second row are completed.
  orders, places = _column_orders(side)
  forms = []
  for lies in range(1 + (sizes.box_rows == sizes.box_cols)):
    grid, given = (np.reshape(board, (side, side)) for board in (answer, question))
    grid, given = (grid.T, given.T) if lies else (grid, given)
    for top in range(side):
      where = np.empty(side + 1, int)
      where[grid[top]] = line  # In which column of the top row a digit stands.
      forms.append((top, where[grid], given > 0))
  mates = np.array([[row for row in line if row // sizes.box_rows == top // sizes.box_rows and row != top]
                    for top, _, _ in forms])
  second = np.stack([form[1][rows] for form, rows in zip(forms, mates, strict=True)])  # [forms, mates, side]
  each = np.arange(len(orders))
  first = places[each, second[:, :, orders[:, 0]]]                # [forms, mates, orders]
  mate = np.argmin(first, axis=1)                                 # [forms, orders]
  rows = second[np.arange(len(forms))[:, None, None], mate[:, :, None], orders]
  rows = places[each[:, None], rows]                              # [forms, orders, side], the second row
  # The second row read as a number: the least number is the least row. The first
  # row is 0, 1, 2... in all forms.
  keys = rows @ (side ** line[::-1])
  return min(_complete(sizes, forms[form], orders[order], places[order])
             for form, order in np.argwhere(keys == keys.min()))


def _complete(sizes: Layout, form, order: np.ndarray, place: np.ndarray) -> bytes:
  """Names the digits of a form by their place in the top row and sorts its rows by their first digit."""
  _, columns, given = form
  grid = place[columns[:, order]]
  leader = grid[:, 0].reshape(-1, sizes.box_rows).min(axis=1).repeat(sizes.box_rows)
  # Bands by their least first digit, rows within a band by theirs: the one order that a form can have.
  rows = np.lexsort((grid[:, 0], leader))
  return grid[rows].astype(np.uint8).tobytes() + given[rows][:, order].tobytes()


@functools.cache
def _column_orders(side: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns [orders, side] all orders of columns that symmetries allow, and where each puts a column."""
  part = layout(side).box_cols
  insides = list(itertools.permutations(range(part)))
  orders = np.array([
      [stack * part + col for stack, inside in zip(stacks, chosen, strict=True) for col in inside]
      for stacks in itertools.permutations(range(side // part))
      for chosen in itertools.product(insides, repeat=side // part)])
  return orders, np.argsort(orders, axis=1)


def traits(side: int, questions: np.ndarray) -> list[bytes]:
  """Returns what equivalent boards have in common and most others do not; far cheaper than `canonical`.

  They are how often each digit is given, and how many givens stand in each row and each column, all without
  their order.

  Args:
    side: of the boards.
    questions: [n, side * side] digits, 0 for a blank.
  """
  return [trait for start in range(0, len(questions), _AT_ONCE)
          for trait in _traits(layout(side), questions[start:start + _AT_ONCE])]


def _traits(sizes: Layout, questions: np.ndarray) -> list[bytes]:
  side = sizes.side
  given = questions.reshape(-1, side, side) > 0
  digits = np.sort((questions[:, :, None] == np.arange(1, side + 1)).sum(axis=1), axis=1)
  lines = []
  for counts, part in ((given.sum(axis=2), sizes.box_rows), (given.sum(axis=1), sizes.box_cols)):
    # Counts of the rows of a band, sorted, as one number; then the bands' numbers, sorted: what permuting
    # rows and bands leaves alone.
    inside = np.sort(counts.reshape(len(counts), -1, part), axis=2)
    codes = np.sort(inside @ ((side + 1) ** np.arange(part)), axis=1)
    lines.append(codes @ ((side + 1) ** (part * np.arange(codes.shape[1]))))
  if sizes.box_rows == sizes.box_cols:
    # Transposing exchanges rows and columns, so which of the two comes first must not count.
    lines = [np.minimum(*lines), np.maximum(*lines)]
  together = np.column_stack([digits, *lines]).astype(np.int64)
  return [row.tobytes() for row in together]


class BoardClasses:
  """Boards up to symmetry: says whether a board is equivalent to one of them."""

  def __init__(self, side: int, questions: np.ndarray, answers: np.ndarray):
    """Takes boards [n, side * side]; their forms are made when they are needed."""
    self._side = side
    self._boards = (questions, answers)
    self._with_traits: dict[bytes, list[int]] = {}
    self._forms: dict[int, bytes] = {}
    for index, trait in enumerate(traits(side, questions)):
      self._with_traits.setdefault(trait, []).append(index)

  def have(self, questions: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Says of boards [n, side * side] whether they are equivalent to one of these."""
    found = np.zeros(len(questions), bool)
    # Most boards have traits of no test board and need no form, which takes milliseconds.
    for index, trait in enumerate(traits(self._side, questions)):
      if trait in self._with_traits:
        form = canonical(self._side, questions[index], answers[index])
        found[index] = any(self._form(other) == form for other in self._with_traits[trait])
    return found

  def _form(self, index: int) -> bytes:
    if index not in self._forms:
      self._forms[index] = canonical(self._side, self._boards[0][index], self._boards[1][index])
    return self._forms[index]
