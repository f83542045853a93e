"""The world of sums with settings of tests: stores in their folders, short leases."""
import pathlib

from atlas_jax.runtime import settings

CONFIG = str(pathlib.Path(__file__).parents[3] / "configs/runtime.py") + ":arithmetic"


def fields(folder: pathlib.Path, **more: str) -> dict[str, str]:
  return {"store.url": f"sqlite:///{folder}/atlas.db", "store.spool": f"{folder}/spool",
          "store.lease_s": "1.0",
          "store.heartbeat_s": "0.3", "deploy.folder": f"{folder}/servers", "loop.folder": f"{folder}/loop",
          **more}


def load(folder: pathlib.Path, **more: str) -> settings.RuntimeSettings:
  return settings.load(CONFIG, fields(folder, **more))


def broken(task: str) -> str:
  """Fails at every task."""
  raise RuntimeError(f"nobody can do {task}")
