"""Boards with an answer each: made or read once, kept in a cache, chosen among, and given as puzzles."""
import fcntl
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from absl import logging

from atlas_jax.files import arrays, write
from atlas_jax.files.damage import Damaged
from atlas_jax.puzzles.puzzle_set import PuzzleSet

SPLITS = ("train", "test")
PATIENCE = 20_000  # Attempts without a new board after which there seem to be no more.
_NAMED = 10  # Lines that a message names; of more it says how many.


class Boards(NamedTuple):
  """Boards of one size, n of them."""
  questions: np.ndarray  # [n, cells] uint8
  answers: np.ndarray    # [n, cells] uint8
  ratings: np.ndarray    # [n] int32, how hard they are
  places: np.ndarray     # [n] int64, where they come from: line of a file, number of a generator's attempt

  def take(self, chosen) -> "Boards":
    """Returns some of the boards."""
    return Boards(self.questions[chosen], self.answers[chosen], self.ratings[chosen], self.places[chosen])

  @property
  def digest(self) -> str:
    """Returns a digest of questions and answers."""
    return hashlib.sha256(self.questions.tobytes() + self.answers.tobytes()).hexdigest()


def of_lists(questions, answers, ratings, places, n_cells: int) -> Boards:
  """Puts lists, also empty ones, into arrays."""
  questions, answers = (np.asarray(cells, np.uint8).reshape(-1, n_cells) for cells in (questions, answers))
  return Boards(questions, answers, np.array(ratings, np.int32), np.array(places, np.int64))


def collect(n: int, attempt: Callable, *, n_cells: int, what: str) -> Boards:
  """Makes boards by trying attempts 0, 1, 2... until n different ones are found.

  Args:
    n: how many.
    attempt: number -> (question, answer, rating), or None if the attempt failed.
    n_cells: of a board.
    what: is wanted, for the error.

  Raises:
    ValueError: if so many attempts in a row fail that there seem to be no more.
  """
  found: dict[bytes, tuple] = {}
  number = last = 0
  # Attempts are numbered and independent, so more boards begin with the fewer ones,
  # whatever was asked for before.
  while len(found) < n:
    board = attempt(number)
    if board is not None and board[0].tobytes() not in found:
      found[board[0].tobytes()] = (*board, number)
      last = number
    number += 1
    if number - last > PATIENCE:
      raise ValueError(f"{PATIENCE} attempts in a row gave nothing new after {len(found)} of {n} boards of "
                       f"{what}; ask for fewer or allow more")
  questions, answers, ratings, numbers = zip(*found.values(), strict=True) if found else ((), (), (), ())
  return of_lists(questions, answers, ratings, numbers, n_cells)


def random_of(seed: int, *counters: int) -> np.random.RandomState:
  """Returns the random numbers of one attempt; they do not change between versions of NumPy."""
  # Two words, as RandomState takes words of 32 bits. Its streams are frozen by
  # NumPy, those of Generator are not.
  return np.random.RandomState([seed % 2**32, seed % 2**64 >> 32, *counters])


def check_numbers(n_train: int | None, n_test: int | None, path: str | None) -> None:
  """Raises ValueError if numbers of boards are negative, or missing where boards are generated."""
  for name, n in (("n_train", n_train), ("n_test", n_test)):
    if (n is None and path is None) or (n is not None and n < 0):
      raise ValueError(f"{name}={n} must be a number of boards, 0 or more; only with a path None takes all")


