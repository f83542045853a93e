"""Mazes with a shortest path: generated here, or read from CSV files such as Maze-Hard's.

A cell is a wall "#", free " ", the start "S", the goal "G" or, in labels, on the path "o"; its token is its
place in CHARACTERS plus one. The label is the maze with the shortest path from start to goal. The rating of a
generated maze is the number of steps of that path, which is the only shortest one.
"""
import numpy as np
from absl import logging

from atlas_jax.puzzles import boards, grids
from atlas_jax.puzzles.boards import Boards, csv_files
from atlas_jax.puzzles.boards.maze_solver import FREE, GOAL, PATH, START, WALL, draw_maze, path_of, solve
from atlas_jax.puzzles.puzzle_set import PuzzleSet

CHARACTERS = "# SGo"
HARD = "hf:sapientinc/maze-30x30-hard-1k"  # As `path`: 1000 and 1000 mazes of side 30; needs the hub.
VERSION = 1                                # Of the generator, for caches.
N_TRANSFORMS = 8


def build(*, side: int = 30, path: str | None = None, n_train: int | None = 1000, n_test: int | None = 1000,
          n_augmentations: int = 0, min_rating: int | None = None, loop_frac: float = 0.05, seed: int = 0,
          cache_dir: str | None = None, download: bool = False) -> tuple[PuzzleSet, PuzzleSet]:
  """Returns the train and test sets; no train maze has the walls of a test maze, however turned or mirrored.

  Args:
    side: rows and columns, at least 5.
    path: None generates mazes; else a folder, a CSV file, of which n_test mazes are held out, or
      "hf:OWNER/NAME", see `csv_files.find` and `HARD`.
    n_train, n_test: mazes; None takes all of a file.
    n_augmentations: 0 to 7, how many of the rotations and reflections of `grids.transform`, from kind 1 on,
      are trained on beside each maze.
    min_rating: fewest steps of the shortest path; None means side * side // 8 for generated mazes (112 of
      side 30), and all of a file.
    loop_frac: of generated mazes, see `generate`.
    seed: of the mazes or their choice.
    cache_dir: where generated mazes and those taken from files are kept; None is the user's cache folder.
    download: whether files may be fetched from the hub.

  Returns:
    (train, test) as PuzzleSets of one example per puzzle and one group per maze; test is not augmented.

  Raises:
    ValueError: if an argument is wrong, a file is, or there are too few mazes.
  """
  if side < 5 or not 0 <= n_augmentations < N_TRANSFORMS:
    raise ValueError(f"side={side} must be at least 5 and n_augmentations={n_augmentations} in 0..7")
  boards.check_numbers(n_train, n_test, path)
  if path is None:
    found, sources = _generated(side, n_train, n_test, min_rating, loop_frac, seed, cache_dir)
  else:
    found, sources = _from_files(side, path, n_train, n_test, min_rating, seed, cache_dir, download)
  sets = []
  for split, n_copies in (("train", n_augmentations + 1), ("test", 1)):
    identity = {**sources[split], "n_augmentations": n_copies - 1}
    sets.append(boards.puzzle_set(
        found[split], _copies(side, found[split]), n_copies=n_copies, vocab_size=len(CHARACTERS) + 1,
        identity=identity, source=f"maze {split}"))
  return sets[0], sets[1]


def _transforms(side: int) -> np.ndarray:
  """Returns [8, side * side], for each kind of transform the old cell of each new one."""
  cells = np.arange(side * side).reshape(side, side)
  # The reference's order of kinds, so that augmented sets are like its own.
  return np.stack([grids.transform(cells, kind).ravel() for kind in range(N_TRANSFORMS)])


def _copies(side: int, originals: Boards):
  """Returns the function that transforms mazes: copy k is the transform of kind k."""
  cells = _transforms(side)

  def copies(board, copy):
    return tuple(np.take_along_axis(mazes[board], cells[copy], 1)
                 for mazes in (originals.questions, originals.answers))

  return copies


def forms(side: int, mazes: np.ndarray) -> list[bytes]:
  """Returns forms of mazes [n, side * side], equal exactly if a transform makes the walls equal."""
  # Walls alone: with another start and goal in the same walls, a maze would teach most of a test maze.
  turned = (np.asarray(mazes) == WALL)[:, _transforms(side)]
  return [min(kind.tobytes() for kind in maze) for maze in turned]


def encode(text: str) -> np.ndarray:
  """Turns characters into tokens, uint8.

  Raises:
    ValueError: if a character is none of CHARACTERS.
  """
  strange = sorted(set(text) - set(CHARACTERS))
  if strange:
    raise ValueError(f"a maze has the characters {strange}; known are {CHARACTERS!r}")
  return np.array([CHARACTERS.index(char) + 1 for char in text], np.uint8)


def decode(tokens: np.ndarray) -> str:
  """Turns tokens into characters; padding becomes "?"."""
  return "".join(("?" + CHARACTERS)[token] for token in np.asarray(tokens).ravel())


