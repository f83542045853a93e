"""Facts about people, places and things, hidden in real text, and a question that some of them answer.

  1  where somebody is: one supporting fact
  2  where a thing is: who took it, and where that person went
  3  where a thing was before it came to a place: who took it, and two of the places

People go to places, take things where they stand and put them down; a question is asked only where the facts
decide it. Facts stand in their order at places drawn from the whole text but its end. Answered by greedy
decoding, and beside it by the likeliest of all places; with the full stop that ends them.

Source: tasks 1 to 3 of bAbI, Weston et al. 2015, arXiv:1502.05698, in long text as in BABILong, Kuratov et
al. 2024, arXiv:2406.10149; people, places, things and rules here are our own.
"""
from typing import NamedTuple

import numpy as np

from atlas_jax.data.recall import options, sample

AXES = ("task", "length")
READS = ("babilong_tasks", "babilong_lengths", "task_gap_tokens")
PEOPLE = ("Ada", "Boris", "Clara", "David")
PLACES = ("attic", "cellar", "garden", "kitchen", "library", "workshop")
THINGS = ("compass", "lantern", "teapot")
FACTS = {1: (2, 8), 2: (4, 12), 3: (6, 16)}  # Fewest and most of a text.


class Story(NamedTuple):
  """Facts and a question about them."""

  facts: list[str]
  question: str
  answer: str
  support: tuple[int, ...]  # which facts decide it


def cells(setting) -> list[dict]:
  """Returns each task at each length."""
  found = setting.options
  return [{"task": task, "length": length} for task in found["babilong_tasks"]
          for length in found["babilong_lengths"]]


def draw(cell, draw, setting) -> sample.RecallSample:
  """Draws a story and hides it."""
  encode = setting.tokenizer.encode
  made = story(draw, cell["task"])
  facts = [encode(f"\n{fact}\n") for fact in made.facts]
  length = cell["length"]
  count = options.room(setting, length, sample.length_of(facts), "babilong_lengths")
  room = max(0, count - options.gap(setting.options, length, "babilong_lengths"))
  places = np.sort(draw.integers(room + 1, size=len(facts)))
  parts, starts = sample.insert(setting.haystack().take(draw, count), places, facts)
  prompt_T = encode(f"\nQuestion: {made.question} Answer: in the")
  answers = tuple(encode(f" {place}.") for place in PLACES)
  correct = PLACES.index(made.answer)
  nearest = max(made.support)
  distance = sample.length_of(parts) - starts[nearest] - len(facts[nearest]) + len(prompt_T)
  mark_T = np.array([setting.tokenizer.doc_id], np.int32)
  input_T, target_T, answer_T = sample.shown_answer(prompt_T, answers[correct])
  return sample.RecallSample((mark_T, *parts), input_T, target_T, answer_T, np.array([distance], np.int32),
                             answers, correct)


def chance(cell, setting) -> float:
  """Returns one in the number of places; in task 3 the question itself names one that it is not."""
  del setting
  return 1 / (len(PLACES) - (cell["task"] == 3))


def story(draw: np.random.Generator, task: int) -> Story:
  """Draws facts until they decide a question of the task."""
  while True:
    facts, steps = _world(draw, int(draw.integers(FACTS[task][0], FACTS[task][1] + 1)), things=task > 1)
    asked = {1: _of_person, 2: _of_thing, 3: _before}[task](draw, steps)
    if asked is not None:
      return Story(facts, *asked)


class Visit(NamedTuple):
  """A stay of a person or thing at a place."""

  place: str
  support: tuple[int, ...]  # the facts that say so


def _world(draw, count: int, *, things: bool):
  """Draws so many facts; returns them and the places of every person and thing, one after another."""
  stays: dict[str, list[Visit]] = {name: [] for name in (*PEOPLE, *THINGS)}
  carried: dict[str, tuple[str, int]] = {}  # Thing -> who has it, and the fact that says so.
  facts: list[str] = []
  while len(facts) < count:
    person = PEOPLE[draw.integers(len(PEOPLE))]
    act = draw.random() if things else 0.0
    thing = THINGS[draw.integers(len(THINGS))]
    here = stays[person][-1] if stays[person] else None
    lies = stays[thing][-1].place if stays[thing] else None
    number = len(facts)
    if act < 0.55:
      place = PLACES[draw.integers(len(PLACES))]
      if here is not None and here.place == place:
        continue
      stays[person].append(Visit(place, (number,)))
      facts.append(f"{person} went to the {place}.")
      for one, (who, taken) in carried.items():
        if who == person:
          stays[one].append(Visit(place, (taken, number)))
    elif here is None:
      continue
    elif thing in carried:
      if carried[thing][0] != person:
        continue
      taken = carried.pop(thing)[1]
      # Where it lies, it also was before it was put down: the same stay, by the same facts.
      stays[thing][-1] = Visit(here.place, tuple(sorted({*here.support, taken, number})))
      facts.append(f"{person} put down the {thing}.")
    elif lies in (None, here.place):
      carried[thing] = person, number
      if lies is None:
        stays[thing].append(Visit(here.place, (*here.support, number)))
      else:  # Taken where it lay: it is said again, and nearer to the question, where it is.
        known = {*stays[thing][-1].support, *here.support, number}
        stays[thing][-1] = Visit(here.place, tuple(sorted(known)))
      facts.append(f"{person} took the {thing}.")
  return facts, stays


def _of_person(draw, stays):
  known = [name for name in PEOPLE if stays[name]]
  person = known[draw.integers(len(known))]
  return f"where is {person}?", stays[person][-1].place, stays[person][-1].support


def _of_thing(draw, stays):
  known = [name for name in THINGS if stays[name]]
  if not known:
    return None
  thing = known[draw.integers(len(known))]
  last = stays[thing][-1]
  return f"where is the {thing}?", last.place, last.support


def _before(draw, stays):
  """Asks for the place before one that a thing came to once."""
  found = []
  for thing in THINGS:
    places = [stay.place for stay in stays[thing]]
    found += [(thing, at) for at in range(1, len(places)) if places.count(places[at]) == 1]
  if not found:
    return None
  thing, at = found[draw.integers(len(found))]
  before, after = stays[thing][at - 1:at + 1]
  support = tuple(sorted({*before.support, *after.support}))
  return f"where was the {thing} before the {after.place}?", before.place, support
