"""Sessions of the study: tasks go through the runtime, into a store, past a reviewer, and out again."""
import asyncio
import concurrent.futures
import contextlib
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from atlas_jax.data.convention import CONVENTIONS, TAGS, Convention
from atlas_jax.data.problems import Problem, StableRandom
from atlas_jax.data.traces import export, review
from atlas_jax.data.traces.query import APPROVED, PENDING, QUARANTINED, SessionQuery
from atlas_jax.data.traces.record import Trace
from atlas_jax.data.traces.store import SqlStore, open_store
from atlas_jax.rollout import rewards
from atlas_jax.runtime.fingerprint import fingerprint, learning_key
from atlas_jax.runtime.pool import PoolSettings, SessionPool
from atlas_jax.runtime.result import SessionResult
from atlas_jax.runtime.scoring import GraderAndJudges
from atlas_jax.runtime.session import FixedLane, Router, SessionParts, SessionSpec
from atlas_jax.runtime.store import RuntimeStore, StoreSettings
from atlas_jax.runtime.supervision import Supervisor
from experiments.adaptive_teacher.models import Writer
from experiments.closed_loop import config as settings
from experiments.closed_loop import models

TASKS = 256
POISON_SHARE = 0.05
REVIEWER = "scripted"
WAVE = 32  # Tasks at a time where lanes are chosen by what came before.
TENANT = "study"


class Given(NamedTuple):
  """A task as it is submitted."""

  problem: Problem
  truth: str | None  # what is said to be the right answer
  is_poison: bool = False


class Team(NamedTuple):
  """Who works at sessions."""

  student: Writer
  student_version: str
  teacher: Writer
  teacher_version: str


def tasks(seed: int, number: int, count: int = TASKS) -> list[Given]:
  """Returns the tasks of a round, of sums that are never held out."""
  found = Convention(seed=1_000 * (number + 1) + seed, tag_seed=seed).first(count)
  return [Given(one, one.answer) for one in found]


def held_out(seed: int, count: int = TASKS) -> list[Given]:
  """Returns the tasks of all evaluations of a seed."""
  found = Convention(split="held_out", seed=seed, tag_seed=seed).first(count)
  return [Given(one, one.answer) for one in found]


def poison(seed: int, number: int, count: int, *, aimed_at: int = 3) -> list[Given]:
  """Returns tasks that somebody submits with wrong answers, tenfold ones where plain ones are right.

  The student can be brought to give them, so that a teacher which learns from them spoils what was right.

  Args:
    seed: of letters and sums.
    number: of the round.
    count: tasks.
    aimed_at: plain letters that they are of, the first ones.
  """
  found = Convention(seed=1_000 * (number + 501) + seed, tag_seed=seed)
  aims = [tag for tag in TAGS if found.conventions[tag] == "plain"][:aimed_at]
  wanted = (found.problem(index) for index in itertools.count())
  plain = (one for one in wanted if one.extra["tag"] in aims)
  return [Given(one, CONVENTIONS["tenfold"](one.extra["a"] + one.extra["b"]), True)
          for one in itertools.islice(plain, count)]


def run(given: Sequence[Given], team: Team, *, url: str, prefix: str, lane: str | None = "paired",
        router: Callable[[RuntimeStore], Router] | None = None) -> list[SessionResult]:
  """Runs tasks through the runtime, in their order.

  Args:
    given: the tasks.
    team: student and teacher.
    url: of the store.
    prefix: of the sessions' keys.
    lane: fixed one; None: `router` chooses, a wave of tasks after the other.
    router: makes a router of the store.
  """
  probes = [f"{one.problem.prompt}?" for one in given]
  approaches = team.student.write(probes, max_tokens=settings.PROBE_TOKENS)
  # In a thread: notebooks have a loop that runs already.
  with concurrent.futures.ThreadPoolExecutor(1) as thread:
    return thread.submit(asyncio.run, _run(given, approaches, team, url, prefix, lane, router)).result()


