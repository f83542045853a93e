"""Evaluation of tasks: k samples of each, kept in a results file that a stopped evaluation goes on from.

An error is an error and no 0: it is counted beside the scores, and can be asked again by itself.
"""
import asyncio
import dataclasses
import hashlib
import json
import math
import pathlib
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from atlas_jax.data.traces.record import Trace
from atlas_jax.evals.bootstrap import interval_of_mean
from atlas_jax.files import json_lines
from atlas_jax.files.append import Appender
from atlas_jax.files.damage import one_line
from atlas_jax.rollout.endpoint import EndpointError
from atlas_jax.runtime.agents.agent import AgentError
from atlas_jax.runtime.result import SessionResult

HEAD = "evaluation"
PREFIX = "eval-"  # Of keys of sessions that measure: `atlas loop` learns nothing of them.


@dataclasses.dataclass(frozen=True)
class EvalSettings:
  """An evaluation.

  Raises:
    ValueError: for a value that cannot be, naming its field.
  """

  samples: int = 1            # of each task
  concurrency: int = 16       # samples at the same time
  retry_errors: bool = False  # whether samples that were errors before are asked again
  right_from: float = 1.0     # score from which a sample counts as right, for pass@k
  seed: int = 0               # of the draws of intervals

  def __post_init__(self):
    for name in ("samples", "concurrency"):
      if getattr(self, name) < 1:
        raise ValueError(f"eval.{name}={getattr(self, name)} must be at least 1")
    if not 0 <= self.right_from <= 1:
      raise ValueError(f"eval.right_from={self.right_from} must be from 0 to 1")


class EvalTask(NamedTuple):
  """A task to be evaluated."""

  key: str                         # no two tasks have the same
  task: str
  ground_truth: str | None = None
  tags: tuple[str, ...] = ()


class EvalSample(NamedTuple):
  """One try of a task."""

  score: float | None              # from 0 to 1; None: no verdict, or an error
  answer: str | None = None
  error: str | None = None         # its kind and text; None: there is none
  more: Mapping[str, Any] = {}     # what else is to be kept, such as lane and tokens


# Tries a task; what it raises is the error of that sample. The number of the sample counts from 0.
Sampler = Callable[[EvalTask, int], Awaitable[EvalSample]]


@dataclasses.dataclass(frozen=True)
class EvalReport:
  """The outcome of an evaluation.

  Attributes:
    tasks, samples: of the evaluation, scored: samples with a score, errors and no_verdict: those without.
    mean: of the tasks' mean scores; None: nothing was scored.
    interval: of the mean, 95%, by resampling tasks; None: of fewer than two tasks.
    pass_at: k -> {"value", "interval", "tasks"}: the chance that one of k samples is right, over the tasks
      that have k samples with a score or more.
    error_kinds: errors by kind.
    reused: samples that the results file had.
  """

  tasks: int
  samples: int
  scored: int
  errors: int
  no_verdict: int
  mean: float | None
  interval: tuple[float, float] | None
  pass_at: Mapping[int, Mapping[str, Any]]
  error_kinds: Mapping[str, int]
  reused: int

  def to_json(self) -> dict[str, Any]:
    """Returns it as JSON."""
    return {**dataclasses.asdict(self), "pass_at": {str(k): dict(one) for k, one in self.pass_at.items()}}


async def evaluate(tasks: Sequence[EvalTask], sampler: Sampler, results, settings: EvalSettings | None = None,
                   *, about: Mapping[str, Any] | None = None,
                   begun: Callable[[str], None] = lambda name: None,
                   each: Callable[[EvalTask, int, EvalSample], None] = lambda task, number, sample: None
                   ) -> EvalReport:
  """Evaluates tasks, of which only the samples that the results file lacks are asked.

  Args:
    tasks: at least one.
    sampler: tries them.
    results: the file; one line for each sample, written when that has ended.
    settings: of the evaluation.
    about: what is evaluated, such as the versions of the agent; results of something else are refused.
    begun: is called first with the evaluation's name, which its results file keeps for starts that go on.
    each: is called for each new sample.

  Raises:
    ValueError: if there is no task, two have one key, or the file has results of something else.
    files.damage.Damaged: if the file cannot be read.
  """
  how = settings or EvalSettings()
  if not tasks or len({one.key for one in tasks}) < len(tasks):
    raise ValueError("an evaluation needs at least one task, and a key of its own for each")
  pathlib.Path(results).parent.mkdir(parents=True, exist_ok=True)
  out = Appender(results)  # First: nobody else writes while it is read.
  try:
    name, found = _begun(out, results, tasks, dict(about or {}))
    begun(name)
    wanted = [(task, number) for task in tasks for number in range(how.samples)]
    kept = {place for place, one in found.items() if one.error is None or not how.retry_errors}
    left = [(task, number) for task, number in wanted if (task.key, number) not in kept]
    room = asyncio.Semaphore(how.concurrency)

    async def one(task: EvalTask, number: int) -> None:
      async with room:
        sample = await _sampled(sampler, task, number)
        out.line({"task": task.key, "sample": number, **sample._asdict(), "more": dict(sample.more)})
      found[task.key, number] = sample
      each(task, number, sample)

    try:
      async with asyncio.TaskGroup() as group:
        for task, number in left:
          group.create_task(one(task, number))
    except BaseExceptionGroup as errors:
      raise errors.exceptions[0] from None  # Such as of a full disk, which cut off the others.
  finally:
    out.close()
  mine = {(task.key, number): found[task.key, number] for task, number in wanted}
  return report(tasks, mine, how, reused=len(wanted) - len(left))


