"""`atlas optimise`: a better system message for agent or teacher, by reflection under a stated budget."""
import argparse
import asyncio
import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from atlas_jax.data.problems import StableRandom
from atlas_jax.data.traces.query import SessionQuery
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.store import open_store
from atlas_jax.rollout.chat_form import AskOptions, EndpointReply
from atlas_jax.runtime import (
  cli_run,
  made_parts,
  optimise,
  prompt_metric,
  reflection_tasks,
  task_eval,
  task_file,
)
from atlas_jax.runtime.chat_models import ChatModel
from atlas_jax.runtime.cli_codes import ENDPOINT, OK
from atlas_jax.runtime.prompt_metric import PromptMetric
from atlas_jax.runtime.reflection import ReflectionResult
from atlas_jax.runtime.reflection_tasks import ReflectionTask
from atlas_jax.runtime.settings_groups import ConfigError, RuntimeSettings

PAGE_ROWS = 500
# What tries depend on; a search under others does not go on.
JUDGED = ("agent", "agent_templates", "tools", "teacher", "grader", "judges", "session", "lane", "tenant",
          "metadata")


class CountedModel:
  """A model whose tokens are counted.

  Attributes:
    tokens: of all replies that were said to have some.
  """

  def __init__(self, model: ChatModel):
    """Takes the model."""
    self.tokens = 0
    self._model = model

  async def ask(self, messages: Sequence[Mapping[str, Any]], *,
                options: AskOptions | Mapping[str, Any] | None = None) -> EndpointReply:
    """Returns the model's reply."""
    reply = await self._model.ask(messages, options=options)
    self.tokens += sum(count or 0 for count in reply.usage[:2])
    return reply

  async def close(self) -> None:
    """Closes the model, if it has something to close."""
    await optimise.closed(self._model)


def command(asked: argparse.Namespace, settings: RuntimeSettings) -> int:
  """Searches for a better message, and writes the templates; returns the exit code."""
  how = settings.optimise
  model = made_parts.model_of(how.model)
  if model is None:
    raise ConfigError("config.optimise.model.kind='none': `atlas optimise` needs a model that reflects; name "
                      "a function or an endpoint")
  metric = PromptMetric(settings)
  first = {optimise.PROMPT: prompt_metric.prompt_of(metric.templates, metric.role)}
  tasks, more = _tasks(asked.tasks or how.tasks, settings)
  for place, url in (("agent.options", settings.agent.get("url")), ("optimise.model", _url(how.model)),
                     ("teacher", _url(settings.teacher))):
    if (problem := cli_run.unreachable({"url": url})) is not None:
      print(f"atlas: {problem.replace('config.agent.options', f'config.{place}')}", file=sys.stderr)
      return ENDPOINT
  counted = CountedModel(model)
  try:
    found = asyncio.run(_searched(first, tasks, metric, counted, settings))
  except ValueError as error:  # The search names its settings by its own name.
    raise ConfigError(str(error).replace("reflection.", "config.optimise.")) from error
  prompt_metric.write_templates(how.out, prompt_metric.with_prompt(metric.templates, metric.role,
                                                                   found.texts[optimise.PROMPT]))
  tokens = metric.tokens | {"reflection": counted.tokens}
  if asked.json:
    print(json.dumps(_said(found, settings) | {"tokens": tokens, **more}, ensure_ascii=False))
    return OK
  print(f"{more['tasks']} tasks, {more['withheld']} sessions withheld, {more['left_out']} tasks left out")
  print(optimise.summary(found))
  print(f"tokens of this start: {', '.join(f'{role} {count}' for role, count in sorted(tokens.items()))}")
  print(f"written to {how.out}: --config.{metric.role}.templates={how.out}")
  return OK


async def _searched(first: Mapping[str, str], tasks: Sequence[ReflectionTask], metric: PromptMetric,
                    model: CountedModel, settings: RuntimeSettings) -> ReflectionResult:
  how = settings.optimise
  whole = {name: value for name, value in dataclasses.asdict(settings).items() if name in JUDGED}
  said = json.dumps([whole, how.role, metric.templates, metric.agent_version], sort_keys=True, default=str)
  async with metric:
    return await optimise.search(first, tasks, metric, model, how.folder, how.search,
                                 options=made_parts.options_of(how.model),
                                 about={"of": hashlib.sha256(said.encode()).hexdigest()})


def _said(found: ReflectionResult, settings: RuntimeSettings) -> dict[str, Any]:
  names = ("improved", "first", "best", "held_out", "spent", "errors", "reflections", "refused", "stopped")
  whole = found.to_json()
  return {"out": settings.optimise.out, "folder": settings.optimise.folder, "role": settings.optimise.role,
          "budget": settings.optimise.search.metric_calls, "texts": len(found.candidates),
          "pareto": len(found.front), **{name: whole[name] for name in names}}


def _tasks(file: str | None, settings: RuntimeSettings) -> tuple[list[ReflectionTask], dict[str, int]]:
  """Returns the tasks of a file, or of the tenant's sessions, and how many of either are not used."""
  withheld = 0
  if file is not None:
    rows = task_file.read(file)
    if any(row.get("metadata") for row in rows):
      raise ConfigError(f"{file}: a task has metadata, which a search does not hand on; leave it out")
    found = [ReflectionTask(one.key, one.task, one.ground_truth) for one in task_eval.tasks_of_rows(rows)]
  else:
    with open_store(settings.store.url) as opened:
      query = SessionQuery(review_statuses=None, most_events=0, newest_first=False)
      traces = [Trace.from_json(one.record()) for page in opened.pages(query, page_rows=PAGE_ROWS)
                for one in page]
    mine = [one for one in traces if one.session_metadata.get("tenant_id") == settings.tenant]
    found, withheld = reflection_tasks.tasks_of_sessions(mine)
    if not found:
      raise ConfigError(f"{settings.store.url} has no session of tenant {settings.tenant!r} that is approved "
                        f"or graded ({withheld} are withheld); give --tasks=FILE, or review sessions")
  most = settings.optimise.most_tasks
  rng = StableRandom(settings.optimise.search.seed, 3)
  drawn = found if len(found) <= most else reflection_tasks.drawn(rng, found, most)
  return drawn, {"tasks": len(drawn), "withheld": withheld, "left_out": len(found) - len(drawn)}


def _url(model: Any) -> str | None:
  return None if model.endpoint is None else model.endpoint.url

