"""`atlas run` and `atlas resume`: tasks in, a line per session out; what is done already is not done
again."""
import argparse
import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from atlas_jax.runtime import pool as pools
from atlas_jax.runtime import task_file
from atlas_jax.runtime.agents import load as agent_load
from atlas_jax.runtime.assembly import Assembly
from atlas_jax.runtime.cli_codes import ENDPOINT, FAILED, INTERRUPTED, OK, UNVERIFIED
from atlas_jax.runtime.pool import PoolSettings
from atlas_jax.runtime.result import SessionResult
from atlas_jax.runtime.session import SessionSpec
from atlas_jax.runtime.settings import ConfigError, RuntimeSettings
from atlas_jax.runtime.sinks import Console

AGAIN = ("abandoned", "cancelled")  # Sessions of a task file that a later start does anew.
MOST_STARTS = 100
SHOWN = ("session_key", "session_id", "answer", "verified", "lane", "status", "reward", "reward_reason",
         "tokens",
         "versions", "problem", "resumed")


class Finished(NamedTuple):
  """A task, and what its session came to."""

  row: Mapping[str, Any]
  result: SessionResult


def command(asked: argparse.Namespace, settings: RuntimeSettings) -> int:
  """Runs what the flags ask; returns the exit code."""
  rows = [{"task": asked.task}] if asked.task is not None else task_file.read(asked.tasks)
  settings = bounded(settings, asked.concurrency)
  if asked.dry_run:
    return _dry(settings, rows)
  if (problem := unreachable(settings.agent)) is not None:
    print(f"atlas: {problem}", file=sys.stderr)
    return ENDPOINT
  printer = Printer(as_json=asked.json)
  try:
    found = asyncio.run(through(settings, rows, run_name=_name(asked), lane=asked.lane, each=printer.line,
                                sinks=[Console(sys.stderr, as_json=asked.json)] if asked.stream else []))
  except BrokenPipeError:
    # Who read has gone: sessions were cut off and recorded. Nothing may be written at the exit either.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return INTERRUPTED
  printer.summary(found)
  return code_of([one.result for one in found], require_verified=asked.require_verified)


def bounded(settings: RuntimeSettings, concurrency: int | None) -> RuntimeSettings:
  """Returns settings with another number of sessions at the same time."""
  if concurrency is None:
    return settings
  if concurrency < 1:
    raise ConfigError(f"--concurrency={concurrency} must be at least 1")
  return dataclasses.replace(settings, pool=PoolSettings(concurrency, concurrency, settings.pool.queue))


def code_of(results: Sequence[SessionResult], *, require_verified: bool) -> int:
  """Returns the exit code of a run."""
  if any(one.status != "succeeded" for one in results):
    return FAILED
  return UNVERIFIED if require_verified and not all(one.verified for one in results) else OK


async def through(settings: RuntimeSettings, rows: Sequence[Mapping[str, Any]], *,
                  run_name: str | None = None,
                  lane: str | None = None, each=lambda row, found: None, sinks=()) -> list[Finished]:
  """Runs a session for each task; returns them in the order of the tasks.

  Args:
    settings: of the runtime.
    rows: the tasks.
    run_name: what keys begin with, so that a later start does what is left; None: keys are new.
    lane: of all sessions; None: as the settings have it.
    each: is called when a session has ended.
    sinks: of events.

  Raises:
    StoreError: if the store cannot be opened.
  """
  async with Assembly(settings, sinks=sinks, create=True) as assembly:
    await assembly.resume()
    limit = settings.pool.sessions
    room = asyncio.Semaphore(limit)
    name = None if run_name is None else f"{run_name}-{assembly.generation}"

    async def one(number: int, row: Mapping[str, Any]) -> Finished:
      async with room:
        key = pools.new_key() if name is None else f"{name}-{number}"
        spec = task_file.spec_of(row, key=key, tenant=settings.tenant, lane=lane, metadata=settings.metadata)
        found = Finished(row, await once(assembly, spec))
      each(row, found.result)
      return found

    try:
      async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(number, row)) for number, row in enumerate(rows)]
    except BaseExceptionGroup as found:
      raise first_of(found) from None  # It cut off the others.
  return [task.result() for task in tasks]


def first_of(error: BaseException) -> BaseException:
  """Returns the first error of a group."""
  while isinstance(error, BaseExceptionGroup):
    error = error.exceptions[0]
  return error


