"""Sessions of the study: tasks go through the runtime, into a store, past a reviewer, and out again."""
import asyncio
import concurrent.futures
import contextlib
import itertools
import json
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, NamedTuple

from atlas_jax.data.convention import CONVENTIONS, TAGS, Convention
from atlas_jax.data.problems import Problem, StableRandom
from atlas_jax.data.traces import export, review
from atlas_jax.data.traces.query import APPROVED, PENDING, QUARANTINED, SessionQuery
from atlas_jax.data.traces.store import SqlStore, open_store
from atlas_jax.rollout import rewards
from atlas_jax.runtime.fingerprint import fingerprint, learning_key
from atlas_jax.runtime.pool import PoolSettings, SessionPool
from atlas_jax.runtime.result import SessionResult
from atlas_jax.runtime.scoring import GraderAndJudges
from atlas_jax.runtime.session import FixedLane, LessonMemory, Router, SessionParts, SessionSpec
from atlas_jax.runtime.store import RuntimeStore, StoreSettings
from atlas_jax.runtime.supervision import Supervisor
from experiments.adaptive_teacher.models import Writer
from experiments.closed_loop import config as settings
from experiments.closed_loop import models

TASKS = 256
POISON_SHARE = 0.05
REVIEWER = "scripted"
WAVE = 32  # Tasks at a time where lanes or lessons depend on what came before.
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
        router: Callable[[RuntimeStore], Router] | None = None, family: Callable[[Given], str] | None = None,
        lessons: Callable[[RuntimeStore], LessonMemory] | None = None,
        key_version: str | None = None) -> list[SessionResult]:
  """Runs tasks through the runtime, in their order, and in waves where later ones depend on earlier ones.

  Args:
    given: the tasks.
    team: student and teacher.
    url: of the store.
    prefix: of the sessions' keys.
    lane: fixed one; None: `router` chooses.
    router: makes a router of the store.
    family: of tasks; None: their letter.
    lessons: makes a memory of lessons of the store; None: there is none.
    key_version: of the student in learning keys, under which its lessons are; None: its version.
  """
  approaches: Sequence[str | None] = [None] * len(given)
  if lane != "auto":  # For the teacher.
    approaches = team.student.write([f"{one.problem.prompt}?" for one in given],
                                    max_tokens=settings.PROBE_TOKENS)
  # In a thread: notebooks have a loop that runs already.
  with concurrent.futures.ThreadPoolExecutor(1) as thread:
    return thread.submit(asyncio.run, _run(given, approaches, team, url, prefix, lane, router,
                                           family or letter, lessons, key_version)).result()


async def _run(given, approaches, team, url, prefix, lane, router, family, lessons, key_version
               ) -> list[SessionResult]:
  agent = models.StudentAgent(team.student, key_version or team.student_version)
  versions = {"student": team.student_version, "teacher": team.teacher_version}
  async with at_work(url) as store:
    parts = SessionParts(agent, Supervisor(models.TeacherModel(team.teacher), models.templates()),
                  FixedLane() if router is None else router(store), GraderAndJudges(rewards.load("verbatim")),
                  None if lessons is None else lessons(store), versions=versions)
    pool = SessionPool(parts, store, settings=PoolSettings(tenant=TASKS, sessions=TASKS))
    specs = [SessionSpec(f"{prefix}-{place}", one.problem.prompt, ground_truth=one.truth,
                         tags=(family(one),), tenant=TENANT, lane=lane, approach=approach,
                         learning_key=key_of(agent, family(one)))
             for place, (one, approach) in enumerate(zip(given, approaches, strict=True))]
    wave = len(specs) if lane is not None and lessons is None else WAVE
    found: list[SessionResult] = []
    for first in range(0, len(specs), max(1, wave)):
      found += await asyncio.gather(*(pool.run(one) for one in specs[first:first + wave]))
      await store.settled()
    return found


@contextlib.asynccontextmanager
async def at_work(url: str) -> AsyncIterator[RuntimeStore]:
  """Opens the store of sessions that run, which is made where there is none."""
  file = url.removeprefix("sqlite:///")
  pathlib.Path(file).parent.mkdir(parents=True, exist_ok=True)
  store = RuntimeStore(StoreSettings(url, spool=f"{file}.spool"))
  await store.open(create=True)
  try:
    yield store
  finally:
    await store.close()


def letter(one: Given) -> str:
  """Returns the letter of a task, which is its family."""
  return one.problem.extra["tag"]


def key_of(agent: models.StudentAgent, family: str) -> str:
  """Returns the learning key of a family of tasks."""
  made = fingerprint(agent.name, TENANT, (), (family,), student_version=agent.version,
                     prompt_sha="", tools_sha="")
  return learning_key(TENANT, made)


def with_store(url: str, doing: Callable[[RuntimeStore], Awaitable[Any]]) -> Any:
  """Returns what a function makes of the store of sessions."""
  async def opened() -> Any:
    async with at_work(url) as store:
      return await doing(store)

  with concurrent.futures.ThreadPoolExecutor(1) as thread:
    return thread.submit(asyncio.run, opened()).result()


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
