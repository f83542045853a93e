"""Trains a language model on ranked responses, as a file of settings says.

  python scripts/prepare_grpo_data.py --out=data
  python scripts/train_atlas.py --config train_config.json

The file is a JSON object; what it leaves out has the values of configs/atlas_ranked.py:

  {"model_size": "1.1B", "learning_rate": 5e-6, "batch_size": 4, "epochs": 10, "grpo_preference_weight": 0.5}

Besides: training_data (data/grpo_training.json), validation_data (data/validation.json), tokenizer (a folder,
or "byte"), seed, workdir (runs/atlas_SIZE), models_folder (models), log (logs/training.log). Sizes are 1.1B,
cpu, which takes minutes on two cores, and smoke, which takes seconds and learns nothing.
--config.GROUP.FIELD=VALUE sets any other field, as of `python -m atlas_jax.main`, which does the work.

At the end models/atlas_SIZE/ has the weights (safetensors; a pickle is never written), config.json,
vocabulary.json and training_stats.json. The same command goes on with a run that was stopped.
"""
import argparse
import contextlib
import logging as python_logging
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from absl import logging

from atlas_jax import config as configs
from atlas_jax import main as program
from atlas_jax.explain import is_of_use, start_log
from atlas_jax.files import closed_pipe, json_file, write
from atlas_jax.files.damage import Damaged
from atlas_jax.language.pretrained import model_folder
from atlas_jax.parallel import signals

RANKED = pathlib.Path(__file__).resolve().parents[1] / "configs" / "atlas_ranked.py"
SIZES = {"1.1B": "", "cpu": "cpu", "smoke": "smoke"}  # By the argument of the config.
# Key of the file -> (field of the config, what it must be).
FIELDS = {"learning_rate": ("optim.lr", float), "batch_size": ("data.batch_rows", int),
          "epochs": ("data.epochs", int), "grpo_preference_weight": ("ranked.pair_weight", float),
          "training_data": ("data.files", str), "validation_data": ("ranked.eval_files", str),
          "tokenizer": ("data.tokenizer", str), "seed": ("seed", int)}
# The data are named by the config too, but not by that of its smallest size.
DEFAULTS = {"training_data": "data/grpo_training.json", "validation_data": "data/validation.json"}
PLACES = {"workdir": "runs/atlas_{}", "models_folder": "models", "log": "logs/training.log"}
KINDS: dict[type, str] = {int: "a whole number", float: "a number", str: "a text"}
EXAMPLE = '{"model_size": "cpu", "epochs": 4}'


def read(file: str) -> dict[str, Any]:
  """Reads the settings.

  Raises:
    ValueError: naming the key that is unknown, with the nearest known one, or has a value that cannot be.
  """
  if not pathlib.Path(file).is_file():
    raise ValueError(f"--config {file}: there is no such file; write one, such as {EXAMPLE}")
  given = json_file.read(file)
  known = ("model_size", *FIELDS, *PLACES)
  for key, value in given.items():
    if key not in known:
      likely = configs.fields_like(key) if configs.nearest(key, known).startswith("known") else None
      field = likely.names[0] if likely else ""
      other = f" ({field} of the config is the flag --config.{field}=VALUE)" if field else ""
      raise ValueError(f"{file}: there is no key {key!r}; {configs.nearest(key, known)}{other}")
    kind = FIELDS[key][1] if key in FIELDS else str
    # A whole number is a number, a truth value is none of both.
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
      raise ValueError(f"{file}: {key}={value!r} must be {KINDS[kind]}")
  size = given.get("model_size", "1.1B")
  if size not in SIZES:
    raise ValueError(f"{file}: model_size={size!r} must be one of {', '.join(SIZES)}")
  found = {key: place.format(size) for key, place in PLACES.items()}
  return {**DEFAULTS, **found, "model_size": size, **given}


