"""Stories, played again from their sentences by a plain program, must give the answers that were drawn."""

import collections
import re

import numpy as np
import pytest

from atlas_jax.data.recall import babilong
from tests.data.recall.settings import drawn, setting, words_of

FACT = re.compile(r"\n(Ada|Boris|Clara|David) (went to|took|put down) the (\w+)\.\n")


class World:
  """Where people and things are, and where things were, from sentences alone."""

  def __init__(self):
    self.place, self.holder, self.lies = {}, {}, {}
    self.trail = collections.defaultdict(list)

  def where(self, thing):
    return self.place.get(self.holder[thing]) if thing in self.holder else self.lies.get(thing)

  def note(self):
    for thing in babilong.THINGS:
      now = self.where(thing)
      if now is not None and self.trail[thing][-1:] != [now]:
        self.trail[thing].append(now)

  def tell(self, person, verb, what):
    if verb == "went to":
      assert self.place.get(person) != what
      self.place[person] = what
    elif verb == "took":
      assert what not in self.holder and self.lies.get(what) in (None, self.place[person])
      self.holder[what] = person
    else:
      assert self.holder.pop(what) == person
      self.lies[what] = self.place[person]
    self.note()

  def answer(self, question):
    if found := re.fullmatch(r"where is ([A-Z]\w+)\?", question):
      return self.place[found[1]]
    if found := re.fullmatch(r"where is the (\w+)\?", question):
      return self.where(found[1])
    thing, after = re.fullmatch(r"where was the (\w+) before the (\w+)\?", question).groups()
    assert self.trail[thing].count(after) == 1
    return self.trail[thing][self.trail[thing].index(after) - 1]


@pytest.mark.parametrize("task", [1, 2, 3])
def test_the_answer_follows_from_the_sentences_in_the_text(task):
  given = setting(babilong_tasks=str(task), babilong_lengths="768", task_gap_tokens=100)
  places = collections.Counter()
  for _, text in drawn("babilong", given, count=150):
    context, question, answer = words_of(text)
    world = World()
    facts = FACT.findall(context)
    for fact in facts:
      world.tell(*fact)
    asked = re.fullmatch(r"\nQuestion: (.*) Answer: in the", question)[1]
    assert answer == f" {world.answer(asked)}."
    places[answer] += 1
    low, high = babilong.FACTS[task]
    assert low <= len(facts) <= high and context.rindex("\n", 0, len(context) - 100)
    assert max(m.end() for m in FACT.finditer(context)) <= len(context) - 100
  assert len(places) == len(babilong.PLACES) and max(places.values()) < 60


@pytest.mark.parametrize("task", [1, 2, 3])
def test_every_supporting_fact_is_needed(task):
  """Without one of them the answer changes, or cannot be told, in a good part of stories."""
  draw = np.random.default_rng(task)
  counts, changed = collections.Counter(), 0
  for _ in range(100):
    told = babilong.story(draw, task)
    counts[len(told.support)] += 1
    last = max(told.support)
    world = World()
    try:
      for number, fact in enumerate(told.facts):
        if number != last:
          world.tell(*FACT.fullmatch(f"\n{fact}\n").groups())
      changed += world.answer(told.question) != told.answer
    except (AssertionError, KeyError, ValueError, TypeError):
      changed += 1
  assert changed > 60
  assert min(counts) >= task if task != 3 else min(counts) >= 2


def test_a_fact_that_says_again_where_a_thing_is_supports_the_answer():
  """Who takes a thing from where it lay says where that is, nearer to the question than who put it there."""
  draw = np.random.default_rng(0)
  again = 0
  for _ in range(1500):
    told = babilong.story(draw, 2)
    thing = told.question.removeprefix("where is the ").removesuffix("?")
    last = max(number for number, fact in enumerate(told.facts) if thing in fact)
    again += sum(f"took the {thing}" in fact for fact in told.facts) > 1
    assert max(told.support) >= last, told
  assert again > 20
