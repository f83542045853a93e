"""Student and teacher of the study: trained where they are not there yet, and asked."""
import pathlib
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from atlas_jax import config as configs
from atlas_jax.language.decoding.native import NativeSampler
from atlas_jax.language.decoding.sampler import SamplingOptions
from atlas_jax.language.initial_model import load_initial_model
from atlas_jax.parallel import mesh as meshes
from atlas_jax.workdir import SUMMARY
from experiments.adaptive_teacher import config as settings

ROWS = 256  # Prompts that are asked at a time,
FEW = 32    # or so many, where there are no more.
Execute = Callable[[list[str]], None]


class Spent(NamedTuple):
  """What a command took; processor seconds are with compilation and evaluations."""

  cpu_s: float
  wall_s: float


class Writer:
  """A trained model that answers texts, in the order in which they are given."""

  def __init__(self, workdir: pathlib.Path):
    """Reads the newest parameters of a run.

    Args:
      workdir: of the run.
    """
    config = configs.unfrozen(configs.load(workdir))
    config.model.path = str(workdir)
    mesh = meshes.make(devices=jax.devices()[:1])
    start = load_initial_model(configs.resolve(config))
    params, _ = start.read(mesh, True)
    self._tokenizer = start.tokenizer
    self._end = start.end_tokens
    self._sampler = NativeSampler(start.language, start.tokenizer, mesh)
    self._sampler.load(params, 0)

  def write(self, texts: Sequence[str], *, max_tokens: int, temperature: float = 0.0,
            seed: int = 0) -> list[str]:
    """Returns what the model writes behind each text, without what ended it.

    Args:
      texts: prompts.
      max_tokens: of an answer, the end included.
      temperature: 0 takes the likeliest token.
      seed: draws, where the temperature is not 0.
    """
    options = SamplingOptions(max_tokens=max_tokens, temperature=temperature, stop_tokens=self._end)
    ids = [np.r_[self._tokenizer.doc_id, self._tokenizer.encode(text)] for text in texts]
    written: list[str] = []
    for first in range(0, len(ids), ROWS):
      part = ids[first:first + ROWS]
      # Filled up, so that there are two numbers of rows to compile for.
      filled = [*part, *[part[-1]] * ((FEW if len(part) <= FEW else ROWS) - len(part))]
      rollout = self._sampler.generate([row.tolist() for row in filled], options, seed=seed + first)
      written += rollout.text_B[:len(part)]
    return written


def spawn(flags: list[str]) -> None:
  """Runs the program in a process of its own.

  Raises:
    RuntimeError: if it fails, with the end of what it said.
  """
  done = subprocess.run([sys.executable, "-m", "atlas_jax.main", *flags], text=True, stderr=subprocess.PIPE,
                        stdout=subprocess.DEVNULL, check=False)
  if done.returncode:
    raise RuntimeError(f"{shlex.join(flags)} failed: {done.stderr[-3_000:]}")


def program(spec: str, workdir: pathlib.Path, *flags: str, execute: Execute = spawn) -> Spent:
  """Runs the program with a config of the study, unless its run is finished.

  Args:
    spec: argument of the config, such as "stage=student,seed=0".
    workdir: of the run.
    *flags: more of them.
    execute: runs the program with flags; raises if it fails.

  Returns:
    what it took; zeros where it was finished before.
  """
  if (workdir / SUMMARY).exists():
    return Spent(0.0, 0.0)
  began = _clock()
  execute([f"--config={settings.__file__}:{spec}", f"--workdir={workdir}", *flags])
  return Spent(*(round(now - then, 1) for now, then in zip(_clock(), began, strict=True)))


def _clock() -> tuple[float, float]:
  """Returns processor seconds of processes that ended, and seconds."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime, time.monotonic()
