"""Agreement of all processes of a run, and the line that says where they differ."""
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
from collections.abc import Mapping

import jax

from atlas_jax.fields import flat
from atlas_jax.files.damage import clipped

_PACKAGE = pathlib.Path(__file__).parents[1]
_SHOWN = 4  # Differences that a line names; more are counted.
_LENGTH = 80  # Characters of a value that a line shows.


def facts_of_start(config, named: Mapping[str, object]) -> dict[str, str]:
  """Returns what is known before devices are looked for: settings, code, and the versions it runs on.

  Args:
    config: of the run, resolved.
    named: flags besides, by what a line is to call them, such as "--workdir".
  """
  # Facts travel as JSON text; repr tells 1 from 1.0 and from '1', and None from 'None'.
  settings = {f"config.{name}": repr(value) for name, value in flat(config).items()}
  return {
      **{name: str(value) for name, value in named.items()}, **settings,
      "the code (atlas_jax/)": code_digest(), **_own_modules(config),
      "the version of jax": f"{jax.__version__}, jaxlib {importlib.metadata.version('jaxlib')}",
      "the version of Python": platform.python_version(),
      "the variable JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", ""),
  }


def facts_of_devices() -> dict[str, str]:
  """Returns kind and number of this process's devices."""
  local = jax.local_devices()
  return {"the kind of devices": f"{local[0].platform}, {local[0].device_kind}",
          "the number of devices per process": str(len(local))}


def facts_of_data(config, source, workdir) -> dict[str, str]:
  """Returns what identifies the data of a run and where it goes on: what its source saves in a checkpoint.

  Args:
    config: of the run; its length may come from the data.
    source: of batches, see `data.source.Source`.
    workdir: whose newest checkpoint counts; of processes with folders of their own, one sees none.
  """
  # Folders of one name on the machines' own disks are told apart here, as soon as there is a checkpoint.
  steps = [int(path.name) for path in pathlib.Path(workdir).glob("checkpoints/*") if path.name.isdecimal()]
  return {
      "config.optim.steps": str(config.optim.steps),
      "the newest checkpoint in --workdir": f"step {max(steps)}" if steps else "none",
      **_own_modules(config),
      **{f"the data's {name}": _short(value) for name, value in source.state().items()}}


@functools.cache
def code_digest() -> str:
  """Returns a digest of the package's own files."""
  digest = hashlib.sha256()
  for path in sorted(_PACKAGE.rglob("*.py")):
    # The zero bytes part names from contents: the same text in other files is another digest.
    digest.update(f"{path.relative_to(_PACKAGE).as_posix()}\0".encode())
    digest.update(path.read_bytes() + b"\0")
  return digest.hexdigest()[:16]


def _own_modules(config) -> dict[str, str]:
  """Returns digests of the modules with dotted names that a config names, where they are imported."""
  found = {}
  for value in flat(config).values():
    # Only modules that are imported already: no text of a config is imported from here.
    module = sys.modules.get(value) if isinstance(value, str) and "." in value else None
    if (file := getattr(module, "__file__", None)) is not None:
      found[f"the code ({value})"] = hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()[:16]
  return found


def _short(value) -> str:
  text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
  return text if len(text) <= _LENGTH else f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def differences(facts: Mapping[int, Mapping[str, str]]) -> str | None:
  """Returns where processes differ from process 0, and which; None if they are alike.

  Args:
    facts: of every process, by its number; the values by name.
  """
  # Process 0 is as good as any: of two that differ nothing says which is right.
  first = facts[0]
  parts = []
  # In the order of `facts_of_start`: settings come before versions, and only the first few differences are
  # shown.
  for name in dict.fromkeys(name for one in facts.values() for name in one):
    others: dict[str, list[int]] = {}
    for process, one in sorted(facts.items()):
      if one.get(name) != first.get(name):
        others.setdefault(_shown(one.get(name)), []).append(process)
    if others:
      where = ", ".join(f"{value} in {numbers(processes)}" for value, processes in others.items())
      parts.append(f"{name} is {_shown(first.get(name))} in process 0 and {where}")
  if not parts:
    return None
  more = f"; {len(parts) - _SHOWN} more differ" if len(parts) > _SHOWN else ""
  return "; ".join(parts[:_SHOWN]) + more


def _shown(value: str | None) -> str:
  return "absent" if value is None else clipped(value, _LENGTH)


def numbers(processes: list[int]) -> str:
  """Names processes by their numbers."""
  if len(processes) == 1:
    return f"process {processes[0]}"
  shown = ", ".join(map(str, processes[:8]))
  return f"processes {shown}{', ...' if len(processes) > 8 else ''}"
