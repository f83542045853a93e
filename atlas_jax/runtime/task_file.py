"""Files of tasks: an object a line with `task`, and `ground_truth`, `tags` and `metadata` if there are
any."""
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

from atlas_jax.files import json_lines
from atlas_jax.runtime.session import SessionSpec
from atlas_jax.runtime.settings import ConfigError, nearest

FIELDS: Mapping[str, type | tuple[type, ...]] = {"task": str, "ground_truth": (str, int, float, type(None)),
                                                 "tags": list, "metadata": dict}


def read(path: str) -> list[dict[str, Any]]:
  """Returns the tasks of a file.

  Raises:
    ConfigError: for a line that is none, naming it.
  """
  if not pathlib.Path(path).is_file():
    raise ConfigError(f"--tasks={path}: there is no such file; give JSON lines with a task each")
  found = []
  for number, line in enumerate(json_lines.lines(path), start=1):
    if not line.strip():
      continue
    try:
      row = json_lines.parse(path, number, line)
    except Exception as error:
      raise ConfigError(f"{path}:{number}: {error}") from error
    found.append(_checked(row, f"{path}:{number}"))
  if not found:
    raise ConfigError(f"--tasks={path} has no task")
  return found


def _checked(row: Mapping[str, Any], where: str) -> dict[str, Any]:
  for name, value in row.items():
    if name not in FIELDS:
      raise ConfigError(f"{where}: {name!r} is no field of a task; {nearest(name, FIELDS)}")
    if not isinstance(value, FIELDS[name]) or isinstance(value, bool):
      raise ConfigError(f"{where}: {name} is {type(value).__name__}, which it cannot be")
  if not row.get("task"):
    raise ConfigError(f"{where}: task is missing; it is the text that the agent gets")
  if not all(isinstance(one, str) for one in row.get("tags", ())):
    raise ConfigError(f"{where}: tags must be texts")
  return dict(row)


def name_of(path: str, *of: Any) -> str:
  """Returns the name of a run of a file, which its keys begin with: the same file and settings, the
  same name."""
  digest = hashlib.sha256(pathlib.Path(path).read_bytes() + repr(of).encode())
  return f"{pathlib.Path(path).stem}-{digest.hexdigest()[:12]}"


def spec_of(row: Mapping[str, Any], *, key: str, tenant: str, lane: str | None,
            metadata: Mapping[str, Any]) -> SessionSpec:
  """Returns the session that a task asks for."""
  truth = row.get("ground_truth")
  return SessionSpec(key, row["task"], {**metadata, **row.get("metadata", {})},
                     ground_truth=None if truth is None else str(truth), tags=tuple(row.get("tags", ())),
                     tenant=tenant, lane=lane)
