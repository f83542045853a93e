"""A run as it is handed over: its folder with one file of parameters in place of checkpoints.

Beside what using a run needs (config, tokenizer, chat template) the folder has WEIGHTS, safetensors whose
names are those of the leaves in a checkpoint, such as `params/embed/embedding`, and WEIGHTS_RECORD, with the
step and the checksum of the file. It is read wherever a run is only used; training does not go on with it,
since what the optimizer knew is not there.
"""
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from atlas_jax import tree
from atlas_jax.checkpoint import Checkpoints
from atlas_jax.files import inventory, json_file, write
from atlas_jax.language.pretrained import tensor_files
from atlas_jax.models import placement
from atlas_jax.parallel import mesh as meshes
from atlas_jax.workdir import CHECKPOINTS, WEIGHTS, WEIGHTS_RECORD

STEM = WEIGHTS.removesuffix(".safetensors")
REMEDY = "fetch it again"


def is_here(folder) -> bool:
  """Returns whether a folder is that of a run which was handed over without its checkpoints."""
  folder = pathlib.Path(folder)
  return (folder / WEIGHTS_RECORD).is_file() and not (folder / CHECKPOINTS).is_dir()


def is_run(folder) -> bool:
  """Returns whether a folder is the workdir of a run that has parameters to use."""
  return (pathlib.Path(folder) / CHECKPOINTS).is_dir() or is_here(folder)


def open_run(workdir, policy: Mapping[str, Any] | None = None):
  """Opens the parameters of a run to read them: its checkpoints, or what it was handed over with.

  Args:
    workdir: of the run.
    policy: its config.checkpoint; None: the default.

  Returns:
    what has `restore_params`, `latest_step` and `close` as `Checkpoints` does.
  """
  return WeightsFile(workdir) if is_here(workdir) else Checkpoints(workdir, **(policy or {}), read_only=True)


class WeightsFile:
  """The parameters of a run that was handed over, read as `Checkpoints` reads them.

  Args:
    folder: of the run.
  """

  def __init__(self, folder):
    self.path = pathlib.Path(folder)

  def latest_step(self) -> int:
    """Returns how many updates the parameters have seen."""
    record = self.path / WEIGHTS_RECORD
    content = json_file.read_sealed(record, remedy=REMEDY, needed=True)
    return json_file.field(record, content, "step", json_file.is_int, "the step of a checkpoint")

  def restore_params(self, abstract, *, field: str = "params"):
    """Reads one field of a state, "params", "ema" or "tables".

    Args:
      abstract: ShapeDtypeStructs with the shardings wanted.
      field: which.

    Returns:
      (the tree of arrays, {"step": of the run}).

    Raises:
      Damaged: if the file is not as it was written.
      ValueError: if it is of another model; names the first leaf that differs.
    """
    step = self.latest_step()
    record = self.path / WEIGHTS_RECORD
    files = json_file.read_sealed(record, remedy=REMEDY, needed=True).get("files")
    inventory.check(self.path, files, named_by=record, remedy=REMEDY)
    stored = tensor_files.TensorFolder(self.path, STEM)
    wanted = {f"{field}/{name}": leaf for name, leaf in tree.named_leaves(abstract)}
    _check_same(stored, wanted, field)

    def place(name, leaf):
      def part(cut) -> np.ndarray:
        exact = [slice(*one.indices(size)) for one, size in zip(cut, leaf.shape, strict=True)]
        return np.asarray(stored.read(f"{field}/{name}", *exact))

      return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)

    return tree.map_named(place, abstract), {"step": step}

  def close(self) -> None:
    """Does nothing: no file stays open."""


def write_weights(workdir, folder, config, fields: tuple[str, ...]) -> int:
  """Writes the newest parameters of a run as it is handed over; for one process.

  Args:
    workdir: of the run.
    folder: made if absent; gets WEIGHTS and WEIGHTS_RECORD.
    config: of the run.
    fields: of its state, such as ("params", "tables"); one that the run does not have is left out.

  Returns:
    The step.

  Raises:
    CheckpointError: if there is no good checkpoint, or the newest is damaged.
  """
  pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
  if is_here(workdir):
    for name in (WEIGHTS, WEIGHTS_RECORD):
      write.copy(pathlib.Path(workdir) / name, pathlib.Path(folder) / name, durable=False)
    return WeightsFile(workdir).latest_step()
  saver = Checkpoints(workdir, **config.checkpoint, read_only=True)
  mesh = meshes.make(devices=jax.local_devices()[:1])
  newest = saver.latest_step()
  step = 0
  tensors: dict[str, np.ndarray] = {}
  try:
    for field in fields:
      shapes = saver.shapes(field, newest)
      if not shapes and field != fields[0]:
        continue
      params, meta = saver.restore_params(placement.abstract(mesh, shapes), field=field, step=newest)
      step = int(meta["step"])
      tensors |= {f"{field}/{name}": np.asarray(leaf, order="C") for name, leaf in tree.named_leaves(params)}
  finally:
    saver.close()
  write_file(folder, dict(sorted(tensors.items())), step)
  return step


def write_file(folder, tensors: Mapping[str, np.ndarray], step: int) -> None:
  """Writes WEIGHTS and WEIGHTS_RECORD into a folder that is there; the same tensors give the same bytes."""
  folder = pathlib.Path(folder)
  tensor_files.write_file(folder / WEIGHTS, tensors, {"format": "atlas_jax"}, durable=False)
  write.json(folder / WEIGHTS_RECORD,
             json_file.sealed({"step": step, "files": inventory.take(folder, [WEIGHTS])}), durable=False)


def _check_same(stored: tensor_files.TensorFolder, wanted: Mapping[str, Any], field: str) -> None:
  found = {name for name in stored.file_of if name.split("/")[0] == field}
  for name in sorted(found ^ wanted.keys()):
    there, needs = ("none", "has one") if name in wanted else ("one", "has none")
    raise ValueError(f"{stored.folder / WEIGHTS} has {there} of the name {name!r}, and the model of "
                     f"config.json {needs}: they do not belong together; {REMEDY}")
  for name, leaf in wanted.items():
    if (stored.shape(name), stored.dtype(name)) != (tuple(leaf.shape), np.dtype(leaf.dtype)):
      raise ValueError(f"{stored.where(name)} is {stored.dtype(name)} of shape {stored.shape(name)}, and the "
                       f"model of config.json needs {leaf.dtype} of shape {tuple(leaf.shape)}; {REMEDY}")