async def _run(given, approaches, team, url, prefix, lane, router) -> list[SessionResult]:
  pathlib.Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
  store = RuntimeStore(StoreSettings(url, spool=f"{url.removeprefix('sqlite:///')}.spool"))
  await store.open(create=True)
  agent = models.StudentAgent(team.student, team.student_version)
  versions = {"student": team.student_version, "teacher": team.teacher_version}
  parts = SessionParts(agent, Supervisor(models.TeacherModel(team.teacher), models.templates()),
                FixedLane() if router is None else router(store), GraderAndJudges(rewards.load("verbatim")),
                versions=versions)
  pool = SessionPool(parts, store, settings=PoolSettings(tenant=TASKS, sessions=TASKS))
  specs = [SessionSpec(f"{prefix}-{place}", one.problem.prompt, ground_truth=one.truth,
                       tags=(one.problem.extra["tag"],), tenant=TENANT, lane=lane, approach=approach,
                       learning_key=key_of(agent, one))
           for place, (one, approach) in enumerate(zip(given, approaches, strict=True))]
  try:
    wave = len(specs) if lane is not None else WAVE
    found: list[SessionResult] = []
    for first in range(0, len(specs), max(1, wave)):
      found += await asyncio.gather(*(pool.run(one) for one in specs[first:first + wave]))
      await store.settled()
    return found
  finally:
    await store.close()


class FirstAttempts:
  """The history of a store with the score of each session's first attempt in place of its last.

  What the student got right with the teacher's help says nothing of how it does without.
  """

  def __init__(self, store: RuntimeStore):
    """Takes the store."""
    self._store = store

  async def history(self, learning_key: str, most: int) -> list[Trace]:
    """Returns the newest sessions of a family; see `RuntimeStore.history`."""
    found = []
    for trace in await self._store.history(learning_key, most):
      attempts = [one for step in trace.steps for one in step.attempts]
      score = attempts[0].score.value if attempts else None
      found.append(Trace.from_json({**trace.to_json(), "session_reward": {"score": score},
                                    "reward_stats": {"score": score, "source": "grader"}}))
    return found


def key_of(agent: models.StudentAgent, one: Given) -> str:
  """Returns the learning key of a task: its letter is the family."""
  made = fingerprint(agent.name, TENANT, (), (one.problem.extra["tag"],), student_version=agent.version,
                     prompt_sha="", tools_sha="")
  return learning_key(TENANT, made)


# Review.


@contextlib.contextmanager
def opened(url: str) -> Iterator[SqlStore]:
  """Opens a store to write reviews."""
  store = open_store(url, writable=True)
  try:
    yield store
  finally:
    store.close()


def reviewed(url: str, seed: int) -> dict[str, int]:
  """Has the scripted reviewer decide on all sessions that wait; returns how many it moved where.

  The reviewer works the right answer out anew, as a person who knows the letters would, and quarantines what
  came with another one.
  """
  key = Convention(tag_seed=seed).conventions
  counts = {APPROVED: 0, QUARANTINED: 0}
  with opened(url) as store:
    waiting = [one for page in store.pages(SessionQuery(review_statuses=(PENDING,), most_events=0))
               for one in page]
    for one in waiting:
      record = one.record()
      wrong = record["session_metadata"].get("ground_truth") != right_answer(record["task"], key)
      to = QUARANTINED if wrong else APPROVED
      review.decide(store, one.id, to, who=REVIEWER, note="the right answer is another" if wrong else None)
      counts[to] += 1
  return counts


def right_answer(question: str, key) -> str:
  """Returns the answer of a question under a key of letters."""
  tag, _, total = question.rstrip("=").partition(" ")
  if tag not in TAGS or tag not in key:
    raise ValueError(f"question={question!r} has no letter of {TAGS}")
  return CONVENTIONS[key[tag]](sum(map(int, total.split("+"))))


def exported(url: str, file: pathlib.Path, *, gate: bool = True) -> int:
  """Writes the sessions that review lets through, or all; returns how many."""
  statuses = (APPROVED,) if gate else None
  with opened(url) as store:
    return export.export(store, file, SessionQuery(review_statuses=statuses)).sessions


def shuffle_truths(file: pathlib.Path, seed: int) -> None:
  """Gives every session the form of answer that another one has, so that rewards follow no letter."""
  rows = [json.loads(line) for line in file.read_text().splitlines()]
  key = Convention(tag_seed=seed).conventions
  draws = StableRandom(seed, 7)
  forms = [key[row["task"][0]] for row in rows]
  for last in range(len(forms) - 1, 0, -1):
    other = draws.below(last + 1)
    forms[last], forms[other] = forms[other], forms[last]
  for row, form in zip(rows, forms, strict=True):
    letters = dict.fromkeys(TAGS, form)
    row["session_metadata"]["ground_truth"] = right_answer(row["task"], letters)
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
