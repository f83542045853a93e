"""Evaluation of tasks: a kill loses and doubles nothing, errors are errors, pass@k and its intervals."""
import asyncio
import json

import pytest

from atlas_jax.files.damage import Damaged
from atlas_jax.rollout.endpoint import EndpointError
from atlas_jax.runtime import task_eval
from atlas_jax.runtime.result import SessionResult
from atlas_jax.runtime.task_eval import EvalSample, EvalSettings

TASKS = task_eval.tasks_of_rows({"task": f"t{number}", "ground_truth": number} for number in range(5))


class Killed(BaseException):
  """A stop of the program."""


class Sampler:
  """Scores by script (task, sample) -> score or exception; stops at a call."""

  def __init__(self, script=lambda task, sample: 1.0, stop_at=None):
    self.asked, self.at_once, self.most = [], 0, 0
    self._script, self._stop_at = script, stop_at

  async def __call__(self, task, number):
    if len(self.asked) == self._stop_at:
      raise Killed
    self.asked.append((task.key, number))
    self.at_once += 1
    self.most = max(self.most, self.at_once)
    await asyncio.sleep(0)
    self.at_once -= 1
    found = self._script(task, number)
    if isinstance(found, Exception):
      raise found
    return EvalSample(found, "answer")


def run(sampler, file, tasks=TASKS, about=None, **settings):
  return asyncio.run(task_eval.evaluate(tasks, sampler, file, EvalSettings(**settings), about=about))


def lines(file):
  return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_kill_loses_and_doubles_nothing(tmp_path):
  file = tmp_path / "results.jsonl"
  for stop in (1, 4, 3):
    with pytest.raises(Killed):
      run(Sampler(stop_at=stop), file, samples=3, concurrency=2)
    with file.open("ab") as torn:
      torn.write(b'{"task": "')
  report = run(Sampler(), file, samples=3, concurrency=2)
  rows = [(one["task"], one["sample"]) for one in lines(file)[1:]]
  assert len(rows) == len(set(rows)) == report.samples == 15 and report.reused > 0
  again = Sampler()
  assert run(again, file, samples=3).reused == 15 and not again.asked
  more = Sampler()
  assert run(more, file, samples=4).samples == 20 and len(more.asked) == 5


def test_no_more_run_at_the_same_time(tmp_path):
  sampler = Sampler()
  run(sampler, tmp_path / "r", samples=4, concurrency=3)
  assert sampler.most == 3


def test_errors_are_errors_and_can_be_asked_again(tmp_path):
  given = {0: EndpointError("status", 500, 3, "down"), 1: RuntimeError("oh"), 2: None, 3: 7.0, 4: 0.0}
  script = lambda task, sample: given[int(task.ground_truth)]
  report = run(Sampler(script), tmp_path / "r")
  assert (report.scored, report.errors, report.no_verdict, report.mean) == (1, 3, 1, 0.0)
  assert report.error_kinds == {"status": 1, "RuntimeError": 1, "score": 1}
  kept = Sampler()
  run(kept, tmp_path / "r")
  assert not kept.asked
  again = Sampler()
  report = run(again, tmp_path / "r", retry_errors=True)
  assert len(again.asked) == 3 and (report.errors, report.scored) == (0, 4)


def test_pass_at_k_and_means_have_intervals(tmp_path):
  right = lambda task, sample: float(sample < int(task.ground_truth))
  report = run(Sampler(right), tmp_path / "r", samples=4)
  assert report.mean == pytest.approx(0.5)  # Of 0, 1, 2, 3 and 4 right ones of 4.
  assert report.pass_at[1]["value"] == pytest.approx(0.5)
  assert report.pass_at[2]["value"] == pytest.approx((0 + 1 / 2 + 5 / 6 + 1 + 1) / 5)
  assert report.pass_at[4]["value"] == pytest.approx(4 / 5)
  low, high = report.interval
  assert 0 <= low < 0.5 < high <= 1
  assert [task_eval.pass_at(5, one, 2) for one in (0, 1, 5)] == pytest.approx([0, 0.4, 1])
  assert json.loads(json.dumps(report.to_json()))["pass_at"]["2"]["tasks"] == 5


def test_results_of_something_else_are_refused(tmp_path):
  run(Sampler(), tmp_path / "r", about={"student": "1"})
  with pytest.raises(ValueError, match="an evaluation of"):
    run(Sampler(), tmp_path / "r", about={"student": "2"})
  with pytest.raises(ValueError, match="other tasks"):
    run(Sampler(), tmp_path / "r", TASKS[:2], about={"student": "1"})
  with pytest.raises(ValueError, match="at least one task"):
    run(Sampler(), tmp_path / "s", [])
  (tmp_path / "t").write_text("prose\n")
  with pytest.raises(Damaged):
    run(Sampler(), tmp_path / "t")


def test_keys_depend_on_content_and_equal_tasks_have_their_own():
  rows = [{"task": "a"}, {"task": "b"}, {"task": "a"}]
  first, second = task_eval.tasks_of_rows(rows), task_eval.tasks_of_rows(rows[1:])
  assert len({one.key for one in first}) == 3 and first[1].key == second[0].key


def test_a_session_is_a_sample():
  found = SessionResult("k", 1, "4", True, "paired", "succeeded", reward=1.0)
  assert task_eval.sample_of(found)[:3] == (1.0, "4", None)
  lost = found._replace(answer=None, status="timed_out", problem="late", reward=None)
  assert task_eval.sample_of(lost).error == "timed_out: late"
  silent = task_eval.sample_of(found._replace(reward=None, reward_reason="no judge"))
  assert silent.error is None and silent.score is None and silent.more["reason"] == "no judge"
