"""Memory rules, one per file, found by file name."""
import importlib
import inspect
import numbers
import pkgutil
import typing
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any

from atlas_jax import modules
from atlas_jax.memory.types import MemoryRule, complete

# What an option may be, by the type that its rule's `make` gives it; other types are not checked.
KINDS: dict[Any, tuple[str, Any]] = {
    bool: ("True or False", bool), int: ("a whole number", numbers.Integral),
    float: ("a number", numbers.Real), str: ("text", str), NoneType: ("None", NoneType),
    Sequence: ("a list", (list, tuple))}


def names() -> list[str]:
  """Returns the names of all rules in this folder."""
  return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str, *, key_dim: int, value_dim: int, chunk_size: int, **options) -> MemoryRule:
  """Makes a rule by its file name, or by a dotted module name of one's own.

  Raises:
    ValueError: if there is no such rule; names the known ones, or where it was looked for.
    TypeError: if the rule does not know an option, or it takes no such value; names what it knows or takes.
  """
  if "." not in name and name not in names():
    raise ValueError(f"config.model.memory.rule={name!r} is unknown; rules are {', '.join(names())}")
  if "." in name:
    make = modules.attribute(name, "make", field="model.memory.rule")
  else:
    make = importlib.import_module(f"{__name__}.{name}").make
  # The signature is the list of options, so that a rule's file is the one place that names them.
  parameters = inspect.signature(make).parameters
  known = [p for p in parameters if p not in ("key_dim", "value_dim", "chunk_size")]
  unknown = sorted(set(options) - set(known))
  if unknown:
    raise TypeError(f"config.model.memory.options: rule {name!r} does not know {', '.join(unknown)}; "
                    f"it knows {', '.join(known) or 'none'}")
  _check_types(parameters, options)
  sizes = {"chunk_size": chunk_size} if "chunk_size" in parameters else {}
  return complete(make(key_dim=key_dim, value_dim=value_dim, **sizes, **options), value_dim=value_dim)


def _check_types(parameters: Mapping[str, inspect.Parameter], options: dict) -> None:
  for name, value in options.items():
    hint = parameters[name].annotation if name in parameters else None
    parts = (hint,) if isinstance(hint, type) else typing.get_args(hint)
    kinds = [typing.get_origin(part) or part for part in parts]
    if not kinds or not all(kind in KINDS for kind in kinds):
      continue
    is_bool = isinstance(value, bool)  # Which is a whole number to Python, but not to a reader.
    if not any(isinstance(value, KINDS[kind][1]) and is_bool == (kind is bool) for kind in kinds):
      raise TypeError(f"config.model.memory.options.{name}={value!r} must be "
                      f"{', or '.join(KINDS[kind][0] for kind in kinds)}")
