"""`atlas env init`, `list` and `verify`: the agent of a folder, and whether it has changed since."""
import argparse
import json
import pathlib
from typing import Any

from atlas_jax.runtime import discover
from atlas_jax.runtime.cli_codes import FAILED, OK
from atlas_jax.runtime.settings import ConfigError

FILE = pathlib.Path(".atlas/config.py")
CONFIG = '''"""The config that `atlas env init` has written."""
from atlas_jax.runtime import settings


def get_config(arg=None):
  """Returns the config."""
  del arg
  config = settings.default()
  config["agent"].update(kind={kind!r}, options={options!r})
  return config
'''


def init(asked: argparse.Namespace) -> int:
  """Looks for agents, chooses the likeliest or the one that is trusted, and writes what was found."""
  found = discover.find(asked.path)
  agents = [one for one in found.candidates if one.role == "agent"]
  chosen, check = agents[0] if agents else None, None
  if asked.trust is not None:
    chosen = next((one for one in agents if one.place == asked.trust), None)
    if chosen is None:
      listed = ", ".join(one.place for one in agents) or "none was found"
      raise ConfigError(f"--trust={asked.trust} is no candidate; candidates: {listed}")
    check = discover.trusted(asked.path, asked.trust)
    if check.problem:
      raise ConfigError(f"--trust={asked.trust}: {check.problem}")
  print(discover.save(asked.path, found, chosen, check))
  _print(found.candidates, found.unread)
  if chosen is None:
    return FAILED
  given: dict[str, Any] = discover.agent_config(chosen, check)
  file = pathlib.Path(asked.path) / FILE
  kind = given.pop("kind")
  file.write_text(CONFIG.format(kind=kind, options=given))
  print(f"{file}: the agent is {chosen.place}; have it work by `atlas run --config={file} --task=TEXT`")
  return OK


def listed(asked: argparse.Namespace) -> int:
  """Prints the candidates of a folder; nothing is imported."""
  found = discover.find(asked.path)
  _print(found.candidates, found.unread)
  return OK if found.candidates else FAILED


def verify(asked: argparse.Namespace) -> int:
  """Says what has changed since `atlas env init`."""
  changed = discover.verify(asked.path)
  print("\n".join(changed) or "nothing has changed")
  return FAILED if changed else OK


def _print(candidates, unread) -> None:
  for one in candidates:
    print(f"{one.role:<12}{one.file}:{one.line}  {one.name}  ({one.what}: {one.why})")
  for line in unread:
    print(f"not read: {json.dumps(line, ensure_ascii=False)}")
