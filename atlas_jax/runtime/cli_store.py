"""`atlas init`, `stats`, `forget`, `doctor` and `config validate`: the store, and what stands around it."""
import argparse
import asyncio
import functools
import importlib.util
import json
import os
import pathlib
import sys
from collections.abc import Callable

from atlas_jax.data.traces import connections
from atlas_jax.data.traces.query import SessionQuery
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.store import SqlStore, open_store
from atlas_jax.rollout import rewards
from atlas_jax.runtime import cli_config, cli_run, counts, deploy, embedded, forgetting, lessons, settings
from atlas_jax.runtime.agents import load as agent_load
from atlas_jax.runtime.cli_codes import CONFIG, ENDPOINT, FAILED, OK
from atlas_jax.runtime.made_parts import learner_of, model_of, triage_of
from atlas_jax.runtime.memory_streams import MemoryStreams
from atlas_jax.runtime.settings import RuntimeSettings
from atlas_jax.runtime.store import RuntimeStore

PAGE_ROWS = 500


def init(asked: argparse.Namespace) -> int:
  """Makes the store, or brings its tables up to date; returns the exit code."""
  if asked.embedded and asked.database_url:
    raise settings.ConfigError(f"--embedded and --database-url={asked.database_url} both name the store; "
                               f"give one")
  url = embedded.make() if asked.embedded else asked.database_url or settings.default().store.url
  url = settings.store_url(url)
  if url.startswith("sqlite:///"):
    pathlib.Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
  with SqlStore(connections.connect(url, create=True)) as opened:
    applied = opened.migrate()
    print(f"{opened.name}: tables of version {opened.version()}, "
          + (f"applied {', '.join(map(str, applied))}" if applied else "up to date"))
  if asked.embedded:
    file = pathlib.Path(embedded.FOLDER, "url")
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as opened_file:
      opened_file.write(url)
    print(f"its address, with the password, is in {file} (readable by you alone): "
          f'export STORAGE__DATABASE_URL="$(cat {file})" and --config.store.url=env:STORAGE__DATABASE_URL')
  return OK


def stats(asked: argparse.Namespace, given: RuntimeSettings) -> int:
  """Prints what the sessions of the store come to; returns the exit code."""
  with open_store(given.store.url) as opened:
    query = SessionQuery(review_statuses=None, most_events=0, newest_first=False)
    found = counts.of_traces(Trace.from_json(one.record()) for page in opened.pages(query,
                                                                                    page_rows=PAGE_ROWS)
                             for one in page)
  print(json.dumps(found, indent=2) if asked.json else "\n".join(counts.lines(found)))
  return OK


def forget(asked: argparse.Namespace, given: RuntimeSettings) -> int:
  """Deletes sessions with all that is theirs; returns the exit code."""
  async def main() -> forgetting.Forgotten:
    store = RuntimeStore(given.store)
    await store.open()
    try:
      return await forgetting.forget(store, given, session_key=asked.session, tenant=asked.tenant)
    finally:
      await store.close()

  found = asyncio.run(main())
  print(f"{found.sessions} sessions, {found.lessons} lessons and {found.streams} memory streams are deleted")
  for one, why in found.left.items():
    print(f"atlas: the memory stream {one} is not deleted: {why}; start its server, and forget again",
          file=sys.stderr)
  if found.left:
    return ENDPOINT
  return OK if found.sessions or found.lessons or found.streams else FAILED


def learn(asked: argparse.Namespace, given: RuntimeSettings) -> int:
  """Learns lessons from reviewed sessions, and retires those of quarantined ones; returns the exit code."""
  if given.lessons is None:
    raise settings.ConfigError("config.lessons.on=False: there is no memory of lessons; set it to True")
  kept = given.lessons

  async def main() -> lessons.LearntFrom:
    store = RuntimeStore(given.store)
    await store.open()
    try:
      return await lessons.learn_from_approved(store, asked.ids, learner=learner_of(given),
                                               settings=kept)
    finally:
      await store.close()

  found = asyncio.run(main())
  print(json.dumps(found._asdict(), default=str))
  return OK


def validate(asked: argparse.Namespace) -> int:
  """Prints the resolved config; returns the exit code."""
  config = cli_config.config_of(asked)
  settings.of_config(config)
  print(settings.shown(config))
  return OK


