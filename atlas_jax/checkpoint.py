"""Checkpoints of a run by Orbax: asynchronous, atomic, kept by policy, and refused when damaged.

`workdir/checkpoints/<step>/` holds `state` (arrays, as nested dicts keyed by the parts of their names),
`meta` (JSON: the caller's, and every leaf's shape and type) and `files.json` (size and checksum of every
file, written before the directory gets its final name). A directory whose files do not match `files.json`
is never read.
"""
import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from atlas_jax import tree
from atlas_jax.files import inside, json_file, write
from atlas_jax.workdir import CHECKPOINTS, INVENTORY

_UNLISTED = (INVENTORY, "_CHECKPOINT_METADATA")  # Orbax stamps the second after the inventory.
_METRICS = "metrics/metrics"
_HALF_WRITTEN = ".orbax-checkpoint-tmp"
_READ_BYTES = 2**24  # Bounds the memory that a checksum takes, however large the file is.
_WITHOUT_NUMBERS = "evaluated"  # In place of metrics of which none is finite.


class CheckpointError(RuntimeError):
  """A checkpoint that is missing, damaged, half-written, already there, or of another model."""


class Checkpoints:
  """The checkpoints of one run directory; every process of the run makes and calls its own.

  Args:
    workdir: the run directory; checkpoints lie in workdir/checkpoints.
    keep_last: how many of the newest are kept.
    keep_best: how many with the best best_metric are kept besides.
    keep_every_steps: steps whose multiples are kept for good, or None.
    every_eval: whether every checkpoint that was evaluated, hence saved with metrics, is kept for good.
    every_steps: how often the training loop saves; kept for it as an attribute.
    best_metric: which of the metrics given to `save` decides.
    best_mode: "min" or "max", whichever of it is best.
    read_only: for evaluation and generation: makes no directory and cannot save.
  """

  def __init__(self, workdir, *, every_steps: int | None = None, keep_last: int = 2, keep_best: int = 1,
               keep_every_steps: int | None = None, every_eval: bool = False,
               best_metric: str = "val_bits_per_byte", best_mode: str = "min", read_only: bool = False):
    _check_policy(keep_last, keep_best, keep_every_steps)
    self.every_steps = every_steps
    self.path = Path(workdir).absolute() / CHECKPOINTS
    self._read_only = read_only
    if not read_only:
      self.path.mkdir(parents=True, exist_ok=True)
    # Orbax does not tell `_take_inventory` the step, so it is kept here; saves never overlap.
    self._being_saved: int | None = None
    self._saver: ocp.CheckpointManager | None = None  # Made at the first save: it reads what is there.
    self._policy = _policy(keep_last, keep_best, keep_every_steps, every_eval, best_metric, best_mode)

  def steps(self) -> list[int]:
    """Lists the steps that have a finished checkpoint, oldest first."""
    if not self.path.is_dir():
      return []
    return sorted(int(entry.name) for entry in self.path.iterdir() if entry.name.isdecimal())

  def latest_step(self) -> int | None:
    """Returns the newest step, or None; a save still under way does not count."""
    return max(self.steps(), default=None)

  def newest_good(self, besides: int | None = None) -> Path | None:
    """Returns the path of the newest checkpoint whose files are all as written, or None."""
    # Reads every byte of a checkpoint. The result serves messages only: which checkpoint is restored is never
    # chosen by it, as a run must not go back in silence.
    for step in reversed(self.steps()):
      if step != besides and _damage(self.path / str(step)) is None:
        return self.path / str(step)
    return None

  def save(self, step: int, state, meta: Mapping[str, Any], metrics: Mapping[str, Any] | None = None) -> None:
    """Starts saving; the state may be donated as soon as this returns. All processes call it together.

    Args:
      step: updates made so far; names the checkpoint.
      state: pytree of arrays, random keys among them.
      meta: JSON that comes back with the state, such as the place in the data.
      metrics: numbers of this step; the one named best_metric ranks it among the best.

    Raises:
      CheckpointError: if the step has a checkpoint already, or an earlier save failed.
    """
    if self._read_only:
      raise CheckpointError(f"{self.path} was opened to read; nothing can be saved there")
    # One save at a time: `_being_saved` names one step, and an earlier save that failed is reported here,
    # before more work rests on it.
    self.wait()
    if step in self.steps():
      raise CheckpointError(f"{self.path / str(step)} exists already and is not overwritten; restore it, "
                            "move it away, or use another --workdir")
    named = dict(tree.named_leaves(state))
    described = {"meta": dict(meta), "leaves": {name: _describe(leaf) for name, leaf in named.items()}}
    json.dumps(described)  # A meta that is no JSON is the caller's mistake: say so before the thread starts.
    numbers = _ranks(metrics) if metrics else {}
    self._being_saved = step
    items = ocp.args.Composite(state=ocp.args.StandardSave(_nest(named)), meta=ocp.args.JsonSave(described))
    # Orbax has copied the arrays to the host when this returns, and writes the files in threads of its own.
    # That is why the caller may donate the state to the next update.
    self._call(lambda manager: manager.save(step, metrics=numbers, args=items))

  def restore(self, abstract_state, step: int | None = None) -> tuple[Any, dict]:
    """Reads a whole state, onto any mesh.

    Args:
      abstract_state: ShapeDtypeStructs with the shardings wanted, as `placement.abstract` returns.
      step: which checkpoint; the newest if None. Another one is never taken in its place.

    Returns:
      (state in the form of abstract_state, meta as it was given to `save`).

    Raises:
      CheckpointError: if it is missing or damaged (names the newest good one), or holds other leaves.
    """
    return self._read(abstract_state, step, field=None)

  def restore_params(self, abstract_params, *, field: str = "params", step: int | None = None):
    """Reads one field of a state, "params" or "ema", and leaves the rest on disk; returns (field, meta)."""
    return self._read(abstract_params, step, field=field)

  def read_meta(self, step: int | None = None) -> dict:
    """Reads what was given to `save` as meta."""
    return self._described(self._good_path(step))["meta"]

  def shapes(self, field: str, step: int | None = None) -> dict:
    """Returns the leaves of one field of a state, as nested dicts of ShapeDtypeStructs; {} if it has none."""
    saved = self._described(self._good_path(step))["leaves"]
    return _nest({name.partition("/")[2]: jax.ShapeDtypeStruct(tuple(leaf["shape"]), leaf["dtype"])
                  for name, leaf in saved.items() if name.partition("/")[0] == field})

  def is_ranked(self, step: int) -> bool:
    """Returns whether a checkpoint has metrics."""
    path = self.path / str(step) / _METRICS
    return path.exists() and bool(json_file.read(path))

  def rank(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Adds metrics to a checkpoint that was saved without; all processes call it, before their first save.

    Raises:
      CheckpointError: if it has some already, or cannot be written to.
    """
    folder = self.path / str(step)
    if jax.process_index() == 0:
      try:
        inventory = json_file.read(folder / INVENTORY)
        if self.is_ranked(step):
          raise CheckpointError(f"{folder} has metrics already")
        # Three durable writes: the entry leaves the inventory, the metrics change, the entry comes back. A
        # crash between any two leaves a checkpoint whose listed files match, hence one that can be read. With
        # the entry in place, a crash behind the second write would leave one that counts as damaged.
        inventory.pop(_METRICS, None)
        write.json(folder / INVENTORY, inventory, indent=None)
        write.json(folder / _METRICS, _ranks(metrics), indent=None)
        inventory[_METRICS] = [(folder / _METRICS).stat().st_size, _checksum(folder / _METRICS)]
        write.json(folder / INVENTORY, inventory, indent=None)
      except OSError as error:
        raise CheckpointError(f"{folder} cannot be written to ({error}); the same command makes its "
                              "evaluation again") from error
    # The manager reads the metrics of all checkpoints when it is made, at the first save: no process may get
    # there before the file is written.
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(f"rank {step}")

  def wait(self) -> None:
    """Waits until the save under way is finished; raises CheckpointError if it failed."""
    if self._saver is not None:
      self._call(lambda manager: manager.wait_until_finished())

  def close(self) -> None:
    """Finishes the save under way and ends Orbax's threads."""
    self.wait()
    if self._saver is not None:
      self._saver.close()
      self._saver = None

  def _read(self, abstract, step: int | None, field: str | None):
    path = self._good_path(step)
    described = self._described(path)
    wanted = {f"{field}/{name}" if field else name: leaf for name, leaf in tree.named_leaves(abstract)}
    saved = described["leaves"]
    if field is not None:
      saved = {name: leaf for name, leaf in saved.items() if name.split("/")[0] == field}
    _check_same_leaves(path, saved, wanted)
    nested = _nest(wanted)
    # Every leaf is read into the sharding that is wanted, whatever mesh it was saved from; with
    # partial_restore the leaves that are not named stay on disk.
    placed = ocp.checkpoint_utils.construct_restore_args(nested)
    request = ocp.args.PyTreeRestore(item=nested, restore_args=placed, partial_restore=True)
    try:
      arrays = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(path / "state", args=request)
    except Exception as error:  # Orbax and tensorstore raise many kinds for unreadable files.
      raise CheckpointError(self._refusal(path, f"cannot be read ({_first_line(error)})")) from error
    # Nested dicts have their leaves sorted by key, the state has them in the order of its fields: they are
    # put in place by name.
    found = dict(tree.named_leaves(arrays))
    leaves = [found[name] for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves), described["meta"]

  def _good_path(self, step: int | None) -> Path:
    """Finds a checkpoint and verifies its files, on process 0, whose verdict holds for all processes."""
    self.wait()
    steps = self.steps()
    self._mention_half_written(steps)
    if step is None and not steps:
      raise CheckpointError(f"{self.path} holds no checkpoint; train first, or check --workdir")
    path = self.path / str(max(steps) if step is None else step)
    # One process reads all bytes, which are the same for all. The others wait for its verdict: if process 0
    # raised alone, they would wait for it in the restore.
    damage = _damage(path) if jax.process_index() == 0 else None
    if jax.process_count() > 1:
      good = int(multihost_utils.broadcast_one_to_all(np.int32(damage is None)))
      damage = damage if good or damage else "was refused by process 0, whose message says why"
    if damage is not None:
      raise CheckpointError(self._refusal(path, damage))
    return path

  def _refusal(self, path: Path, damage: str) -> str:
    good = self.newest_good(besides=int(path.name))
    if good is None:
      return f"{path} {damage}; there is no other good checkpoint in {self.path}"
    return f"{path} {damage}; the newest good one is {good}: move {path.name} away to go on from there"

  def _mention_half_written(self, steps: list[int]) -> None:
    if not self.path.is_dir() or jax.process_index() != 0:
      return
    for entry in self.path.glob(f"*{_HALF_WRITTEN}*"):
      begun = entry.name.split(".")[0]
      if begun.isdecimal() and int(begun) > max(steps, default=-1):
        logging.warning("%s is half-written, the run ended while saving it, and is not used; the newest "
                        "finished checkpoint is %s", entry, self.path / str(max(steps)) if steps else "none")

  def _described(self, path: Path) -> dict:
    return json_file.read(path / "meta" / "metadata")

  def _call(self, use):
    """Uses the saver, made at need, and turns any failure of Orbax into a CheckpointError."""
    try:
      self.path.mkdir(parents=True, exist_ok=True)  # Orbax would wait minutes for a directory that is gone.
      if self._saver is None:
        self._saver = ocp.CheckpointManager(self.path, options=self._options(), item_names=("state", "meta"))
      return use(self._saver)
    except Exception as error:  # The disk, the file system and Orbax's threads raise many kinds.
      raise CheckpointError(f"saving to {self.path} failed ({_first_line(error)}); the newest good "
                            f"checkpoint is {self.newest_good()}") from error

  def _options(self) -> ocp.CheckpointManagerOptions:
    return ocp.CheckpointManagerOptions(
        **self._policy, enable_async_checkpointing=True,
        async_options=ocp.options.AsyncOptions(post_finalization_callback=self._take_inventory))

  def _take_inventory(self) -> None:
    """Writes files.json; Orbax calls this when all files are written, before the directory is renamed."""
    if jax.process_index() == 0:
      # The folder still has Orbax's temporary name and is renamed after this callback: a folder named by its
      # step alone always has an inventory. A kill in between leaves a half-written one.
      for folder in self.path.glob(f"{self._being_saved}{_HALF_WRITTEN}*"):
        write.json(folder / INVENTORY, _inventory(folder), indent=None)


def _check_policy(keep_last: int, keep_best: int, keep_every_steps: int | None) -> None:
  for name, value, least in (("keep_last", keep_last, 1), ("keep_best", keep_best, 0),
                             ("keep_every_steps", keep_every_steps, 1)):
    if value is not None and value < least:
      raise ValueError(f"config.checkpoint.{name}={value} must be at least {least}")


class _Evaluated:
  """Keeps the checkpoints that were saved with metrics."""

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    """Says of each checkpoint whether it is kept."""
    del context
    return [bool(info.metrics) for info in checkpoints]


def _policy(keep_last: int, keep_best: int, keep_every_steps: int | None, every_eval: bool, best_metric: str,
            best_mode: str) -> dict:
  if best_mode not in ("min", "max"):
    raise ValueError(f"config.checkpoint.best_mode={best_mode!r} must be 'min' or 'max'")
  # Low is good to `rank`. BestN keeps the end of the list that it sorts, so `reverse` puts the lowest there.
  sign = 1 if best_mode == "min" else -1

  def rank(metrics) -> float:
    found = (metrics or {}).get(best_metric)
    return math.inf if found is None else sign * found  # Without the metric a checkpoint is never the best.
  kept: list = [policies.LatestN(keep_last)]
  if keep_best:
    kept.append(policies.BestN(get_metric_fn=rank, reverse=True, n=keep_best,
                               keep_checkpoints_without_metrics=False))
  if keep_every_steps:
    kept.append(policies.EveryNSteps(keep_every_steps))
  if every_eval:
    kept.append(_Evaluated())
  # best_fn makes Orbax write the metrics beside the state; what is kept is decided by the policy alone.
  return dict(best_fn=rank, best_mode="min", preservation_policy=policies.AnyPreservationPolicy(kept))


def _ranks(metrics: Mapping[str, Any]) -> dict[str, float]:
  # A metric that is not finite ranks nothing. If none is left, a mark stands in for them: an empty file would
  # read as not evaluated, see `Checkpoints.is_ranked`.
  numbers = {name: float(value) for name, value in metrics.items() if np.isfinite(value)}
  return numbers or {_WITHOUT_NUMBERS: 1.0}  # It was evaluated all the same.


def _describe(leaf) -> dict:
  return {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def _check_same_leaves(path: Path, saved: Mapping, wanted: Mapping) -> None:
  """Compares a checkpoint's leaves with the wanted ones by name, shape and type."""
  expected = {name: _describe(leaf) for name, leaf in wanted.items()}
  names = sorted(saved.keys() | expected.keys())
  different = [name for name in names if saved.get(name) != expected.get(name)]
  if not different:
    return
  name = different[0]
  others = f" ({len(different) - 1} more leaves differ)" if len(different) > 1 else ""
  raise CheckpointError(f"{path} is of another model: {name} is {_say(saved.get(name))} in the checkpoint "
                        f"and {_say(expected.get(name))} in this config{others}; use the config it was made "
                        "with")


def _say(described: Mapping | None) -> str:
  return "absent" if described is None else f"{described['dtype']} {tuple(described['shape'])}"


def _nest(named: Mapping) -> dict:
  """Turns {"a/b": x} into {"a": {"b": x}}."""
  nested: dict = {}
  for name, leaf in named.items():
    *parents, last = name.split("/")
    inner = nested
    for parent in parents:
      inner = inner.setdefault(parent, {})
    inner[last] = leaf
  return nested


def _inventory(folder: Path) -> dict:
  files = sorted(entry for entry in folder.rglob("*") if entry.is_file() and entry.name not in _UNLISTED)
  return {entry.relative_to(folder).as_posix(): [entry.stat().st_size, _checksum(entry)] for entry in files}


def _checksum(file: Path) -> int:
  total = 0  # CRC-32 finds torn files and flipped bits; it is no guard against forgery.
  with file.open("rb") as stream:
    while piece := stream.read(_READ_BYTES):
      total = zlib.crc32(piece, total)
  return total


def digest_of(workdir, step: int) -> str:
  """Returns a digest of the files of a checkpoint, as they were written."""
  return hashlib.sha256((Path(workdir) / CHECKPOINTS / str(step) / INVENTORY).read_bytes()).hexdigest()


def _damage(folder: Path) -> str | None:
  """Returns what is wrong with a checkpoint's files, or None if nothing is."""
  if not folder.is_dir():
    half = sorted(folder.parent.glob(f"{folder.name}{_HALF_WRITTEN}*"))
    return f"is half-written ({half[0].name})" if half else "does not exist"
  try:
    inventory = json_file.read(folder / INVENTORY)
  except (OSError, ValueError):
    return f"is half-written or damaged: {INVENTORY} is missing or unreadable"
  # The inventory is read like any file from elsewhere: a name such as ../x must not lead outside of the
  # checkpoint. Sizes come before contents, so that a torn file is found without reading it.
  for name, entry in inventory.items():
    if not inside.is_inside(name) or not isinstance(entry, list) or len(entry) != 2:
      return f"is damaged: the entry {name[:60]!r} in {INVENTORY} is no size and checksum of a file there"
    file, (size, checksum) = folder / name, entry
    if not file.is_file():
      return f"is damaged: {name} is missing"
    if file.stat().st_size != size:
      return f"is damaged: {name} has {file.stat().st_size} bytes instead of {size}"
    if _checksum(file) != checksum:
      return f"is damaged: {name} has other contents than were written"
  return None


def _first_line(error: BaseException) -> str:
  return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
