"""Boards with an answer each: out of a cache, of CSV files, or of such files on the Hugging Face hub.

A CSV file has the columns question, answer and rating (others are ignored), a row per board, the cells of a
board as one string of characters.
"""
import csv
import fcntl
import hashlib
import importlib
import json
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from absl import logging

from atlas_jax.data.puzzles.puzzle_set import PuzzleSet

SPLITS = ("train", "test")
PATIENCE = 20_000  # Attempts without a new board after which there seem to be no more.
_FAULTY = 255


class Boards(NamedTuple):
  """Boards of one size, n of them."""
  questions: np.ndarray  # [n, cells] uint8
  answers: np.ndarray    # [n, cells] uint8
  ratings: np.ndarray    # [n] int32, how hard they are
  places: np.ndarray     # [n] int64, where they come from: line of a file, number of a generator's attempt

  def take(self, chosen) -> "Boards":
    """Gives some of the boards."""
    return Boards(self.questions[chosen], self.answers[chosen], self.ratings[chosen], self.places[chosen])

  @property
  def digest(self) -> str:
    """Gives a digest of questions and answers."""
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
  """Gives the random numbers of one attempt; they do not change between versions of NumPy."""
  return np.random.RandomState([seed % 2**32, seed % 2**64 >> 32, *counters])


def check_numbers(n_train: int | None, n_test: int | None, path: str | None) -> None:
  """Raises ValueError if numbers of boards are negative, or missing where boards are generated."""
  for name, n in (("n_train", n_train), ("n_test", n_test)):
    if (n is None and path is None) or (n is not None and n < 0):
      raise ValueError(f"{name}={n} must be a number of boards, 0 or more; only with a path None takes all")


