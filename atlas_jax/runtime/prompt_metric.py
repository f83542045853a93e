"""The metric of `atlas optimise`: a session under a system message, of the agent or of the teacher.

The message is the one of a set of templates, which is written with the best one as a file that
config.agent.templates and config.teacher.templates read.
"""
import pathlib
from collections.abc import Mapping
from typing import Any

from atlas_jax.files import write
from atlas_jax.rollout import teaching
from atlas_jax.rollout.teaching import TemplateSet
from atlas_jax.runtime import made_parts
from atlas_jax.runtime.agents import load as agent_load
from atlas_jax.runtime.agents.tool_box import ToolBox
from atlas_jax.runtime.events import EventLog, SessionEvent
from atlas_jax.runtime.optimise import PROMPT
from atlas_jax.runtime.reflection_log import Graded, texts_sha
from atlas_jax.runtime.reflection_tasks import ReflectionTask
from atlas_jax.runtime.result import SessionResult
from atlas_jax.runtime.session import FixedLane, SessionParts, SessionSpec, run_session
from atlas_jax.runtime.settings_groups import ConfigError, RuntimeSettings

TURNS = {"agent": ("baseline", "guided", "probe"), "teacher": ("teacher",)}  # That have the message.
LANES = {"agent": "auto", "teacher": "paired"}  # Without config.routing.lane.


def prompt_of(templates: TemplateSet, role: str) -> str:
  """Returns the system message of a set, "" if it has none.

  Raises:
    ConfigError: if its messages have several.
  """
  found = [next((text for of, text in turns if of == "system"), "")
           for name in TURNS[role] if (turns := getattr(templates, name))]
  if len(set(found)) > 1:
    raise ConfigError(f"templates {templates.name!r}: {', '.join(TURNS[role])} have different system "
                      "messages, and a search is for one that they have in common; make them the same")
  return found[0]


def with_prompt(templates: TemplateSet, role: str, text: str) -> TemplateSet:
  """Returns a set with another system message; blank: with none.

  Raises:
    ValueError: for a text with a field that its place does not have.
  """
  first = (("system", text),) if text.strip() else ()
  changed: dict[str, Any] = {
      name: (*first, *(one for one in getattr(templates, name) if one[0] != "system"))
      for name in TURNS[role] if getattr(templates, name)}
  found = templates._replace(**changed)
  teaching.check(found)
  return found


def write_templates(path: str, templates: TemplateSet) -> None:
  """Writes a set as the file that `teaching.load` reads."""
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  fields = {name: value for name, value in templates._asdict().items() if name != "name"}
  write.json(pathlib.Path(path), fields)


class PromptMetric:
  """Tries a system message on a task, see `reflection.Metric`; an async context.

  Sessions of it are in no store: nothing is learnt from them, and nothing routed by them.

  Attributes:
    role: whose message it is.
    templates: those to begin with.
    agent_version: of the agent's code or model.
    tokens: role -> tokens of all tries.
  """

  def __init__(self, settings: RuntimeSettings):
    """Loads agent, teacher and grader.

    Raises:
      ConfigError: for settings under which no system message can be tried.
    """
    self.role = settings.optimise.role
    self.tokens: dict[str, int] = {}
    self._settings = settings
    self._lane = settings.lane or LANES[self.role]
    asked = settings.optimise.templates
    own = settings.agent_templates if self.role == "agent" else settings.teacher.templates
    self.templates = teaching.load(own if asked is None else asked)
    _check(settings, self._lane)
    self._agent = agent_load.load(settings.agent, field="config.agent")
    self.agent_version = self._agent.version
    self._model = made_parts.model_of(settings.teacher)
    self._scorer = made_parts.scorer_of(settings)
    self._box = ToolBox(settings.tools)

  async def __aenter__(self) -> "PromptMetric":
    """Starts the tools."""
    self._tools = await self._box.open()
    return self

  async def __aexit__(self, *error: Any) -> None:
    """Ends the tools."""
    await self._box.close()

  async def __call__(self, texts: Mapping[str, str], task: ReflectionTask) -> Graded:
    """Returns what the session's answer is worth, and what was said of it."""
    changed = with_prompt(self.templates, self.role, texts[PROMPT])
    settings = self._settings
    of_agent, of_teacher = teaching.load(settings.agent_templates), None
    if self.role == "agent":
      of_agent = changed
    else:
      of_teacher = changed
    supervisor = None if self._model is None else made_parts.supervisor_of(self._model, settings.teacher,
                                                                           of_teacher)
    parts = SessionParts(self._agent, supervisor, FixedLane(self._lane), self._scorer, tools=self._tools,
                         settings=settings.session, templates=of_agent)
    spec = SessionSpec(f"optimise-{texts_sha(texts)}-{task.key}", task.task, dict(settings.metadata),
                       ground_truth=task.ground_truth, tenant=settings.tenant)
    events: list[SessionEvent] = []
    found = await run_session(spec, parts, EventLog(spec.key, events.append))
    for role, counts in found.tokens.items():
      self.tokens[role] = self.tokens.get(role, 0) + counts["prompt"] + counts["completion"]
    if found.answer is None:
      return Graded(None, f"{found.status}: {found.problem or 'there is no answer'}")
    if found.reward is None:
      return Graded(None, found.reward_reason or "no verdict", found.answer)
    return Graded(found.reward, feedback_of(found, events), found.answer)


def feedback_of(found: SessionResult, events: list[SessionEvent]) -> str:
  """Returns what grader, judges and teacher said of a session, for whoever rewrites the message."""
  said = []
  for one in found.attempts:
    valid = (one.validation or {}).get("valid")
    verdict = {True: "; the teacher took it", False: "; the teacher refused it"}.get(valid, "")  # type: ignore
    guidance = f"; guidance: {one.guidance}" if one.guidance else ""
    said.append(f"attempt {one.attempt}: {one.answer or one.problem}{verdict}{guidance}")
  scores = [one.data["reward"] for one in events if one.kind == "END" and one.data.get("reward")]
  for score in scores:
    if score.get("value") is not None:
      said.append(f"the {score['source']} gave {score['value']:g} of 1")
    if rationale := (score.get("breakdown") or {}).get("rationale"):
      said.append(str(rationale))
  return "\n".join(said)


def _check(settings: RuntimeSettings, lane: str) -> None:
  role = settings.optimise.role
  if settings.grader is None and settings.judges is None:
    raise ConfigError("config.grader=None and config.judges.on=False: nothing scores answers; set one of "
                      "them")
  if role == "teacher" and (settings.teacher.kind == "none" or lane == "auto"):
    why = "config.teacher.kind='none'" if settings.teacher.kind == "none" else "config.routing.lane='auto'"
    raise ConfigError(f"config.optimise.role='teacher' and {why}: no teacher is asked; set another one, or "
                      "role='agent'")
  teacher = settings.teacher.endpoint
  own = settings.agent.get("form") if role == "agent" else None
  form = teacher.form if role == "teacher" and teacher is not None else own
  if form == "texts":
    raise ConfigError(f"config.optimise.role={role!r} and form='texts' of its endpoint, which takes one text "
                      "and no system message; serve a model with a chat template")
