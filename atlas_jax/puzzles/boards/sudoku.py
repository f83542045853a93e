"""Sudokus of sides 4, 6 and 9: generated here, or read from CSV files such as Sudoku-Extreme's.

A token is a cell's digit plus one, so a blank is 1; labels are the solution, and every cell is scored. The
rating of a generated board is the number of backtracks of `sudoku_solver.solve`; that of a file is its own.
"""
import hashlib

import numpy as np
from absl import logging

from atlas_jax.puzzles import boards
from atlas_jax.puzzles.boards import Boards, csv_files, sudoku_solver, sudoku_symmetry
from atlas_jax.puzzles.puzzle_set import PuzzleSet

EXTREME = "hf:sapientinc/sudoku-extreme"  # As `path`: 3.8M and 423k boards of side 9; needs the hub.
VERSION = 1     # Of the generator, for caches.
TEST_EVERY = 4  # Of side 4, one class in so many is for testing.
SAY_EVERY = 10_000  # Boards searched between lines that say so.


def build(*, side: int = 9, path: str | None = None, n_train: int | None = 1000, n_test: int | None = 1000,
          n_augmentations: int = 1000, min_rating: int | None = None, one_solution: bool = True,
          n_givens=None, seed: int = 0, cache_dir=None, download=False) -> tuple[PuzzleSet, PuzzleSet]:
  """Returns the train and test sets; no train board is equivalent to a test board.

  Equivalent is what any of the symmetries in `sudoku_symmetry` makes of a board, so augmentation never
  reaches a test board. Train boards equivalent to a test board, or with its question, are left out, and of
  files boards of several solutions too, whose label is one answer of many; a line names them. Side 4 has
  so few classes of boards that chance would fill both sides with the same ones: there a hash of its class
  says whether a generated board is for testing. This keeps boards apart, not solutions: those of side 4 fall
  in two classes, which both sides have.

  Args:
    side: 4, 6 (boxes of 2 rows and 3 columns) or 9.
    path: None generates boards; else a folder, a CSV file, of which n_test boards are held out, or
      "hf:OWNER/NAME", see `csv_files.find` and `EXTREME`.
    n_train, n_test: boards; None takes all of a file.
    n_augmentations: shuffles of each train board beside itself, made when they are read.
    min_rating: leave out easier boards.
    one_solution: whether boards of files are searched for a second solution: some milliseconds each, once.
    n_givens: of generated boards, see `generate`; None takes its default.
    seed: of the boards or their choice, and of the shuffles.
    cache_dir: where generated boards and those taken from files are kept; None is the user's cache folder.
    download: whether files may be fetched from the hub.

  Returns:
    (train, test) of one example per puzzle and one group per board; test is not augmented.

  Raises:
    ValueError: if an argument is wrong, a file is, or there are too few boards.
  """
  sizes = sudoku_solver.layout(side)
  if n_augmentations < 0:
    raise ValueError(f"n_augmentations={n_augmentations} must be 0 or more")
  boards.check_numbers(n_train, n_test, path)
  if path is None:
    found, sources = _generated(side, n_train, n_test, n_givens, min_rating, seed, cache_dir)
  elif n_givens is not None:
    raise ValueError(f"n_givens={n_givens} is for generated boards; leave it out for path={path!r}")
  else:
    found, sources = _from_files(
        side, path, n_train, n_test, min_rating, seed, cache_dir, download, one_solution)
  sets = []
  for split, n_copies in (("train", n_augmentations + 1), ("test", 1)):
    identity = {**sources[split], "n_augmentations": n_copies - 1, "seed": seed}
    sets.append(boards.puzzle_set(
        found[split], _copies(side, found[split], seed), n_copies=n_copies, vocab_size=sizes.side + 2,
        identity=identity, source=f"sudoku {split}"))
  return sets[0], sets[1]


def _copies(side: int, originals: Boards, seed: int):
  """Returns the function that encodes copies of boards."""
  def copies(board, copy):
    pair = originals.questions[board], originals.answers[board]
    if np.any(copy):
      # Question and answer by one shuffle, which follows from seed, board and copy: a thousand copies of a
      # board are never stored, and any of them is made alone.
      shuffle = sudoku_symmetry.hashed(side, seed, board, copy)
      pair = sudoku_symmetry.apply(shuffle, pair[0]), sudoku_symmetry.apply(shuffle, pair[1])
    return encode(pair[0]), encode(pair[1])

  return copies


