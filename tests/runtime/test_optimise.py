"""The command that optimises an agent's prompt."""
import json

import pytest

from atlas_jax.rollout import rewards
from atlas_jax.runtime import optimise, reflection_tasks, task_eval
from atlas_jax.runtime.agents.agent import AgentError, AgentReply
from atlas_jax.runtime.chat_models import FunctionModel
from atlas_jax.runtime.optimise import AgentMetric
from atlas_jax.runtime.reflection import ReflectionSettings
from atlas_jax.runtime.scoring import GraderAndJudges

TASKS = task_eval.tasks_of_rows({"task": f"{number}+{number}", "ground_truth": 2 * number}
                                for number in range(1, 9))


class Adder:
  """Adds only where its prompt says so; is down for one task."""

  name, version, idempotent = "adder", None, True

  async def __call__(self, messages, *, tools=(), session):
    system, user = (one["content"] for one in messages)
    if user == "8+8":
      raise AgentError("endpoint", "down")
    left, right = map(int, user.split("+"))
    return AgentReply(str(left + right if "add" in system else left))


def test_a_prompt_is_made_better(tmp_path):
  asked = []

  def reflect(messages):
    asked.append(messages[1]["content"])
    return json.dumps({"diagnosis": "it does not add", "text": "add the numbers"})

  metric = AgentMetric(Adder(), GraderAndJudges(rewards.load("correct")))
  found = optimise.optimise({"prompt": "hello"}, TASKS, metric, FunctionModel(reflect), tmp_path,
                            ReflectionSettings(40))
  assert found.improved and found.texts == {"prompt": "add the numbers"} and found.best == 1
  assert "the grader gave 0 of 1" in asked[0] and found.errors >= 1
  said = optimise.summary(found)
  assert "0.000 before, 1.000" in said and "reported: the best text" in said


def test_other_texts_are_refused_and_files_are_read(tmp_path):
  metric = AgentMetric(Adder(), GraderAndJudges(rewards.load("correct")))
  with pytest.raises(ValueError, match="the one text 'prompt'"):
    optimise.optimise({"plan": "x"}, TASKS, metric, FunctionModel(str), tmp_path, ReflectionSettings(40))
  (tmp_path / "a.txt").write_text("one\n")
  (tmp_path / "b.json").write_text('{"prompt": 1}')
  assert reflection_tasks.read_texts(tmp_path / "a.txt") == {"prompt": "one"}
  with pytest.raises(ValueError, match="object of texts"):
    reflection_tasks.read_texts(tmp_path / "b.json")
