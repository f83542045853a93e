"""Arms of a study: one command of the program each, at equal parameters, over seeds; results are kept.

An arm is a config and the fields that it changes. All arms of a study see the same tokens and have, by the
width of their feed-forward layers, as many parameters as the study asks for. Results are rows of one JSON
file, by "ARM/SEED", each with the command that made it; what the file holds is not run again.
"""
import argparse
import datetime
import json
import os
import pathlib
import platform
import resource
import shlex
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from atlas_jax import command, tree
from atlas_jax import config as configs
from atlas_jax.models import lm

SHARE = 0.95  # Of intervals over seeds.
KEPT = ("params", "steps", "tokens_seen", "train_loss_nats", "val_loss_nats", "val_bits_per_byte",
        "val_tokens", "gzip_bits_per_byte", "trigram_bits_per_byte", "seconds")
SERIES = ("memory_gain_", "recall_", "val_loss_nats_by_position_", "val_tokens_by_position_")


class Arm(NamedTuple):
  """One way to train: a config argument and the fields that differ from the study's."""

  name: str
  says: str  # what it is, for tables
  config: str  # such as "configs/memory_40m.py:cpu"
  fields: Mapping[str, Any] = {}


def parameters(config: str, fields: Mapping[str, Any]) -> int:
  """Counts the parameters of the model that a command line makes."""
  asked = command.read_config(config, {name: str(value) for name, value in fields.items()})
  model = lm.build(configs.resolve(asked).model.to_dict())
  tokens_BT = jnp.zeros((1, model.memory["chunk_size"]), jnp.int32)
  init = lambda key: model.init(key, tokens_BT, model.zero_state(1), doc_BT=tokens_BT)["params"]
  return tree.count(jax.eval_shape(init, jax.random.key(0)))


def fitted(arm: Arm, params: int) -> dict[str, Any]:
  """Returns the arm's fields with the width of feed-forward layers that comes nearest to so many parameters.

  Raises:
    ValueError: if the arm cannot come within 1.1% of them.
  """
  count = lambda width: parameters(arm.config, {**arm.fields, "model.ff_width": width})
  low, high = 64, 128
  grad = (count(high) - count(low)) / (high - low)
  width = max(8, 8 * round((low + (params - count(low)) / grad) / 8))
  if abs(count(width) - params) > 0.011 * params:
    raise ValueError(f"arm {arm.name!r} has {count(width)} parameters at config.model.ff_width={width}, not "
                     f"{params} within 1.1%")
  return {**arm.fields, "model.ff_width": width}


def flags_of(arm: Arm, fields: Mapping[str, Any], seed: int) -> list[str]:
  """Writes the arm as flags of the program."""
  return [f"--config={arm.config}", *(f"--config.{name}={value}" for name, value in fields.items()),
          f"--config.seed={seed}"]


def trained(arm: Arm, fields: Mapping[str, Any], seed: int, workdir: pathlib.Path) -> dict:
  """Runs the program once and keeps what its summary says of loss, gains and time.

  Raises:
    RuntimeError: if it fails, with the end of what it said.
  """
  asked = flags_of(arm, fields, seed)
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  done = subprocess.run([sys.executable, "-m", "atlas_jax.main", *asked, f"--workdir={workdir}"], text=True,
                        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, check=False)
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  if done.returncode:
    raise RuntimeError(f"{shlex.join(asked)} failed: {done.stderr[-2_000:]}")
  summary = json.loads((workdir / "summary.json").read_text())
  row = {name: value for name, value in summary.items() if name in KEPT or name.startswith(SERIES)}
  cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
  return {**row, "cpu_s": round(cpu_s, 1), "command": shlex.join(["python", "-m", "atlas_jax.main", *asked]),
          **machine()}


def machine() -> dict:
  """Says when and with what a number was made."""
  return {"date": datetime.date.today().isoformat(), "jax": jax.__version__,
          "python": platform.python_version(), "cores": len(os.sched_getaffinity(0))}


def interval(values) -> tuple[float, float, float]:
  """Returns the mean over seeds and its 95% interval by Student's t; of one seed the interval is nan."""
  values_N = np.asarray(values, np.float64)
  mean, count = float(np.mean(values_N)), len(values_N)
  if count < 2:
    return mean, np.nan, np.nan
  half = special.stdtrit(count - 1, (1 + SHARE) / 2) * np.std(values_N, ddof=1) / count**0.5
  return mean, mean - float(half), mean + float(half)


