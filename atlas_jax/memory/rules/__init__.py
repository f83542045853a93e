"""Memory rules, one per file, found by file name."""
import importlib
import inspect
import pkgutil

from atlas_jax import modules
from atlas_jax.memory.types import MemoryRule, complete


def names() -> list[str]:
  """Returns the names of all rules in this folder."""
  return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str, *, key_dim: int, value_dim: int, chunk_size: int, **options) -> MemoryRule:
  """Makes a rule by its file name, or by a dotted module name of one's own.

  Raises:
    ValueError: if there is no such rule; names the known ones, or where it was looked for.
    TypeError: if the rule does not know an option; names the ones it knows.
  """
  if "." not in name and name not in names():
    raise ValueError(f"config.model.memory.rule={name!r} is unknown; rules are {', '.join(names())}")
  if "." in name:
    make = modules.attribute(name, "make", field="model.memory.rule")
  else:
    make = importlib.import_module(f"{__name__}.{name}").make
  parameters = inspect.signature(make).parameters
  known = [p for p in parameters if p not in ("key_dim", "value_dim", "chunk_size")]
  unknown = sorted(set(options) - set(known))
  if unknown:
    raise TypeError(f"config.model.memory.options: rule {name!r} does not know {', '.join(unknown)}; "
                    f"it knows {', '.join(known) or 'none'}")
  sizes = {"chunk_size": chunk_size} if "chunk_size" in parameters else {}
  return complete(make(key_dim=key_dim, value_dim=value_dim, **sizes, **options), value_dim=value_dim)
