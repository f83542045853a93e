"""The study of the closed loop: rounds run, reviewer and controls are what they say, tables are true."""

import asyncio
import json
import random
import types

import pytest

from atlas_jax.data.convention import CONVENTIONS, Convention
from atlas_jax.data.traces.query import SessionQuery
from atlas_jax.rollout import teaching
from atlas_jax.rollout.chat_form import AskOptions
from atlas_jax.runtime import settings
from atlas_jax.runtime.chat_models import ModelError
from experiments import arms
from experiments.closed_loop import analysis, config, free, lessons, loop, models, run, runtime, sessions
from scripts import run_offline_pipeline
from tests import helpers, program


class Answers:
  """A student that answers plainly or as it is told, and a teacher that knows some letters."""

  def __init__(self, knows=(), hints=tuple(CONVENTIONS)):
    self.knows = dict(knows)
    self.hints = hints
    self.calls = 0

  def write(self, texts, *, max_tokens, temperature=0.0, seed=0):
    del max_tokens
    self.calls += 1
    if temperature:
      draws = random.Random(seed)
      return [draws.choice(self.hints) for _ in texts]
    return [self._one(text) for text in texts]

  def _one(self, text):
    if text.endswith("?"):
      return f"sum {text[0]}"
    question, equals, approach = text.partition("=")
    if equals and approach:
      return self.knows.get(approach[-1], "plain")
    hint, total = question[:-len("K 47+85")], sum(map(int, question.split(" ")[-1].split("+")))
    return CONVENTIONS.get(hint, str)(total)


def execute(flags):
  """Runs a program of the project in this process."""
  if flags[0] == "-m":
    done = program.run(*flags[2:])
    assert done.code == 0, done.err
    return
  with helpers.quick_compilation():
    assert not run_offline_pipeline.main(flags[1:])


def team(knows=()):
  return sessions.Team(Answers(), "s1", Answers(knows), "t1")


def test_an_unknown_stage_is_refused():
  with pytest.raises(ValueError, match="stage='pupil' is unknown; known stages: student"):
    config.get_config("stage=pupil")


def test_teachers_are_deployed_with_the_templates_that_they_are_trained_with():
  there = settings.load(runtime.__file__).teacher.templates
  assert teaching.load(there).sha256 == models.templates().sha256


def test_guidance_is_a_message_of_its_own_and_becomes_the_text_of_the_tuning():
  question = {"role": "user", "content": "K 47+85="}
  assert models.student_text([question]) == "K 47+85="
  guidance = {"role": "user", "content": "echo", "name": "guidance"}
  assert models.student_text([question, guidance]) == "echoK 47+85="


def test_many_questions_are_answered_together_and_json_is_refused():
  writer = Answers()
  model = models.TeacherModel(writer)

  async def ask():
    messages = [{"role": "user", "content": "K 47+85=sum K"}]
    found = await asyncio.gather(*(model.ask(messages) for _ in range(20)))
    with pytest.raises(ModelError, match="no JSON"):
      await model.ask(messages, options=AskOptions(schema={"type": "object"}))
    return found

  found = asyncio.run(ask())
  assert [one.text for one in found] == ["plain"] * 20 and writer.calls == 1
  assert found[0].usage == (14, 6)


def test_a_teacher_that_knows_the_letters_helps_and_poison_is_caught(tmp_path):
  seed, url = 3, f"sqlite:///{tmp_path}/a.db"
  letters = Convention(tag_seed=seed).conventions
  given = sessions.held_out(seed, 24) + sessions.poison(seed, 0, 4)
  found = sessions.run(given, team(letters), url=url, prefix="x")
  row = loop.measured(given[:24], found[:24])
  assert row["accuracy"] == 1 and row["ndr"] == 1 and 0 < row["alone"] < 1
  assert row["tokens"]["teacher"] > 0 and row["statuses"] == {"succeeded": 24}
  assert [one.reward for one in found[24:]] == [0.0] * 4
  assert sessions.reviewed(url, seed) == {"approved": 24, "quarantined": 4}
  file = tmp_path / "out.jsonl"
  assert sessions.exported(url, file, gate=False) == 28
  assert sessions.exported(url, file) == 24
  before = [json.loads(line) for line in file.read_text().splitlines()]
  assert all(sessions.right_answer(one["task"], letters) == one["session_metadata"]["ground_truth"]
             for one in before)
  sessions.shuffle_truths(file, seed)
  after = [json.loads(line) for line in file.read_text().splitlines()]
  moved = sum(one["session_metadata"]["ground_truth"] != other["session_metadata"]["ground_truth"]
              for one, other in zip(before, after, strict=True))
  assert moved >= 8
  with sessions.opened(url) as store:
    assert store.counts(SessionQuery(review_statuses=None))


