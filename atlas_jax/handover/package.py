"""The folder of a run that is handed over: weights, config, tokenizer, card, curves and metrics.

The same state of a run gives the same bytes, so that what has arrived at the Hub is known there.
"""
import pathlib
import shutil
from typing import NamedTuple

from atlas_jax import state as states
from atlas_jax.checkpoint import Checkpoints
from atlas_jax.files import json_file, write
from atlas_jax.handover import card, place
from atlas_jax.language import handed_over
from atlas_jax.language.pretrained import tensor_files
from atlas_jax.monitor import report
from atlas_jax.workdir import (
  ADAPTER,
  BASE_STEP,
  CARD,
  CHECKPOINTS,
  CONFIG,
  METRICS,
  PRETRAINED,
  PUZZLES,
  REPORT,
  RESET,
  SHAPE,
  SUMMARY,
  TEMPLATE,
  TOKENIZER,
)

FILES = (CONFIG, METRICS, SUMMARY, REPORT, SHAPE, BASE_STEP, PUZZLES, RESET)
FOLDERS = (TOKENIZER, TEMPLATE, ADAPTER, PRETRAINED)
# Files of no text, in which no secret could be seen.
_NOT_TEXT = (".safetensors", ".png", ".npz")


class Package(NamedTuple):
  """A folder that is ready to be sent."""

  step: int
  files: int
  size: int  # bytes


def make(config, workdir, folder, repo: str) -> Package:
  """Makes the folder; for one process.

  Args:
    config: of the run.
    workdir: of the run.
    folder: empty; what is sent.
    repo: named by the card.

  Raises:
    CheckpointError: if the run has no good checkpoint, or the newest is damaged.
    ValueError: if a file holds a secret of the environment.
  """
  workdir = pathlib.Path(workdir)
  folder = pathlib.Path(folder)
  for name in FILES:
    if (workdir / name).is_file():
      write.copy(workdir / name, folder / name, durable=False)
  for name in FOLDERS:
    if (workdir / name).is_dir():
      shutil.copytree(workdir / name, folder / name)
  step = handed_over.write_weights(workdir, folder, config, (states.field_used(config), "tables"))
  # Drawn anew where the end of the run did not draw it, as of one that was stopped.
  if not (folder / REPORT).is_file() and (folder / METRICS).is_file() and (folder / METRICS).stat().st_size:
    report.write_report(folder)
  if config.upload.with_optimizer:
    _copy_checkpoint(workdir, folder, step)
  summary = json_file.read(folder / SUMMARY) if (folder / SUMMARY).is_file() else {}
  if summary.get("steps") != step:
    # A run that goes on behind its end has the summary of that end, and the numbers are not of these weights.
    (folder / SUMMARY).unlink(missing_ok=True)
    summary = {}
  facts = card.CardFacts(repo, config, summary, step, _count(folder), (folder / REPORT).is_file(),
                         config.upload.with_optimizer)
  write.whole(folder / CARD, card.write(facts), durable=False)
  files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
  _refuse_secrets(folder, files)
  return Package(step, len(files), sum(file.stat().st_size for file in files))


def _copy_checkpoint(workdir: pathlib.Path, folder: pathlib.Path, step: int) -> None:
  checkpoint = workdir / CHECKPOINTS / str(step)
  if not checkpoint.is_dir() or Checkpoints(workdir, read_only=True).latest_step() != step:
    raise ValueError(f"config.upload.with_optimizer=True: {workdir} has no checkpoint of step {step}, only "
                     "what a run is handed over with; set --config.upload.with_optimizer=False")
  # Links where the file system can: a checkpoint is several times the weights.
  shutil.copytree(checkpoint, folder / CHECKPOINTS / str(step), copy_function=_link)


def _link(source: str, target: str) -> None:
  try:
    pathlib.Path(target).hardlink_to(source)
  except OSError:  # Another disk, or one without links.
    shutil.copyfile(source, target)


def _count(folder: pathlib.Path) -> int:
  stored = tensor_files.TensorFolder(folder, handed_over.STEM)
  total = 0
  for name in stored.file_of:
    size = 1
    for axis in stored.shape(name):
      size *= axis
    total += size
  return total


def _refuse_secrets(folder: pathlib.Path, files: list[pathlib.Path]) -> None:
  for file in files:
    name = file.relative_to(folder)
    if file.suffix in _NOT_TEXT or name.parts[0] == CHECKPOINTS:
      continue
    if (what := place.secret_in(file.read_bytes())) is not None:
      raise ValueError(f"{name} of the run holds {what}, and is not sent, nor is anything else; take it out "
                       "of the settings or texts of the run")
