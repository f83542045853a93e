"""The runtime: agents supervised, recorded, reviewed and made better while they work."""
import importlib
from typing import Any

__all__ = ["Runtime", "arun", "run"]


def __getattr__(name: str) -> Any:
  """Loads what is exported when it is asked for: parts of the runtime do without the rest."""
  if name in __all__:
    return getattr(importlib.import_module("atlas_jax.runtime.runtime"), name)
  raise AttributeError(f"module 'atlas_jax.runtime' has no {name!r}")
