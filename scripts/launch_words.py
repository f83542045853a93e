"""Turns CONFIG key=value ... into flags of `python -m atlas_jax.main`, checked before any process starts.

  python scripts/launch_words.py configs/grpo_arithmetic.py:cpu optim.lr=1e-3 workdir=runs/grpo

Prints the flags, each ended by a NUL. A key is a field of the config (--config.KEY=VALUE), or workdir, or
output_dir, which is another name of it; left out, the workdir is results/NAME of the config. What begins with
-- is handed on as it is.
"""
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from atlas_jax import command
from atlas_jax import config as configs

WORKDIR = ("workdir", "output_dir")
# Words of launchers that split a model's state by plugins.
SHARDING = ("offload", "zero1", "zero2", "zero3")


class Launch(NamedTuple):
  """What is to be launched."""

  spec: str  # FILE or FILE:ARGUMENTS of the config
  workdir: str
  overrides: dict[str, str]  # dotted field -> its value as text
  others: list[str]  # flags handed on
  config: Any  # resolved

  def flags(self, **more: Any) -> list[str]:
    """Returns the flags of the program; `more` are fields, with __ for dots."""
    fields = {**self.overrides, **{name.replace("__", "."): value for name, value in more.items()}}
    return [f"--config={self.spec}", f"--workdir={self.workdir}",
            *(f"--config.{name}={value}" for name, value in fields.items()), *self.others]


def read(words: Sequence[str], **fields: Any) -> Launch:
  """Reads the words behind the numbers of processes.

  Args:
    words: CONFIG, then key=value.
    **fields: what the launcher itself sets, with __ for dots; nobody else may.

  Raises:
    ValueError: for a key that is unknown, with the nearest known one, or a value that cannot be.
  """
  if not words or "=" in words[0].partition(":")[0] or words[0].startswith("-"):
    got = f", got {words[0]!r}" if words else ""
    raise ValueError(f"the config is missing{got}: a file such as configs/sft.py:cpu, behind the numbers")
  spec, workdir = words[0], None
  given: dict[str, str] = {}
  others = []
  for word in words[1:]:
    key, equals, value = word.partition("=")
    if word.startswith("--"):
      others.append(word)
    elif word in SHARDING:
      raise ValueError(f"{word!r}: the state of a model is split over devices by a field, mesh.fsdp=N")
    elif not equals:
      raise ValueError(f"{word!r} must be key=value, such as optim.lr=1e-3")
    elif key in WORKDIR:
      workdir = value
    else:
      given[key.removeprefix("config.")] = value
  ours = {name.replace("__", "."): value for name, value in fields.items()}
  if both := [name for name in given if name in ours]:
    raise ValueError(f"{both[0]}={given[both[0]]}: this launcher sets it, to {ours[both[0]]}; leave it out")
  overrides = {**given, **{name: str(value) for name, value in ours.items()}}
  config = configs.resolve(command.read_config(spec, overrides))
  return Launch(spec, workdir or default_workdir(spec), given, others, config)


def default_workdir(spec: str) -> str:
  """Returns results/NAME of a config and its arguments."""
  file, _, arguments = spec.partition(":")
  name = "_".join(filter(None, (pathlib.Path(file).stem, re.sub(r"[^\w.=]+", "_", arguments))))
  return f"results/{name}"


def main() -> int:
  """Prints the flags; returns the exit code."""
  try:
    launch = read(sys.argv[1:])
  except ValueError as error:
    print(f"launch: {error}", file=sys.stderr)
    return 2
  print(f"launch: the run is in {launch.workdir}", file=sys.stderr)
  sys.stdout.write("".join(f"{flag}\0" for flag in launch.flags()))
  return 0


if __name__ == "__main__":
  sys.exit(main())
