"""A runtime put together from its settings: agent, teacher, router, scorer, store, pool, and versions
served."""
import asyncio
import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from typing import Any

from absl import logging

from atlas_jax.data.traces.connections import StoreError
from atlas_jax.data.traces.runtime_rows import Deployment
from atlas_jax.files.damage import one_line
from atlas_jax.rollout import teaching
from atlas_jax.runtime import canary, deploy, fingerprint, made_parts
from atlas_jax.runtime.agents import load as agent_load
from atlas_jax.runtime.agents.tool_box import ToolBox, schema_sha
from atlas_jax.runtime.canary import CanaryPair
from atlas_jax.runtime.deploy import ModelServer
from atlas_jax.runtime.memory_streams import MemoryStreams, StreamEndpoint
from atlas_jax.runtime.pool import SessionPool
from atlas_jax.runtime.redaction import Redactor
from atlas_jax.runtime.result import SessionResult
from atlas_jax.runtime.routing import HistoryRouter
from atlas_jax.runtime.session import FixedLane, SessionParts, SessionSpec
from atlas_jax.runtime.settings_groups import ModelSettings, RuntimeSettings
from atlas_jax.runtime.store import RuntimeStore
from atlas_jax.runtime.telemetry import EventSink
from atlas_jax.runtime.watching import Watching

VERSION = "atlas_jax.runtime/1"
BASE = "config"       # The version that no deployment made: what the config names.
BEFORE = "~before"    # Behind the key of a session that does a canary's task under the version before.
READ_EVERY_S = 2.0    # Deployments are read again.


