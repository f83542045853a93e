"""`atlas train`, `deploy`, `rollback` and `loop`: from sessions to a better version, and back to work."""
import argparse
import asyncio
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from atlas_jax.data.traces.runtime_rows import Deployment
from atlas_jax.runtime import canary, deploy
from atlas_jax.runtime.assembly import promote
from atlas_jax.runtime.cli_codes import ENDPOINT, FAILED, OK
from atlas_jax.runtime.deploy import Checkpoint, DeployError, ModelServer
from atlas_jax.runtime.settings import RuntimeSettings
from atlas_jax.runtime.store import RuntimeStore

PIPELINE = "scripts/run_offline_pipeline.py"
SOURCES = ("--export-path", "--database-url")


def train(words: Sequence[str], settings: RuntimeSettings) -> int:
  """Runs the pipeline as a process of its own, on the store's approved sessions if no other source is
  given."""
  script = pathlib.Path(__file__).parents[2] / PIPELINE
  if not script.is_file():
    raise DeployError(f"{script} is not there: `atlas train` runs the pipeline of a clone of the project")
  source = [] if any(one.partition("=")[0] in SOURCES
                     for one in words) else [f"--database-url={settings.store.url}"]
  return subprocess.run([sys.executable, str(script), *source, *words], check=False).returncode


def put_to_work(asked: argparse.Namespace, settings: RuntimeSettings) -> int:
  """Deploys a checkpoint; returns the exit code."""
  try:
    one = asyncio.run(deployed(settings, asked.path, role=asked.role, fraction=asked.canary, url=asked.url,
                               model=asked.model))
  except DeployError as error:
    print(f"atlas: {error}", file=sys.stderr)
    return ENDPOINT if isinstance(error, StartError) else FAILED
  print(f"version {one.version[:12]} of the {one.role} is {one.state} at {one.url}, for {one.fraction:.0%} "
        f"of the "
        "sessions" + ("" if one.state == canary.ACTIVE else
                      f"; it is promoted or rolled back after {settings.deploy.pairs} comparisons"))
  return OK


class StartError(DeployError):
  """A server that does not do what it should."""


async def deployed(settings: RuntimeSettings, path: str, *, role: str = "teacher",
                   fraction: float | None = None,
                   url: str | None = None, model: str | None = None) -> Deployment:
  """Checks a checkpoint, has it served, tests it and writes its deployment; returns that.

  Args:
    settings: of the runtime.
    path: of the checkpoint.
    role: "teacher" or "student".
    fraction: of the sessions, until it is promoted; None: as the settings have it; 1.0 with nothing to
    compare.
    url: of a server that serves it already; None: one is started.
    model: its name there.

  Raises:
    DeployError: if it is not what the runtime needs, or its server fails.
  """
  templates = settings.teacher.templates if role == "teacher" else settings.agent_templates
  found = deploy.read_checkpoint(path, role, templates)
  store = RuntimeStore(settings.store)
  await store.open(create=True)
  try:
    listed = await store.deployments(role)
    if (same := next((one for one in listed if one.version == found.version
                      and one.state in (canary.CANARY, canary.ACTIVE)), None)) is not None:
      if deploy.is_healthy(same.url):
        return same
      await store.move_deployment(same.id, same.state, canary.ROLLED_BACK, fraction=0.0)
    if (other := next((one for one in listed if one.state == canary.CANARY), None)) is not None:
      raise DeployError(f"version {other.version[:12]} is being tried; wait for its comparisons, or "
                        f"`atlas rollback`")
    fraction = settings.deploy.canary if fraction is None else fraction
    if not 0 < fraction <= 1:
      raise DeployError(f"--canary={fraction} must be above 0 and at most 1")
    return await _served(store, found, role, fraction, settings, url, model)
  finally:
    await store.close()


