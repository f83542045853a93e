"""`atlas eval`: samples of tasks, a session each; a start that was cut off goes on from its results file."""
import argparse
import asyncio
import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping
from typing import Any

from atlas_jax.rollout import teaching
from atlas_jax.runtime import cli_run, task_eval, task_file
from atlas_jax.runtime.assembly import Assembly
from atlas_jax.runtime.cli_codes import ENDPOINT, FAILED, OK
from atlas_jax.runtime.settings_groups import ConfigError, ModelSettings, RuntimeSettings
from atlas_jax.runtime.task_eval import EvalReport, EvalSample, EvalTask

# What answers and scores depend on; results of one are not gone on with under another.
JUDGED = ("agent", "tools", "teacher", "probe", "triage", "grader", "judges", "session", "lane", "policy",
          "lessons", "streams", "tenant", "metadata")


def command(asked: argparse.Namespace, settings: RuntimeSettings) -> int:
  """Evaluates what the flags ask; returns the exit code."""
  rows = task_file.read(asked.tasks)
  for row in rows:
    if row.get("metadata"):
      raise ConfigError(f"{asked.tasks}: a task has metadata, which an evaluation does not hand on; leave it "
                        "out, or use `atlas run`")
  if settings.grader is None and settings.judges is None:
    raise ConfigError("config.grader=None and config.judges.on=False: nothing scores answers; set one of "
                      "them")
  settings = _changed(settings, asked)
  if (problem := cli_run.unreachable(settings.agent)) is not None:
    print(f"atlas: {problem}", file=sys.stderr)
    return ENDPOINT
  found = asyncio.run(_evaluated(settings, task_eval.tasks_of_rows(rows), asked))
  print(json.dumps({"results": asked.out, **found.to_json()}) if asked.json else "\n".join(lines(found)))
  return FAILED if found.errors or not found.scored else OK


def _changed(settings: RuntimeSettings, asked: argparse.Namespace) -> RuntimeSettings:
  """Returns settings with those of the flags, and without a learner: an evaluation teaches nothing."""
  given = {name: value for name, value in (("samples", asked.samples), ("concurrency", asked.concurrency))
           if value is not None}
  for name, value in given.items():
    if value < 1:
      raise ConfigError(f"--{name}={value} must be at least 1")
  if asked.retry_errors:
    given["retry_errors"] = True
  how = dataclasses.replace(settings.evaluation, **given)
  changed = dataclasses.replace(settings, evaluation=how, learner=ModelSettings("none"),
                                lane=asked.lane or settings.lane)
  return cli_run.bounded(changed, how.concurrency)


async def _evaluated(settings: RuntimeSettings, tasks: list[EvalTask], asked: argparse.Namespace
                     ) -> EvalReport:
  async with Assembly(settings, create=True) as assembly:
    await assembly.resume()
    sampler = SessionSampler(assembly, again=settings.evaluation.retry_errors)
    return await task_eval.evaluate(tasks, sampler, asked.out, settings.evaluation, about=_about(assembly),
                                    begun=sampler.begin,
                                    each=(lambda *_: None) if asked.json else _print_sample)


class SessionSampler:
  """Tries tasks as sessions of a runtime; see `task_eval.Sampler`."""

  def __init__(self, assembly: Assembly, *, again: bool):
    """Takes the runtime, and whether sessions that ended without an answer are done anew."""
    self._assembly = assembly
    self._again = again
    self._name = ""

  def begin(self, name: str) -> None:
    """Takes the name of the evaluation, which keys of sessions begin with."""
    self._name = name

  async def __call__(self, task: EvalTask, number: int) -> EvalSample:
    """Runs a sample's session; one that a start before has ended is read from the store."""
    settings = self._assembly.settings
    key = task_eval.session_key(self._name[:16], task, number)
    row: dict[str, Any] = {"task": task.task, "ground_truth": task.ground_truth, "tags": list(task.tags)}
    spec = task_file.spec_of(row, key=key, tenant=settings.tenant, lane=settings.lane,
                             metadata=settings.metadata)
    return task_eval.sample_of(await cli_run.once(self._assembly, spec, failed=self._again))


def _about(assembly: Assembly) -> Mapping[str, Any]:
  """Returns what is evaluated, to be compared with what a results file has."""
  settings = assembly.settings
  whole = {name: value for name, value in dataclasses.asdict(settings).items() if name in JUDGED}
  text = json.dumps(whole, sort_keys=True, default=str)
  return {"student": assembly.student_version,
          "teacher": assembly.base_version, "deployment": assembly.generation, "lane": settings.lane,
          "prompt_sha": teaching.load(settings.agent_templates).sha256[:16],
          "settings": hashlib.sha256(text.encode()).hexdigest()[:16]}


def _print_sample(task: EvalTask, number: int, sample: EvalSample) -> None:
  score = sample.error or (f"no verdict: {sample.more.get('reason')}" if sample.score is None
                           else f"score {sample.score:g}: {sample.answer}")
  print(f"{task.key} #{number + 1} {score}", flush=True)


def lines(found: EvalReport) -> list[str]:
  """Returns a report in lines for people."""
  def value(number: float | None, interval: tuple[float, float] | None) -> str:
    return "none" if number is None else f"{number:.3f}" + (
        "" if interval is None else f" (95%: {interval[0]:.3f} to {interval[1]:.3f})")

  made = [f"{found.tasks} tasks, {found.samples} samples, {found.reused} of them from before: {found.scored} "
          f"scored, {found.no_verdict} without a verdict, {found.errors} errors",
          f"mean score {value(found.mean, found.interval)}"]
  made += [f"pass@{k} {value(one['value'], one['interval'])} of {one['tasks']} tasks"
           for k, one in found.pass_at.items()]
  return made + [f"{count} errors: {kind}" for kind, count in sorted(found.error_kinds.items())]
