"""The sets of puzzles that a config can name: training and held-out splits, and all that scoring needs."""
import json
import math
import pathlib
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from atlas_jax.data import stepped
from atlas_jax.files import json_file, write
from atlas_jax.puzzles import arc, files, grids, source
from atlas_jax.puzzles.arc import build as arc_build
from atlas_jax.puzzles.arc import built as arc_built
from atlas_jax.puzzles.arc import challenges
from atlas_jax.puzzles.boards import maze, sudoku
from atlas_jax.puzzles.puzzle_set import PuzzleSet
from atlas_jax.workdir import PUZZLES

ARC = ("arc1", "arc2", "arc2_public", "files")
NAMES = (*ARC, "sudoku", "maze", "built")
HUB = {"sudoku": sudoku.EXTREME, "maze": maze.HARD}  # What the path "hub" stands for.
READ_AT_ONCE = 8_192  # Examples of a file compared together.


class Shape(NamedTuple):
  """Sizes of a set that a network is built from."""

  seq_len: int
  vocab_size: int


class Sets(NamedTuple):
  """A set of puzzles for training, one held out, and what is known of their grids."""

  train: PuzzleSet
  test: PuzzleSet
  kind: str  # "arc", "sudoku" or "maze": how a row of tokens is drawn and scored
  shape: tuple[int, int]  # rows and columns of the canvas
  tasks: dict[str, Any]  # arc: task id -> {"train": [...], "test": [...]} of grids, all held-out pairs
  leaked: frozenset[str] = frozenset()  # arc: ids of held-out tasks whose answers are trained on
  trained_on: frozenset[int] = frozenset()  # built boards: held-out examples whose question is trained on

  def save(self, workdir: pathlib.Path) -> None:
    """Writes what the puzzles of a run are."""
    write.json(pathlib.Path(workdir) / PUZZLES, json_file.sealed(_record(self)), indent=None)

  def check_run(self, workdir: pathlib.Path) -> None:
    """Refuses a run whose table of puzzles means other puzzles.

    Raises:
      ValueError: names what differs.
    """
    file = pathlib.Path(workdir) / PUZZLES
    saved = record_of(workdir)
    # Through JSON, as the saved one went: tuples become lists, which compare unequal to them.
    here = json.loads(json.dumps(_record(self)))
    differ = [f"{name}={saved.get(name)!r} in the run, {here[name]!r} here"
              # Not "test": a run may be evaluated on other held-out puzzles; its rows
              # belong to those it trains on.
              for name in ("n_ids", "first_names", "train") if saved.get(name) != here[name]]
    if differ:
      raise ValueError(f"{file}: the run was trained on other puzzles: {'; '.join(differ)}; give the data it "
                       "was trained with (config.puzzles.path)")


def _record(sets: Sets) -> dict:
  return {"n_ids": sets.train.n_ids, "first_names": list(sets.train.names[:4]), "kind": sets.kind,
          "train": sets.train.fingerprint, "test": sets.test.fingerprint, "identity": sets.train.identity}


def record_of(workdir) -> dict:
  """Reads what `Sets.save` wrote: n_ids, kind, and what the puzzles of a run are known by.

  Raises:
    ValueError: if the file is missing or damaged.
  """
  file = pathlib.Path(workdir) / PUZZLES
  if not file.is_file():
    raise ValueError(f"{file} is missing: it says which puzzles the rows of the run's table stand for; "
                     "bring it back, or train again")
  remedy = "it is damaged: restore it, or train again"
  saved = json_file.read_sealed(file, remedy=remedy)
  json_file.field(file, saved, "n_ids", lambda n: json_file.is_int(n, 1), "a number of ids", remedy=remedy)
  json_file.field(file, saved, "kind", lambda kind: isinstance(kind, str), "a kind of puzzle", remedy=remedy)
  return saved


