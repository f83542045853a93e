"""Fingerprints: what says that two sessions are of one family, so that one teaches something of the other.

The runtime alone derives them: whoever could name one would read and write what belongs to others.
"""
import hashlib
import json
from collections.abc import Iterable


def fingerprint(agent: str, tenant: str, tools: Iterable[str], tags: Iterable[str], *,
                student_version: str | None, prompt_sha: str, tools_sha: str) -> str:
  """Returns the fingerprint of an agent at work: it changes with the agent, what it is told, and its tools.

  Args:
    agent: its name.
    tenant: whose it is.
    tools: names of its tools.
    tags: of the task.
    student_version: of the agent.
    prompt_sha: checksum of the texts that it is asked with.
    tools_sha: checksum of the tools' schemas.
  """
  return _sha({**_first(agent, tenant, tools, tags), "student_version": student_version,
               "prompt_sha": prompt_sha, "tools_sha": tools_sha})


def fingerprint_v0(agent: str, tenant: str, tools: Iterable[str], tags: Iterable[str]) -> str:
  """Returns the fingerprint of the Atlas SDK 0.1.3; arguments as of `fingerprint`."""
  return _sha(_first(agent, tenant, tools, tags))


def learning_key(tenant: str, found: str) -> str:
  """Returns the key of a tenant's family of tasks, in stores and playbooks."""
  return f"{tenant}/{found[:32]}"


def _first(agent: str, tenant: str, tools: Iterable[str], tags: Iterable[str]) -> dict:
  return {"agent_name": agent, "tenant_id": tenant, "tools": sorted(tools), "task_tags": sorted(tags)}


def _sha(value: dict) -> str:
  text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
  return hashlib.sha256(text.encode()).hexdigest()