def command_of(settings: dict[str, Any], more: list[str]) -> list[str]:
  """Returns the command line of the program."""
  size = settings["model_size"]
  argument = f":{SIZES[size]}" if SIZES[size] else ""
  fields = {FIELDS[key][0]: value for key, value in settings.items() if key in FIELDS}
  fields["ranked.folder"] = f"atlas_{size}"
  # How long the smallest size trains is a number of updates, of all others one of epochs.
  fields |= {"optim.steps": None} if "epochs" in settings else {}
  return ["train_atlas", f"--config={RANKED}{argument}", f"--workdir={settings['workdir']}",
          *(f"--config.{name}={value}" for name, value in fields.items()), *more]


def model_of(folder: pathlib.Path) -> bytes | None:
  """Returns what tells the model of a folder from others; None: there is no folder."""
  stats = folder / model_folder.STATS
  return (stats.read_bytes() if stats.is_file() else b"") if folder.exists() else None


def check_place(made: pathlib.Path, target: pathlib.Path) -> None:
  """Refuses a target that holds another model than the run's, before anything is trained."""
  there = model_of(target)
  if there is not None and there != model_of(made):
    raise ValueError(f"{target} is there already, and is not of this run; move it away, or name another "
                     "models_folder")


def place(made: pathlib.Path, target: pathlib.Path) -> None:
  """Puts the model of a run where it is looked for, whole or not at all."""
  if target.exists():
    return  # By an earlier start: `check_place` has compared them.
  part = target.with_name(f".{target.name}.part")
  shutil.rmtree(part, ignore_errors=True)  # Left by a start that was killed.
  shutil.copytree(made, part, copy_function=_link)
  write.folder(part, target)


def _link(source: str, target: str) -> None:
  try:
    os.link(source, target)  # The weights have gigabytes.
  except OSError:  # Another disk, or one without links.
    shutil.copyfile(source, target)


class _Both:
  """Standard error that is also written to a file."""

  def __init__(self, shown: TextIO, log: TextIO):
    self._shown, self._log = shown, log

  def write(self, text: str) -> int:
    self._log.write(text)
    return self._shown.write(text)

  def flush(self) -> None:
    self._log.flush()
    self._shown.flush()

  def __getattr__(self, name: str) -> Any:
    return getattr(self._shown, name)


@contextlib.contextmanager
def logged(file: pathlib.Path) -> Iterator[None]:
  """Adds the program's log, and the line that says why it ended, to a file."""
  file.parent.mkdir(parents=True, exist_ok=True)
  with file.open("a", encoding="utf-8") as log, contextlib.redirect_stderr(_Both(sys.stderr, log)):
    # absl has taken hold of standard error before, so its records come by a handler of their own.
    handler = python_logging.StreamHandler(log)
    handler.setFormatter(logging.PythonFormatter())
    # As the program shows them: of libraries, which tell of each file of a checkpoint, only warnings.
    start_log()
    handler.addFilter(is_of_use)
    logging.get_absl_logger().addHandler(handler)
    try:
      yield
    finally:
      logging.get_absl_logger().removeHandler(handler)


@closed_pipe.quiet
def main(argv: list[str] | None = None) -> int:
  """Trains and places the model; returns the exit code."""
  parser = argparse.ArgumentParser(prog="train_atlas", description=__doc__, allow_abbrev=False,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", required=True, metavar="FILE", help="the JSON file of settings")
  asked, more = parser.parse_known_args(argv)
  if strange := [word for word in more if not word.startswith("--config.") or "=" not in word]:
    parser.error(f"unknown argument {strange[0]!r}; fields are set with --config.GROUP.FIELD=VALUE")
  try:
    settings = read(asked.config)
    made = pathlib.Path(settings["workdir"]) / f"atlas_{settings['model_size']}"
    target = pathlib.Path(settings["models_folder"]) / made.name
    check_place(made, target)
    with logged(pathlib.Path(settings["log"])):
      code = program.entry(command_of(settings, more))
    if code == 0:
      place(made, target)
      print(f"train_atlas: the model is in {target}", file=sys.stderr)
    elif code == signals.STOPPED:
      print("train_atlas: stopped; the same command goes on", file=sys.stderr)
    return code
  except (Damaged, OSError, ValueError) as error:
    print(f"train_atlas: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
  sys.exit(main())