async def once(assembly: Assembly, spec: SessionSpec, *, failed: bool = False) -> SessionResult:
  """Runs a task's session, or returns the one that has done it; those that were cut off are done anew.

  Args:
    assembly: the runtime.
    spec: of the session.
    failed: whether those that ended without an answer in any other way are done anew as well.
  """
  for start in range(MOST_STARTS):
    key = spec.key if start == 0 else f"{spec.key}+{start}"
    found = await _joined(assembly, dataclasses.replace(spec, key=key))
    if found.answer is not None or not found.resumed or not failed and found.status not in AGAIN:
      return found
  return found


async def _joined(assembly: Assembly, spec: SessionSpec) -> SessionResult:
  """Runs a session; one whose process has gone is taken up when its lease has ended."""
  settings = assembly.settings.store
  ends = asyncio.get_running_loop().time() + 2 * settings.lease_s + settings.heartbeat_s
  while True:
    try:
      return await assembly.run(spec)
    except RuntimeError as error:  # Of a process that was killed, until its lease ends; or one at work.
      if isinstance(error, pools.PoolFull) or asyncio.get_running_loop().time() > ends:
        raise
    await asyncio.sleep(min(1.0, settings.lease_s / 4))
    await assembly.resume()


def _name(asked: argparse.Namespace) -> str | None:
  if asked.tasks is None:
    return None
  return task_file.name_of(asked.tasks, asked.config, sorted(asked.overrides.items()), asked.lane,
                           asked.run_again)


def _dry(settings: RuntimeSettings, rows: Sequence) -> int:
  found = [one._asdict() for one in agent_load.imports(settings.agent)]
  for group in ("teacher", "probe", "triage", "learner"):
    if (name := getattr(settings, group).function) is not None:
      found.append({"field": f"{group}.function", "action": "imports", "name": name})
  if settings.grader is not None and set(settings.grader) & {".", ":"}:
    found.append({"field": "grader", "action": "imports", "name": settings.grader})
  print(json.dumps({"tasks": len(rows), "imports": found, "store": settings.store.url, "lane": settings.lane,
                    "concurrency": settings.pool.sessions}, indent=2))
  return OK


def unreachable(agent: Mapping[str, Any]) -> str | None:
  """Says why an agent that is a server cannot be reached; None: it can, or is none."""
  import socket
  import urllib.parse

  url = agent.get("url")
  if not isinstance(url, str):
    return None
  parts = urllib.parse.urlsplit(url)
  try:
    port = parts.port or (443 if parts.scheme == "https" else 80)
    socket.create_connection((parts.hostname or "", port), timeout=5).close()
  except (OSError, ValueError) as error:
    return f"config.agent.options.url={url} is not reached ({error}); start the server, or mend the address"
  return None


class Printer:
  """Lines of a run."""

  def __init__(self, *, as_json: bool):
    """Takes whether it is for programs."""
    self._json = as_json

  def line(self, row: Mapping[str, Any], found: SessionResult) -> None:
    """Prints a session that has ended."""
    if self._json:
      whole = found.to_json()
      said = {"task": row["task"], **{name: whole[name] for name in SHOWN}}
      print(json.dumps(said, ensure_ascii=False, allow_nan=False), flush=True)
      return
    checked = {True: "verified", False: "refused", None: "not checked"}[found.verified]
    worth = "" if found.reward is None else f", reward {found.reward:g}"
    answer = found.problem if found.answer is None else found.answer
    print(f"{found.status} ({found.lane}, {checked}{worth}): {answer}", flush=True)

  def summary(self, found: Sequence[Finished]) -> None:
    """Prints the sums of a run for people."""
    if self._json or len(found) < 2:
      return
    graded = [one.result.reward for one in found if one.result.reward is not None]
    print(f"{len(found)} sessions, {sum(one.result.status == 'succeeded' for one in found)} succeeded"
          + (f", mean reward {sum(graded) / len(graded):.3f} of {len(graded)}" if graded else ""), flush=True)


def resume(asked: argparse.Namespace, settings: RuntimeSettings) -> int:
  """Takes up sessions whose process is gone; returns the exit code."""
  async def main() -> list[SessionResult]:
    async with Assembly(settings) as assembly:
      return await assembly.resume()

  found = asyncio.run(main())
  for one in found:
    print(json.dumps({name: one.to_json()[name] for name in SHOWN}, ensure_ascii=False) if asked.json else
          f"{one.session_key}: {one.status}")
  if not asked.json:
    print(f"{len(found)} sessions were taken up")
  return OK
