"""Data sets that the reference program built: train/ and test/ with dataset.json and all__*.npy.

Source: Jolicoeur-Martineau 2025, arXiv:2510.04871, and its program, whose files these are.
"""
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from atlas_jax.files import arrays, inside, inventory, json_file
from atlas_jax.puzzles import grids
from atlas_jax.puzzles.puzzle_set import PuzzleSet

# Part of the format: position 0 of identifiers.json, and with it row 0 of the puzzle table.
BLANK = "<blank>"    # Name of the id that padding has.
SPLITS = ("train", "test")
ZEROS = ("pad_id", "ignore_label_id", "blank_identifier_id")  # Must be 0, as batches take them to be.
SIZES = ("vocab_size", "seq_len", "num_puzzle_identifiers")
SAMPLED_ROWS = 1024  # Rows of an array that enter its digest; all of them would take minutes in large sets.


class Files(NamedTuple):
  """The content of a folder.

  Attributes:
    train, test: the splits.
    test_puzzles: the tasks to be solved with their solutions, by name; {} where the folder has none.
  """

  train: PuzzleSet
  test: PuzzleSet
  test_puzzles: dict


class _Part(NamedTuple):
  """The arrays of one set of one folder; inputs and labels stay in the files."""

  path: str
  inputs: np.ndarray
  labels: np.ndarray
  puzzle_ids: np.ndarray
  puzzle_starts: np.ndarray
  group_starts: np.ndarray


def load(path: str | pathlib.Path) -> Files:
  """Reads built data sets; inputs and labels are read when a batch needs them.

  Args:
    path: a folder with train/, test/, and where ids have names identifiers.json; or several, comma-separated,
      with the same sizes and names: their groups follow one another.

  Raises:
    ValueError: for a file that is missing or does not fit the others, naming it.
  """
  folders = [pathlib.Path(name.strip()).expanduser() for name in str(path).split(",") if name.strip()]
  if not folders:
    raise ValueError(f"the path of a built data set is {str(path)!r}; give its folder")
  # All folders are read and compared before any is joined, so that an error names files, not offsets of a
  # sum. The reference goes through the sets of several folders one after another; here their groups are one
  # set, and every epoch mixes them.
  read = [(folder, split, *_read_split(folder / split)) for folder in folders for split in SPLITS]
  shape = read[0][2]
  first = folders[0] / "train" / "dataset.json"
  for folder, split, found, _ in read:
    for name in SIZES:
      if found[name] != shape[name]:
        raise ValueError(f"{folder / split / 'dataset.json'} has {name}={found[name]} and {first} has "
                         f"{shape[name]}; data sets that are read together need equal ones")
  names = _same_names(folders, shape["num_puzzle_identifiers"])
  parts = {split: [part for _, of, _, found in read if of == split for part in found] for split in SPLITS}
  train, test = (_join(parts[split], shape, names, split) for split in SPLITS)
  return Files(train, test, _test_puzzles(folders))


def _read_split(folder: pathlib.Path) -> tuple[dict, list[_Part]]:
  """Reads the metadata and the sets of one split of a folder."""
  path = folder / "dataset.json"
  # Only sets that were written here have checksums; the reference's pass.
  if folder.is_dir():
    inventory.check_sealed(folder, remedy="build the data set again")
  found = _json(path, dict)
  # `total_puzzles` is not compared: the reference's Sudoku and Maze files have the number of groups there,
  # which is wrong once they are augmented. All it does there is to weigh a mean over several sets.
  for name in (*ZEROS, *SIZES, "total_groups"):
    lowest, highest = (0, 0) if name in ZEROS else (1, 2**31)
    value = found.get(name)
    if not json_file.is_int(value, lowest, highest):
      needs = "0" if name in ZEROS else "a positive integer"
      raise ValueError(f"{path} has {name}={value!r}; it must be {needs}")
  sets = found.get("sets")
  if not isinstance(sets, list) or not sets or not all(isinstance(name, str) and "/" not in name
                                                       and inside.is_inside(name) for name in sets):
    raise ValueError(f"{path} has sets={sets!r}; it must list the names that files begin with, as ['all']")
  parts = [_read_part(folder, name, found) for name in sets]
  groups = sum(len(part.group_starts) - 1 for part in parts)
  if groups != found["total_groups"]:
    raise ValueError(f"{path} has total_groups={found['total_groups']}, and the files hold {groups}")
  return found, parts


