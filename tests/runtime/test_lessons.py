"""The memory of lessons, with real stores: what is shown, tried, learnt, and held back by review."""
import asyncio
import json

import pytest

from atlas_jax.data.traces.query import SessionQuery
from atlas_jax.data.traces.review import decide
from atlas_jax.data.traces.store import open_store
from atlas_jax.rollout import teaching
from atlas_jax.runtime import cli_run, lesson_entries
from atlas_jax.runtime.chat_models import FunctionModel
from atlas_jax.runtime.learner import Learner
from atlas_jax.runtime.lesson_states import LessonBookSettings
from atlas_jax.runtime.lessons import LessonBook, learn_from_approved
from atlas_jax.runtime.pool import SessionPool
from atlas_jax.runtime.session import SessionSpec
from atlas_jax.runtime.store import RuntimeStore, StoreSettings
from atlas_jax.runtime.worlds import arithmetic
from tests.runtime.parts import Script, parts, verdict
from tests.runtime.worlds import sums

KEY = "default/f"
SETTINGS = LessonBookSettings(read_s=0.0)


def lesson(action="Read the gauge.", pattern="pump", **more):
  return {"audience": "student", "cue": {"kind": "keyword", "pattern": pattern}, "action": action, **more}


def reply(*lessons):
  return json.dumps({"lessons": list(lessons)})


def with_store(url, tmp_path, work):
  async def main():
    store = RuntimeStore(StoreSettings(url=url, spool=str(tmp_path / "spool")))
    await store.open(create=True)
    try:
      return await work(store)
    finally:
      await store.close()

  return asyncio.run(main())


async def run(store, specs, *, student=None, teacher=None, learner=None, settings=SETTINGS, **more):
  """Runs sessions one by one with a memory of lessons; returns (results, what the student was asked)."""
  student = student or Script("4")
  book = LessonBook(store, settings, learner=learner and Learner(FunctionModel(learner)))
  given = parts(student, teacher or Script(verdict(True)), lessons=book, **more)
  pool = SessionPool(given, store)
  return [await pool.run(one) for one in specs], student.asked


def of(*names, task="the pump: 2+2", truth="4", key=KEY, **more):
  return [SessionSpec(name, task, ground_truth=truth, learning_key=key, **more) for name in names]


async def entries_of(store, key=KEY):
  return (await store.read_playbook(key))[1]


async def source(store, name="source", *, truth="4", **more):
  """Runs a session that fails at first, so that the learner has something to say; returns its result."""
  learner = Script(reply(lesson(**more)))
  (found,), _ = await run(store, of(name, truth=truth), student=Script("3", "4"), learner=learner,
                          teacher=Script(verdict(False, "Carry."), verdict(True)))
  return found, learner


def review(url, number, status):
  with open_store(url, writable=True) as store:
    decide(store, number, status, who="ada", note="seen")


def test_lessons_are_written_tried_and_become_active(store_url, tmp_path):
  """The student is right with the lesson alone; the learner is asked of graded sessions that went wrong."""
  def student(messages):
    return "4" if any(one.get("name") == "lessons" for one in messages) else "5"

  async def work(store):
    _, learner = await source(store)
    (entry,) = await entries_of(store)
    assert entry["state"] == "candidate" and len(learner.asked) == 1
    specs = of(*(f"s{number}" for number in range(24)))
    results, asked = await run(store, specs, student=Script(student), settings=SETTINGS)
    await run(store, of("other", task="a kettle"))
    (entry,) = await entries_of(store)
    assert (entry["state"], entry["reason"]) == ("active", "it helps") and entry["trial"]["looks"] == 1
    return results, asked

  results, asked = with_store(store_url, tmp_path, work)
  with_lesson = [any(one.get("name") == "lessons" for one in messages) for messages in asked]
  assert 5 < sum(with_lesson) and False in with_lesson
  shown = next(messages for messages in asked if messages[0].get("name") == "lessons")
  assert shown[0]["role"] == "user" and "Advice" in shown[0]["content"] and "- Read the gauge." in \
      shown[0]["content"]
  assert results[-1].versions["playbook"] > 1


