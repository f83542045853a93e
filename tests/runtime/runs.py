"""Sessions of tests that are stored."""
import dataclasses

from atlas_jax.runtime import session as sessions
from atlas_jax.runtime.events import EventLog
from atlas_jax.runtime.session import SessionSpec


async def through(store, parts, key, *, task="2+2", truth="4", metadata=None):
  """Runs a session to its end with a store; returns its result."""
  await store.begin(key, task, {**(metadata or {}), "tenant_id": "default"})
  made = SessionSpec(key, task, ground_truth=truth, metadata=metadata or {})
  given = dataclasses.replace(parts, store=store)
  return await sessions.run_session(made, given, EventLog(key, store.append))