def doctor(asked: argparse.Namespace) -> int:
  """Checks all that a run needs, and says what to do; returns the exit code."""
  try:
    given = cli_config.settings_of(asked)
  except ValueError as error:
    print(f"config      wrong: {error}")
    return CONFIG
  print("config      ok")
  checks: list[tuple[str, Callable[[], str]]] = [
      ("agent", functools.partial(_agent, given)), ("teacher", functools.partial(_model, given, "teacher")),
      ("probe", functools.partial(_model, given, "probe")), ("grader", functools.partial(_grader, given)),
      ("store", functools.partial(_store, given)), ("versions", functools.partial(_versions, given)),
      ("spool", functools.partial(_spool, given)), ("serving", _serving),
      ("learner", functools.partial(_model, given, "learner")),
      ("triage", functools.partial(_model, given, "triage")), ("streams", functools.partial(_streams, given))]
  bad = 0
  for name, check in checks:
    try:
      print(f"{name:<12}ok: {check()}")
    except Exception as error:  # Whatever is wrong is what it is for.
      bad += 1
      print(f"{name:<12}wrong: {' '.join(str(error).split())}")
  return FAILED if bad else OK


def _agent(given: RuntimeSettings) -> str:
  if (problem := cli_run.unreachable(given.agent)) is not None:
    raise ValueError(problem)
  found = agent_load.load(given.agent)
  return f"{found.name}, version {found.version}"


def _model(given: RuntimeSettings, group: str) -> str:
  model = getattr(given, group)
  triage_of(given) if group == "triage" else model_of(model)
  if model.kind == "endpoint" and (problem := cli_run.unreachable({"url": model.endpoint.url})) is not None:
    raise ValueError(problem.replace("config.agent.options", f"config.{group}"))
  return {"none": "there is none", "function": str(model.function)}.get(model.kind) or model.endpoint.url


def _grader(given: RuntimeSettings) -> str:
  if given.grader is not None:
    rewards.load(given.grader)
  return given.grader or "there is none"


def _store(given: RuntimeSettings) -> str:
  if given.store.url.startswith("sqlite:///") and not pathlib.Path(given.store.url[10:]).exists():
    return "it is made by the first run, or by `atlas init`"
  with open_store(given.store.url, writable=True) as opened:
    return f"{opened.name}, tables of version {opened.version()}"


def _versions(given: RuntimeSettings) -> str:
  if given.store.url.startswith("sqlite:///") and not pathlib.Path(given.store.url[10:]).exists():
    return "none is deployed"

  async def main():
    store = RuntimeStore(given.store)
    await store.open()
    try:
      return [one for role in ("teacher", "student") for one in await store.deployments(role)
              if one.state in ("canary", "active")]
    finally:
      await store.close()

  found = asyncio.run(main())
  for one in found:
    if not deploy.is_healthy(one.url):
      raise ValueError(f"the {one.role} {one.version[:12]} at {one.url} does not answer; deploy it again, or "
                       "`atlas rollback`")
  return ", ".join(f"{one.role} {one.version[:12]} ({one.state})" for one in found) or "none is deployed"


def _spool(given: RuntimeSettings) -> str:
  waiting = RuntimeStore(given.store).spool.waiting()
  if waiting:
    raise ValueError(f"{len(waiting)} sessions wait in {given.store.spool}; the next run stores them")
  return "empty"


def _streams(given: RuntimeSettings) -> str:
  if not given.streams.on:
    return "they are off"

  async def main():
    endpoint = forgetting.endpoint_of(given, given.streams.role)
    try:
      return await MemoryStreams(RuntimeStore(given.store), endpoint, given.streams).check()
    finally:
      await endpoint.close()

  return f"of the {given.streams.role}, {asyncio.run(main())['model']}"


def _serving() -> str:
  missing = [name for name in ("httpx", "fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
  if missing:
    raise ValueError(f"`atlas deploy` needs {', '.join(missing)}: pip install 'atlas_jax[runtime,serve]'")
  return "`atlas deploy` has what it needs"


def said(error: BaseException) -> None:
  """Prints an error in one line."""
  print(f"atlas: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
