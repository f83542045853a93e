"""Weights that a recursive model starts from: of another run, or of a checkpoint of the original program.

Parameters (the moving average, where a run keeps one) and the vectors that latents start from are taken over.
Rows of the puzzle table are taken over where they stand for the same puzzles; else every row starts from the
mean of the rows that were trained, as the original program starts them.

Source: Jolicoeur-Martineau 2025, arXiv:2510.04871, whose checkpoints are files step_N of one state dict.
"""
import math
import pathlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from atlas_jax import config as configs
from atlas_jax import state as states
from atlas_jax.files import arrays, write
from atlas_jax.language import handed_over
from atlas_jax.models import placement
from atlas_jax.puzzles import sets as puzzle_sets
from atlas_jax.puzzles import torch_file, trm_import
from atlas_jax.workdir import RESET

TABLE_ROWS_MULTIPLE = 64  # So that usual meshes split the table evenly, and checkpoints fit all of them.
# Fields that weights must have been trained with, and those that change what they compute but may be tried.
# Some leave shapes as they are: with other heads, norm_eps or rope_base the weights would load without an
# error, and the network would compute something else.
SAME = ("variant", "mixer", "width", "heads", "depth", "expansion", "n_prefix", "row_width", "positions",
        "norm_eps", "rope_base")
SETTINGS = "all_config.yaml"  # Which the original program writes beside its checkpoints.
# Fields of the original that shapes of weights do not show, and what they are called here.
THEIRS = {"num_heads": "trm.heads", "pos_encodings": "trm.positions", "rms_norm_eps": "trm.norm_eps",
          "rope_theta": "trm.rope_base", "expansion": "trm.expansion", "H_cycles": "trm.n_outer",
          "L_cycles": "trm.n_inner", "halt_max_steps": "supervision.n_supervision"}
MAY_DIFFER = ("trm.n_outer", "trm.n_inner", "supervision.n_supervision")


MEAN_ROWS = ("the %d rows of the puzzle table start from the mean of those trained in %s, which stand for "
             "other puzzles: until they are trained, --mode=solve is of use, and an evaluation says nothing")


class LoadedWeights(NamedTuple):
  """Weights read from files."""

  params: Any  # as `model.init` gives them
  rows_NE: Any  # of the puzzle table; None where there is none


def n_table_rows(n_ids: int) -> int:
  """Returns the rows of the table for so many puzzles, and some more, so that meshes split it evenly."""
  return math.ceil(n_ids / TABLE_ROWS_MULTIPLE) * TABLE_ROWS_MULTIPLE


def drawn_reset(model, seed: int) -> tuple:
  """Draws the vectors that latents start from, as a run of this seed has them."""
  # The second key of two, as `recipes.trm.init_of` splits it: a run does not save these vectors, it
  # draws them again from its seed.
  return states.first(lambda rng: model.reset(jax.random.split(rng)[1]), seed)