def _read_part(folder: pathlib.Path, name: str, shape: dict) -> _Part:
  """Reads and checks the five arrays of one set."""

  def at(array):
    return folder / f"{name}__{array}.npy"

  # Mapped, not read: with a thousand augmentations these are 6.5 GB for ARC-AGI-1. So their tokens are
  # checked when a batch reads them; all else is checked now.
  inputs, labels = (_array(at(array), 2, lazy=True) for array in ("inputs", "labels"))
  # puzzle_indices has the first example of each puzzle, group_indices the first puzzle of each
  # group; both end with the total.
  indices = ("puzzle_identifiers", "puzzle_indices", "group_indices")
  ids, puzzles, groups = (_array(at(array), 1) for array in indices)
  if inputs.shape[1] != shape["seq_len"]:
    raise ValueError(f"{at('inputs')} has rows of {inputs.shape[1]} tokens, and dataset.json says "
                     f"seq_len={shape['seq_len']}")
  if labels.shape != inputs.shape:
    raise ValueError(f"{at('labels')} is of shape {labels.shape}, and inputs of {inputs.shape}; both must be "
                     "[examples, seq_len]")
  for array, starts, end, what in (("puzzle_indices", puzzles, len(inputs), "examples"),
                                   ("group_indices", groups, len(ids), "puzzles")):
    if not len(starts) or starts[0] != 0 or starts[-1] != end or np.any(np.diff(starts) < 0):
      ends = f"runs from {starts[0]} to {starts[-1]}" if len(starts) else "is empty"
      raise ValueError(f"{at(array)} {ends}; it must rise from 0 to the {end} {what}, and never fall")
  if len(puzzles) != len(ids) + 1:
    raise ValueError(f"{at('puzzle_identifiers')} has {len(ids)} puzzles, and puzzle_indices "
                     f"{len(puzzles) - 1}; they must be the same")
  if len(ids) and not 0 <= ids.min() <= ids.max() < shape["num_puzzle_identifiers"]:
    raise ValueError(f"{at('puzzle_identifiers')} has ids from {ids.min()} to {ids.max()}, and dataset.json "
                     f"says num_puzzle_identifiers={shape['num_puzzle_identifiers']}")
  return _Part(str(folder / name), inputs, labels, ids.astype(np.int32), puzzles, groups)


def _array(path: pathlib.Path, axes: int, *, lazy: bool = False) -> np.ndarray:
  """Reads an array of integers, or maps it into memory."""
  try:
    found = arrays.read(path, lazy=lazy, remedy="build the data set again")
  except OSError as error:
    raise ValueError(f"{path} cannot be read as a NumPy array ({error}); build the data set again") from error
  if found.ndim != axes or found.dtype.kind not in "iu":
    raise ValueError(f"{path} is {found.dtype} of shape {found.shape}; it must be integers of {axes} axes")
  # The files have int32; sums over several sets need not fit that.
  return found if lazy else found.astype(np.int64)


def _json(path: pathlib.Path, kind: type) -> Any:
  """Reads a JSON file whose content is of a kind."""
  remedy = "a built data set has train/ and test/, each with dataset.json and arrays: build it again"
  try:
    return json_file.read(path, kind, remedy=remedy)
  except OSError as error:
    raise ValueError(f"{path} cannot be read as JSON ({error.strerror}); {remedy}") from error


def _same_names(folders: list[pathlib.Path], n_ids: int) -> tuple[str, ...]:
  """Reads the names of ids, which folders read together must share; () if the first folder has none."""
  named: list[tuple[str, ...]] = []
  for folder in folders:
    path = folder / "identifiers.json"
    found = tuple(_json(path, list)) if path.exists() else ()
    if not all(isinstance(name, str) for name in found):
      raise ValueError(f"{path} must list the names of ids, and has another value among them; build it again")
    # Row k of the table belongs to name k: a list that is short or shifted would give
    # each puzzle another one's row.
    if found and (len(found) != n_ids or found[0] != BLANK):
      raise ValueError(f"{path} names {len(found)} ids from {found[0]!r} on; it must name all {n_ids} of "
                       f"num_puzzle_identifiers, from {BLANK!r} on")
    if named and found != named[0]:
      raise ValueError(f"{path} and {folders[0] / 'identifiers.json'} name ids differently, so that puzzles "
                       "would share rows of the table by mistake; build both sets together")
    named.append(found)
  return named[0]


