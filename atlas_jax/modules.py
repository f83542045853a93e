"""Modules that a config names: one's own are found or refused; constants are read without importing."""
import ast
import importlib
import pathlib
import sys
from types import ModuleType
from typing import Any


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
    # The module itself, or a package above it, is what is missing; any other name is an import inside of it,
    # which needs another remedy.
    if not (name == missing or name.startswith(f"{missing}.")):
      raise ImportError(f"config.{field}={name!r} imports {missing!r}, which is not installed; install it, "
                        "or add its folder to PYTHONPATH", name=missing) from error
    raise ValueError(f"config.{field}={name!r}: there is no module {missing!r}{where(missing)}") from error
  except SyntaxError as error:
    raise ValueError(f"config.{field}={name!r} is not Python: {error.filename}:{error.lineno}: {error.msg}"
                     ) from error


def attribute(name: str, what: str, *, field: str):
  """Returns what a module of a dotted name must define, such as its function `make`.

  Raises:
    ValueError, ImportError: see `load`; also if the module does not define it.
  """
  module = load(name, field=field)
  if not hasattr(module, what):
    raise ValueError(f"config.{field}={name!r}: {module.__file__ or 'that folder'} defines no {what}; define "
                     "it, or name another module")
  return getattr(module, what)


def constants(folder: str, name: str) -> dict[str, Any]:
  """Returns a constant that files of a folder define, by the files' names, without importing any of them.

  Args:
    folder: of this package, such as "models/blocks".
    name: of the constant, whose value is written out; files that do not define it are left out.
  """
  found = {}
  for path in sorted((pathlib.Path(__file__).parent / folder).glob("*.py")):
    # Nothing is executed: a folder of modules is looked through at start-up, and importing it would load all
    # that they import.
    for node in ast.parse(path.read_text()).body:
      if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
        found[path.stem] = ast.literal_eval(node.value)
  return found


def _dotted(name: str) -> str:
  """Returns how a path would be written as the name of a module, behind a semicolon; "" if it cannot be."""
  path = pathlib.PurePath(name)
  if path.is_absolute():
    return f"; add {path.parent} to PYTHONPATH and write {path.stem}"
  parts = [part for part in path.with_suffix("").parts if part != ".."]
  return f"; write {'.'.join(parts)}" if all(part.isidentifier() for part in parts) else ""


def where(missing: str) -> str:
  """Returns where a module that is not found was looked for, and what to do; starts with a semicolon."""
  above = missing.rpartition(".")[0]
  if above:  # The package is there, the module is not in it.
    # A package that was found is loaded by now, and knows its folders.
    folders = list(getattr(sys.modules.get(above), "__path__", ()))
    return f"; looked for in {', '.join(folders) or above}"
  # An empty entry of sys.path stands for the current folder.
  folders = [str(pathlib.Path(path).absolute()) for path in sys.path]
  return (f"; looked for in {', '.join(dict.fromkeys(folders))}; start the program in the folder that holds "
          "it, or add that folder to PYTHONPATH")