def test_a_teacher_that_knows_nothing_changes_nothing(tmp_path):
  given = sessions.held_out(4, 16)
  row = loop.measured(given, sessions.run(given, team(), url=f"sqlite:///{tmp_path}/a.db", prefix="x"))
  assert row["right"] == row["right_alone"] and row["ndr"] == 1


def test_guidance_goes_before_lessons_and_one_of_several_lessons_is_obeyed():
  question = {"role": "user", "content": "K 47+85="}
  shown = {"role": "user", "name": "lessons", "content": "<lessons>\nAdvice.\n- echo\n- minus\n</lessons>"}
  assert models.student_text([shown, question]) in ("echoK 47+85=", "minusK 47+85=")
  guidance = {"role": "user", "content": "plain", "name": "guidance"}
  assert models.student_text([shown, question, guidance]) == "plainK 47+85="


def routed(seed, tmp_path, monkeypatch, arm):
  """Returns the row of free routing with a teacher that knows the letters, in small waves."""
  monkeypatch.setattr(sessions, "WAVE", 16)
  made = types.SimpleNamespace(seed=seed, folder=tmp_path, held_out=sessions.held_out(seed, 96),
                               team=lambda at: team(Convention(tag_seed=seed).conventions))
  monkeypatch.setattr(loop, "trained_rounds", lambda seed, rounds: [loop.Round(0, tmp_path, "t1")])
  return (free.mixed_row if arm == "mixed" else lambda *given: free.rows(*given, arm=arm))(made, 0)


def test_free_routing_leaves_the_letters_alone_that_the_student_knows(tmp_path, monkeypatch):
  found = routed(3, tmp_path, monkeypatch, "free")["free/3/0"]["free"]
  assert found["auto_share"] > 0 and found["auto_accuracy"] == 1 and found["accuracy"] == 1


def test_where_answers_with_help_are_evidence_unknown_letters_are_left_alone(tmp_path, monkeypatch):
  found = routed(3, tmp_path, monkeypatch, "answers")["answers/3/0"]["free"]
  assert found["auto_accuracy"] < 1 and found["accuracy"] < 1


def test_families_of_several_letters_are_counted_apart(tmp_path, monkeypatch):
  found = routed(3, tmp_path, monkeypatch, "mixed")["mixed/3/0"]["families"]
  assert sum(one["tasks"] for one in found.values()) == 2 * 96
  assert found["2 of 3: the rest"]["alone"] == found["2 of 3: the rest"]["auto"] == 0
  mixed = found["3 of 4: 3 plain, 1 other"]
  assert 0 < mixed["alone"] < mixed["tasks"] and mixed["auto_right"] <= mixed["auto"]


def test_auto_is_rare_below_its_bound_and_common_above(monkeypatch):
  monkeypatch.setattr(free, "FAMILIES", 20)
  found = free.bound_row(types.SimpleNamespace(seed=3), 0)["bound/3/0"]["chances"]
  assert found["0.5"]["auto"] < 0.1 < 0.5 < found["0.9"]["auto"] and found["1"]["auto_right"] == 1


