"""Parts of a runtime made from its settings: models, teacher, learner, triage, lessons, graders."""
import os
from collections.abc import Callable
from typing import Any

from atlas_jax.rollout import rewards, teaching, user_functions
from atlas_jax.rollout.chat_form import AskOptions
from atlas_jax.rollout.endpoint import Endpoint
from atlas_jax.runtime.chat_models import ChatModel, FunctionModel
from atlas_jax.runtime.learner import Learner
from atlas_jax.runtime.lessons import LessonBook
from atlas_jax.runtime.routing import Triage
from atlas_jax.runtime.scoring import GraderAndJudges, Scorer, Unscored
from atlas_jax.runtime.settings import ModelSettings, RuntimeSettings
from atlas_jax.runtime.store import RuntimeStore
from atlas_jax.runtime.supervision import Supervisor
from atlas_jax.runtime.triage import FunctionTriage, ModelTriage


def options_of(settings: ModelSettings) -> AskOptions:
  """Returns the options of a model's requests."""
  return AskOptions(max_tokens=settings.max_tokens, temperature=settings.temperature)


def supervisor_of(model: ChatModel, settings: ModelSettings,
                  templates: teaching.TemplateSet | None = None) -> Supervisor:
  """Returns the teacher that a model is, with the options of the config.

  Args:
    model: that is asked.
    settings: of it.
    templates: in place of those of the settings.
  """
  return Supervisor(model, templates or teaching.load(settings.templates), options=options_of(settings))


def lessons_of(settings: RuntimeSettings, store: RuntimeStore) -> LessonBook | None:
  """Returns the memory of lessons that settings name; None: there is none."""
  if settings.lessons is None:
    return None
  return LessonBook(store, settings.lessons, learner=learner_of(settings))


def learner_of(settings: RuntimeSettings) -> Learner | None:
  """Returns the model that writes lessons; None: there is none."""
  model = model_of(settings.learner)
  return None if model is None else Learner(model, options=options_of(settings.learner))


def triage_of(settings: RuntimeSettings) -> Triage | None:
  """Returns what looks at tasks before they are routed; None: nothing does."""
  given = settings.triage
  if given.kind == "function":
    assert given.function is not None
    return FunctionTriage(_function(given.function), given.deadline_s)
  model = model_of(given)
  return None if model is None else ModelTriage(model, options_of(given), given.deadline_s)


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
  models = (settings.teacher, settings.probe, settings.learner, settings.triage, settings.optimise.model)
  named = [one.endpoint.key_variable for one in models if one.endpoint is not None]
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
