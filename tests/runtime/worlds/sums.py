"""The world of sums with settings of tests: stores in their folders, short leases."""
import json
import pathlib

from atlas_jax.runtime import settings
from atlas_jax.runtime.worlds import arithmetic

CONFIG = str(pathlib.Path(__file__).parents[3] / "configs/runtime.py") + ":arithmetic"


def fields(folder: pathlib.Path, **more: str) -> dict[str, str]:
  return {"store.url": f"sqlite:///{folder}/atlas.db", "store.spool": f"{folder}/spool",
          "store.lease_s": "1.0",
          "store.heartbeat_s": "0.3", "deploy.folder": f"{folder}/servers", "loop.folder": f"{folder}/loop",
          **more}


def load(folder: pathlib.Path, **more: str) -> settings.RuntimeSettings:
  return settings.load(CONFIG, fields(folder, **more))


def words(folder: pathlib.Path, *given: str, **more: str) -> list[str]:
  """Returns a command with the world's config, and fields of it changed."""
  flags = [f"--config.{name}={value}" for name, value in fields(folder, **more).items()]
  return [*given, f"--config={CONFIG}", *flags]


def write_tasks(folder: pathlib.Path, count: int) -> pathlib.Path:
  """Writes a file of sums."""
  file = folder / "tasks.jsonl"
  file.write_text("".join(f"{json.dumps(one)}\n" for one in arithmetic.tasks(count)))
  return file


def broken(task: str) -> str:
  """Fails at every task."""
  raise RuntimeError(f"nobody can do {task}")
