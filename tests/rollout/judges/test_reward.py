"""Judges as a reward: endpoints that fail in any way mask samples, which is counted, and the alert fires."""
import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from atlas_jax import config as configs
from atlas_jax.data.problems import Problem
from atlas_jax.monitor import schema
from atlas_jax.monitor.alerts import rules
from atlas_jax.monitor.alerts.engine import AlertEngine
from atlas_jax.rollout import held_out, rewards
from atlas_jax.rollout.judges import reward as judge_reward
from atlas_jax.rollout.judges import settings
from atlas_jax.rollout.rewards import Rewards
from atlas_jax.state import Trained
from tests import program
from tests.rollout import rollouts
from tests.rollout.chat_server import Answer, said
from tests.rollout.judges.scripts import NO_CANARY, ONE, reply

GOOD = json.dumps(reply(0.75, principles=[], flags=[]))
FAILURES = {
  "slowly": Answer(said(GOOD), wait_s=1.0), "drop by drop": Answer(said(GOOD), pieces=50, piece_s=0.05),
  "never": Answer("", wait_s=20.0), "429": Answer("slow down", 429, {"Retry-After": "9999"}),
  "500": Answer("oh", 500), "gone": Answer(drop=True), "a page": Answer("<html>sorry</html>"),
  "prose": Answer(said("I would say 9 out of 10.")),
  "NaN": Answer(said('{"score": NaN, "uncertainty": 0.1, "rationale": "", "principles": [], "flags": []}')),
  "a list": Answer(said("[0.9]")), "a boolean": Answer(said(GOOD.replace("0.75", "true"))),
  "seven": Answer(said(GOOD.replace("0.75", "7"))), "401": Answer("no key", 401), "nothing": Answer(said(""))}


def rim_of(server, **changes):
  """config.rim of judges behind the server, impatient."""
  return settings.group_of({
    **ONE, **NO_CANARY, "temperatures": "0.5", "models": {"small_model": "m"}, **changes, "endpoint": {
      "url": server.url, "timeout_s": 0.1, "deadline_s": 0.4, "tries": 2, "backoff_s": 0.0,
      "circuit_failures": 4, **changes.get("endpoint", {})}})


def judged(rim):
  """Rewards of length and judges."""
  return Rewards({"tests.rollout.rollouts.size": 1.0, "rim": 2.0}, rim=rim)


@pytest.mark.parametrize("name", sorted(FAILURES))
def test_training_goes_on_and_the_samples_are_masked_and_counted(server, name):
  server.use(lambda number, body: Answer(said(GOOD)) if '"a"' in body["messages"][1]["content"]
             else FAILURES[name])
  # A circuit of its own: how many requests fail before one is fine is by chance.
  rim = rim_of(server, endpoint={"circuit_failures": 1000}, budget={"calls": 1000 + len(name)})
  source, _ = rollouts.made(rewards=judged(rim), batch_rows=15)
  began = time.monotonic()
  batch = source.next(Trained(None))
  texts = [text for _, text in rollouts.written(batch)]
  fine_B = np.array([text == "a" for text in texts])
  scalars = source.metrics().scalars
  assert fine_B.any() and not fine_B.all()
  assert scalars["rollout/judge_no_verdict_frac"] == pytest.approx(1 - fine_B.mean())
  assert scalars["rollout/unrewarded_frac"] == pytest.approx(1 - fine_B.mean())
  assert np.isfinite(batch["advantage_B"]).all() and not batch["advantage_B"][~fine_B].any()
  assert scalars["rollout/reward_mean"] == pytest.approx(1 + 2 * 0.75)
  assert time.monotonic() - began < 10


def test_an_endpoint_that_is_down_costs_a_few_requests_and_fires_the_alert(server):
  server.use([Answer("", 503)])
  rim = rim_of(server)
  source, _ = rollouts.made(rewards=judged(rim), batch_rows=15)
  config = configs.resolve(configs.default())
  engine = AlertEngine(rules.judged(config.alerts, "grpo"), config)
  fired = []
  for step in range(1, 5):
    batch = source.next(Trained(None))
    assert not batch["advantage_B"].any()
    scalars = source.metrics().scalars
    fired += [(event.rule, event.state, event.step) for event in engine.observe(step, scalars)]
  assert scalars["rollout/judge_no_verdict_frac"] == 1.0
  assert ("judge_no_verdict", "firing", 2) in fired
  assert len(server.asked) < 20  # The circuit is open: most of 60 completions were not asked about.


def test_a_judge_that_obeys_orders_fires_the_other_alert(server):
  server.use(lambda number, body: GOOD.replace("0.75", "1.0"))
  rim = rim_of(server, canary={"on": True}, endpoint={"timeout_s": 5.0, "deadline_s": 9.0})
  source, _ = rollouts.made(rewards=judged(rim), batch_rows=6)
  source.next(Trained(None))
  scalars = source.metrics().scalars
  config = configs.resolve(configs.default())
  engine = AlertEngine(rules.judged(config.alerts, "grpo"), config)
  events = [event for step in (1, 2) for event in engine.observe(step, scalars)]
  assert scalars["rollout/judge_unsafe"] == 1.0 and len(server.asked) == 1
  assert {"judge_unsafe", "judge_no_verdict"} <= {event.rule for event in events}