def encode(digits: np.ndarray) -> np.ndarray:
  """Turns digits, 0 for a blank, into tokens, uint8."""
  return (digits + 1).astype(np.uint8)


def decode(tokens: np.ndarray) -> np.ndarray:
  """Turns tokens into digits; padding becomes a blank."""
  return np.maximum(np.asarray(tokens, np.int32) - 1, 0)


def _generated(side, n_train, n_test, n_givens, min_rating, seed, cache_dir):
  chosen = dict(side=side, n_givens=n_givens and list(n_givens), min_rating=min_rating, seed=seed)
  key = {"puzzles": "sudoku", "version": VERSION, **chosen}
  keys = {"test": {**key, "n": n_test}, "train": {**key, "n": n_train, "n_test": n_test}}
  test = boards.cached(cache_dir, keys["test"], lambda: generate(n_test, split="test", **chosen))
  # The test set first: it does not depend on how many boards are trained on.
  avoid = sudoku_symmetry.BoardClasses(side, test.questions, test.answers)
  train = boards.cached(cache_dir, keys["train"],
                         lambda: generate(n_train, split="train", avoid=avoid, **chosen))
  return {"train": train, "test": test}, keys


def generate(n: int, *, side: int, split: str, seed: int, n_givens=None, min_rating: int | None = None,
             max_rating: int | None = None, avoid: sudoku_symmetry.BoardClasses | None = None) -> Boards:
  """Generates boards of one solution, no two equal; attempt i depends on seed, side, split and i alone.

  A random complete grid loses givens in random order, each only if the solution stays the only one.

  Args:
    n: how many.
    side: 4, 6 or 9.
    split: "train" or "test"; their boards come from different random numbers, and of side 4 from different
      classes.
    seed: of the random numbers.
    n_givens: (least, most); givens are removed down to a number drawn evenly between these, or to where none
      can go, and the board is dropped if more than the most are left. None removes all that can go; of side
      4, where that would leave 36 classes of boards, it means (4, 8).
    min_rating, max_rating: drop easier and harder boards, in backtracks.
    avoid: drop boards equivalent to one of these.

  Raises:
    ValueError: if an argument is wrong, or so many attempts in a row fail that there seem to be no more.
  """
  sizes = sudoku_solver.layout(side)
  if split not in boards.SPLITS:
    raise ValueError(f"split={split!r} must be one of {boards.SPLITS}")
  least, most, bound = _givens_range(sizes, n_givens)

  def attempt(number):
    random = boards.random_of(seed, side, boards.SPLITS.index(split), number)
    question, answer = draw_board(sizes, random, least, most)
    rating = sudoku_solver.solve(question).backtracks
    # Cheap conditions first: a canonical form takes milliseconds.
    fits = ((question > 0).sum() <= bound
            and (min_rating is None or rating >= min_rating) and (max_rating is None or rating <= max_rating)
            and (side != 4 or _is_for_test(question, answer) == (split == "test"))
            and not (avoid is not None and avoid.have(question[None], answer[None])[0]))
    return (question, answer, rating) if fits else None

  what = f"side={side} with n_givens={n_givens}, min_rating={min_rating}, max_rating={max_rating} for {split}"
  return boards.collect(n, attempt, n_cells=sizes.n_cells, what=what)


def _givens_range(sizes: sudoku_solver.Layout, n_givens) -> tuple[int, int, int]:
  """Returns the least and the most givens at which removal stops, and the most that a board may have."""
  if n_givens is None:
    return (4, 8, 8) if sizes.side == 4 else (0, 0, sizes.n_cells)
  least, most = n_givens
  if not 0 <= least <= most <= sizes.n_cells:
    raise ValueError(f"n_givens={n_givens} must be (least, most) within 0..{sizes.n_cells}")
  return least, most, most


def _is_for_test(question: np.ndarray, answer: np.ndarray) -> bool:
  # By class, not by board: all boards of a class fall on one side.
  form = sudoku_symmetry.canonical(4, question, answer)
  return int.from_bytes(hashlib.sha256(form).digest()[:8], "big") % TEST_EVERY == 0


