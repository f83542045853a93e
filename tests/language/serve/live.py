"""Real servers of a tiny model that has learnt nothing, for checks that attack, wear out and kill them."""

import pathlib
import random
import shutil
import sys

ROOT = pathlib.Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

import bench_serve  # noqa: E402  Scripts are no package.
from bench_server import Answer, Server, load, posted, quantile, streamed  # noqa: E402

__all__ = ["SMALL", "Answer", "Server", "leave_run", "load", "posted", "prompt", "quantile", "streamed",
           "valid_requests"]  # fmt: skip
# A memory model with the template of a chat.
CONFIG = "configs/sft.py:smoke,memory"
MODEL = {
  "model.width": "32", "model.ff_width": "48", "model.memory.key_dim": "8", "model.memory.value_dim": "8",
  "model.memory.chunk_size": "8",
}  # fmt: skip
SMALL = [
  f"--config.serve.{name}={value}" for name, value in {
    "slots": 4, "group_rows": 4, "piece_tokens": 16, "store_every_tokens": 16, "body_mib": 1,
    "body_timeout_s": 1, "store_gib": 0.05,
  }.items()
]  # fmt: skip
ENV = {"NPROC": "2", "JAX_NUM_CPU_DEVICES": "1", "HF_HUB_OFFLINE": "1"}


def leave_run(folder: pathlib.Path, **model: str) -> pathlib.Path:
  """Leaves a run in a folder that is emptied before; returns its workdir."""
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  made = bench_serve.child({"config": CONFIG, "overrides": MODEL | model, "env": ENV}, "leave_run",
                           folder / "run")
  assert "error" not in made, made
  return folder / "run"


def prompt(draw: random.Random, size: int) -> list[int]:
  """Returns random ids of bytes."""
  return [draw.randrange(256) for _ in range(size)]


def valid_requests() -> list[dict]:
  """Returns small requests for completions, each with a seed."""
  draw = random.Random(0)
  return [{"prompt": prompt(draw, 20 + 5 * seed), "seed": seed, "max_tokens": 4, "ignore_eos": True}
          for seed in range(4)]  # fmt: skip
