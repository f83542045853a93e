"""The command `atlas optimise`: reflection over an agent's texts, on tasks of a file or reviewed sessions."""
import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from atlas_jax.files.damage import one_line
from atlas_jax.rollout.chat_form import AskOptions
from atlas_jax.runtime import reflection
from atlas_jax.runtime.agents.agent import Agent, AgentSession
from atlas_jax.runtime.chat_models import ChatModel
from atlas_jax.runtime.reflection import ReflectionResult, ReflectionSettings
from atlas_jax.runtime.reflection_log import Graded
from atlas_jax.runtime.reflection_tasks import ReflectionTask
from atlas_jax.runtime.result import AttemptRecord
from atlas_jax.runtime.scoring import Scorer
from atlas_jax.runtime.task_eval import EvalTask

PROMPT = "prompt"
# (task, answer, score) -> what was wrong, as text.
Feedback = Callable[[ReflectionTask, str, float | None], str]


class AgentMetric:
  """Tries a prompt on a task: the agent is asked with it as its system message, and the answer is scored.

  An agent that cannot be asked raises, which is an error and no score.
  """

  def __init__(self, agent: Agent, scorer: Scorer, *, feedback: Feedback | None = None):
    """Takes the agent.

    Args:
      agent: that is asked.
      scorer: of its answers.
      feedback: says what was wrong with an answer; None: what graders and judges say. It decides whether the
        reflecting model gets to know the reference answer.
    """
    self._agent = agent
    self._scorer = scorer
    self._feedback = feedback

  async def __call__(self, texts: Mapping[str, str], task: ReflectionTask) -> Graded:
    """Returns what the agent's answer is worth; see `reflection.Metric`."""
    messages = [{"role": "system", "content": texts[PROMPT]}, {"role": "user", "content": task.task}]
    session = AgentSession(f"optimise-{task.key}", task.task, {})
    reply = await self._agent(messages, tools=(), session=session)
    attempts = [AttemptRecord(1, 1, reply.text, "unverified")]
    found = self._scorer.grade(task.task, reply.text, task.ground_truth, attempts)
    if found.value is None and self._scorer.has_judges:
      found = await self._scorer.judge(task.task, reply.text, task.ground_truth, attempts, None)
    if found.value is None:
      return Graded(None, found.reason or "no verdict", reply.text)
    if self._feedback is not None:
      said = self._feedback(task, reply.text, found.value)
    else:
      said = str(found.breakdown.get("rationale") or f"the {found.source} gave {found.value:g} of 1")
    return Graded(found.value, said, reply.text)


def optimise(first: Mapping[str, str], tasks: Sequence[EvalTask | ReflectionTask], metric: reflection.Metric,
             model: ChatModel, folder, settings: ReflectionSettings, *, options: AskOptions | None = None
             ) -> ReflectionResult:
  """Searches for better texts, outside of an event loop; see `reflection.optimise`.

  Args:
    first: texts by name; `reflection_tasks.read_texts` reads them of a file.
    tasks: of `task_eval.tasks_of_rows` or `reflection_tasks.tasks_of_sessions`.
    metric: such as an `AgentMetric`.
    model: that reflects.
    folder: of the search's log.
    settings: of the search.
    options: of the model's requests.

  Raises:
    ValueError: see `reflection.optimise`; also for texts that an `AgentMetric` does not use.
  """
  if isinstance(metric, AgentMetric) and set(first) != {PROMPT}:
    raise ValueError(f"texts are {', '.join(sorted(first))}; an agent is asked with the one text {PROMPT!r}")
  return asyncio.run(search(first, tasks, metric, model, folder, settings, options=options))


async def search(first: Mapping[str, str], tasks: Sequence[EvalTask | ReflectionTask],
                 metric: reflection.Metric, model: ChatModel, folder, settings: ReflectionSettings, *,
                 options: AskOptions | None = None, about: Mapping[str, Any] | None = None
                 ) -> ReflectionResult:
  """Searches for better texts in an event loop, and closes the model; see `optimise` and its arguments.

  Args:
    about: what scores depend on besides; a log of another is refused.
  """
  listed = [ReflectionTask(one.key, one.task, one.ground_truth) for one in tasks]
  try:
    return await reflection.optimise(first, listed, metric, model, folder, settings, options=options,
                                     about=about)
  finally:
    await closed(model)


def summary(found: ReflectionResult) -> str:
  """Returns what a search found, in lines for people."""
  if found.first is None or found.best is None:
    held_out = "no held-out task has a score of both"
  else:
    held_out = f"{found.held_out} held-out tasks: {found.first:.3f} before, {found.best:.3f} with the best"
  verdict = "reported: the best text" if found.improved else "reported: the first text, which nothing beat"
  refused = "".join(f", {count} {one_line(why)}" for why, count in sorted(found.refused.items()))
  return (f"{held_out}\n{verdict}\n{found.spent} metric calls, {found.errors} without a score; "
          f"{found.reflections} reflections{refused}; {len(found.candidates)} texts, {len(found.front)} of "
          f"them in the Pareto set; ended by: {found.stopped}")


async def closed(model: Any) -> None:
  """Closes a model, if it has something to close."""
  close = getattr(model, "close", None)
  if close is not None:
    done = close()
    if inspect.isawaitable(done):
      await done
