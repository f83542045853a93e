"""Boards in CSV files, and where the files are: a folder, one file, or the Hugging Face hub.

The first line names the columns. The question and the answer, a row per board and a character per cell, go by
any of the names in `NAMES`; "rating", a whole number, is needed only where easy boards are to be left out.
Other columns are named once as not used. Blank lines are passed over, and so is a byte order mark.
"""
import codecs
import csv
import hashlib
import importlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from absl import logging

from atlas_jax.puzzles import boards
from atlas_jax.puzzles.boards import SPLITS, Boards

NAMES = {"question": ("question", "questions", "quizzes", "quiz", "puzzle", "puzzles", "board", "input"),
         "answer": ("answer", "answers", "solution", "solutions", "output", "label"),
         "rating": ("rating",)}
# No cell has this value: it marks characters without a meaning.
_FAULTY = 255
_WIDE = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


def find(path: str, download: bool) -> dict[str, pathlib.Path | None]:
  """Finds the files of both splits.

  Args:
    path: a folder with train.csv and maybe test.csv, one CSV file, or "hf:OWNER/NAME", a dataset on the
      Hugging Face hub.
    download: whether files that are not on this machine may be fetched from the hub.

  Returns:
    The file of "train", and that of "test" or None, where boards of the first must be held out.

  Raises:
    ModuleNotFoundError: if the hub is asked for without its client.
    ValueError: if there is no file to train on.
  """
  if str(path).startswith("hf:"):
    return {split: _hub_file(path, f"{split}.csv", download) for split in SPLITS}
  folder = pathlib.Path(path).expanduser()
  # One file has both splits in it: `take` holds some of its boards out.
  if folder.is_file():
    return {"train": folder, "test": None}
  files = {split: folder / f"{split}.csv" for split in SPLITS}
  if not files["train"].is_file():
    others = sorted(file.name for file in folder.glob("*.csv"))[:1]
    one = f"; to read {others[0]} alone, path={str(folder / others[0])!r}" if others else ""
    raise ValueError(f"{files['train']} does not exist; path={str(path)!r} must be a folder with train.csv, "
                     f"and maybe test.csv, a CSV file, or 'hf:OWNER/NAME'{one}; without a path boards are "
                     "generated")
  return {"train": files["train"], "test": files["test"] if files["test"].is_file() else None}


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


def digest(file: pathlib.Path) -> str:
  """Returns the SHA-256 of a file."""
  with open(file, "rb") as content:
    return hashlib.file_digest(content, "sha256").hexdigest()


def read(file: pathlib.Path, *, n_cells: int, question_cells: Mapping[str, int],
         answer_cells: Mapping[str, int], min_rating: int | None = None) -> Boards:
  """Reads the boards of a CSV file; of their contents only the characters are checked.

  Args:
    file: to read.
    n_cells: characters of a board.
    question_cells, answer_cells: what a character stands for.
    min_rating: leave out boards of a lower rating.

  Returns:
    Boards; places are their lines in the file, the header's being 1; ratings are 0 where the file has none.

  Raises:
    ValueError: naming file and line of what is missing, too long or too short, or unknown.
  """
  # Bytes in one piece: as Python lists the 3.8 million boards of Sudoku-Extreme would take gigabytes.
  texts = {"question": bytearray(), "answer": bytearray()}
  ratings = []
  lines = []
  # latin-1 reads any bytes, one character each: what is no cell is named by `_decode` with its place, where
  # UTF-8 would stop at a place in the file that nobody can find.
  with open(file, newline="", encoding="latin-1") as opened:
    rows = _rows(file, opened)
    first, header = next(rows, (1, []))
    where = _columns(file, first, header, min_rating)
    for line, row in rows:
      if len(row) != len(header):
        raise ValueError(f"{file}:{line}: {len(row)} columns, the header has {len(header)}")
      rating = _rating(file, line, row[where["rating"]]) if "rating" in where else 0
      if min_rating is not None and rating < min_rating:
        continue
      for name in texts:
        cells = row[where[name]]
        if len(cells) != n_cells:
          raise ValueError(f"{file}:{line}: the {name} has {len(cells)} characters, it needs {n_cells}")
        texts[name] += cells.encode("latin-1")
      ratings.append(rating)
      lines.append(line)
  questions = _decode(file, lines, "question", texts["question"], question_cells, n_cells)
  answers = _decode(file, lines, "answer", texts["answer"], answer_cells, n_cells)
  return boards.of_lists(questions, answers, ratings, lines, n_cells)


def _columns(file, line: int, header: list[str], min_rating: int | None) -> dict[str, int]:
  """Finds the columns by the header, and names those that are not used."""
  names = [name.strip().lower() for name in header]
  found: dict[str, int] = {}
  for column, known in NAMES.items():
    at = [index for index, name in enumerate(names) if name in known]
    if len(at) > 1:
      both = " and ".join(repr(header[index]) for index in at)
      raise ValueError(f"{file}:{line}: the columns {both} could both be the {column}; rename or remove one")
    if at:
      found[column] = at[0]
    elif column != "rating" or min_rating is not None:
      asked = "" if column != "rating" else f", which min_rating={min_rating} needs"
      raise ValueError(f"{file}:{line}: no column {column}{asked}, among {header}, which the first line must "
                       f"name, separated by commas; known names are {', '.join(known)}")
  unused = [header[index] for index in range(len(header)) if index not in found.values()]
  if unused:
    logging.warning("%s: not used are the columns %s", file, ", ".join(map(repr, unused)))
  return found