def cached(cache_dir, key: Mapping, make: Callable[[], Boards]) -> Boards:
  """Returns the boards that `make` would make, from a file if they were made before.

  Args:
    cache_dir: folder of the files; None is the user's cache folder.
    key: JSON of all that decides the contents; key["puzzles"] begins the file's name.
    make: makes the boards.

  Raises:
    ValueError: if the file is damaged.
  """
  home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  folder = pathlib.Path(cache_dir or f"{home}/atlas_jax/puzzles").expanduser()
  folder.mkdir(parents=True, exist_ok=True)
  # The key alone names the file: whoever asks for the same boards finds them, and a change of anything that
  # decides them makes another file.
  name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
  file = folder / f"{key['puzzles']}-{name}.npz"
  with open(f"{file}.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)  # Processes of one machine make them once; others at worst the same.
    if not file.exists():
      logging.info("generating boards for %s; they are kept there", file)
      write.whole(file, arrays.npz_bytes(**make()._asdict()))
  try:
    return _checked(Boards(**arrays.read_npz(file, kinds="iu")))
  except (OSError, TypeError, ValueError) as error:
    why = error.why if isinstance(error, Damaged) else error
    raise ValueError(f"{file} is damaged ({why}); delete it, it is then made again") from error


def _checked(boards: Boards) -> Boards:
  sizes = [len(array) for array in boards if array.ndim]
  shapes = [array.shape for array in boards]
  if [len(shape) for shape in shapes] != [2, 2, 1, 1] or len(set(sizes)) > 1 or shapes[0] != shapes[1]:
    raise ValueError(f"its arrays are of shapes {shapes}")
  return boards


def check(file, boards: Boards, good: np.ndarray, what: str) -> None:
  """Raises ValueError with file and line of the first board that is not good."""
  for board in np.flatnonzero(~good)[:1]:
    raise ValueError(f"{file}:{boards.places[board]}: {what}")


def left_out(file, boards: Boards, bad: np.ndarray, why: str) -> None:
  """Names, by file and line, the boards that are not used."""
  lines = sorted(boards.places[bad].tolist())
  if lines:
    more = f" and {len(lines) - _NAMED} more" if len(lines) > _NAMED else ""
    logging.warning("%s:%s%s: %s left out: %s", file, ", ".join(map(str, lines[:_NAMED])), more,
                    "1 board is" if len(lines) == 1 else f"{len(lines)} boards are", why)


def same_questions(boards: Boards, others: Boards) -> np.ndarray:
  """Says of boards, [n] bool, whether their question is one of the others', whatever the answers are."""
  known = {question.tobytes() for question in others.questions}
  return np.array([question.tobytes() in known for question in boards.questions], bool)


def subsample(boards: Boards, n: int | None, seed: int, name: str, refused=None) -> Boards:
  """Takes n boards without replacement, in their old order.

  Args:
    boards: to choose from.
    n: how many; None takes all.
    seed: of the choice.
    name: of the number, for the error.
    refused: says of boards, [n] bool, which must not be taken; others take their place. None allows all.

  Raises:
    ValueError: if there are fewer than n, or none at all to take.
  """
  order = np.random.Generator(np.random.Philox(seed)).permutation(len(boards.ratings))
  wanted = len(order) if n is None else n
  kept = np.zeros(0, np.int64)
  start = 0
  # In the drawn order, and only as many as are still missing: `refused` may search a board for a second
  # solution, some milliseconds each, and files have millions.
  while len(kept) < wanted and start < len(order):
    more = order[start:start + wanted - len(kept)]
    start += len(more)
    kept = np.append(kept, more if refused is None else more[~refused(boards.take(more))])
  if n is not None and len(kept) < n:
    dropped = len(order) - len(kept)
    raise ValueError(f"{name}={n}, but there are only {len(kept)} such boards"
                     + (f", {dropped} others being left out" if dropped else "")
                     + "; ask for fewer, or lower min_rating")
  if n is None and not len(kept):
    raise ValueError(f"{name}=None takes all boards of a file, and there is none"
                     + (f" but {len(order)} that are left out" if len(order) else "") + "; give another file")
  # In the file's order again: which boards are taken is drawn, the order of training is the sampler's.
  return boards.take(np.sort(kept))


def puzzle_set(boards: Boards, copies: Callable, *, n_copies: int, vocab_size: int, identity: dict,
               source: str) -> PuzzleSet:
  """Makes a set in which a board with its copies is a group and each copy a puzzle of one example.

  Args:
    boards: the first copies.
    copies: (board indices [n], copy numbers [n]) -> inputs and labels [n, cells], made when asked for.
    n_copies: per board.
    vocab_size, identity: see `PuzzleSet`.
    source: of the boards; group names are it, a colon, and the board's place.
  """
  n_boards, n_cells = boards.questions.shape

  def read(examples, draw=None):
    del draw  # A copy is the same at every visit.
    return copies(*np.divmod(np.asarray(examples), n_copies))

  return PuzzleSet(
      group_starts=np.arange(n_boards + 1) * n_copies, puzzle_starts=np.arange(n_boards * n_copies + 1),
      # Id 0 for all, as in the reference: a board is solved by the rules, and no row of the table is its own.
      puzzle_ids=np.zeros(n_boards * n_copies, np.int32), seq_len=n_cells, vocab_size=vocab_size, n_ids=1,
      identity={**identity, "boards": boards.digest}, read=read,
      group_names=tuple(f"{source}:{place}" for place in boards.places))
