"""Free routing: the lane of each held-out task is chosen by the history of its family, among auto and paired.

Every task begins without history; what came before in the same evaluation is all that is known of a family.
"""
import functools
import random
from collections.abc import Callable, Mapping, Sequence

from atlas_jax.data.convention import Convention
from atlas_jax.data.traces.record import Trace
from atlas_jax.runtime import route
from atlas_jax.runtime.evidence import Evidence
from atlas_jax.runtime.result import SessionResult
from atlas_jax.runtime.route import RoutePolicy
from atlas_jax.runtime.routing import HistoryRouter
from experiments.closed_loop import loop, sessions
from experiments.closed_loop.loop import Seed
from experiments.closed_loop.sessions import Given

# Student and teacher write no plans, which the stricter lanes begin with.
POLICY = RoutePolicy(coach_below=0.0, escalate_below=0.0)
# Plain letters and others that are one family: the student is right alone in 75, 67 and 50% of it.
MIXES: Mapping[str, Sequence[tuple[int, int]]] = {"3 of 4": ((3, 1),), "2 of 3": ((2, 1), (1, 1))}
CHANCES = (0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.9, 1.0)
FAMILIES = 400  # Of each chance.


class OnlyAnswers:
  """The history of a store without attempts: what counts is the answer of a session, with the teacher's help.

  So the runtime counted before 2026-12-01.
  """

  def __init__(self, store):
    """Takes the store."""
    self._store = store

  async def history(self, learning_key: str, most: int) -> list[Trace]:
    """Returns the newest sessions of a family; see `RuntimeStore.history`."""
    return [Trace.from_json({**one.to_json(), "steps": []})
            for one in await self._store.history(learning_key, most)]


def rows(seed: Seed, rounds: int, *, arm: str = "free") -> dict[str, dict]:
  """Returns a row of each round's teacher: "free" as the runtime is, "answers" by `OnlyAnswers`."""
  seen = OnlyAnswers if arm == "answers" else lambda store: store
  found = {}
  for at in loop.trained_rounds(seed, rounds):
    results = _run(seed, arm, at, router=lambda store: router_of(seen(store)))
    found[f"{arm}/{seed.seed}/{at.number}"] = {"arm": arm, "seed": seed.seed, "round": at.number,
                                               "free": routed(seed.held_out, results)}
    print(arm, seed.seed, at.number, found[f"{arm}/{seed.seed}/{at.number}"]["free"], flush=True)
  return found


def mixed_row(seed: Seed, rounds: int) -> dict[str, dict]:
  """Returns the row of families of several letters, which the student knows in part, with the last teacher.

  A letter alone is right always or never: any rule that looks at first attempts finds the right lane for it.
  """
  last = loop.trained_rounds(seed, rounds)[-1]
  families: dict[str, dict] = {}
  for name, mix in MIXES.items():
    of = _families(seed, mix)
    family_of = lambda one, of=of: of[sessions.letter(one)]
    results = _run(seed, "mixed", last, router=router_of, family=family_of)
    for family in sorted(set(of.values())):
      both = [(task, one) for task, one in zip(seed.held_out, results, strict=True)
              if family_of(task) == family]
      plain = sum(task.problem.extra["convention"] == "plain" for task, _ in both)
      auto = [(task, one) for task, one in both if one.lane == "auto"]
      families[f"{name}: {family}"] = {
          "tasks": len(both), "alone": plain, "auto": len(auto),
          "auto_right": sum(one.answer == task.problem.answer for task, one in auto),
          "right": sum(one.answer == task.problem.answer for task, one in both)}
  return {f"mixed/{seed.seed}/{last.number}": {"arm": "mixed", "seed": seed.seed, "round": last.number,
                                               "families": families}}