def _rows(file, opened) -> Iterator[tuple[int, list[str]]]:
  """Yields (line, cells) of lines that are not blank; what is no CSV is an error with its line."""
  # Excel writes a mark in front, which would become part of the first column's name.
  start = opened.read(3).encode("latin-1")
  for mark, name in _WIDE.items():
    if start.startswith(mark):
      raise ValueError(f"{file} is in {name}; save it as UTF-8")
  if start != codecs.BOM_UTF8:
    opened.seek(0)
  # Its line_num counts lines of the file, also blank ones and those inside quotes, as an editor does.
  rows = csv.reader(opened)
  try:
    for row in rows:
      if any(cell.strip() for cell in row):
        yield rows.line_num, row
  except csv.Error as error:
    raise ValueError(f"{file}:{rows.line_num}: {error}") from error


def _rating(file, line: int, text: str) -> int:
  try:
    rating = int(text)
  except ValueError:
    raise ValueError(f"{file}:{line}: the rating {text!r} is no whole number") from None
  if not 0 <= rating < 2**31:
    raise ValueError(f"{file}:{line}: the rating {rating} must be from 0 to {2**31 - 1}")
  return rating


def _decode(file, lines: list[int], name: str, text: bytearray, meanings: Mapping[str, int], n_cells: int):
  table = np.full(256, _FAULTY, np.uint8)
  for char, meaning in meanings.items():
    table[ord(char)] = meaning
  # All cells of the file in one look-up; only the first fault is named.
  cells = table[np.frombuffer(text, np.uint8).reshape(len(lines), n_cells)]
  for board, cell in np.argwhere(cells == _FAULTY)[:1]:
    char = chr(text[board * n_cells + cell])
    raise ValueError(f"{file}:{lines[board]}: the {name} has {char!r} at character {cell + 1}; "
                     f"known are {''.join(meanings)!r}")
  return cells


class Rules(NamedTuple):
  """Rules for boards of one kind.

  Attributes:
    read: (file, min_rating) -> Boards.
    faulty: (file, boards) -> [n] bool, those that are not to be used; it logs which and why.
    leaks_of: Boards of the test -> (boards -> [n] bool, those that must not be trained on).
    why: they must not, for the message.
  """

  read: Callable
  faulty: Callable
  leaks_of: Callable
  why: str


def take(files: Mapping[str, pathlib.Path | None], key: dict, rules: Rules, *, n_train: int | None,
         n_test: int | None, min_rating: int | None, seed: int, cache_dir,
         checks: dict) -> tuple[dict[str, Boards], dict[str, dict]]:
  """Takes the boards of both splits out of files, once, and keeps them.

  Args:
    files: see `find`; without a test file, test boards are drawn from the train file, and not trained on.
    key: JSON of what the contents follow from, besides files and numbers.
    rules: of their kind.
    n_train, n_test, min_rating, seed, cache_dir: see `sudoku.build`.
    checks: JSON of what `rules.faulty` looks for.

  Returns:
    Boards by split, and JSON by split of what they follow from.

  Raises:
    ValueError: if a file is wrong, or there are too few boards.
  """
  train_file = files["train"]
  test_file = files["test"]
  assert train_file is not None
  shared = train_file if test_file is None else test_file
  if test_file is None and n_test is None:
    raise ValueError(f"n_test=None takes all boards of a test file, and beside {train_file} there is none; "
                     "give the number of its boards to hold out, such as n_test=1000")
  # Both splits depend on the test file, the train boards by what they must avoid. With one file, they also
  # depend on how many boards were held out of it.
  key = {**key, "test_sha256": digest(shared)}
  keys = {"test": {**key, "n": n_test}, "train": {**key, "n": n_train, "train_sha256": digest(train_file)}}
  if test_file is None:
    keys["train"]["n_held_out"] = n_test
  test = boards.cached(
      cache_dir, {**keys["test"], **checks}, lambda: boards.subsample(
          rules.read(shared, min_rating), n_test, seed, "n_test", lambda some: rules.faulty(shared, some)))

  def take_train():
    found = rules.read(train_file, min_rating)
    if test_file is None:
      # By line, not by content: a board that stands twice in the file is then left out as a leak, and named.
      found = found.take(~np.isin(found.places, test.places))
    # Boards of the test file that this run does not take are test boards all the same: others score on them.
    every_test = test if test_file is None else rules.read(test_file, None)  # Also those not taken.
    return boards.subsample(found, n_train, seed, "n_train", _refused(train_file, every_test, rules))

  return {"train": boards.cached(cache_dir, {**keys["train"], **checks}, take_train), "test": test}, keys


def _refused(file, test: Boards, rules: Rules) -> Callable:
  """Returns the function that says of train boards whether they are not to be used, and why."""
  leaks = rules.leaks_of(test)

  def refused(some: Boards) -> np.ndarray:
    # Faulty boards first: comparing classes of boards is dear, and each board is named for one fault.
    bad = rules.faulty(file, some)
    known = leaks(some) & ~bad
    boards.left_out(file, some, known, rules.why)
    return bad | known

  return refused