async def _served(store: RuntimeStore, found: Checkpoint, role: str, fraction: float,
                  settings: RuntimeSettings,
                  url: str | None, model: str | None) -> Deployment:
  try:
    server = deploy.adopt_server(url, model) if url else await asyncio.to_thread(
        deploy.start_server, found, settings.deploy)
  except DeployError as error:
    raise StartError(str(error)) from error
  try:
    facts: dict[str, Any] = {"served_as": server.model, "form": found.form, "pid": server.pid,
                             "checkpoint": str(found.folder), "parent": found.manifest.get("parent")}
    number = await store.add_deployment(role=role, version=found.version, url=server.url, fraction=0.0,
                                        state=canary.STARTING, metadata=facts)
    facts |= await _tested(store, number, server, found, role, settings)
    await store.move_deployment(number, canary.STARTING, canary.CANARY, fraction=fraction, metadata=facts)
  except BaseException:
    deploy.stop_server(server.pid)
    raise
  return next(one for one in await store.deployments(role) if one.id == number)


async def _tested(store: RuntimeStore, number: int, server: ModelServer, found: Checkpoint, role: str,
                  settings: RuntimeSettings) -> dict[str, Any]:
  """Has a server answer the questions of the self-test: a teacher readably, a student at all."""
  if role == "teacher":
    endpoint = deploy.endpoint_of(server, found.form, settings.teacher)
    measured = await deploy.self_test(endpoint, settings.teacher, settings.deploy.probes)
  else:
    student = deploy.student_of(server, found.form, found.version, settings.agent, name="self-test",
                                max_tokens=deploy.ANSWER_TOKENS)
    measured = await deploy.answers_test(student, settings.deploy.probes)
  if measured < settings.deploy.parse_fraction:
    await store.move_deployment(number, canary.STARTING, canary.FAILED, fraction=0.0)
    wanted = "replies" if role == "teacher" else "questions"
    what = "can be read" if role == "teacher" else "are answered"
    raise StartError(f"of {settings.deploy.probes} {wanted} of {server.model} at {server.url} {measured:.0%} "
                     f"{what}, and {settings.deploy.parse_fraction:.0%} are needed "
                     "(config.deploy.parse_fraction)")
  return {"self_test": measured}


def rollback(asked: argparse.Namespace, settings: RuntimeSettings) -> int:
  """Goes back to the version before; returns the exit code."""
  if asked.stop:
    return asyncio.run(stopped(settings, asked.role))
  one, before = asyncio.run(rolled_back(settings, asked.role))
  if one is None:
    print(f"atlas: no version of the {asked.role} is deployed", file=sys.stderr)
    return FAILED
  print(f"version {one.version[:12]} of the {asked.role} is rolled back; sessions get "
        + (f"version {before.version[:12]}" if before else "what the config names"))
  return OK


async def rolled_back(settings: RuntimeSettings, role: str) -> tuple[Deployment | None, Deployment | None]:
  """Takes the newest version back; returns it and the one that sessions get now, None: the config's."""
  store = RuntimeStore(settings.store)
  await store.open()
  try:
    listed = await store.deployments(role)
    one = next((one for state in (canary.CANARY,
                                  canary.ACTIVE) for one in reversed(listed) if one.state == state),
               None)
    if one is None:
      return None, None
    await store.move_deployment(one.id, one.state, canary.ROLLED_BACK, fraction=0.0,
                                metadata={**one.metadata, "decision": "by hand"})
    if one.state == canary.CANARY:
      return one, next((other for other in reversed(listed) if other.state == canary.ACTIVE), None)
    before = next((other for other in reversed(listed) if other.state == canary.STANDBY
                   and deploy.is_healthy(other.url)), None)
    if before is not None:
      await promote(store, before, [], dict(before.metadata))
    return one, before
  finally:
    await store.close()


async def stopped(settings: RuntimeSettings, role: str) -> int:
  """Ends the servers of versions that no session gets any more; returns the exit code."""
  store = RuntimeStore(settings.store)
  await store.open()
  try:
    listed = await store.deployments(role)
  finally:
    await store.close()
  used = {one.metadata.get("pid") for one in listed if one.state in (canary.CANARY, canary.ACTIVE)}
  ended = [one for one in listed
           if one.metadata.get("pid") not in used | {None} and deploy.is_healthy(one.url)]
  for one in ended:
    deploy.stop_server(one.metadata["pid"])
    print(f"the server of version {one.version[:12]} at {one.url} is stopped")
  return OK if ended else FAILED