def bound_row(seed: Seed, rounds: int) -> dict[str, dict]:
  """Returns the fraction of auto among drawn sessions whose student has a chance to be right, by `route`.

  No model is asked. The history is read before each session, as often as it can be: a bound that is looked at
  so often is passed by luck more often than a bound that is looked at once.
  """
  del rounds
  draws = random.Random(seed.seed)
  found = {f"{chance:g}": _drawn(draws, lambda chance=chance: chance) for chance in CHANCES}
  return {f"bound/{seed.seed}/0": {"arm": "bound", "seed": seed.seed, "round": 0, "families": FAMILIES,
                                   "chances": {**found, "any, even": _drawn(draws, draws.random)}}}


def _drawn(draws: random.Random, chance: Callable[[], float]) -> dict:
  auto = right = ever = last = 0
  for _ in range(FAMILIES):
    outcomes: list[bool] = []
    mine, has_been = chance(), False
    for place in range(sessions.TASKS):
      is_auto = _is_auto(sum(outcomes[-200:]), len(outcomes[-200:]))
      outcomes.append(draws.random() < mine)
      has_been |= is_auto
      auto += is_auto
      right += is_auto and outcomes[-1]
      last += is_auto and place == sessions.TASKS - 1
    ever += has_been
  return {"auto": auto / (FAMILIES * sessions.TASKS), "auto_right": right / auto if auto else None,
          "ever": ever / FAMILIES, "at_the_end": last / FAMILIES}


@functools.cache
def _is_auto(right: int, count: int) -> bool:
  found = (True,) * right + (False,) * (count - right)
  return route.route(Evidence(found), None, policy=POLICY).lane == "auto"


def routed(given: Sequence[Given], found: Sequence[SessionResult]) -> dict:
  """Returns what sessions came to whose lanes were chosen by history."""
  auto = [(task, one) for task, one in zip(given, found, strict=True) if one.lane == "auto"]
  last = list(found[len(found) // 2:])
  right = lambda pairs: sum(one.answer == task.problem.answer for task, one in pairs)
  return {"accuracy": round(right(zip(given, found, strict=True)) / len(found), 4),
          "auto_share": round(len(auto) / len(found), 4),
          "auto_share_second_half": round(sum(one.lane == "auto" for one in last) / max(1, len(last)), 4),
          "auto_accuracy": round(right(auto) / len(auto), 4) if auto else None,
          "teacher_tokens": loop.tokens_of(found, "teacher"),
          "lanes": {lane: sum(one.lane == lane for one in found)
                    for lane in sorted({one.lane or "none" for one in found})}}


def router_of(store) -> HistoryRouter:
  """Returns the router of the study, which reads the history anew for every session."""
  return HistoryRouter(POLICY, store=store, clock=_Ticks())


def _families(seed: Seed, mix: Sequence[tuple[int, int]]) -> dict[str, str]:
  """Returns the family of each letter: so many plain and other ones each, and the rest."""
  key = Convention(tag_seed=seed.seed).conventions
  plain, others = ([tag for tag in key if (key[tag] == "plain") is is_plain] for is_plain in (True, False))
  found = {}
  for plains, strangers in mix:
    for _ in range(plains):
      found[plain.pop(0)] = f"{plains} plain, {strangers} other"
    for _ in range(strangers):
      found[others.pop(0)] = f"{plains} plain, {strangers} other"
  return {**dict.fromkeys([*plain, *others], "the rest"), **found}


def _run(seed: Seed, name: str, at, *, router, family=None) -> list[SessionResult]:
  store = seed.folder / "free" / f"{name}_{at.number}.db"
  loop.removed(store)
  more = {} if family is None else {"family": family}
  return sessions.run(seed.held_out, seed.team(at), url=f"sqlite:///{store}", prefix=f"held-{at.number}",
                      lane=None, router=router, **more)


class _Ticks:
  """A clock of which every reading is much later: evidence is read anew for every session."""

  def __init__(self):
    self._now = 0.0

  def __call__(self) -> float:
    self._now += 1_000.0
    return self._now