def taught(seed, tmp_path, monkeypatch, arm, count):
  """Returns the rows of one round of lessons, of two letters and hints alone: trials are soon at an end."""
  letters = Convention(tag_seed=seed).conventions
  both = [next(tag for tag in letters if (letters[tag] == "plain") is is_plain) for is_plain in (True, False)]
  of = lambda given, most: [one for one in given if sessions.letter(one) in both][:most]
  every = sessions.tasks
  monkeypatch.setattr(sessions, "tasks", lambda seed, number, most: of(every(seed, number, 6 * most), most))
  monkeypatch.setattr(loop, "trained_rounds", lambda seed, rounds: [loop.Round(0, tmp_path, "t2")])
  guesses = sessions.Team(Answers(), "s1", Answers(hints=(letters[both[1]], "tenfold")), "t1")
  made = types.SimpleNamespace(
      seed=seed, count=count, folder=tmp_path, held_out=of(sessions.held_out(seed, 100), 16), first=None,
      team=lambda at: guesses, url=lambda arm: f"sqlite:///{tmp_path}/{arm}/atlas.db")
  found = lessons.rows(made, 0, arm=arm, own=1)
  return found[f"{arm}/{seed}/0"], found[f"{arm}/{seed}/1"]


def test_lessons_that_help_become_active_and_teach_without_a_teacher(tmp_path, monkeypatch):
  before, after = taught(3, tmp_path, monkeypatch, "lessons", 120)
  assert after["lessons"]["right, active"] == 1 and after["quarantined"] == 6
  assert before["accuracy"] < 1 == after["accuracy"] == after["ndr"]
  assert after["stale"]["auto_accuracy"] == 1 and after["free"]["lanes"] == {"paired": 16}


def test_lessons_whose_scores_follow_no_letter_teach_nothing(tmp_path, monkeypatch):
  before, after = taught(3, tmp_path, monkeypatch, "lessons_shuffled", 32)
  assert after["right"] == before["right"] and after["lessons"]["other, trial"]
  assert not [name for name in after["lessons"] if "active" in name] and "free" not in after


def test_a_round_runs_and_is_not_run_again(tmp_path):
  out = tmp_path / "results.json"
  asked = [f"--workdir={tmp_path}", f"--out={out}", "--smoke", "--seeds=1", "--rounds=1", "--arms=loop"]
  run.main(asked, execute)
  found = arms.read(out)
  assert set(found) == {"loop/1/0", "loop/1/1"}
  assert found["loop/1/0"]["collected"]["quarantined"] == found["loop/1/0"]["collected"]["planted"] == 1
  assert found["loop/1/1"]["let_in"] == 16 and found["loop/1/1"]["teacher"] != found["loop/1/0"]["teacher"]
  run.main(asked, lambda flags: pytest.fail(f"ran {flags} again"))
  assert arms.read(out) == found


def row(arm, seed, number, right, alone="0011" * 8, **more):
  fraction = lambda bits: sum(map(int, bits)) / len(bits)
  return {f"{arm}/{seed}/{number}": {
      "arm": arm, "seed": seed, "round": number, "right": right, "right_alone": alone,
      "accuracy": fraction(right), "alone": fraction(alone), "ndr": 1.0,
      "teacher_tokens_per_right": 40.0 - number, "tokens_per_right": 90.0, **more}}


def free_row(number, right=1.0):
  return {"accuracy": 0.5, "auto_share": 0.25 * number, "auto_share_second_half": 0.1,
          "auto_accuracy": right if number else None, "teacher_tokens": 100,
          "lanes": {"auto": 8 * number, "paired": 32 - 8 * number}}