class TrmStart:
  """The start of a run of `config.trm.path`; it is opened when something is read."""

  def __init__(self, config, model, sets: puzzle_sets.Sets):
    """Takes what the path is read for later; reading raises ValueError if nothing is there, or another model.

    A run that was begun does not read the path again, which may be gone.
    """
    self._config = config
    self._model = model
    self._train = sets.train
    self._path = pathlib.Path(config.trm.path).expanduser()
    self._workdir = None
    self._named: dict[str, np.ndarray] | None = None

  def save(self, workdir) -> None:
    """Writes into a new workdir what the run needs besides its checkpoints."""
    # The vectors are constants that the weights were trained with; other ones make them useless. They are no
    # parameters and in no checkpoint, so a run that has them from elsewhere keeps a copy.
    kept: dict[str, Any] = {str(i): np.asarray(vector, np.float32) for i, vector in enumerate(self._reset())}
    content = arrays.npz_bytes(**kept, same_puzzles=self._same_puzzles())
    write.whole(pathlib.Path(workdir) / RESET, content)
    self._workdir = workdir

  def open(self, workdir) -> None:
    """Notes the workdir of a run that is there already, and warns where its rows mean nothing at first."""
    self._workdir = workdir
    if not _read_reset(workdir)["same_puzzles"]:
      logging.warning(MEAN_ROWS, self._train.n_ids, self._path)

  def _same_puzzles(self) -> bool:
    """Returns whether the rows of the table there stand for the puzzles here.

    Without rows nothing differs.
    """
    if not self._config.trm.row_width:
      return True
    if not self._is_run():
      # A checkpoint of the original names no puzzles: of its rows only the number can be compared.
      table_NE = self._imported()[2]
      return table_NE is not None and len(table_NE) == self._train.n_ids
    saved = puzzle_sets.record_of(self._path)
    return saved["n_ids"] == self._train.n_ids and saved.get("train") == self._train.fingerprint

  def read(self, mesh, fresh: bool) -> tuple[Any, dict, Any]:
    """Reads (parameters, the rest by name, tables); parameters and tables only of a fresh run, else None."""
    # A run that goes on reads its own copy: the path that it started from may be gone by then.
    reset = self._reset() if self._workdir is None else saved_reset(self._model, self._workdir)
    frozen = {"reset": _placed(reset, placement.shardings(mesh, reset))}
    if not fresh:
      return None, frozen, None
    found = self._of_run(mesh) if self._is_run() else self._of_file(mesh)
    tables = None if found.rows_NE is None else {"puzzles": self._rows(mesh, found.rows_NE)}
    self._named = None  # It may be gigabytes.
    return found.params, frozen, tables

  def _is_run(self) -> bool:
    path = self._path
    if path.is_file() or handed_over.is_run(path):
      return path.is_dir()
    inside = sorted(file.name for file in path.glob("step_*"))[-1:] if path.is_dir() else []
    also = f"; it holds {inside[0]}: give {str(path / inside[0])!r}" if inside else ""
    raise ValueError(f"config.trm.path={str(path)!r} is neither the workdir of a run nor a checkpoint of the "
                     f"original program, such as step_651522{also}")

  def _reset(self) -> tuple:
    if not self._is_run():
      return self._imported()[1]
    other = self._other()
    # Runs may start from one another; the first one's vectors are handed on, and no seed gives them.
    if other.trm.path is not None:
      return saved_reset(self._model, self._path)
    # Drawn in the other run's dtype: in bfloat16 other numbers come out of the same key.
    return drawn_reset(self._model.copy(dtype=other.trm.dtype), other.seed)

  def _other(self):
    """Returns the config of the run that weights are taken of."""
    other = configs.load(self._path)
    config = self._config
    if other.recipe != "trm":
      raise ValueError(f"config.trm.path={str(self._path)!r} is a run of config.recipe={other.recipe!r}, not "
                       "'trm'")
    differ = [f"{name} is {other.trm[name]!r} there and {config.trm[name]!r} here" for name in SAME
              if other.trm[name] != config.trm[name]]
    if differ:
      raise ValueError(f"config.trm.path={str(self._path)!r}: {'; '.join(differ)}; set config.trm as it is "
                       "there")
    return other

  def _of_run(self, mesh) -> LoadedWeights:
    """Reads the newest checkpoint of another run."""
    other = self._other()
    saved = puzzle_sets.record_of(self._path)
    shapes: dict = {"params": self._abstract_params()}
    if self._config.trm.row_width:
      # The table as it was saved, of another number of puzzles; `_rows` makes one of ours of it, on the mesh.
      rows = jax.ShapeDtypeStruct((n_table_rows(saved["n_ids"]), self._config.trm.row_width), jnp.float32)
      shapes["tables"] = {"puzzles": rows}
    abstract = placement.abstract(mesh, shapes)
    saver = handed_over.open_run(self._path, other.checkpoint)
    try:
      # The moving average where the other run has one: it is what that run evaluates and exports.
      params, meta = saver.restore_params(abstract["params"], field=states.field_used(other))
      tables = saver.restore_params(abstract["tables"], field="tables")[0] if "tables" in abstract else {}
    finally:
      saver.close()
    logging.info("starting from step %d of the run in %s", meta["step"], self._path)
    return LoadedWeights(params, tables.get("puzzles"))

  def _abstract_params(self):
    model = self._model
    rows = self._config.trm.row_width
    given = (jnp.zeros((1, model.seq_len), jnp.int32), jnp.zeros((1, rows)), model.zero_latents(1))
    return jax.eval_shape(model.init, jax.random.key(0), *given)["params"]

  def _imported(self) -> tuple:
    if self._named is None:
      _check_settings(self._path, self._config)
      self._named = torch_file.read(self._path)
    try:
      return trm_import.params_of(self._named, self._model)
    except ValueError as error:
      raise ValueError(f"config.trm.path={str(self._path)!r}: {error}; set config.trm and config.puzzles as "
                       "they were in training") from error

  def _of_file(self, mesh) -> LoadedWeights:
    """Reads a checkpoint of the original program."""
    params, _, table_NE = self._imported()
    width = self._config.trm.row_width
    if (0 if table_NE is None else table_NE.shape[-1]) != width:
      what = "no puzzle table" if table_NE is None else f"a puzzle table of shape {table_NE.shape}"
      raise ValueError(f"config.trm.path={str(self._path)!r} has {what}, and config.trm.row_width={width}; "
                       "set it as it was in training")
    logging.info("starting from the checkpoint %s of the original program; that config.trm and "
                 "config.supervision are as they were in training is seen from shapes alone", self._path)
    return LoadedWeights(_placed(params, placement.shardings(mesh, params)), table_NE)

  def _rows(self, mesh, rows_NE):
    """Returns the table to start from, and logs whether the rows of the path were taken over."""
    n_ids = self._train.n_ids
    shape = (n_table_rows(self._train.n_ids), self._config.trm.row_width)
    sharding = placement.shardings(mesh, {"tables": jax.ShapeDtypeStruct(shape, jnp.float32)})["tables"]
    same = self._same_puzzles()
    if same:
      why = "of the same puzzles" if self._is_run() else "as many as the puzzles here, taken to be the same"
      logging.info("the %d rows of the puzzle table are taken over: they are %s", n_ids, why)
    else:
      logging.warning(MEAN_ROWS, n_ids, self._path)

    def start(rows_NE):
      if same:
        # Within jit with the target's sharding: tables have gigabytes, and no
        # device needs to hold all of one.
        return jnp.pad(rows_NE[:n_ids], ((0, shape[0] - n_ids), (0, 0)))
      return jnp.broadcast_to(mean_row(rows_NE), shape)

    return jax.jit(start, out_shardings=sharding)(rows_NE)


