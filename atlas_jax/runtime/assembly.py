"""A runtime put together from its settings: agent, teacher, router, scorer, store, pool, and versions
served."""
import asyncio
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging

from atlas_jax.data.traces.connections import StoreError
from atlas_jax.data.traces.runtime_rows import Deployment
from atlas_jax.files.damage import one_line
from atlas_jax.rollout import rewards, teaching, user_functions
from atlas_jax.rollout.chat_form import AskOptions
from atlas_jax.rollout.endpoint import Endpoint
from atlas_jax.runtime import canary, deploy, fingerprint
from atlas_jax.runtime.agents import load as agent_load
from atlas_jax.runtime.agents.tool_box import ToolBox, schema_sha
from atlas_jax.runtime.canary import CanaryPair
from atlas_jax.runtime.chat_models import ChatModel, FunctionModel
from atlas_jax.runtime.deploy import ModelServer
from atlas_jax.runtime.learner import Learner
from atlas_jax.runtime.lessons import LessonBook
from atlas_jax.runtime.pool import SessionPool
from atlas_jax.runtime.redaction import Redactor
from atlas_jax.runtime.result import SessionResult
from atlas_jax.runtime.routing import HistoryRouter
from atlas_jax.runtime.scoring import GraderAndJudges, Scorer, Unscored
from atlas_jax.runtime.session import FixedLane, SessionParts, SessionSpec
from atlas_jax.runtime.settings import ModelSettings, RuntimeSettings
from atlas_jax.runtime.store import RuntimeStore
from atlas_jax.runtime.supervision import Supervisor
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
    self._model = model_of(settings.teacher)
    self._versions: dict[str, list[Deployment]] = {"teacher": [], "student": []}
    self._made: dict[int, Any] = {}    # deployment -> supervisor or agent, kept: sessions end on theirs
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
      self._scorer = scorer_of(settings)
      probe = model_of(settings.probe)
      self._router = FixedLane(settings.lane) if settings.lane else HistoryRouter(
          settings.policy, store=self.store, probe=probe)
      self._lessons = lessons_of(settings, self.store)
      await self.read_deployments()
      redactor = Redactor(settings.redaction, known=keys_of(settings))
      self._watching = Watching(settings.watch, self.store, redactor, sinks=self._sinks)
      self.pool = SessionPool(self.parts, self.store, settings=settings.pool, redactor=redactor,
                       sinks=[self._watching.telemetry])
      self._watching.start(self.pool)
      self._tasks = [asyncio.create_task(self._reading())]
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
    supervisor = self._base_supervisor() if teacher is None else self._of(teacher)
    versions = {"runtime": VERSION,
                "student": agent.version or agent.name if student is None else student.version,
                "teacher": self.base_version if teacher is None else teacher.version,
                "prompt_sha": teaching.load(self.settings.agent_templates).sha256[:16]}
    router = FixedLane(spec.lane) if spec.lane else self._router
    return SessionParts(agent, supervisor, router, self._scorer, self._lessons, tools=self._tools,
                 settings=self.settings.session, templates=teaching.load(self.settings.agent_templates),
                 versions=versions)

  @property
  def base_version(self) -> str | None:
    """Version of the config's teacher; None: it has none."""
    given = self.settings.teacher
    if given.kind == "none":
      return None
    said = json.dumps(dataclasses.asdict(given), sort_keys=True, default=str)
    return f"{BASE}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"

  @property
  def generation(self) -> int:
    """Number of the newest deployment; 0: there is none."""
    return max((one.id for listed in self._versions.values() for one in listed), default=0)

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

  def _base_supervisor(self) -> Supervisor | None:
    return None if self._model is None else supervisor_of(self._model, self.settings.teacher)

  def _of(self, one: Deployment) -> Any:
    if one.id not in self._made:
      server = ModelServer(one.url, one.metadata["served_as"])
      if one.role == "teacher":
        model = deploy.endpoint_of(server, one.metadata["form"], self.settings.teacher)
        self._made[one.id] = supervisor_of(model, self.settings.teacher)
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


def supervisor_of(model: ChatModel, settings: ModelSettings) -> Supervisor:
  """Returns the teacher that a model is, with the options of the config."""
  return Supervisor(model, teaching.load(settings.templates), options=AskOptions(
      max_tokens=settings.max_tokens, temperature=settings.temperature))


def lessons_of(settings: RuntimeSettings, store: RuntimeStore) -> LessonBook | None:
  """Returns the memory of lessons that settings name; None: there is none."""
  if settings.lessons is None:
    return None
  return LessonBook(store, settings.lessons, learner=learner_of(settings))


def learner_of(settings: RuntimeSettings) -> Learner | None:
  """Returns the model that writes lessons; None: there is none."""
  model = model_of(settings.learner)
  given = AskOptions(temperature=settings.learner.temperature, max_tokens=settings.learner.max_tokens)
  return None if model is None else Learner(model, options=given)


def model_of(settings: ModelSettings) -> ChatModel | None:
  """Returns the model that settings name; None: there is none."""
  if settings.kind == "none":
    return None
  if settings.kind == "function":
    assert settings.function is not None
    return FunctionModel(_function(settings.function))
  assert settings.endpoint is not None
  return Endpoint(settings.endpoint)


def keys_of(settings: RuntimeSettings) -> list[str]:
  """Returns the keys of endpoints, which no record may have."""
  named = [one.endpoint.key_variable for one in (settings.teacher, settings.probe, settings.learner)
           if one.endpoint is not None]
  named.append(settings.agent.get("key_variable"))
  return [key for name in named if name and (key := os.environ.get(name))]


def _function(name: str) -> Callable[..., Any]:
  found = user_functions.find(name)
  if not callable(found):
    raise ValueError(f"function={name!r} is {type(found).__name__}, which cannot be called")
  return found


def scorer_of(settings: RuntimeSettings) -> Scorer:
  """Returns what scores answers."""
  if settings.grader is None and settings.judges is None:
    return Unscored()
  judges = None
  if settings.judges is not None:
    from atlas_jax.rollout.judges.rim import RIMReward  # It draws on libraries that graders do without.
    judges = RIMReward(settings.judges)
  return GraderAndJudges(None if settings.grader is None else rewards.load(settings.grader), judges)