def test_the_record_says_which_lessons_were_shown_and_withheld(tmp_path):
  async def work(store):
    await source(store)
    results, asked = await run(store, of(*"abcdef"))
    traces = await store.sessions([one.session_id for one in results])
    for trace, messages in zip(traces, asked):
      notes = trace.session_metadata.get("lessons")
      if notes is None:  # The lesson is a candidate until the first session ends.
        continue
      assert notes["playbook"] == KEY and len(notes["shown"]) + len(notes["withheld"]) == 1
      assert bool(notes["shown"]) is any(one.get("name") == "lessons" for one in messages)
    return [trace.session_metadata.get("lessons") for trace in traces]

  found = with_store(f"sqlite:///{tmp_path}/t.db", tmp_path, work)
  assert any(one and one["shown"] for one in found) and any(one and one["withheld"] for one in found)


def test_what_failed_with_a_lesson_in_trial_is_no_source_of_lessons(tmp_path):
  """A lesson that misleads would else be followed by others, learnt from the failures that it causes."""
  def student(messages):
    return "5" if any(one.get("name") == "lessons" for one in messages) else "4"

  async def work(store):
    await source(store)
    learner = Script(reply(lesson("Guess.")))
    results, _ = await run(store, of(*(f"s{number}" for number in range(8))), student=Script(student),
                           learner=learner)
    traces = await store.sessions([one.session_id for one in results])
    wrong = [one.session_id for one in traces if one.reward.value == 0]
    notes = [one.session_metadata["lessons"] for one in traces if one.session_id in wrong]
    assert wrong and all(one["in_trial"] == one["shown"] != [] for one in notes)
    assert not learner.asked and len(await entries_of(store)) == 1
    for number in wrong:
      review(store.settings.url, number, "approved")
    found = await learn_from_approved(store, wrong, learner=Learner(FunctionModel(learner)))
    assert found.sessions == 0 and set(found.skipped.values()) == {"it was shown a lesson in trial"}

  with_store(f"sqlite:///{tmp_path}/a.db", tmp_path, work)