def _test_puzzles(folders: list[pathlib.Path]) -> dict:
  """Reads the tasks of the test split with their solutions."""
  tasks: dict = {}
  for path in (folder / "test_puzzles.json" for folder in folders):
    found = _json(path, dict) if path.exists() else {}
    for name in tasks.keys() & found.keys():
      if tasks[name] != found[name]:
        raise ValueError(f"{path} has another task {name!r} than a folder before it; give one of them")
    tasks.update(found)
  return tasks


def _join(parts: list[_Part], shape: dict, names: tuple[str, ...], split: str) -> PuzzleSet:
  """Makes one set of puzzles of the parts, one after another."""

  def joined(arrays):
    # Without their first entry, 0, which is the end of the part before.
    return np.concatenate([[0], *[array[1:] + shift for array, shift in arrays]])

  examples = np.cumsum([0, *[len(part.inputs) for part in parts]])
  puzzles = np.cumsum([0, *[len(part.puzzle_ids) for part in parts]])
  ids = np.concatenate([part.puzzle_ids for part in parts])
  groups = joined((part.group_starts, shift) for part, shift in zip(parts, puzzles))
  starts = joined((part.puzzle_starts, shift) for part, shift in zip(parts, examples))
  identity = {"name": "files", "split": split, "examples": int(examples[-1]), "puzzles": int(puzzles[-1]),
              **{name: shape[name] for name in SIZES}, "sha256": _digest(parts, names)}
  return PuzzleSet(
    groups, starts, ids, shape["seq_len"], shape["vocab_size"], shape["num_puzzle_identifiers"], identity,
    _reader(parts, examples, shape), names, _group_names(groups, ids, names))


def _group_names(groups: np.ndarray, ids: np.ndarray, names: Sequence[str]) -> tuple[str, ...]:
  """Returns the names of groups, from the id of the first puzzle of each; () where ids name none."""
  if not len(ids) or not len(names) or not ids.all() or np.any(np.diff(groups) < 1):
    return ()
  # TASK|||tKIND|||COLOURS: the task is the group. Boards have id 0 throughout, which names nothing.
  return tuple(names[ids[first]].split(grids.SEPARATOR)[0] for first in groups[:-1])


def _reader(parts: list[_Part], starts: np.ndarray, shape: dict):
  """Makes the function that reads examples out of the files and checks their tokens."""
  # uint8 as the files have it, a quarter of int32 in a batch. The reference's Sudoku files hold int64, whose
  # tokens are small all the same.
  narrow = all(part.inputs.dtype == part.labels.dtype == np.uint8 for part in parts)

  def read(examples, draw=None):
    del draw  # Nothing varies: the files hold tokens.
    examples = np.asarray(examples)
    owner = np.searchsorted(starts, examples, side="right") - 1
    read = np.zeros((2, len(examples), shape["seq_len"]), np.uint8 if narrow else np.int32)
    # File by file: one indexed read of a memory map for all its examples in the batch.
    for i in np.unique(owner):
      for array, found in zip(read, (parts[i].inputs, parts[i].labels)):
        values = found[examples[owner == i] - starts[i]]
        if values.min() < 0 or values.max() >= shape["vocab_size"]:
          raise ValueError(f"{parts[i].path}__*.npy has tokens from {values.min()} to {values.max()}, and "
                           f"dataset.json says vocab_size={shape['vocab_size']}")
        array[owner == i] = values
    return read[0], read[1]

  return read


def _digest(parts: list[_Part], names: tuple[str, ...]) -> str:
  """Returns a digest of all indices and names, and of rows spread evenly over inputs and labels."""
  digest = hashlib.sha256(json.dumps(names).encode())
  for part in parts:
    for array in (part.puzzle_ids, part.puzzle_starts, part.group_starts, part.inputs, part.labels):
      digest.update(f"{array.shape} {array.dtype}".encode())
      # Evenly spread and fixed by the length: the same rows in every process and at every start. Paths are
      # left out: a folder that was moved is the same set.
      rows = np.linspace(0, len(array) - 1, min(len(array), SAMPLED_ROWS)).astype(np.int64)
      digest.update(np.ascontiguousarray(array[rows] if array.ndim == 2 else array).tobytes())
  return digest.hexdigest()
