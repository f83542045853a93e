"""Held-out problems: who answers them, how answers are graded, and what is said of them."""
import math

import numpy as np
import pytest

from atlas_jax import config as configs
from atlas_jax.data import prompts, tokenizer
from atlas_jax.data.problems import Problem
from atlas_jax.evals import problems
from atlas_jax.language.decoding.sampler import SamplingOptions, ScriptedSampler
from atlas_jax.language.initial_model import load_initial_model
from atlas_jax.recipes import grpo
from atlas_jax.rollout import ask, held_out
from atlas_jax.rollout.rewards import Rewards
from atlas_jax.state import Trained
from tests import runs

BYTES = tokenizer.ByteTokenizer()
FOUND = [Problem("f:1", "1+1=", "2"), Problem("f:2", [{"role": "user", "content": "2+2="}], "4"),
         Problem("f:3", "3+3=", "6"), Problem("f:4", "name?", None)]
SAID = {"1+1=": ["2"], "2+2=": ["5"], "3+3=": ["so 6"], "name?": ["7" * 9]}
OPTIONS = SamplingOptions(max_tokens=6, temperature=0.0, stop_tokens=(256,))


def encode(problem):
  """Ids of the prompt's text, nothing for long ones."""
  text = ask.prompt_text(problem)
  return None if text == "skip me" else np.array(BYTES.encode(text))


def made(found=FOUND, *, rows=3, grader="correct", weights=None, **more):
  """The evaluation by a scripted sampler, and the sampler."""
  sampler = ScriptedSampler(BYTES, SAID)
  write = ask.batch_generate(sampler, encode, OPTIONS, rows=rows)
  grade = ask.grader(Rewards(weights or {"correct": 1.0, "letters": 0.5}))
  return problems.make(write, grade, found, grader=grader, **more), sampler


def test_answers_are_graded_and_those_without_an_answer_are_not():
  run, sampler = made()
  out = run("weights", step=7)
  assert out.scalars == {
      "val/accuracy": pytest.approx(2 / 3), "val/graded_count": 3, "val/length_tokens": (2 + 2 + 5 + 6) / 4,
      "val/ended_frac": 3 / 4, "val/reward": pytest.approx((1 + 0 + 1 + 0.5 * 0.5 + 0) / 4)}
  assert (sampler.params, sampler.version, sampler.calls) == ("weights", 7, 2)


def test_answers_are_shown_with_their_marks():
  text = made(shown=4)[0](None, step=0).text
  assert text.splitlines() == ["1+1= -> 2 (right)", "2+2= -> 5 (wrong, answer '4')", "3+3= -> so 6 (right)",
                               "name? -> 777777 (not graded)"]
  assert made(shown=0)[0](None, step=0).text == ""


@pytest.mark.parametrize("rows", [1, 2, 4, 9])
def test_how_many_are_asked_at_a_time_changes_nothing(rows):
  assert made(rows=rows)[0](None, step=0).scalars == made()[0](None, step=0).scalars


def test_prompts_that_are_passed_over_count_nowhere():
  run, _ = made([Problem("f:0", "skip me", "1"), *FOUND])
  assert run(None, step=0).scalars == made()[0](None, step=0).scalars
  with pytest.raises(ValueError, match="none of the 1 held-out problems can be asked"):
    made([Problem("f:0", "skip me", "1")])[0](None, step=0)


def test_problems_that_nothing_can_grade_are_refused():
  with pytest.raises(ValueError, match="f:4: config.eval.grader='correct' grades none of the 1 held-out"):
    made(FOUND[3:])[0](None, step=0)


def config_of(**changes):
  """A config of sums; __ stands for dots."""
  config = configs.default()
  config.model.kind = "decoder"
  config.data.update(name="arithmetic", held_out_frac=0.2)
  config.eval.update(batch_rows=4, max_problems=10)
  config.sampler.max_tokens = 8
  for name, value in changes.items():
    group, field = name.split("__")
    config[group][field] = value
  return configs.resolve(config)


@pytest.mark.parametrize("grader, accuracy", [("correct", 0.5), ("verbatim", 0.5), ("marked", 0.0)])
def test_a_config_says_what_is_asked_and_what_is_right(grader, accuracy):
  config = config_of(eval__grader=grader)
  found = prompts.listed(config, "held_out")
  assert len({problem.prompt for problem in found}) == 10
  said = {problem.prompt: [problem.answer if place % 2 else "x"]
          for place, problem in enumerate(found)}
  sampler = ScriptedSampler(BYTES, lambda text, params: said[text])
  params_of = lambda trained: ("whole", trained.params)
  run = held_out.make(config, load_initial_model(config), sampler, params_of=params_of)
  out = run(Trained(3), step=1)
  assert out.scalars["val/accuracy"] == accuracy and out.scalars["val/reward"] == 0.5
  assert sampler.params == ("whole", 3)


def test_held_out_problems_are_never_trained_on():
  config = config_of(eval__max_problems=100)

  rollouts = grpo.source_of(config, load_initial_model(config), None, runs.one_device())
  asked = {rollouts._prompts.batch(step)["problems"][0].prompt for step in range(300)}
  assert not asked & {problem.prompt for problem in prompts.listed(config, "held_out")}


@pytest.mark.parametrize("changes, message", [
    (dict(data__held_out_frac=0.0), "held_out_frac=0 leaves nothing to evaluate on"),
    (dict(eval__max_problems=None), "has no end; set config.eval.max_problems"),
    (dict(eval__grader="corect"), "which is unknown; known rewards"),
])
def test_what_cannot_be_evaluated_is_refused(changes, message):
  config = config_of(**changes)
  with pytest.raises(ValueError, match=message):
    held_out.make(config, load_initial_model(config), ScriptedSampler(BYTES, SAID))


def test_nothing_is_known_of_an_answer_without_a_reward():
  run, _ = made(FOUND[:1], weights={"correct": 1.0})
  assert not any(math.isnan(value) for value in run(None, step=0).scalars.values())
