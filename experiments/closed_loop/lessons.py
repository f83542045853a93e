"""Lessons alone: sessions with a memory of lessons and no trained teacher; the fifth control of the study.

The learner knows nothing: it is the first teacher, of which three hints are drawn, and every hint is a lesson
for the letter of the task. So lessons come from the same guesses from which training begins, and what tells
good ones from bad ones are their trials alone. The student obeys one of the lessons that it is shown.
"""
import json
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from atlas_jax.data.convention import APPROACH, TAGS, Convention
from atlas_jax.data.problems import StableRandom
from atlas_jax.rollout.chat_form import EndpointReply, ReplyTokens
from atlas_jax.runtime import lesson_entries
from atlas_jax.runtime.learner import MOST_LESSONS, Learner
from atlas_jax.runtime.lesson_states import LessonBookSettings
from atlas_jax.runtime.lesson_trials import ACTIVE, RETIRED
from atlas_jax.runtime.lessons import LessonBook
from atlas_jax.runtime.result import SessionResult
from atlas_jax.runtime.store import RuntimeStore
from experiments.closed_loop import config as settings
from experiments.closed_loop import free, loop, models, sessions
from experiments.closed_loop.loop import Seed
from experiments.closed_loop.sessions import Given, Team

ROUNDS = 8        # The last lessons of a letter are tried after 160 of its sessions, five rounds.
SEEN = (1, 2, 3)  # Rounds after which the held-out tasks are run, beside the last.
BOOK = LessonBookSettings(read_s=0.0)


class Guesses:
  """A learner's model that proposes what it has drawn for a task, whatever came of the session."""

  def __init__(self, drawn: Mapping[str, Sequence[str]]):
    """Takes hints by task."""
    self._drawn = drawn

  async def ask(self, messages: Sequence[Mapping[str, Any]], *, options: Any = None) -> EndpointReply:
    """Returns lessons; see `chat_models.ChatModel`."""
    del options
    task = json.loads(messages[-1]["content"].splitlines()[1])["task"]
    lessons = [{"audience": "student", "cue": {"kind": "keyword", "pattern": task[0]}, "action": hint}
               for hint in dict.fromkeys(self._drawn[task]) if hint.strip()]
    return EndpointReply(json.dumps(lessons), ReplyTokens(), {}, data={"lessons": lessons})


class Shown:
  """A memory of lessons from which nothing is learnt: for evaluations."""

  def __init__(self, book: LessonBook):
    """Takes the lessons."""
    self._book = book

  async def shown(self, work) -> str | None:
    """Returns the lessons of a session; see `session.LessonMemory`."""
    return await self._book.shown(work)

  async def learn(self, work) -> None:
    """Learns nothing."""


def rows(seed: Seed, rounds: int, *, arm: str = "lessons", own: int = ROUNDS) -> dict[str, dict]:
  """Runs rounds of sessions with lessons, and the held-out tasks after some; returns a row of each of these.

  Args:
    seed: models and tasks.
    rounds: of the loop, whose last teacher is at work in the end, beside the first.
    arm: "lessons", or "lessons_shuffled": each task comes with the right answer of another one's letter, so
      that no lesson is of use, and none should become active.
    own: rounds of sessions with lessons.
  """
  team = seed.team(seed.first)
  loop.removed(seed.folder / arm / "atlas.db")
  before = loop.measured(seed.held_out, sessions.run(
      seed.held_out, team, url=_made(seed, arm, "held_out_0"), prefix="held-0", lane="auto"))
  found = {f"{arm}/{seed.seed}/0": {"arm": arm, "seed": seed.seed, "round": 0, **before}}
  for number in range(1, own + 1):
    spent = _collected(seed, arm, number - 1, team)
    if number != own and (arm != "lessons" or number not in SEEN):
      continue
    name = f"{arm}/{seed.seed}/{number}"
    row = loop.measured(seed.held_out, _evaluated(seed, arm, number, team))
    kept = sum(one >= other for one, other in zip(row["right"], before["right"], strict=True))
    tried = loop.measured(seed.held_out, _evaluated(seed, arm, number, team, trials=True))
    found[name] = {"arm": arm, "seed": seed.seed, "round": number, **row, "alone": before["accuracy"],
                   "right_alone": before["right"], "ndr": kept / len(row["right"]), **spent,
                   "with_trials": tried["accuracy"],
                   "lessons": sessions.with_store(seed.url(arm), lambda store: _states(store, seed, team))}
    print(name, {key: found[name][key] for key in ("accuracy", "with_trials", "lessons")}, flush=True)
  if arm == "lessons":
    found[name] |= _free(seed, arm, own, team, loop.trained_rounds(seed, rounds)[-1])
  return found