class Assembly:
  """A runtime at work; an async context.

  Attributes:
    settings: as given.
    store: of sessions and deployments.
    pool: runs sessions.
  """

  def __init__(self, settings: RuntimeSettings, *, sinks: Sequence[EventSink] = (), create: bool = False):
    """Loads what the settings name; nothing is opened yet.

    Args:
      settings: of all parts.
      sinks: get every event, redacted.
      create: whether the store's tables are made where they are not there.
    """
    self.settings = settings
    self.store = RuntimeStore(settings.store)
    self._create = create
    self._sinks = list(sinks)
    self._box = ToolBox(settings.tools)
    self._base_agent = agent_load.load(settings.agent, field="config.agent")
    self._model = made_parts.model_of(settings.teacher)
    self._versions: dict[str, list[Deployment]] = {"teacher": [], "student": []}
    self._made: dict[int, Any] = {}    # deployment -> model or agent, kept: sessions end on theirs
    self._streams: dict[int, MemoryStreams] = {}  # endpoint -> those of its model
    self._forced: set[str] = set()     # keys that get the version before
    self._comparing = asyncio.Lock()
    self._tasks: list[asyncio.Task] = []
    self._compared: set[asyncio.Task] = set()

  async def __aenter__(self) -> "Assembly":
    settings = self.settings
    try:
      await self.store.open(create=self._create)
    except OSError as error:
      raise StoreError(f"the store {settings.store.url} cannot be made: {error}") from error
    try:
      self._tools = await self._box.open()
      self._scorer = made_parts.scorer_of(settings)
      self._router = FixedLane(settings.lane) if settings.lane else HistoryRouter(
          settings.policy, store=self.store, probe=made_parts.model_of(settings.probe),
          triage=made_parts.triage_of(settings))
      self._lessons = made_parts.lessons_of(settings, self.store)
      await self.read_deployments()
      redactor = Redactor(settings.redaction, known=made_parts.keys_of(settings))
      self._watching = Watching(settings.watch, self.store, redactor, sinks=self._sinks)
      self.pool = SessionPool(self.parts, self.store, settings=settings.pool, redactor=redactor,
                       sinks=[self._watching.telemetry], is_own=self._is_own)
      self._watching.start(self.pool)
      self._tasks = [asyncio.create_task(self._reading())]
      if settings.store.reap_s is not None:
        self._tasks.append(asyncio.create_task(self._reaping(settings.store.reap_s)))
    except BaseException:
      await self.store.close()
      raise
    return self

  async def __aexit__(self, *_) -> None:
    for task in self._tasks:
      task.cancel()
    await asyncio.gather(*self._tasks, return_exceptions=True)
    if self._compared:
      await asyncio.gather(*self._compared, return_exceptions=True)
    await self.pool.close()
    await self._watching.close()
    await self._box.close()
    await self.store.close()

  # Sessions.

  async def run(self, spec: SessionSpec) -> SessionResult:
    """Runs a session to its end, under the versions that its key falls to; a canary is compared besides."""
    spec = self._with_family(spec)
    found = await self.pool.run(spec)
    self._watching.ended(found)
    if not found.resumed and (trial := self._trial(spec.key)) is not None:
      task = asyncio.create_task(self._compare(spec, found, trial))
      self._compared.add(task)
      task.add_done_callback(self._compared.discard)
    return found

  async def resume(self) -> list[SessionResult]:
    """Takes up sessions whose process is gone."""
    found = await self.pool.resume()
    self._watching.taken_up(len(found))
    return found

  def parts(self, spec: SessionSpec) -> SessionParts:
    """Returns who works at a session; it keeps them whatever is deployed meanwhile."""
    teacher = self._chosen("teacher", spec.key)
    student = self._chosen("student", spec.key)
    agent = self._base_agent if student is None else self._of(student)
    model = self._model if teacher is None else self._of(teacher)
    versions = {"runtime": VERSION,
                "student": self.student_version if student is None else student.version,
                "teacher": self.base_version if teacher is None else teacher.version,
                "prompt_sha": teaching.load(self.settings.agent_templates).sha256[:16]}
    router = FixedLane(spec.lane) if spec.lane else self._router
    streams: tuple[StreamEndpoint, ...] = ()
    if self.settings.streams.on:
      agent, model, streams = self._with_stream(spec, agent, model, versions)
    supervisor = None if model is None else made_parts.supervisor_of(model, self.settings.teacher)
    return SessionParts(agent, supervisor, router, self._scorer, self._lessons, tools=self._tools,
                 settings=self.settings.session, templates=teaching.load(self.settings.agent_templates),
                 versions=versions, streams=streams)

  def _with_stream(self, spec: SessionSpec, agent: Any, model: Any, versions: dict[str, Any]
                   ) -> tuple[Any, Any, tuple[StreamEndpoint, ...]]:
    """Returns agent and teacher's model, one of them asked through the session's stream of memory."""
    role = self.settings.streams.role
    endpoint = agent.endpoint if role == "student" else model
    if id(endpoint) not in self._streams:
      self._streams[id(endpoint)] = MemoryStreams(self.store, endpoint, self.settings.streams)
    stream = self._streams[id(endpoint)].endpoint_of(spec, versions[role])
    assert isinstance(stream, StreamEndpoint)  # Streams are on.
    return (agent.on(stream), model, (stream,)) if role == "student" else (agent, stream, (stream,))

  @property
  def student_version(self) -> str:
    """Version of the config's agent, its name where it has none."""
    return self._base_agent.version or self._base_agent.name

  @property
  def base_version(self) -> str | None:
    """Version of the config's teacher; None: it has none."""
    given = self.settings.teacher
    if given.kind == "none":
      return None
    said = json.dumps(_said_of(given), sort_keys=True, default=str)
    return f"{BASE}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"

  @property
  def generation(self) -> int:
    """Number of the newest deployment; 0: there is none."""
    return max((one.id for listed in self._versions.values() for one in listed), default=0)

  def _is_own(self, spec: SessionSpec) -> bool:
    """Returns whether a session that was cut off began with this agent, prompts and tools."""
    return spec.learning_key in (None, self._with_family(spec).learning_key)

  def _with_family(self, spec: SessionSpec) -> SessionSpec:
    agent = self._base_agent
    found = fingerprint.fingerprint(
        agent.name, spec.tenant, [one.name for one in self._tools], spec.tags,
        student_version=agent.version, prompt_sha=teaching.load(self.settings.agent_templates).sha256,
        tools_sha=schema_sha(self._tools))
    return dataclasses.replace(spec, learning_key=fingerprint.learning_key(spec.tenant, found))

  # Versions.

  async def read_deployments(self) -> None:
    """Reads which versions are served."""
    for role in self._versions:
      self._versions[role] = await self.store.deployments(role)

  async def _reading(self) -> None:
    while True:
      await asyncio.sleep(READ_EVERY_S)
      try:
        await self.read_deployments()
      except Exception as error:  # Sessions go on with the versions that are known.
        logging.warning("deployments cannot be read: %s", one_line(error))

  async def _reaping(self, every_s: float) -> None:
    """Takes up sessions whose process is gone, again and again; their ends are not waited for."""
    while True:
      await asyncio.sleep(every_s)
      try:
        found = await self.pool.take_up()
      except Exception as error:  # The store may be back for the next look.
        logging.warning("sessions whose process is gone cannot be looked for: %s", one_line(error))
        continue
      self._watching.taken_up(len(found))
      if found:
        logging.warning("%d sessions whose process is gone are taken up", len(found))

  def _chosen(self, role: str, key: str) -> Deployment | None:
    listed = self._versions[role]
    trial = next((one for one in reversed(listed) if one.state == canary.CANARY), None)
    if trial is not None and key not in self._forced and canary.is_canary(key, trial.fraction):
      return trial
    return next((one for one in reversed(listed) if one.state == canary.ACTIVE), None)

  def _trial(self, key: str) -> Deployment | None:
    for role in self._versions:
      found = self._chosen(role, key)
      if found is not None and found.state == canary.CANARY:
        return found
    return None

  def _of(self, one: Deployment) -> Any:
    """Returns the teacher's model or the agent that a deployment is."""
    if one.id not in self._made:
      server = ModelServer(one.url, one.metadata["served_as"])
      if one.role == "teacher":
        self._made[one.id] = deploy.endpoint_of(server, one.metadata["form"], self.settings.teacher)
      else:
        self._made[one.id] = deploy.student_of(server, one.metadata["form"], one.version, self.settings.agent,
                                               name=self._base_agent.name)
    return self._made[one.id]

  # The canary.

  async def _compare(self, spec: SessionSpec, found: SessionResult, trial: Deployment) -> None:
    """Does a canary's task under the version before, and decides whether the new one stays.

    Comparisons are kept in the store: those of an earlier start and of other processes count.
    """
    key = spec.key + BEFORE
    self._forced.add(key)
    try:
      before = await self.pool.run(dataclasses.replace(spec, key=key, metadata={**spec.metadata,
                                                                              "canary_of": spec.key}))
      pair = CanaryPair(score_of(found), score_of(before), _failed(found))
      if found.session_id is None:
        raise StoreError("it is not in the store yet, which keeps comparisons")
      async with self._comparing:  # One after the other: a decision looks at all that are there.
        kept = await self.store.put_canary_pair(trial.id, found.session_id, pair)
        await self._decided(trial, [CanaryPair(*one) for one in kept])
    except Exception as error:
      logging.warning("session %s is not compared: %s", spec.key, one_line(error))
    finally:
      self._forced.discard(key)

  async def _decided(self, trial: Deployment, pairs: list[CanaryPair]) -> None:
    said = canary.decide(pairs, self.settings.deploy)
    if said.what == "wait":
      return
    current = next((one for one in self._versions[trial.role] if one.id == trial.id), None)
    if current is None or current.state != canary.CANARY:
      return
    facts = {**trial.metadata, "pairs": [list(one) for one in pairs], "decision": said._asdict()}
    try:
      if said.what == "promote":
        await promote(self.store, trial, self._versions[trial.role], facts)
      else:
        await self.store.move_deployment(trial.id, canary.CANARY, canary.ROLLED_BACK, fraction=0.0,
                                         metadata=facts)
    except StoreError as error:  # Another comparison or process has decided, and said so.
      logging.warning("deployment %d: %s", trial.id, one_line(error))
      return
    finally:
      await self.read_deployments()
    print(f"atlas: version {trial.version[:12]} of the {trial.role} is "
          f"{'promoted' if said.what == 'promote' else 'rolled back'}: {said.why} ({said.pairs} pairs"
          + ("" if said.delta is None else f", gain {said.delta:+.3f}, lower bound {said.lower:+.3f}, "
             f"not worse {said.ndr:.3f}") + ")", file=sys.stderr, flush=True)