def shape_of(fields) -> Shape:
  """Returns what the network must know of `config.puzzles`, without building the set.

  Raises:
    ValueError: if there is no such set.
  """
  check_name(fields.name)
  if fields.name in ARC:
    return Shape(fields.canvas**2, grids.VOCAB_SIZE)
  if fields.name == "built":
    train = _built(fields).train
    return Shape(train.seq_len, train.vocab_size)
  # Padding and a blank beside the digits of a Sudoku; padding beside the characters of a maze.
  return Shape(fields.side**2, fields.side + 2 if fields.name == "sudoku" else len(maze.CHARACTERS) + 1)


def check_name(name: str) -> None:
  """Refuses a set that does not exist."""
  if name not in NAMES:
    raise ValueError(f"config.puzzles.name={name!r} is unknown; known are {', '.join(NAMES)}")


def load(config) -> Sets:
  """Builds the training and held-out splits of `config.puzzles`.

  Raises:
    ValueError: if a field, a file or a puzzle is wrong; names it.
    ImportError: if a package with the data is missing.
  """
  fields = config.puzzles
  check_name(fields.name)
  if fields.name in ARC:
    subsets, test_sets = _asked(fields, arc_subsets, fields)
    built = _asked(fields, arc_build.build, subsets, test_sets, n_augmentations=fields.n_augmentations,
                   seed=fields.seed, canvas=fields.canvas, cache_dir=config.data.cache_dir)
    _say_what_scores_mean(fields.name, built)
    return Sets(built.train, built.test, "arc", (fields.canvas, fields.canvas), built.test_puzzles,
                leaked=frozenset(leak.task for leak in built.leaks))
  if fields.name == "built":
    found = _built(fields)
    side = math.isqrt(found.train.seq_len)
    # Now, and not when the first evaluation fails after hours of training.
    _check_built(fields.path, found, side)
    # Files of the reference have one black cell where an output is unknown; taken as
    # labels they would be learnt.
    if _kind_of(found) == "arc":
      found, leaks = _asked(fields, arc_built.check, found, fields.path)
      return Sets(found.train, found.test, "arc", (side, side), found.test_puzzles,
                  leaked=frozenset(leak.task for leak in leaks))
    return Sets(found.train, found.test, _kind_of(found), (side, side), found.test_puzzles,
                trained_on=_trained_on(fields.path, found))
  common = dict(side=fields.side, path=HUB[fields.name] if fields.path == "hub" else fields.path,
                n_train=fields.n_train, n_test=fields.n_test, seed=fields.seed,
                cache_dir=config.data.cache_dir, download=config.data.download)
  build: Any = sudoku.build if fields.name == "sudoku" else maze.build
  # Mazes are solved whenever they are read, see `maze.read`: there is nothing to switch off.
  searched = {"one_solution": fields.one_solution} if fields.name == "sudoku" else {}
  train, test = _asked(fields, build, **common, **searched, min_rating=fields.min_rating,
                       n_augmentations=fields.n_augmentations)
  return Sets(train, test, fields.name, (fields.side, fields.side), {})


def arc_subsets(fields) -> tuple[arc.Subsets, tuple[str, ...]]:
  """Reads the ARC tasks of `config.puzzles` by subset, and names the subsets that are held out.

  Raises:
    ImportError, ValueError: see `arc.read` and `challenges.read`.
  """
  if fields.name == "files":
    subsets, test_sets = challenges.read(fields.path, fields.test_path, fields.concept_path)
  else:
    subsets = arc.read(fields.name, fields.path, fields.concept_path)
    test_sets = ()
  chosen = arc.select(subsets, canvas=fields.canvas, max_tasks=fields.max_tasks)
  if fields.test_path is not None:
    _say_left_out(fields, *(sum(len(each.get(name, ())) for name in test_sets) for each in (subsets, chosen)))
  return chosen, test_sets or (arc_build.held_out(chosen),)