def over_seeds(found: Mapping[str, dict], arm: str, field: str) -> list[float]:
  """Collects one field of an arm's rows, in the order of their seeds; rows without it are left out."""
  rows = sorted((int(name.rpartition("/")[2]), row) for name, row in found.items()
                if name.rpartition("/")[0] == arm)
  return [row[field] for _, row in rows if row.get(field) is not None]


def table(found: Mapping[str, dict], arms, fields: Mapping[str, str]) -> str:
  """Writes a Markdown table: the mean and interval over seeds of each field, named as the mapping says."""
  lines = [f"| arm | what | seeds | {' | '.join(fields.values())} |", "| --- " * (len(fields) + 3) + "|"]
  for arm in arms:
    columns = [over_seeds(found, arm.name, field) for field in fields]
    if any(columns):
      cells = [_cell(values) for values in columns]
      lines.append(f"| {arm.name} | {arm.says} | {max(map(len, columns))} | {' | '.join(cells)} |")
  return "\n".join(lines)


def _cell(values) -> str:
  if not values:
    return ""
  mean, low, high = interval(values)
  return f"{mean:.3f}" if np.isnan(low) else f"{mean:.3f} ({low:.3f} to {high:.3f})"


def read(out: pathlib.Path) -> dict:
  """Reads the rows that a file of results holds; none if there is no such file."""
  return json.loads(out.read_text()) if out.exists() else {}


def evaluated(workdir: pathlib.Path, fields: Mapping[str, Any]) -> dict:
  """Evaluates a finished run under other settings and keeps what `trained` keeps.

  Raises:
    RuntimeError: if the program fails, with the end of what it said.
  """
  asked = [f"--config.{name}={value}" for name, value in fields.items()]
  program = [sys.executable, "-m", "atlas_jax.main", "--mode=eval", f"--workdir={workdir}"]
  done = subprocess.run([*program, *asked], text=True, capture_output=True, check=False)
  if done.returncode:
    raise RuntimeError(f"evaluation with {shlex.join(asked)} failed: {done.stderr[-2_000:]}")
  named = {name.removeprefix("eval/").replace("/", "_"): value
           for name, value in json.loads(done.stdout.splitlines()[-1]).items()}
  return {name: value for name, value in named.items() if name in KEPT or name.startswith(SERIES)} | machine()


def run(arms, *, params: int | None, argv: list[str] | None, says: str, then=None) -> pathlib.Path:
  """Runs the arms and seeds of a command line that the file of results lacks, seed by seed.

  Args:
    arms: all of the study.
    params: that each arm shall have, see `fitted`; None: those of its config.
    argv: the command line; None: the program's.
    says: what the study is, for --help.
    then: (arm, seed, workdir, found) -> more rows by name, such as evaluations of the trained model; called
      after each run with the rows that there are.

  Returns:
    the file of results.
  """
  parser = argparse.ArgumentParser(description=says)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--arms", default=",".join(arm.name for arm in arms))
  parser.add_argument("--seeds", default="0,1,2")
  asked = parser.parse_args(argv)
  known = {arm.name: arm for arm in arms}
  if unknown := [name for name in asked.arms.split(",") if name not in known]:
    parser.error(f"--arms has {', '.join(unknown)}; known are {', '.join(known)}")
  for seed in map(int, asked.seeds.split(",")):
    for arm in [known[name] for name in asked.arms.split(",")]:
      name, workdir = f"{arm.name}/{seed}", asked.workdir / arm.name / str(seed)
      if name not in read(asked.out):
        fields = arm.fields if params is None else fitted(arm, params)
        row = trained(arm, fields, seed, workdir)
        _add(asked.out, {name: row})
        print(name, f"{row['val_bits_per_byte']:.3f} bits per byte, {row['cpu_s']:.0f} CPU-s", flush=True)
      if then is not None:
        _add(asked.out, then(arm, seed, workdir, read(asked.out)))
  return asked.out


def _add(out: pathlib.Path, rows: Mapping[str, dict]) -> None:
  """Adds rows to the file of results, to which another command may have added some meanwhile."""
  if rows:
    out.write_text(json.dumps({**read(out), **rows}, indent=1) + "\n")
