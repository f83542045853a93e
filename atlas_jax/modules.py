"""Modules of one's own that a config names: found, or refused with the places where they were looked for."""
import importlib
import pathlib
import sys
from types import ModuleType


def load(name: str, *, field: str) -> ModuleType:
  """Imports the module of a dotted name.

  Args:
    name: such as "experiments.mqar.recipe".
    field: of the config, that names it, such as "recipe"; for errors.

  Raises:
    ValueError: if there is no such module, or it cannot be read; says where it was looked for.
    ImportError: if it needs another one that is not installed.
  """
  if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
    raise ValueError(f"config.{field}={name!r} is no name of a module, which is written with dots and "
                     f"without .py, experiments.mqar.recipe for experiments/mqar/recipe.py{_dotted(name)}")
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    missing = error.name or name
    if not (name == missing or name.startswith(f"{missing}.")):
      raise ImportError(f"config.{field}={name!r} imports {missing!r}, which is not installed; install it, "
                        "or add its folder to PYTHONPATH", name=missing) from error
    raise ValueError(f"config.{field}={name!r}: there is no module {missing!r}{where(missing)}") from error
  except SyntaxError as error:
    raise ValueError(f"config.{field}={name!r} is not Python: {error.filename}:{error.lineno}: {error.msg}"
                     ) from error


def attribute(name: str, what: str, *, field: str):
  """Gives what a module of a dotted name must define, such as its function `make`.

  Raises:
    ValueError, ImportError: see `load`; also if the module does not define it.
  """
  module = load(name, field=field)
  if not hasattr(module, what):
    raise ValueError(f"config.{field}={name!r}: {module.__file__ or 'that folder'} defines no {what}; define "
                     "it, or name another module")
  return getattr(module, what)


def _dotted(name: str) -> str:
  """Says how a path would be written."""
  path = pathlib.PurePath(name)
  if path.is_absolute():
    return f"; add {path.parent} to PYTHONPATH and write {path.stem}"
  parts = [part for part in path.with_suffix("").parts if part != ".."]
  return f"; write {'.'.join(parts)}" if all(part.isidentifier() for part in parts) else ""


def where(missing: str) -> str:
  """Says where a module that is not found was looked for, and what to do; starts with a semicolon."""
  above = missing.rpartition(".")[0]
  if above:  # The package is there, the module is not in it.
    folders = list(getattr(sys.modules.get(above), "__path__", ()))
    return f"; looked for in {', '.join(folders) or above}"
  folders = [str(pathlib.Path(path).absolute()) for path in sys.path]
  return (f"; looked for in {', '.join(dict.fromkeys(folders))}; start the program in the folder that holds "
          "it, or add that folder to PYTHONPATH")
