"""Scripts of judgements, and what may be spent."""
import json

import pytest

from atlas_jax.rollout.judges import backends
from atlas_jax.rollout.judges.backends import Budget, BudgetError, JudgeReply
from atlas_jax.rollout.judges.rim import RIMReward
from tests.language.serve import scripted
from tests.language.serve.test_http_server import serving
from tests.rollout.judges.scripts import NO_CANARY, ONE, SCRIPTED, reply


def script_of(folder, *rules):
  """Writes a script."""
  path = folder / "script.jsonl"
  path.write_text("".join(json.dumps(rule) + "\n" for rule in rules))
  return str(path)


def test_the_first_rule_that_fits_is_the_reply(tmp_path):
  path = script_of(tmp_path, {"judge": "accuracy", "contains": "Paris", "reply": reply(0.9)},
                   {"temperature": 0.5, "error": "timeout"}, {"stage": "small", "reply": json.dumps(
                     reply(0.2, principles=[], flags=[]))})
  judge = RIMReward({**SCRIPTED, **NO_CANARY, **ONE, "script": path})
  assert judge(["?"] * 2, ["Paris", "Rome"]) == [0.9, 0.2]
  found = judge.evaluate(prompt="?", response="Rome")
  assert found.extra["failures"] == {"timeout": 1} and found.extra["calls"] == 3


@pytest.mark.parametrize("rule, named", [
  ({"reply": {}, "error": "timeout"}, "one of them"), ({"judge": "accuracy"}, "one of them"),
  ({"jugde": "x", "reply": {}}, "jugde"), ({"temperature": "hot", "reply": {}}, "temperature")])
def test_a_rule_that_is_none_is_refused(tmp_path, rule, named):
  with pytest.raises(ValueError, match=named):
    backends.load_script(script_of(tmp_path, rule))


def test_a_script_may_wait():
  async def slow(call):
    return reply(0.4)

  assert RIMReward({**SCRIPTED, **NO_CANARY, **ONE}, backend=slow)(["a"], ["b"]) == [0.4]


def test_a_budget_counts_what_was_sent():
  budget = Budget(2, 10)
  budget.take_call()
  budget.settle(JudgeReply({}, 10, is_cached=True))
  assert (budget.calls, budget.tokens) == (0, 0)
  budget.take_call()
  budget.settle(JudgeReply({}, 10))
  with pytest.raises(BudgetError, match="10 tokens of 10"):
    budget.take_call()


@pytest.mark.parametrize("form", ["json_schema", "json_object", "none"])
def test_this_project_s_own_server_judges(form, monkeypatch):
  written = json.dumps({"principles": [], "rationale": "fine", "score": 0.7, "uncertainty": 0.1, "flags": []})
  monkeypatch.setenv("JUDGE_KEY", "sesame" * 3)
  made = scripted.service(lambda text: written if "BOUNDARY" in text else "?", tokens=("sesame" * 3,),
                          max_tokens=500)
  with serving(made) as port:
    judge = RIMReward({
      **NO_CANARY, **ONE, "temperatures": "0.5", "models": {"small_model": "base"}, "model_configs": {
        "default": {"max_tokens": 400, "response_format": form}},
      "endpoint": {"url": f"http://127.0.0.1:{port}/v1", "key_variable": "JUDGE_KEY", "timeout_s": 20.0}})
    found = judge.evaluate(prompt="6 * 7?", response="42", ground_truth="42")
  assert found.score == 0.7, found.extra
  assert found.extra["tokens"] > 100