def test_metrics_of_judges_are_in_the_schema_and_apart_from_those_of_users(server):
  server.use(lambda number, body: GOOD)
  source, _ = rollouts.made(rewards=judged(rim_of(server, endpoint={"timeout_s": 5.0, "deadline_s": 9.0})))
  source.next(Trained(None))
  scalars = source.metrics().scalars
  assert set(judge_reward.METRICS) <= set(scalars) and not any("logged" in name for name in scalars)
  assert not schema.unknown(judge_reward.METRICS)
  assert scalars["rollout/judge_calls_per_completion"] == 1.0
  assert scalars["rollout/judge_tokens_per_completion"] == 10.0
  assert scalars["rollout/judge_escalated_frac"] == 0.0


def seen(call):
  """A script: what reached the judge, as its rationale."""
  return reply(0.5, rationale=repr(call.case))


def test_columns_of_rows_reach_the_judges():
  rim = settings.group_of({"backend": "scripted", **ONE, **NO_CANARY, "temperatures": "0.5",
                           "script": "tests.rollout.judges.test_reward.seen"})
  found = Rewards({"rim": 1.0}, rim=rim)
  assert {"guidance", "trajectory", "attempts", "plan", "principles"} <= set(found.asked.optional)
  problems = [
    Problem("f:1", [{"role": "user", "content": "q1"}], "truth", None,
            {"guidance": "look", "plan": {"a": 1}}),
    Problem("f:2", "q2", None, None, {"ground_truth": "t2", "baseline": "b2", "other": 1})]
  scores = found.score(problems, ["c1", "c2"], tokens=[[1], [2]])
  assert scores.each["rim"].tolist() == [0.5, 0.5]
  one, two = scores.columns["rim"]
  assert "Case(prompt='q1', response='c1', ground_truth='truth', baseline=None, plan={'a': 1}" in one
  assert "guidance='look'" in one
  assert "Case(prompt='q2', response='c2', ground_truth='t2', baseline='b2'" in two and "other" not in two


def test_a_judge_that_only_watches_masks_nothing():
  rim = settings.group_of({"backend": "scripted", **ONE, **NO_CANARY})

  def reward(weight):
    found = Rewards({"letters": 1.0, "rim": weight}, rim=rim)
    return found.score([Problem("f:1", "q", None, None, {})], ["ab"], tokens=[[1]]).reward_B[0]

  assert reward(0.0) == 1.0 and np.isnan(reward(0.1))


def test_rewards_of_the_same_settings_share_their_judges():
  rim = settings.group_of({"backend": "scripted", "budget": {"calls": 12345}})
  assert judge_reward.of_config(rim)._judge is judge_reward.of_config(rim)._judge
  with pytest.raises(ValueError, match="of_config"):
    Rewards({"rim": 1.0}).score([Problem("f:1", "q", None, None, {})], ["a"])


PROGRAM = """
import os, sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from atlas_jax.data.problems import Problem
from atlas_jax.rollout.judges import settings
from atlas_jax.rollout.rewards import Rewards
rim = settings.group_of({"backend": "scripted", "script": "tests.rollout.judges.test_reward.of_process"})
found = Rewards({"letters": 1.0, "rim": 1.0}, rim=rim).score(
  [Problem("f:1", "q", None, None, {})] * 2, ["ab", "no verdict"], tokens=[[1], [2]])
print(os.getpid(), found.reward_B.tolist())
"""


def of_process(call):
  """A script: another score in every process, and one completion that has none."""
  if call.stage != "canary" and "no verdict" in call.case.response:
    return "none"
  return reply(os.getpid() % 997 / 997 * 0.7)


@pytest.mark.slow
def test_one_process_judges_for_all():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    place = f"127.0.0.1:{free.getsockname()[1]}"
  env = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(program.ROOT)}
  started = [subprocess.Popen([sys.executable, "-c", PROGRAM, place, str(number)], env=env,
                              stdout=subprocess.PIPE, text=True) for number in range(2)]
  # The last line: the library that joins them prints before.
  lines = [process.communicate(timeout=120)[0].splitlines()[-1].split(" ", 1) for process in started]
  main = int(lines[0][0]) % 997 / 997 * 0.7
  assert lines[0][1] == lines[1][1] and lines[0][0] != lines[1][0]
  score, nothing = lines[0][1].strip("[]").split(", ")
  assert float(score) == pytest.approx(1 + main) and nothing == "nan"


def test_a_judge_says_not_what_is_right():
  config = configs.default()
  config.eval.grader = rewards.JUDGES
  with pytest.raises(ValueError, match="grader"):
    held_out.make(configs.resolve(config), None, None)