def cached(cache_dir, key: Mapping, make: Callable[[], Boards]) -> Boards:
  """Gives the boards that `make` would make, from a file if they were made before.

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
  name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
  file = folder / f"{key['puzzles']}-{name}.npz"
  with open(f"{file}.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)  # Processes of one machine make them once; others at worst the same.
    if not file.exists():
      logging.info("generating boards for %s; they are kept there", file)
      made = make()
      with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as part:
        np.savez(part, **made._asdict())
      os.replace(part.name, file)  # So that a file is whole or absent.
  try:
    with np.load(file, allow_pickle=False) as loaded:
      return Boards(**loaded)
  except (OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
    raise ValueError(f"{file} is damaged ({error}); delete it, it is then made again") from error


def csv_files(path: str, download: bool) -> dict[str, pathlib.Path]:
  """Finds train.csv and test.csv.

  Args:
    path: a folder, or "hf:OWNER/NAME", a dataset on the Hugging Face hub.
    download: whether files that are not on this machine may be fetched from the hub.

  Raises:
    ModuleNotFoundError: if the hub is asked for without its client.
    ValueError: if a file is not there.
  """
  if str(path).startswith("hf:"):
    return {split: _hub_file(path, f"{split}.csv", download) for split in SPLITS}
  files = {split: pathlib.Path(path).expanduser() / f"{split}.csv" for split in SPLITS}
  for file in files.values():
    if not file.is_file():
      raise ValueError(f"{file} does not exist; path={str(path)!r} must be a folder with train.csv and "
                       f"test.csv, or 'hf:OWNER/NAME'; without a path boards are generated")
  return files


def _hub_file(path: str, name: str, download: bool) -> pathlib.Path:
  try:
    hub = importlib.import_module("huggingface_hub")
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"path={path!r} needs the package {error.name}: pip install 'atlas_jax[data]'"
                              ) from error
  try:
    file = hub.hf_hub_download(path[3:], name, repo_type="dataset", local_files_only=not download)
  except (OSError, ValueError) as error:  # Absent, offline and forbidden are all of these.
    line = (str(error).splitlines() or [""])[0]
    remedy = "check the name and the network" if download else "fetch it with config.data.download=True"
    raise ValueError(f"{name} of path={path!r} is not to be had ({type(error).__name__}: {line}); {remedy}, "
                     f"or give a folder that holds it") from error
  return pathlib.Path(file)


def file_digest(file: pathlib.Path) -> str:
  """Gives the SHA-256 of a file."""
  with open(file, "rb") as content:
    return hashlib.file_digest(content, "sha256").hexdigest()


def read_csv(file: pathlib.Path, *, n_cells: int, question_cells: Mapping[str, int],
             answer_cells: Mapping[str, int], min_rating: int | None = None) -> Boards:
  """Reads the boards of a CSV file; what they say is not checked beyond their characters.

  Args:
    file: to read.
    n_cells: characters of a board.
    question_cells, answer_cells: what a character stands for.
    min_rating: leave out boards of a lower rating.

  Returns:
    Boards; places are their lines in the file, the header's being 1.

  Raises:
    ValueError: naming file and line of what is missing, too long or too short, or unknown.
  """
  texts = {"question": bytearray(), "answer": bytearray()}
  ratings, lines = [], []
  with open(file, newline="", encoding="latin-1") as opened:
    rows = _rows(file, opened)
    _, header = next(rows, (1, []))
    missing = [name for name in ("question", "answer", "rating") if name not in header]
    if missing:
      raise ValueError(f"{file}:1: no column {', '.join(missing)} among {header}, which the first line names")
    where = {name: header.index(name) for name in texts}
    rating_at = header.index("rating")
    for line, row in rows:
      rating = _rating(file, line, header, row, rating_at)
      if min_rating is not None and rating < min_rating:
        continue
      for name, at in where.items():
        if len(row[at]) != n_cells:
          raise ValueError(
              f"{file}:{line}: the {name} has {len(row[at])} characters, it needs {n_cells}")
        texts[name] += row[at].encode("latin-1")
      ratings.append(rating)
      lines.append(line)
  questions = _decode(file, lines, "question", texts["question"], question_cells, n_cells)
  answers = _decode(file, lines, "answer", texts["answer"], answer_cells, n_cells)
  return of_lists(questions, answers, ratings, lines, n_cells)


def _rows(file, opened) -> Iterator[tuple[int, list[str]]]:
  """Yields (line, cells); what cannot be read as CSV is an error with its line."""
  rows = csv.reader(opened)
  try:
    for row in rows:
      yield rows.line_num, row
  except csv.Error as error:
    raise ValueError(f"{file}:{rows.line_num}: {error}") from error


def _rating(file, line: int, header: list, row: list, at: int) -> int:
  if len(row) != len(header):
    raise ValueError(f"{file}:{line}: {len(row)} columns, the header has {len(header)}")
  try:
    rating = int(row[at])
  except ValueError:
    raise ValueError(f"{file}:{line}: the rating {row[at]!r} is no whole number") from None
  if not 0 <= rating < 2**31:
    raise ValueError(f"{file}:{line}: the rating {rating} must be from 0 to {2**31 - 1}")
  return rating


def _decode(file, lines: list[int], name: str, text: bytearray, meanings: Mapping[str, int], n_cells: int):
  table = np.full(256, _FAULTY, np.uint8)
  for char, meaning in meanings.items():
    table[ord(char)] = meaning
  cells = table[np.frombuffer(text, np.uint8).reshape(len(lines), n_cells)]
  for board, cell in np.argwhere(cells == _FAULTY)[:1]:
    char = chr(text[board * n_cells + cell])
    raise ValueError(f"{file}:{lines[board]}: the {name} has {char!r} at character {cell + 1}; "
                     f"known are {''.join(meanings)!r}")
  return cells


def check(file, boards: Boards, good: np.ndarray, what: str) -> None:
  """Raises ValueError with file and line of the first board that is not good."""
  for board in np.flatnonzero(~good)[:1]:
    raise ValueError(f"{file}:{boards.places[board]}: {what}")


def subsample(boards: Boards, n: int | None, seed: int, name: str, leaks=None) -> Boards:
  """Takes n boards without replacement, in their old order.

  Args:
    boards: to choose from.
    n: how many; None takes all.
    seed: of the choice.
    name: of the number, for the error.
    leaks: says of boards, [n] bool, which must not be taken; others take their place. None allows all.

  Raises:
    ValueError: if there are fewer than n.
  """
  order = np.random.Generator(np.random.Philox(seed)).permutation(len(boards.ratings))
  wanted = len(order) if n is None else n
  kept, start = np.zeros(0, np.int64), 0
  while len(kept) < wanted and start < len(order):
    more = order[start:start + wanted - len(kept)]
    start += len(more)
    kept = np.append(kept, more if leaks is None else more[~leaks(boards.take(more))])
  if n is not None and len(kept) < n:
    raise ValueError(f"{name}={n}, but there are only {len(kept)} such boards; ask for fewer, or lower "
                     f"min_rating")
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
      puzzle_ids=np.zeros(n_boards * n_copies, np.int32), seq_len=n_cells, vocab_size=vocab_size, n_ids=1,
      identity={**identity, "boards": boards.digest}, read=read,
      group_names=tuple(f"{source}:{place}" for place in boards.places))