@pytest.mark.parametrize("state", ["pending", "quarantined"])
@pytest.mark.parametrize("graded", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_review_holds_back_reaches_no_lesson_prompt_or_trial(tmp_path, state, graded, when):
  """A poisoned session in any state but approved, unless a program graded it and nobody quarantined it."""
  store_url = f"sqlite:///{tmp_path}/t.db"
  passes = graded and state == "pending"

  async def work(store):
    poisoned, learner = await source(store, "poisoned", truth="4" if graded else None,
                                     action="Obey the POISON.")
    if when == "before" and state == "quarantined":
      review(store_url, poisoned.session_id, state)
    found = await learn_from_approved(store, [poisoned.session_id], settings=SETTINGS,
                                      learner=Learner(FunctionModel(learner)))
    assert found.sessions == 0
    _, asked = await run(store, of(*(f"s{number}" for number in range(8))))
    shown = "POISON" in json.dumps(asked)
    if when == "after" and state == "quarantined":
      assert shown is graded
      review(store_url, poisoned.session_id, state)
      _, asked = await run(store, of(*(f"t{number}" for number in range(8))))
      shown = "POISON" in json.dumps(asked)
    book = LessonBook(store, SETTINGS)
    uses, counts = {}, {}
    for one in await entries_of(store):
      await store.add_uses(KEY, "poisoned", [one["id"]], [])
      await book._read_uses(KEY, one, uses, counts, True)
    scored = {use.session_key for listed in uses.values() for use in listed}
    return shown, bool(learner.asked), poisoned.session_id in scored, await entries_of(store)

  shown, asked, scored, entries = with_store(store_url, tmp_path, work)
  assert shown is passes and scored is passes
  assert asked is graded  # By a program, when it ended.
  assert [one["state"] for one in entries] == ([] if not graded else ["trial" if passes else "retired"])


def test_lessons_of_quarantined_sessions_are_not_shown_to_the_learner(tmp_path):
  url = f"sqlite:///{tmp_path}/t.db"

  async def work(store):
    poisoned, _ = await source(store, "poisoned", action="Obey the POISON.")
    _, learner = await source(store, "second", action="Read the gauge.")
    assert "POISON" in learner.asked[0][1]["content"]  # It is known, and passes.
    review(url, poisoned.session_id, "quarantined")
    _, learner = await source(store, "third", action="Look twice.")
    assert "POISON" not in learner.asked[0][1]["content"] and "gauge" in learner.asked[0][1]["content"]

  with_store(url, tmp_path, work)


def test_a_lesson_with_which_the_student_fails_is_blamed_for_it(tmp_path):
  """Sessions without an answer have no score, and yet they count."""
  def student(messages):
    if any(one.get("name") == "lessons" for one in messages):
      raise RuntimeError("boom")
    return "4"

  async def work(store):
    await source(store)
    results, _ = await run(store, of(*(f"s{number}" for number in range(24))), student=Script(student))
    await run(store, of("last"))
    assert any(one.status == "failed" for one in results)
    (entry,) = await entries_of(store)
    assert (entry["state"], entry["reason"]) == ("retired", "it harms")

  with_store(f"sqlite:///{tmp_path}/t.db", tmp_path, work)


def test_lessons_stand_behind_the_system_s_message(tmp_path):
  templates = teaching.AGENT._replace(baseline=(("system", "Be brief."), ("user", "{question}")))

  async def work(store):
    settings = LessonBookSettings(written=[lesson()])
    return (await run(store, of("a"), settings=settings, templates=templates))[1]

  (messages,) = with_store(f"sqlite:///{tmp_path}/t.db", tmp_path, work)
  assert [(one["role"], one.get("name")) for one in messages] == [
      ("system", None), ("user", "lessons"), ("user", None)]


def test_a_session_with_lessons_costs_few_statements(tmp_path):
  counted = []

  async def work(store):
    await source(store)
    await run(store, of(*"abcd"))
    settings = LessonBookSettings(read_s=1_000.0)  # Reviews are not read for each session.
    book = LessonBook(store, settings)
    pool = SessionPool(parts(Script("4"), Script(verdict(True)), lessons=book), store)
    await pool.run(of("first")[0])

    def count():
      store._store.database._connection().set_trace_callback(counted.append)

    await store._threaded(count)
    await pool.run(of("second")[0])

  with_store(f"sqlite:///{tmp_path}/t.db", tmp_path, work)
  ran = [one for one in counted if one.split()[0] in ("INSERT", "UPDATE", "DELETE", "SELECT")]
  assert 0 < len({" ".join(one.split()[:3]) for one in ran}) <= 8


def test_approved_sessions_are_learnt_from_once(store_url, tmp_path):
  async def work(store):
    first, learner = await source(store, truth=None)
    other, _ = await source(store, "other", truth=None)
    assert not learner.asked and await entries_of(store) == []
    review(store_url, first.session_id, "approved")
    for count in (1, 0):
      found = await learn_from_approved(store, [first.session_id, other.session_id], settings=SETTINGS,
                                        learner=Learner(FunctionModel(learner)))
      assert found.sessions == count and len(found.added) == count
    assert found.skipped[other.session_id] == "it is not approved"
    (entry,) = await entries_of(store)
    assert entry["state"] == "trial" and entry["provenance"]["session_id"] == first.session_id
    review(store_url, first.session_id, "quarantined")
    await learn_from_approved(store, [first.session_id], settings=SETTINGS)
    (entry,) = await entries_of(store)
    assert (entry["state"], entry["reason"]) == ("retired", "its session is quarantined")

  with_store(store_url, tmp_path, work)


def test_families_of_tasks_and_tenants_have_lessons_of_their_own(tmp_path):
  async def work(store):
    await source(store)
    for name, key, metadata in (("a", "other/f", {"learning_key": KEY, "tenant_id": "default"}),
                                ("b", "default/g", {}), ("c", None, {"learning_key": KEY})):
      specs = of(*(f"{name}{number}" for number in range(4)), key=key, metadata=metadata)
      _, asked = await run(store, specs)
      assert "lessons" not in json.dumps(asked)
    assert await entries_of(store, "other/f") == []

  with_store(f"sqlite:///{tmp_path}/t.db", tmp_path, work)


def test_six_sessions_that_end_together_leave_six_lessons(tmp_path):
  async def work(store):
    def learner(messages):
      task = json.loads(messages[1]["content"].split("\n")[1])["task"]
      return reply(lesson(f"Look at {task}."))

    book = LessonBook(store, SETTINGS, learner=Learner(FunctionModel(learner)))
    pool = SessionPool(parts(Script("wrong"), Script(verdict(True)), lessons=book), store)
    names = ("ada", "bob", "cyd", "dan", "eve", "fay")
    await asyncio.gather(*(pool.run(of(name, task=f"pump of {name}", truth="right")[0]) for name in names))
    return {one["action"] for one in await entries_of(store)}

  assert len(with_store(f"sqlite:///{tmp_path}/t.db", tmp_path, work)) == 6


def test_a_person_s_lessons_are_shown_at_once_and_may_have_a_regex(tmp_path):
  written = [{**lesson("Read twice."), "cue": {"kind": "regex", "pattern": r"pump\b.*\d"}},
             {**lesson("Never."), "cue": {"kind": "regex", "pattern": "(p+)+$"}}]
  settings = LessonBookSettings(written=written, read_s=0.0)

  async def work(store):
    task = "pump 2 " + "p" * 40 + "!"
    results, asked = await run(store, of("a", task=task), settings=settings)
    return results[0], asked

  result, asked = with_store(f"sqlite:///{tmp_path}/t.db", tmp_path, work)
  assert "- Read twice." in asked[0][0]["content"] and "Never" not in asked[0][0]["content"]
  assert "more than 0.05 s of CPU" in result.problem


def test_a_learner_that_fails_takes_no_answer_away(tmp_path):
  async def work(store):
    found = []
    for place, said in enumerate((RuntimeError("down"), "no json", "[]", '{"lessons": 3}', "\0")):
      (one,), _ = await run(store, of(f"s{place}"), student=Script("5"), learner=Script(said))
      found.append(one)
    return found, await entries_of(store)

  found, entries = with_store(f"sqlite:///{tmp_path}/t.db", tmp_path, work)
  assert [one.answer for one in found] == ["5"] * 5 and entries == []
  assert all("the learner wrote nothing" in one.problem for one in found)
  assert all(one.tokens["learner"]["calls"] >= 1 for one in found)


def test_without_lessons_nothing_is_read_or_written(tmp_path):
  url = f"sqlite:///{tmp_path}/t.db"

  async def work(store):
    return await SessionPool(parts(Script("4"), Script(verdict(True))), store).run(of("a")[0])

  result = with_store(url, tmp_path, work)
  assert "playbook" not in result.versions
  with open_store(url) as store:
    ((_, trace),) = store.traces(SessionQuery(review_statuses=None))
  assert "lessons" not in trace.session_metadata


def test_entries_of_a_playbook_that_no_session_vouches_for_are_not_shown(tmp_path):
  async def work(store):
    forged = lesson_entries.made(lesson(), by_person=True)
    await store.write_playbook(KEY, 0, [forged])
    return (await run(store, of("a")))[1]

  assert "lessons" not in json.dumps(with_store(f"sqlite:///{tmp_path}/t.db", tmp_path, work))


def test_as_before_candidates_are_shown_at_once_and_promoted_by_two_uses(tmp_path):
  """Unlike the SDK's, lessons of sessions that review holds back are not shown."""
  legacy = LessonBookSettings(legacy=True, read_s=0.0)

  async def work(store):
    held, _ = await source(store, "held", truth=None, action="Obey.")
    await source(store, "graded")
    _, asked = await run(store, of(*"abc"), settings=legacy)
    (entry,) = await entries_of(store)
    assert held.answer == "4" and entry["state"] == "active"
    return [messages[0]["content"] for messages in asked]

  found = with_store(f"sqlite:///{tmp_path}/t.db", tmp_path, work)
  assert all("Read the gauge." in one and "Obey" not in one for one in found)


def learns(messages):
  """Writes a lesson for all sums, as a learner of a config."""
  return reply({**lesson("Carry."), "cue": {"kind": "glob", "pattern": "*+*"}})


def test_a_config_switches_lessons_on(tmp_path):
  given = sums.load(tmp_path, **{"lessons.on": "true", "learner.kind": "function",
                                 "learner.function": f"{__name__}:learns", "lessons.read_s": "0.001"})
  found = asyncio.run(cli_run.through(cli_run.bounded(given, 1), arithmetic.tasks(12)))
  assert any(one.result.tokens.get("learner") for one in found)
  with open_store(given.store.url) as store:
    traces = [trace for _, trace in store.traces(SessionQuery(review_statuses=None))]
  assert any(trace.session_metadata.get("lessons") for trace in traces)
  assert sums.load(tmp_path).lessons is None  # Off by default.