def draw_board(sizes: sudoku_solver.Layout, random: np.random.RandomState, least: int,
               most: int) -> tuple[np.ndarray, np.ndarray]:
  """Draws a board of one solution and that solution, flat uint8.

  Args:
    sizes: of the board.
    random: what is drawn with.
    least, most: removal stops at a number of givens drawn evenly from these, or where none can go.
  """
  # A complete grid by the solver itself: an empty board, and for each cell its digits in random order.
  order = np.argsort(random.rand(sizes.n_cells, sizes.side), axis=1).tolist()
  found: list[int] = []
  sudoku_solver.search(sizes, sizes.every, 0, found, 1, order)
  answer = sudoku_solver.digits_of(sizes, found[0])
  target = random.randint(least, most + 1)
  givens = {cell: (digit - 1) * sizes.n_cells + cell for cell, digit in enumerate(answer)}
  for cell in random.permutation(sizes.n_cells).tolist():
    if len(givens) == target:
      break
    given = givens.pop(cell)
    # The only solution without this given has this digit here, so it is enough to
    # look for one with another digit.
    left = sudoku_solver.place(sizes, givens.values()) & ~(1 << given)
    others: list[int] = []  # A solution with another digit here would be a second one.
    sudoku_solver.search(sizes, left, sudoku_solver.bits(givens.values()), others, 1)
    if others:
      givens[cell] = given
  question = [digit if cell in givens else 0 for cell, digit in enumerate(answer)]
  return np.array(question, np.uint8), np.array(answer, np.uint8)


def _from_files(side, path, n_train, n_test, min_rating, seed, cache_dir, download, one_solution):
  def faulty(file, some):
    bad = np.zeros(len(some.ratings), bool)
    if one_solution:
      bad = ambiguous(some.questions)
      boards.left_out(file, some, bad, "their questions have several solutions")
    return bad

  def leaks_of(test):
    classes = sudoku_symmetry.BoardClasses(side, test.questions, test.answers)
    # The same question with another answer is no equivalent board, and would leak all the same.
    return lambda some: (boards.same_questions(some, test) | classes.have(some.questions, some.answers))

  key = {"puzzles": "sudoku-csv", "version": VERSION, "side": side, "min_rating": min_rating, "seed": seed}
  rules = csv_files.Rules(lambda file, least: read(file, side=side, min_rating=least), faulty, leaks_of,
                          "a test board is the same or equivalent, so that they must not be trained on")
  return csv_files.take(
      csv_files.find(path, download), key, rules, n_train=n_train, n_test=n_test, min_rating=min_rating,
      seed=seed, cache_dir=cache_dir, checks={"one_solution": one_solution})


def ambiguous(questions: np.ndarray) -> np.ndarray:
  """Says of boards [n, side * side] whether they have several solutions, by searching."""
  found = np.zeros(len(questions), bool)
  for number, question in enumerate(questions):
    # Two are enough to know; a board of few givens may have millions.
    found[number] = len(sudoku_solver.solve(question, limit=2).solutions) > 1
    if (number + 1) % SAY_EVERY == 0:
      logging.info("%d of %d boards searched for a second solution", number + 1, len(questions))
  return found


def read(file, *, side: int, min_rating: int | None = None) -> Boards:
  """Reads a CSV file of Sudokus: digits row by row, "." or "0" for a blank.

  That the answer is the only one is not checked; `ambiguous` tells.

  Args:
    file: with columns for question and answer, see `csv_files`.
    side: of its boards.
    min_rating: leave out boards of a lower rating.

  Raises:
    ValueError: naming file and line of a board that is malformed or whose answer is wrong.
  """
  sizes = sudoku_solver.layout(side)
  digits = {str(digit): digit for digit in range(1, side + 1)}
  found = csv_files.read(file, n_cells=sizes.n_cells, question_cells={**digits, ".": 0, "0": 0},
                         answer_cells=digits, min_rating=min_rating)
  same = (found.questions == 0) | (found.questions == found.answers)
  boards.check(file, found, same.all(axis=1), "the answer contradicts the question's givens")
  boards.check(file, found, is_solution(side, found.answers),
               "the answer repeats a digit in a row, a column or a box")
  return found


def is_solution(side: int, answers: np.ndarray) -> np.ndarray:
  """Says of boards [n, side * side] whether every row, column and box holds each digit once."""
  sizes = sudoku_solver.layout(side)
  grids = np.asarray(answers).reshape(-1, side, side)
  boxes = grids.reshape(-1, side // sizes.box_rows, sizes.box_rows, side // sizes.box_cols, sizes.box_cols)
  boxes = boxes.swapaxes(2, 3).reshape(grids.shape)
  # Every house as a row of cells: sorted, it must read 1, 2, 3...
  houses = np.concatenate([grids, grids.swapaxes(1, 2), boxes], axis=1)
  return np.all(np.sort(houses, axis=2) == np.arange(1, side + 1), axis=(1, 2))
