"""One line on what a run trains: parameters, memory rule, seed, and the commit of the code."""
import json
import pathlib
import subprocess
from collections.abc import Mapping
from typing import Any

from atlas_jax.monitor.curves import short_number
from atlas_jax.workdir import CONFIG, SUMMARY

SOURCE = pathlib.Path(__file__).resolve().parents[2]
GIT_S = 5.0  # Seconds that git may take to answer.


def of_run(workdir, summary: Mapping[str, Any] | None = None) -> str:
  """Returns the line of a run from its config and summary; parts that neither tells are left out.

  Args:
    workdir: a run directory; without config.json the line is empty.
    summary: of a run that has not written its own yet; None: the one in the directory, if there is one.
  """
  workdir = pathlib.Path(workdir)
  return words(_object(workdir / CONFIG), _object(workdir / SUMMARY) if summary is None else summary)


def words(fields: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
  """Returns the line of the fields of a config and a summary, both as the run has written them."""
  parts = [str(fields["recipe"])] if "recipe" in fields else []
  if "params" in summary:
    parts.append(f"{short_number(summary['params'])} parameters")
  if rule := rule_of(fields):
    parts.append(rule)
  if "seed" in fields:
    parts.append(f"seed {fields['seed']}")
  if "commit" in summary:
    parts.append(f"commit {summary['commit']}")
  return "  ·  ".join(parts)


def rule_of(fields: Mapping[str, Any]) -> str:
  """Returns what a config says of the memory, such as "delta memory, gate"; empty where there is none."""
  model = fields.get("model")
  if not isinstance(model, Mapping) or fields.get("recipe") == "trm":
    return ""
  if model.get("kind") == "decoder" or "memory" not in model:
    return ""
  mix = model.get("memory_mix")
  return "no memory" if mix == "none" else f"{model['memory'].get('rule')} memory, {mix}"


def commit(source: pathlib.Path = SOURCE) -> str | None:
  """Returns the commit of the code, with "+" where files differ from it; None where that cannot be known.

  An installed package has no commit; nor has a copy inside the repository of another project.
  """
  if not (source / ".git").exists():
    return None
  try:
    found = subprocess.run(["git", "-C", str(source), "describe", "--always", "--abbrev=9", "--dirty=+",
                            "--exclude=*"], capture_output=True, text=True, timeout=GIT_S)
  except (OSError, subprocess.TimeoutExpired):  # No git here, or a file system that does not answer.
    return None
  return found.stdout.strip() or None


def _object(file: pathlib.Path) -> dict[str, Any]:
  try:
    found = json.loads(file.read_bytes())
  except (FileNotFoundError, ValueError):  # A picture is drawn of what is there.
    return {}
  return found if isinstance(found, dict) else {}
