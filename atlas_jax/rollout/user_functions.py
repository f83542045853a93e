"""Functions of the user, found by "FILE.py:NAME" or by a dotted name."""
import difflib
import hashlib
import importlib
import importlib.util
import pathlib
import sys
from types import ModuleType
from typing import Any

from atlas_jax import modules


def find(name: str) -> Any:
  """Loads what a name stands for.

  Args:
    name: "FILE.py:NAME", the file from the working directory or with its whole path; or "package.module.NAME"
      or "package.module:NAME". A file is run once per process, however often it is named; modules beside it
      can be imported by it.

  Raises:
    ValueError: if there is no such file, module or name in it, with where it was looked for and names near to
      it; or if running the file or module fails.
  """
  place, colon, attribute = name.rpartition(":")
  if not colon and name.endswith(".py"):
    raise ValueError(f"{name!r} is a file; name a function in it, {name}:FUNCTION")
  if colon and place.endswith(".py"):
    return _attribute(_of_file(place), attribute, place)
  if not colon:
    place, _, attribute = name.rpartition(".")
  return _attribute(_of_module(place, name), attribute, place)


def _of_file(place: str) -> ModuleType:
  path = pathlib.Path(place).expanduser()
  if not path.is_file():
    folder = path.parent
    beside = sorted(file.name for file in folder.glob("*.py")) if folder.is_dir() else []
    raise ValueError(f"there is no file {place!r}: looked for {path.absolute()}; beside it: "
                     f"{_listed(path.name, beside)}")
  path = path.resolve()
  # Two files of one name in different folders are two modules, hence the hash of the path.
  name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
  if name in sys.modules:
    return sys.modules[name]
  spec = importlib.util.spec_from_file_location(name, path)
  assert spec is not None and spec.loader is not None  # Its name ends in .py.
  module = importlib.util.module_from_spec(spec)
  if str(path.parent) not in sys.path:
    sys.path.append(str(path.parent))  # Behind all others, so that it hides none of them.
  sys.modules[name] = module
  try:
    spec.loader.exec_module(module)
  except (Exception, SystemExit) as error:  # Whatever the user's file raises.
    del sys.modules[name]
    raise ValueError(f"running {place} raised {type(error).__name__}: {error}") from error
  return module


def _of_module(place: str, name: str) -> ModuleType:
  try:
    return importlib.import_module(place)
  except ModuleNotFoundError as error:
    if error.name is None or not f"{place}.".startswith(f"{error.name}."):
      raise ValueError(f"importing {place} raised {type(error).__name__}: {error}") from error
    file, _, function = name.rpartition(".")
    also = f"; did you mean '{file}:{function}'?" if file.endswith(".py") else ""
    raise ValueError(f"there is no module {error.name!r}{modules.where(error.name)}; a file is named "
                     f"FILE.py:FUNCTION{also}") from error
  except (Exception, SystemExit) as error:  # Whatever the user's module raises.
    raise ValueError(f"importing {place} raised {type(error).__name__}: {error}") from error


def _attribute(module: ModuleType, attribute: str, place: str) -> Any:
  found: Any = module
  # Dots lead into classes and objects of the module.
  for part in attribute.split("."):
    if not hasattr(found, part):
      known = [name for name, value in vars(found).items() if callable(value) and not name.startswith("_")]
      raise ValueError(f"{place} has no {attribute!r}; {_listed(part, sorted(known))}")
    found = getattr(found, part)
  return found


def _listed(name: str, known: list[str]) -> str:
  """Returns which of the known names may be meant, and lists them."""
  close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
  return (f"did you mean {close[0]!r}? " if close else "") + f"there are {', '.join(known) or 'none'}"