def _said_of(given: ModelSettings) -> dict[str, Any]:
  """Returns what makes a teacher the version that it is; texts of a file by what stands in it now."""
  found = dataclasses.asdict(given)
  del found["deadline_s"]  # That of an endpoint stands among its own settings.
  if given.templates not in teaching.SETS:
    found["templates_sha256"] = teaching.load(given.templates).sha256
  return found


async def promote(store: RuntimeStore, one: Deployment, listed: Sequence[Deployment], facts: dict) -> None:
  """Makes a version the one that all sessions get; the one before stands by."""
  canary.check_move(one.state, canary.ACTIVE)
  for other in listed:
    if other.state == canary.ACTIVE and other.id != one.id:
      await store.move_deployment(other.id, canary.ACTIVE, canary.STANDBY, fraction=0.0)
  await store.move_deployment(one.id, one.state, canary.ACTIVE, fraction=1.0, metadata=facts)


def score_of(found: SessionResult) -> float | None:
  """Returns what a session's answer is worth: its reward, else the teacher's verdict; None: not known."""
  if found.answer is None:
    return 0.0
  if found.reward is not None:
    return found.reward
  return None if found.verified is None else float(found.verified)


def _failed(found: SessionResult) -> bool:
  """Returns whether the model of a session gave nothing that could be used."""
  unusable = ("the teacher gave no verdict", "the teacher's reply cannot be used", "the teacher failed")
  return found.answer is None or any((one.problem or "").startswith(unusable) for one in found.attempts)