def _say_left_out(fields, n_asked: int, n_kept: int) -> None:
  if n_kept < n_asked:
    logging.warning("config.puzzles.canvas=%d and max_tasks=%s leave out %d of the %d tasks of test_path: "
                    "evaluations and their submission.json are without them", fields.canvas, fields.max_tasks,
                    n_asked - n_kept, n_asked)


def _asked(fields, build, *args, **named):
  """Builds what `config.puzzles` asks for; a refusal says whose fields it speaks of."""
  try:
    return build(*args, **named)
  except ValueError as error:
    raise ValueError(f"config.puzzles with name={fields.name!r}: {error}") from error


def _built(fields) -> files.Files:
  if fields.path is None:
    raise ValueError("config.puzzles.name='built' reads a folder in the original's layout; set "
                     "config.puzzles.path to it")
  return _asked(fields, files.load, fields.path)


def _check_built(path: str, found: files.Files, side: int) -> None:
  """Refuses, before anything is trained, a folder that could not be evaluated."""
  if side * side != found.train.seq_len:
    raise ValueError(f"config.puzzles.path={path}: seq_len={found.train.seq_len} is no square, and grids are "
                     "drawn and cropped as squares")
  if _kind_of(found) == "arc" and not (found.train.names and found.test_puzzles):
    raise ValueError(f"config.puzzles.path={path} needs identifiers.json and test_puzzles.json beside train/ "
                     "and test/: votes on ARC tasks go by the names of augmentations")


def _trained_on(path: str, found: files.Files) -> frozenset[int]:
  """Finds the held-out examples whose question is among those trained on, and says how many there are."""

  def questions(split):
    return (row.tobytes() for start in range(0, split.n_examples, READ_AT_ONCE) for row in
            split.read(np.arange(start, min(start + READ_AT_ONCE, split.n_examples)))[0])

  # The held-out side is the small one: only it is kept in memory, and the training side streams past it.
  held_out = list(questions(found.test))
  wanted = set(held_out)
  seen = {question for question in questions(found.train) if question in wanted}
  known = frozenset(number for number, question in enumerate(held_out) if question in seen)
  if known:
    logging.warning("config.puzzles.path=%s: the questions of %d of %d held-out examples are trained on; "
                    "eval/unseen/ scores the others, eval/all/ all", path, len(known), len(held_out))
  return known


def _kind_of(found: files.Files) -> str:
  """Tells from the vocabulary what a built set is of."""
  # ARC has 12 tokens, mazes 6, and the Sudokus of the reference, of side 9 alone, 11. A Sudoku
  # of side 4 would have 6 too and be taken for a maze: such a set is generated or read from
  # CSV, not from a built folder.
  if found.train.vocab_size == grids.VOCAB_SIZE:
    return "arc"
  return "maze" if found.train.vocab_size == len(maze.CHARACTERS) + 1 else "sudoku"


def _say_what_scores_mean(name: str, built: arc_build.Built) -> None:
  if name.startswith("arc2"):
    logging.info("%s is trained on tasks that ARC-AGI-1 evaluates with: score it on its own evaluation only",
                 name)
  logging.info("%d tasks, %d augmentations, %d rows of the puzzle table; %d tasks held out",
               built.train.n_groups, built.train.n_puzzles, built.train.n_ids, len(built.test_puzzles))


def eval_batches_of(config, sets: Sets) -> source.EvalBatches:
  """Opens the held-out split, all rows in every process."""
  # The solver deals examples to slots itself, and every process must deal alike: all of them read all rows.
  return source.EvalBatches(sets.test, config.eval.batch_rows, max_examples=config.puzzle_eval.max_examples)


def source_of(config, sets: Sets) -> source.PuzzleSource:
  """Opens the training split for this process."""
  fields = config.puzzles
  original = {"epochs_per_iteration": fields.epochs_per_iteration} if fields.sampler == "original" else {}
  return source.PuzzleSource(
      sets.train, batch_rows=config.data.batch_rows, seed=config.seed, threads=config.data.threads,
      **stepped.this_process(), fresh_shift=fields.shift == "fresh", sampler=fields.sampler, **original)
