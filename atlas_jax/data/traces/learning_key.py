"""The key that groups the sessions of one family of tasks.

Source: the recipe of the Atlas SDK 0.1.15, so that sessions of both fall into the same families.
"""
import hashlib
import json
from collections.abc import Mapping
from typing import Any

PREFIX_CHARS = 64
OVERRIDE, GIVEN = "learning_key_override", "learning_key"


def learning_key(agent: str, task: str, metadata: Mapping[str, Any]) -> str:
  """Returns the key that the metadata names, else the hash of agent, tenant, tags and the task's beginning.

  Args:
    agent: name of the agent.
    task: what it was asked; its first 64 characters count.
    metadata: of the session, of which learning_key_override, learning_key, tenant_id and tags are read.
  """
  for name in (OVERRIDE, GIVEN):
    given = metadata.get(name)
    if isinstance(given, str) and given.strip():
      return given.strip()
  tags = metadata.get("tags")
  listed = tags if isinstance(tags, list | tuple) else [tags] if tags else []
  family = {"agent": agent, "tags": sorted(str(tag) for tag in listed),
            "task_prefix": task[:PREFIX_CHARS].strip(), "tenant": str(metadata.get("tenant_id") or "default")}
  return hashlib.sha256(json.dumps(family, sort_keys=True).encode()).hexdigest()
