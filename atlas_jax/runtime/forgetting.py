"""Forgetting sessions: what the store has of them, and their memory streams at the servers of their models.

Streams go first: where a server does not delete one, it stays listed, so that it can be deleted later.
"""
import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from atlas_jax.rollout.endpoint import Endpoint
from atlas_jax.rollout.endpoint_settings import EndpointSettings
from atlas_jax.runtime import memory_streams
from atlas_jax.runtime.session import SessionSpec
from atlas_jax.runtime.settings_groups import RuntimeSettings
from atlas_jax.runtime.store import RuntimeStore

AT_ONCE = 16  # Streams that are deleted at the same time.


class Forgotten(NamedTuple):
  """The numbers of what was deleted."""

  sessions: int
  lessons: int
  streams: int             # memory streams that were listed
  left: Mapping[str, str]  # streams that are not deleted, and why


async def forget(store: RuntimeStore, settings: RuntimeSettings, *, session_key: str | None = None,
                 tenant: str | None = None) -> Forgotten:
  """Deletes a session, or all of a tenant, with all that is theirs.

  Args:
    store: open.
    settings: say where models with memory are served.
    session_key: of a session; a second call deletes what a first one had to leave.
    tenant: whose sessions and lessons are deleted, all of them.
  """
  listed, keys = await store.streams(session_key=session_key, tenant=tenant)
  wanted = {one["id"]: one.get("url") for one in listed}
  if settings.streams.on:  # Also those that a crash kept from being listed.
    owner = tenant
    if session_key is not None:
      run = await store.load(session_key)
      owner, keys = (None, []) if run is None else (run.metadata.get("tenant_id"), [session_key])
    for key in keys:
      spec = SessionSpec(key, "", tenant=owner or settings.tenant)
      wanted.setdefault(memory_streams.stream_id(spec, settings.streams.role), None)
  left = await _deleted(settings, wanted)
  n_sessions, n_lessons = await store.forget(session_key=session_key, tenant=tenant,
                                             deleted=wanted.keys() - left.keys())
  n_streams = sum(one["id"] not in left for one in listed)
  return Forgotten(n_sessions, n_lessons, n_streams, left)


async def _deleted(settings: RuntimeSettings, wanted: Mapping[str, str | None]) -> dict[str, str]:
  """Deletes streams, given with the url of their server, None for the config's; returns those left."""
  left: dict[str, str] = {}
  endpoints = {url: endpoint_of(settings, settings.streams.role, url) for url in set(wanted.values())}
  room = asyncio.Semaphore(AT_ONCE)

  async def one(name: str, url: str | None) -> None:
    async with room:
      if (why := await memory_streams.deleted(endpoints[url], name)) is not None:
        left[name] = why

  try:
    await asyncio.gather(*(one(name, url) for name, url in wanted.items()))
  finally:
    for endpoint in endpoints.values():
      await endpoint.close()
  return left


def endpoint_of(settings: RuntimeSettings, role: str, url: str | None = None) -> Endpoint:
  """Returns the endpoint of student or teacher.

  Args:
    settings: of the runtime.
    role: "student" or "teacher".
    url: of another server, such as that of a version deployed; None: that of the config.

  Raises:
    ValueError: if the config names none.
  """
  teacher, agent = settings.teacher.endpoint, settings.agent
  if role == "teacher" and teacher is not None:
    own, model, key = teacher.url, teacher.model, teacher.key_variable
  elif role == "student" and agent["kind"] == "openai":
    own, model, key = agent["url"], agent["model"], agent.get("key_variable")
  elif url is not None:
    own, model, key = url, "any", None
  else:
    raise ValueError(f"the config names no endpoint of the {role}, which has a memory stream; give the "
                     "config that its sessions ran with")
  # The key of the config's server is for no other one.
  return Endpoint(EndpointSettings(url or own, model, key_variable=key if url in (None, own) else None,
                                   tries=1))
