"""Runs the program as the command line does: in this process, or in one of its own."""

import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

import numpy as np
from absl import logging

from atlas_jax import main
from tests import helpers

ROOT = pathlib.Path(__file__).parents[1]
WORDS = ["alpha", "beta", "gamma", "def", "return", "if", "delta", "\n"]


class Done(NamedTuple):
  """What a run of the program left."""

  code: int
  out: str
  err: str


def run(*flags) -> Done:
  """Runs the program in this process, which has eight devices."""
  out, err = io.StringIO(), io.StringIO()
  handler = logging.get_absl_handler().python_handler
  before = handler.stream
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), helpers.quick_compilation():
    handler.stream = err
    try:
      code = main.entry(["main", *flags])
    finally:
      handler.stream = before
  return Done(code, out.getvalue(), err.getvalue())


def refused(done: Done) -> str:
  """Returns the one line of a refusal: no traceback, nothing on standard output, exit code 1."""
  lines = [line for line in done.err.splitlines() if line.startswith("atlas_jax: ")]
  assert done.code == 1 and done.out == "" and len(lines) == 1, done
  assert done.err.splitlines()[-1] == lines[0] and "Traceback" not in done.err, done.err
  return lines[0]


def spawn(*command, **environment) -> Done:
  """Runs a command from the root of the repository in a process of its own."""
  env = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "ATLAS_PYTHON": sys.executable, **environment}
  done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
  return Done(done.returncode, done.stdout, done.stderr)


def spawn_main(*flags, **environment) -> Done:
  """Runs `python -m atlas_jax.main` in a process of its own."""
  return spawn(sys.executable, "-m", "atlas_jax.main", *flags, **environment)


def write_texts(folder, *, n: int = 30) -> pathlib.Path:
  """Writes n files of some words and returns the folder."""
  draw = np.random.default_rng(0)
  folder.mkdir(parents=True)
  for i in range(n):
    (folder / f"{i:03d}.txt").write_text(" ".join(draw.choice(WORDS, size=draw.integers(20, 120))))
  return folder


def tiny(texts, **fields) -> list[str]:
  """Flags that train a tiny model for six updates on the files of a folder; `fields` have __ for dots."""
  settings = {
    "data.source": "tests.stopping", "data.name": "files", "data.path": texts, "data.held_out_frac": 0.2,
    "data.batch_rows": 8, "data.segment_len": 32, "eval.batch_rows": 8, "eval.baselines": False,
    "eval.sample_tokens": 0, "model.depth": 1, "model.memory_layers": None, "model.memory.chunk_size": 8,
    "optim.steps": 6, "monitor.tensorboard": False, "monitor.report": False,
    **{name.replace("__", "."): value for name, value in fields.items()},
  }  # fmt: skip
  flags = [f"--config.{name}={value}" for name, value in settings.items()]
  return ["--config=configs/memory_40m.py:smoke,pretrain", *flags]


def losses(workdir) -> dict[int, float]:
  """Training loss by step, from the metrics of a run."""
  rows = [json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()]
  return {row["step"]: row["train/loss_nats"] for row in rows if "train/loss_nats" in row}