def _collected(seed: Seed, arm: str, number: int, team: Team) -> dict:
  """Runs a round's tasks in the lane auto, and has the sessions reviewed; returns what was right in it."""
  given = sessions.tasks(seed.seed, number, seed.count)
  if arm == "lessons_shuffled":
    given = _shuffled(seed.seed, number, given)
  else:
    planted = round(seed.count * sessions.POISON_SHARE / (1 - sessions.POISON_SHARE))
    every = seed.count // planted
    for place, one in enumerate(sessions.poison(seed.seed, number, planted)):
      given.insert(place * (every + 1), one)  # Among the others: lessons are of what came before.
  tasks = [str(one.problem.prompt) for one in given]
  texts = [text + APPROACH.format(tag=text[0]) for text in tasks]
  draws = [team.teacher.write(texts, max_tokens=settings.HINT_TOKENS, temperature=1.0,
                              seed=1_000_000 * seed.seed + 10_000 * number + 1_000 * one)
           for one in range(MOST_LESSONS)]
  learner = Learner(Guesses(dict(zip(tasks, zip(*draws, strict=True), strict=True))))
  url = seed.url(arm)
  results = sessions.run(given, team, url=url, prefix=f"{arm}-{number}", lane="auto",
                         lessons=lambda store: LessonBook(store, BOOK, learner=learner))
  moved = sessions.reviewed(url, seed.seed) if arm == "lessons" else {}
  sessions.with_store(url, lambda store: _judged(store, team))
  right = sum(one.answer == task.problem.answer for task, one in zip(given, results, strict=True)
              if not task.is_poison)
  return {"right_in_round": right / seed.count, "quarantined": moved.get("quarantined", 0)}


def _shuffled(seed: int, number: int, given: Sequence[Given]) -> list[Given]:
  """Returns tasks of which each has the right answer of the form that another one's letter asks for."""
  key = Convention(tag_seed=seed).conventions
  forms = [one.problem.extra["convention"] for one in given]
  draws = StableRandom(seed, number, 8)
  for last in range(len(forms) - 1, 0, -1):
    other = draws.below(last + 1)
    forms[last], forms[other] = forms[other], forms[last]
  return [one._replace(truth=sessions.right_answer(str(one.problem.prompt), dict.fromkeys(key, form)))
          for one, form in zip(given, forms, strict=True)]


def _evaluated(seed: Seed, arm: str, number: int, team: Team, *, trials: bool = False) -> list[SessionResult]:
  """Runs the held-out tasks without a teacher, with the active lessons; with those in trial only if asked."""
  url = _made(seed, arm, f"{'trials' if trials else 'held_out'}_{number}", team, trials=trials)
  return sessions.run(seed.held_out, team, url=url, prefix=f"held-{number}", lane="auto", lessons=_shown)


def _free(seed: Seed, arm: str, number: int, team: Team, last: loop.Round) -> dict:
  """Returns the numbers of free routing with lessons, under the first teacher and under the loop's last.

  With its lessons the student is another agent, whose history begins anew; but for "stale", where the
  failures count that were before the lessons.
  """
  anew = lambda one: one._replace(student_version=f"{one.student_version}, taught")
  found = {}
  for name, by in (("stale", team), ("free", anew(team)), ("free_loop", anew(seed.team(last)))):
    url = _made(seed, arm, f"{name}_{number}", team)
    results = sessions.run(seed.held_out, by, url=url, prefix=f"held-{number}", lane=None,
                           router=free.router_of, lessons=_shown, key_version=team.student_version)
    found[name] = free.routed(seed.held_out, results)
    print(arm, seed.seed, name, found[name], flush=True)
  return found


def _shown(store: RuntimeStore) -> Shown:
  return Shown(LessonBook(store, BOOK))


def _made(seed: Seed, arm: str, name: str, team: Team | None = None, *, trials: bool = False) -> str:
  """Makes a store for an evaluation: empty, or a copy of the arm's with the lessons of some states alone."""
  file, source = seed.folder / arm / f"{name}.db", seed.folder / arm / "atlas.db"
  loop.removed(file)
  url = f"sqlite:///{file}"
  if team is not None:
    shutil.copy(source, file)
    if not trials:
      sessions.with_store(url, lambda store: _active_alone(store, team))
  return url


# Playbooks.


def _keys(team: Team) -> dict[str, str]:
  """Returns the playbook of each letter."""
  agent = models.StudentAgent(team.student, team.student_version)
  return {tag: sessions.key_of(agent, tag) for tag in TAGS}


async def _judged(store: RuntimeStore, team: Team) -> None:
  """Moves the lessons of all letters on, by what reviews have changed."""
  book = LessonBook(store, BOOK)
  for key in _keys(team).values():
    await book.judge(key, now=True)


async def _active_alone(store: RuntimeStore, team: Team) -> None:
  for key in _keys(team).values():
    active = lambda there: [one for one in there if one["state"] == ACTIVE]
    await lesson_entries.change_all(store, key, active)


async def _states(store: RuntimeStore, seed: Seed, team: Team) -> dict:
  """Returns how many lessons are in which state, why some were retired, and what became of right ones."""
  letters = Convention(tag_seed=seed.seed).conventions
  counts: dict[str, int] = {}
  for tag, key in _keys(team).items():
    _, entries = await store.read_playbook(key)
    for one in entries:
      is_right = letters[tag] != "plain" and one["action"] == letters[tag]
      why = f": {one['reason']}" if one["state"] == RETIRED else ""
      name = f"{'right' if is_right else 'other'}, {one['state']}{why}"
      counts[name] = counts.get(name, 0) + 1
  return dict(sorted(counts.items()))
