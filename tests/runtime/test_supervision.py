"""The teacher's acts: templates without verdicts, repairs, and plans that are reviewed."""
import asyncio

import pytest

from atlas_jax.rollout import teaching
from atlas_jax.runtime import plans
from atlas_jax.runtime.chat_models import FunctionModel
from atlas_jax.runtime.supervision import Supervisor
from tests.runtime.parts import Script, plan, review, verdict


def validated(*replies, templates="agent"):
  script = Script(*replies)
  teacher = Supervisor(FunctionModel(script), teaching.load(templates))
  return asyncio.run(teacher.validate("2+2", "5", before=["3"])), script


@pytest.mark.parametrize("templates, reply", [("plain", "Carry."), ("tags", "<teaching>Carry.</teaching>")])
def test_templates_of_guidance_alone_give_no_verdict_and_their_guidance(templates, reply):
  found, _ = validated(reply, templates=templates)
  assert found.valid is None and found.guidance == "Carry." and "guidance alone" in found.problem


@pytest.mark.parametrize("templates", ["agent", "chat"])
def test_a_verdict_is_read_and_a_reply_that_is_none_is_repaired_once(templates):
  found, script = validated(verdict(False, "Carry.", confidence=0.5), templates=templates)
  assert found[:4] == (False, "Carry.", 0.5, None) and len(script.asked) == 1
  found, script = validated("well", verdict(True), verdict(False), templates=templates)
  assert found.valid is True and found.tokens.calls == len(script.asked) == 2
  found, script = validated("well", templates=templates)
  assert found.valid is None and found.problem and found.tokens.calls == len(script.asked) == 2


def test_a_review_changes_a_plan_only_by_one_that_can_be():
  def reviewed(reply):
    teacher = Supervisor(FunctionModel(Script(reply)))
    return asyncio.run(teacher.review("2+2", plans.of_task("2+2"), most_steps=2))

  better = '{"plan": %s, "concerns": ["short"]}'
  found = reviewed(better % plan((1, "a"), (2, "b", 1)))
  assert [one.description for one in found.plan] == ["a", "b"] and found.concerns == ("short",)
  assert reviewed(review()).plan is None and reviewed(review()).problem is None
  for bad in (better % plan((1, "a", 1)), better % plan((1, "a"), (2, "b"), (3, "c")), "no json"):
    found = reviewed(bad)
    assert found.plan is None and found.problem