def results():
  found = {}
  collected = {"planted": 2, "quarantined": 2}
  for seed in (1, 2):
    found |= row("loop", seed, 0, "0011" * 8, collected=collected)
    found |= row("loop", seed, 1, "1111" * 8, cpu_s=9.0)
    found |= row("poison", seed, 0, "0011" * 8) | row("poison", seed, 1, "0011" * 8, ndr=0.5)
    found |= row("shuffled", seed, 0, "0011" * 8) | row("shuffled", seed, 1, "0111" * 8)
    found[f"broken/{seed}/1"] = {"arm": "broken", "seed": seed, "round": 1, "decision": "roll_back",
                                 "sessions": 12}
    for number in (0, 1):
      for arm, right in (("free", 1.0), ("answers", 0.75)):
        found[f"{arm}/{seed}/{number}"] = {"arm": arm, "seed": seed, "round": number,
                                           "free": free_row(number, right)}
    taught = {"with_trials": 0.5, "right_in_round": 0.4, **dict.fromkeys(("free", "free_loop"), free_row(2)),
              "stale": free_row(0), "lessons": {"right, active": 5, "other, retired: it harms": 4}}
    found |= row("lessons", seed, 0, "0011" * 8) | row("lessons", seed, 8, "0111" * 8, **taught)
    found[f"mixed/{seed}/1"] = {"arm": "mixed", "seed": seed, "round": 1, "families": {
        "3 of 4: 3 plain, 1 other": {"tasks": 40, "alone": 30, "auto": 20, "auto_right": 15, "right": 35}}}
    found[f"bound/{seed}/0"] = {"arm": "bound", "seed": seed, "round": 0, "chances": {
        "0.5": {"auto": 0.0, "auto_right": None, "ever": 0.0, "at_the_end": 0.0}}}
  return found


def test_claims_are_measured_over_the_same_tasks():
  one = analysis.change(results(), "loop", 0, 1)
  assert (one["gained"], one["lost"], one["lift"], one["ndr"]) == (32, 0, 0.5, 1.0)
  assert one["p"] == pytest.approx(2 * 0.5**32)
  held = {name: holds for name, holds, _ in analysis.claims(results())}
  assert held["rounds 0 to 1: pooled exact McNemar p < 0.01, every seed up"]
  assert held["5% poison through an open gate hurts"]  # It is worse than the loop, which gained.
  assert not held["shuffled rewards: no gain"]  # Here it gains.
  routes = {name.split("evidence ")[1].partition(":")[0]: holds for name, holds in held.items()
            if name.startswith("free")}
  assert routes == {"the session's answer, as the runtime had it": False,
                    "its first attempt, as it is": True, "its first attempt, with lessons": True}
  assert held["a broken checkpoint is taken back within 40 sessions"]
  worse = results() | row("loop", 2, 1, "0011" * 8)
  assert not {name: holds for name, holds, _ in analysis.claims(worse)}[
      "rounds 0 to 1: pooled exact McNemar p < 0.01, every seed up"]


def test_the_tables_stand_in_the_readme(tmp_path):
  (tmp_path / "results.json").write_text(json.dumps(results()))
  (tmp_path / "README.md").write_text("before\n<!-- TABLE -->\n<!-- END -->\nafter")
  analysis.main(tmp_path / "results.json")
  text = (tmp_path / "README.md").read_text()
  assert "| 1 | 2 | 100.0% (100.0% to 100.0%) | 100.0%, 100.0% | 50.0% |" in text
  assert "4 quarantined of 4 planted" in text and "| shuffled |" in text
  assert "the session's answer, as the runtime had it | 2 | 50.0% | 25.0% | 10.0% | 75.0% of 16 |" in text
  assert "| lessons | first attempts with lessons, first teacher | 2 | 50.0% | 50.0% |" in text
  assert "| lessons | 8 | 2 | 75.0% (" in text and "| 10 of 10 | 0 | 8, 0, 0 |" in text
  assert "5% of the sessions poisoned | 0.14 | 1 | 50.0% | 100.0% | 100.0% | 100.0% | 0.0% | 100.0% |" in text
  assert "| 2 seeds, 3 plain, 1 other | 80 | 75.0% | 50.0% | 75.0% (" in text
  assert (tmp_path / "rounds.png").stat().st_size > 1_000


def test_a_broken_checkpoint_is_compared_until_it_is_taken_back(tmp_path, monkeypatch):
  letters = Convention(tag_seed=1).conventions
  last = loop.Round(1, tmp_path, "good")
  monkeypatch.setattr(loop, "trained_rounds", lambda seed, rounds: [last])
  teams = {"good": team(letters), "broken": team()}
  seed = types.SimpleNamespace(seed=1, count=64, folder=tmp_path, tuned=lambda *_: tmp_path,
                               team=lambda at: teams[at.version])
  found = loop.broken_row(seed, 1)["broken/1/1"]
  assert found["decision"] == "roll_back" and found["sessions"] <= 40 and found["delta"] < 0