def _generated(side, n_train, n_test, min_rating, loop_frac, seed, cache_dir):
  # 112 for side 30, where the paths of Maze-Hard have more than 110 steps; the same
  # part of the cells for others.
  min_path = side * side // 8 if min_rating is None else min_rating
  chosen = dict(side=side, min_path=min_path, loop_frac=loop_frac, seed=seed)
  key = {"puzzles": "maze", "version": VERSION, **chosen}
  keys = {"test": {**key, "n": n_test}, "train": {**key, "n": n_train, "n_test": n_test}}
  test = boards.cached(cache_dir, keys["test"], lambda: generate(n_test, split="test", **chosen))
  # The test set comes first and is what it would be alone; the train set avoids it.
  avoid = frozenset(forms(side, test.questions))
  train = boards.cached(cache_dir, keys["train"],
                        lambda: generate(n_train, split="train", avoid=avoid, **chosen))
  return {"train": train, "test": test}, keys


def generate(n: int, *, side: int, split: str, seed: int, min_path: int, loop_frac: float = 0.05,
             avoid: frozenset[bytes] = frozenset()) -> Boards:
  """Generates mazes, no two equal; attempt i depends on seed, side, split and i alone.

  Args:
    n: how many.
    side: rows and columns.
    split: "train" or "test"; their mazes come from different random numbers.
    seed: of the random numbers.
    min_path: fewest steps from start to goal.
    loop_frac: fraction of the walls between neighbouring rooms that is opened in a perfect maze, which has
      one way between any two rooms; 0 keeps it perfect.
    avoid: drop mazes of these `forms`.

  Raises:
    ValueError: if an argument is wrong, or so many attempts in a row fail that there seem to be no more.
  """
  if split not in boards.SPLITS or not 0 <= loop_frac <= 1:
    raise ValueError(f"split={split!r} must be one of {boards.SPLITS}, loop_frac={loop_frac} in 0..1")

  def attempt(number):
    # All that decides an attempt is in its seed, and the split is part of it: both
    # splits number attempts from 0.
    random = boards.random_of(seed, side, boards.SPLITS.index(split), number)
    maze = draw_maze(side, random, min_path, loop_frac)
    if maze is None or forms(side, maze[None])[0] in avoid:
      return None
    found = solve(maze)
    answer = maze.copy()
    # Start and goal keep their tokens in the label, as in Maze-Hard.
    answer[found.cells[1:-1]] = PATH
    return maze, answer, len(found.cells) - 1

  what = f"side={side} with min_path={min_path}, loop_frac={loop_frac} for {split}"
  return boards.collect(n, attempt, n_cells=side * side, what=what)


def _from_files(side, path, n_train, n_test, min_rating, seed, cache_dir, download):
  def leaks_of(test):
    known = set(forms(side, test.questions))
    return lambda some: np.array([form in known for form in forms(side, some.questions)], bool)

  key = {"puzzles": "maze-csv", "version": VERSION, "side": side, "min_rating": min_rating, "seed": seed}
  rules = csv_files.Rules(lambda file, least: read(file, side=side, min_rating=least),
                          lambda file, some: np.zeros(len(some.ratings), bool), leaks_of,
                          "a test maze has their walls, so that they must not be trained on")
  return csv_files.take(
      csv_files.find(path, download), key, rules, n_train=n_train, n_test=n_test, min_rating=min_rating,
      seed=seed, cache_dir=cache_dir, checks={})


def read(file, *, side: int, min_rating: int | None = None) -> Boards:
  """Reads a CSV file of mazes in characters of CHARACTERS, row by row.

  Answers whose path is not a shortest one are taken as they are, and so are mazes with several shortest
  paths, of which the answer is one; how many there are is logged.

  Args:
    file: with columns for question and answer, see `csv_files`.
    side: of its mazes.
    min_rating: leave out mazes of a lower rating.

  Raises:
    ValueError: naming file and line of a maze that is malformed or whose answer is no path in it.
  """
  tokens = {char: token for token, char in enumerate(CHARACTERS, start=1)}
  asked = {char: token for char, token in tokens.items() if token != PATH}
  found = csv_files.read(file, n_cells=side * side, question_cells=asked, answer_cells=tokens,
                         min_rating=min_rating)
  ends = (found.questions == START).sum(axis=1) == 1, (found.questions == GOAL).sum(axis=1) == 1
  boards.check(file, found, ends[0] & ends[1], "the question needs one S and one G")
  # With the path taken off, the answer must be the question, wall by wall.
  bare = np.where(found.answers == PATH, FREE, found.answers)
  boards.check(file, found, (bare == found.questions).all(axis=1),
               "the answer must be the question, with o for some of the free cells")
  steps = np.array([path_of(answer) for answer in found.answers], np.int64)
  boards.check(file, found, steps > 0, "the answer's o lead from S to G in no path, or some lie apart")
  solved = [solve(question) for question in found.questions]
  shortest = np.array([len(best.cells) - 1 for best in solved], np.int64)
  if np.any(steps > shortest):
    n_longer = (steps > shortest).sum()
    logging.warning("%s: the answers of %d of %d mazes are not shortest paths", file, n_longer, len(steps))
  if n_several := sum(not best.is_unique for best in solved):
    logging.warning("%s: %d of %d mazes have several shortest paths; any but the answer's counts as wrong",
                    file, n_several, len(steps))
  return found
