"""Reflection over texts: what it may see and spend, that it goes on from its log, and what it reports."""
import asyncio
import json

import pytest

from atlas_jax.data.traces.record import Trace
from atlas_jax.runtime import reflection, reflection_tasks
from atlas_jax.runtime.chat_models import FunctionModel
from atlas_jax.runtime.reflection import ReflectionSettings
from atlas_jax.runtime.reflection_log import Graded
from atlas_jax.runtime.reflection_tasks import ReflectionTask

# A text is good at a task that it names the letter of.
TASKS = [ReflectionTask(f"{letter}{number}", f"do {letter}{number}", f"secret-{letter}") for letter in "abc"
         for number in range(4)]
FIRST = {"prompt": "none"}


class Killed(BaseException):
  """A stop of the program."""


class World:
  """A metric and a reflecting model, which count; `stop_at` raises at that call."""

  def __init__(self, stop_at=None, reply=None, broken=()):
    self.tried, self.seen, self._stop_at, self._reply, self._broken = [], [], stop_at, reply, broken
    self.lost = 0
    self.model = FunctionModel(self.reflect)

  async def metric(self, texts, task):
    if self._stop_at is not None and len(self.tried) + len(self.seen) >= self._stop_at:
      self.lost += 1
      raise Killed
    self.tried.append((texts["prompt"], task.key))
    if task.key in self._broken:
      raise RuntimeError("down")
    right = task.key[0] in texts["prompt"].split()
    return Graded(float(right), "" if right else f"say {task.key[0]}", "answer")

  def reflect(self, messages):
    self.seen.append(messages)
    if self._reply is not None:
      return self._reply
    data = json.loads(messages[1]["content"].split("\n", 1)[1].rsplit("\n", 1)[0])
    words = [one["feedback"].removeprefix("say ") for one in data["tasks"] if one["feedback"]]
    return json.dumps({"diagnosis": "d", "text": f"{data['text']} {words[0]}"})


def run(world, folder, tasks=TASKS, **settings):
  how = ReflectionSettings(**{"metric_calls": 80, "minibatch": 2, **settings})
  return asyncio.run(reflection.optimise(FIRST, tasks, world.metric, world.model, folder, how))


def test_it_finds_better_texts_and_reports_what_held_out_tasks_say(tmp_path):
  world = World()
  found = run(world, tmp_path)
  assert found.improved and found.first == 0 and found.best == 1 and found.stopped == "all right"
  assert set(found.texts["prompt"].split()) == {"none", "a", "b", "c"}
  assert found.spent == len(world.tried) <= 80 and len(set(world.tried)) == len(world.tried)
  assert json.loads((tmp_path / "result.json").read_text())["best"] == 1


def test_neither_answers_nor_held_out_tasks_reach_the_reflection(tmp_path):
  world = World()
  run(world, tmp_path)
  _, held_out = reflection_tasks.split(TASKS, 0.5, 0)
  shown = json.dumps(world.seen)
  assert len(held_out) == 6 and "secret" not in shown
  assert not any(f"do {one.key}" in shown for one in held_out)


@pytest.mark.parametrize("calls", [18, 19, 23, 24, 30, 41])
def test_the_budget_is_never_exceeded(calls, tmp_path):
  world = World()
  found = run(world, tmp_path, metric_calls=calls)
  assert found.spent == len(world.tried) <= calls
  assert found.held_out == 6  # What decides is always paid for.


def test_too_small_a_budget_and_no_held_out_tasks_are_refused(tmp_path):
  with pytest.raises(ValueError, match="metric_calls=17 is less than the 18"):
    run(World(), tmp_path, metric_calls=17)
  with pytest.raises(ValueError, match="held_out_frac"):
    ReflectionSettings(10, held_out_frac=0.0)


def test_a_stopped_search_goes_on_without_asking_again(tmp_path):
  whole = run(World(), tmp_path / "whole", concurrency=1)
  tried, seen, lost = [], 0, 0
  for stop in (3, 4, 5, 2, 6, 1):
    world = World(stop)
    with pytest.raises(Killed):
      run(world, tmp_path / "cut", concurrency=1)
    tried += world.tried
    seen += len(world.seen)
    lost += world.lost
    # A kill in the middle of a line.
    with (tmp_path / "cut" / "log.jsonl").open("ab") as out:
      out.write(b'{"kind": "go')
  world = World()
  found = run(world, tmp_path / "cut", concurrency=1)
  tried += world.tried
  assert len(set(tried)) == len(tried) and seen + len(world.seen) == whole.reflections
  assert (found.texts, found.best, found.candidates) == (whole.texts, whole.best, whole.candidates)
  assert found.spent == len(tried) + lost  # The calls that were cut off are spent too.
  again = World()
  assert run(again, tmp_path / "cut", concurrency=1).texts == whole.texts and not again.tried


def test_another_search_in_the_folder_is_refused(tmp_path):
  run(World(), tmp_path, metric_calls=18)
  with pytest.raises(ValueError, match="other texts, tasks or settings"):
    run(World(), tmp_path, TASKS[:6])
  assert run(World(), tmp_path, metric_calls=80).improved  # But more may be spent.


@pytest.mark.parametrize(("reply", "why"), [
  ("prose", "no reply"), (json.dumps({"diagnosis": "", "text": " "}), "length"),
  (json.dumps({"diagnosis": "", "text": "x" * 5000}), "length"),
  (json.dumps({"diagnosis": "", "text": "none"}), "known"),
  (json.dumps({"diagnosis": "", "text": "worse"}), "not better")])
def test_texts_that_cannot_be_used_are_refused_and_counted(reply, why, tmp_path):
  world = World(reply=reply)
  found = run(world, tmp_path, most_reflections=3)
  assert not found.improved and found.texts == FIRST and found.refused[why] >= 1
  assert sum(found.refused.values()) == found.reflections == 3 and found.stopped == "reflections"


def test_errors_are_no_scores(tmp_path):
  found = run(World(broken={one.key for one in TASKS if one.key.endswith("0")}), tmp_path)
  assert found.errors >= 3 and found.improved and found.best == 1
  with pytest.raises(ValueError, match="no score of the first texts"):
    run(World(broken={one.key for one in TASKS}), tmp_path / "all")


def test_only_sessions_that_pass_the_gate_are_evidence():
  def trace(task, review, source=None):
    stats = {} if source is None else {"reward_stats": {"score": 1.0, "source": source},
                                       "session_reward": {"score": 1.0}}
    return Trace.from_json({"task": task, "final_answer": "x", "review_status": review, "steps": [],
                            "session_metadata": {"ground_truth": "4"}, **stats})

  found, withheld = reflection_tasks.tasks_of_sessions([
    trace("one", "approved"), trace("one", "approved"), trace("two", "pending"),
    trace("three", "pending", "grader"), trace("four", "quarantined", "grader"),
    trace("five", "pending", "judge")])
  assert [one.task for one in found] == ["one", "three"] and withheld == 3