async def _sampled(sampler: Sampler, task: EvalTask, number: int) -> EvalSample:
  try:
    sample = await sampler(task, number)
  except (AgentError, EndpointError) as error:
    return EvalSample(None, error=f"{error.kind}: {one_line(error)}")
  except Exception as error:  # A sampler of the user's may raise anything.
    return EvalSample(None, error=f"{type(error).__name__}: {one_line(error)}")
  score = sample.score
  if score is None:
    return sample
  is_number = isinstance(score, int | float) and not isinstance(score, bool)
  if not is_number or not math.isfinite(score) or not 0 <= score <= 1:
    return sample._replace(score=None, error=f"score: {score!r} is no number from 0 to 1")
  return sample._replace(score=float(score))


def _begun(out: Appender, file, tasks: Sequence[EvalTask], about: dict[str, Any]
           ) -> tuple[str, dict[tuple[str, int], EvalSample]]:
  """Returns name and samples of a results file, whose first line says of what they are, or begins one."""
  rows = json_lines.read(file)
  head = next(rows, None)
  mine = {"tasks": tasks_sha(tasks), "about": json.loads(json.dumps(about, default=str))}
  kept = {**mine, "name": uuid.uuid4().hex} if head is None else head.get(HEAD)
  if head is None:
    out.line({HEAD: kept})
  if not isinstance(kept, dict) or "name" not in kept:
    raise ValueError(f"{file} has no evaluation; give another file for the results")
  if {name: kept.get(name) for name in mine} != mine:
    what = "other tasks" if kept.get("tasks") != mine["tasks"] else \
        f"an evaluation of {json.dumps(kept.get('about'))}"
    raise ValueError(f"{file} has {what}; give another file for the results")
  found = {}
  for row in rows:  # Of two of one sample the second counts: it was asked again after an error.
    sample = EvalSample(*(row[name] for name in EvalSample._fields))
    found[row["task"], row["sample"]] = sample
  return kept["name"], found


def report(tasks: Sequence[EvalTask], found: Mapping[tuple[str, int], EvalSample], settings: EvalSettings, *,
           reused: int = 0) -> EvalReport:
  """Returns what samples say.

  Args:
    tasks: that were tried.
    found: samples by key of the task and number.
    settings: of the evaluation.
    reused: samples that were there before.
  """
  by_task: dict[str, list[float]] = {task.key: [] for task in tasks}
  kinds: dict[str, int] = {}
  for (key, _), sample in found.items():
    if sample.score is not None:
      by_task[key].append(sample.score)
    elif sample.error is not None:
      kind = sample.error.partition(":")[0]
      kinds[kind] = kinds.get(kind, 0) + 1
  scored = [one for one in by_task.values() if one]
  means = [sum(one) / len(one) for one in scored]
  errors = sum(kinds.values())
  with_score = sum(map(len, scored))
  passes = {}
  for k in range(1, settings.samples + 1):
    values = [pass_at(len(one), sum(score >= settings.right_from for score in one), k)
              for one in scored if len(one) >= k]
    passes[k] = {"value": _mean(values), "interval": _interval(values, settings.seed), "tasks": len(values)}
  no_verdict = len(found) - with_score - errors
  return EvalReport(len(tasks), len(found), with_score, errors, no_verdict, _mean(means),
                    _interval(means, settings.seed), passes, kinds, reused)


def pass_at(samples: int, right: int, k: int) -> float:
  """Returns the chance that one of k samples, drawn from those there are without replacement, is right.

  Source: Chen et al. 2021, arXiv:2107.03374, the unbiased estimate of pass@k.
  """
  return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def _mean(values: Sequence[float]) -> float | None:
  return sum(values) / len(values) if values else None


def _interval(values: Sequence[float], seed: int) -> tuple[float, float] | None:
  found = interval_of_mean(values, [1.0] * len(values), seed=seed)
  return None if found is None else (max(0.0, found[0]), min(1.0, found[1]))


def tasks_of_rows(rows: Iterable[Mapping[str, Any]]) -> list[EvalTask]:
  """Returns the tasks of a task file's rows {task, ground_truth, tags}; each has a key that depends on its
  content, and on how many equal ones stand before it."""
  found: list[EvalTask] = []
  seen: dict[str, int] = {}
  for row in rows:
    truth = None if row.get("ground_truth") is None else str(row["ground_truth"])
    task = EvalTask("", row["task"], truth, tuple(row.get("tags") or ()))
    digest = hashlib.sha256(json.dumps(list(task)).encode()).hexdigest()[:16]
    seen[digest] = seen.get(digest, 0) + 1
    found.append(task._replace(key=digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"))
  return found


def tasks_sha(tasks: Sequence[EvalTask]) -> str:
  """Returns a checksum of tasks."""
  return hashlib.sha256(json.dumps([list(one) for one in tasks]).encode()).hexdigest()


def sample_of(found: SessionResult) -> EvalSample:
  """Returns a session as a sample: without an answer it is an error, by its status."""
  more = {"session_key": found.session_key, "lane": found.lane, "status": found.status,
          "verified": found.verified, "tokens": dict(found.tokens), "versions": dict(found.versions)}
  if found.answer is None:
    return EvalSample(None, None, f"{found.status}: {found.problem or 'there is no answer'}", more)
  if found.reward is None:
    more["reason"] = found.reward_reason
  return EvalSample(found.reward, found.answer, None, more)


def is_of_evaluation(trace: Trace) -> bool:
  """Returns whether a session measures, by its key."""
  return str(trace.session_metadata.get("session_key") or "").startswith(PREFIX)


def session_key(name: str, task: EvalTask, sample: int) -> str:
  """Returns the key of a sample's session: the same on every start, so that one that had ended when a kill
  took its line away is found in the store, and not run twice."""
  return f"{PREFIX}{name}-{task.key}-{sample}"