def mean_row(rows_NE):
  """Returns the mean of the rows that were trained; a row that no batch had is zero."""
  # The original takes the mean over all rows. Rows that no batch had, the blank one and the padding to a
  # multiple of 64 are zero and would only draw the mean towards zero.
  used = jnp.sum(jnp.any(rows_NE != 0, axis=1))
  return jnp.sum(rows_NE, axis=0) / jnp.maximum(used, 1)


def saved_reset(model, workdir) -> tuple:
  """Reads the vectors that latents start from of a run that has taken them over.

  Raises:
    ValueError: if they are missing or of another model.
  """
  saved = _read_reset(workdir)
  found = tuple(jnp.asarray(saved[str(i)], model.dtype) for i in range(len(saved) - 1))
  wanted = jax.eval_shape(lambda: drawn_reset(model, 0))
  if [vector.shape for vector in found] != [vector.shape for vector in wanted]:
    raise ValueError(f"{pathlib.Path(workdir) / RESET} is of another model, with vectors of "
                     f"{[vector.shape for vector in found]}")
  return found


def _read_reset(workdir) -> dict[str, np.ndarray]:
  """Reads the vectors in a workdir, by their numbers, and whether the rows are of the same puzzles."""
  file = pathlib.Path(workdir) / RESET
  try:
    saved = arrays.read_npz(file)
    if set(saved) != {"same_puzzles", *map(str, range(len(saved) - 1))} or saved["same_puzzles"].ndim:
      raise ValueError("it is of another kind")
  except (OSError, ValueError) as error:
    raise ValueError(f"{file} is missing or damaged ({error}): it holds the vectors that the run's latents "
                     "start from; bring it back, or start anew from config.trm.path") from error
  return saved


def reset_of(config, model, workdir) -> tuple:
  """Returns the vectors that the latents of a run start from.

  Those it has taken over, or those of its seed.
  """
  if config.trm.path is not None:
    return saved_reset(model, workdir)
  return drawn_reset(model, config.seed)


def _placed(tree, shardings):
  """Puts arrays that every process holds on the mesh."""

  def put(array, sharding):
    # Each process hands over the parts that its devices hold, of an array that all of them have read.
    return jax.make_array_from_callback(array.shape, sharding,
                                        lambda index: np.asarray(array)[index])

  return jax.tree.map(put, tree, shardings)


def _check_settings(file: pathlib.Path, config) -> None:
  """Compares what weights do not show with the settings that lie beside a checkpoint, if they do.

  Raises:
    ValueError: for a field without which the weights mean something else.
  """
  settings = file.parent / SETTINGS
  text = settings.read_text(encoding="utf-8", errors="replace") if settings.is_file() else ""
  for theirs, ours in THEIRS.items():
    # By a pattern, not by a parser of YAML, which would be one more dependency for
    # eight lines of `name: number`.
    found = re.search(rf"^\s*{theirs}: *['\"]?([\w.+-]+)['\"]?\s*$", text, re.MULTILINE)
    value = configs.at(config, ours)
    if found is None or found[1] == str(value) or _number(found[1]) == value:
      continue
    line = f"{settings} has {theirs}: {found[1]}, and config.{ours}={value!r}"
    if ours not in MAY_DIFFER:
      raise ValueError(f"{line}; set it as it is there")
    logging.warning("%s: the weights were trained for the former", line)


def _number(text: str) -> float | None:
  try:
    return float(text)
  except ValueError:
    return None
