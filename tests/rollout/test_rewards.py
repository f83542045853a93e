"""Rewards: found by name, combined with what is missing left out, and faults that say where they are."""
import math

import numpy as np
import pytest

from atlas_jax.data.arithmetic import Arithmetic
from atlas_jax.data.countdown import Countdown
from atlas_jax.data.problems import Problem
from atlas_jax.rollout import rewards
from atlas_jax.rollout.rewards import Rewards

PROMPTS, COMPLETIONS, TRUTHS = ["a?", "b?", "c?"], ["#### 1", "2", "x"], ["1", "3", None]


@pytest.mark.parametrize("completion, answer, right", [
    ("so #### 1,200", "1200", 1), (r"\boxed{\frac{1}{2}}", "0.5", 1), ("3.504", "3.50", 0), ("", "", 0),
    ("the answer is 18", "Tom has 3*6=18.\n#### 18", 1), ("18", r"thus \boxed{18}", 1), ("17", "#### 18", 0),
])
def test_a_completion_is_correct_if_its_answer_is(completion, answer, right):
  assert rewards.correct("?", completion, answer) == right


@pytest.mark.parametrize("completion, share", [
    ("132", 1), (" 132\n", 1), ("142", 2 / 3), ("13", 2 / 3), ("1325", 3 / 4), ("32", 0), ("", 0)])
def test_characters_in_their_places_earn_a_part(completion, share):
  assert rewards.places("?", completion, "132") == pytest.approx(share)
  assert rewards.places("?", completion, None) is None


@pytest.mark.parametrize("text, weights", [
    ("correct", {"correct": 1.0}), ("correct=1, a.b=-0.5,", {"correct": 1.0, "a.b": -0.5}), ("", {})])
def test_weights_are_read_from_a_text(text, weights):
  assert rewards.parse_weights(text) == weights


@pytest.mark.parametrize("text, message", [
    ("correct=x", "'correct=x' must be NAME or NAME=NUMBER"), ("a=1,a=2", "names 'a' twice")])
def test_weights_that_cannot_be_read_are_refused(text, message):
  with pytest.raises(ValueError, match=message):
    rewards.parse_weights(text)


def test_without_an_answer_a_reward_has_nothing_to_say():
  assert rewards.correct("?", "1", None) is rewards.countdown("?", "1", None) is None


@pytest.mark.parametrize("task, reward", [
    (Arithmetic(operations="+-*"), rewards.correct), (Arithmetic(style="direct"), rewards.correct),
    (Countdown(size=4), rewards.countdown)])
def test_solutions_of_a_task_earn_its_reward_and_others_do_not(task, reward):
  problems = [task.problem(index) for index in range(40)]
  assert all(reward(one.prompt, one.solution, one.answer) == 1 for one in problems)
  others = zip(problems, problems[1:])
  assert sum(reward(one.prompt, other.solution, one.answer) for one, other in others) < 4


@pytest.mark.parametrize("completion, earned", [
    ("#### (3*8)*(5-4)", 0), ("#### 3*8", 1), ("so 3*8 = 24", 0), ("3*8 = 24", 1), (r"\boxed{3 * 8}", 1),
    ("<answer>8*3</answer>", 1), ("24", 0), ("", 0)])
def test_countdown_reads_the_stated_expression(completion, earned):
  assert rewards.countdown("?", completion, "24 from 3 8 5") == earned


def test_an_answer_that_is_no_countdown_problem_is_an_error():
  with pytest.raises(ValueError, match="'12' is not 'TARGET from NUMBERS'"):
    rewards.countdown("?", "1", "12")


@pytest.mark.parametrize("reward, completion, value", [
    (rewards.marked, "<answer>1</answer>", 1), (rewards.marked, "it is 1", 0), (rewards.verbatim, " 1\n", 1),
    (rewards.verbatim, "1.0", 0), (rewards.letters, "ab1é", 0.5), (rewards.letters, "", 0)])
def test_form_is_rewarded_apart_from_right(reward, completion, value):
  assert reward("?", completion, "1") == value


def test_rewards_are_found_by_name_and_by_dotted_name():
  assert rewards.names() == ["correct", "countdown", "group", "letters", "marked", "places", "rim",
                             "verbatim"]
  assert rewards.load("correct") is rewards.correct
  assert rewards.load("tests.rollout.user_rewards.boom")("", "1", "") == 1
  assert rewards.load("tests.rollout.user_rewards:length.__call__")("ab") == 6


def user(name):
  """The dotted name of a user's reward."""
  return f"tests.rollout.user_rewards.{name}"


def problems_of(prompts=PROMPTS, truths=TRUTHS, extras=None):
  """Problems without more columns than these."""
  extras = extras or [{}] * len(prompts)
  rows = zip(prompts, truths, extras, strict=True)
  return [Problem("here", prompt, truth, None, extra) for prompt, truth, extra in rows]


def score(name, *, completions=COMPLETIONS, step=0, max_steps=None, tokens=None, **problems):
  """The rewards that a user's function gives."""
  found = problems_of(**problems)
  return Rewards({user(name): 1.0}, max_steps=max_steps).score(found, completions, step=step, tokens=tokens)


@pytest.mark.parametrize("name, message", [
    ("corect", "'corect', which is unknown; known rewards: correct, countdown.*did you mean 'correct'"),
    ("no.such.module", "'no.such.module', which cannot be loaded: there is no module 'no'"),
    (user("nothing"), "tests.rollout.user_rewards has no 'nothing'; .*there are Length, as_array"),
    (user("skaled"), "did you mean 'scaled'"),
    (user("no_parameters"), r"takes \(\); it must be a function of one completion"),
    (user("mixed"), r"takes \(prompts, completion\).*completion is of one completion, prompts of all"),
    (user("not_a_function"), "which is a list; it must be"),
    (user("Length"), "which is a class; name an object of it"),
    ("time.sleep", "cannot be read|takes"),
])
def test_a_reward_that_is_not_there_or_no_function_of_completions_is_refused(name, message):
  with pytest.raises(ValueError, match=message):
    Rewards({name: 1.0})


def test_rewards_are_weighed_and_what_is_missing_is_left_out():
  scores = Rewards({"correct": 2.0, "letters": 0.5}).score(problems_of(), COMPLETIONS)
  np.testing.assert_array_equal(scores.each["correct"], np.float32([1, 0, np.nan]))
  np.testing.assert_array_equal(scores.each["letters"], np.float32([0, 0, 1]))
  np.testing.assert_array_equal(scores.reward_B, np.float32([2, 0, 0.5]))
  assert scores.reward_B.dtype == np.float32


def test_a_row_without_any_reward_is_missing_itself():
  scores = Rewards({"correct": 1.0, "verbatim": 1.0}).score(problems_of(), COMPLETIONS)
  np.testing.assert_array_equal(scores.reward_B, np.float32([1, 0, np.nan]))


def test_a_reward_may_ask_for_ids_length_and_columns():
  given = dict(prompts=["a", "b"], truths=[None, None], completions=["x", "y"],
               extras=[{"level": 1}, {"level": 0}])
  assert score("curious", tokens=[[1, 2], []], **given).reward_B.tolist() == [123.0, 0.0]
  with pytest.raises(ValueError, match="asks for the ids of completions, which are not handed over here"):
    score("curious", **given)


def test_a_reward_that_raises_names_itself_prompt_and_completion():
  with pytest.raises(ValueError, match="reward 'tests.rollout.user_rewards.boom' raised ZeroDivisionError: .*"
                                       "for prompt 'b\\?', completion '2', answer '3'"):
    score("boom")


BAD = [("nan", "gave nan, neither"), ("inf", "gave inf, neither"), ("text", "gave '1', neither"),
       ("list", r"gave \[1.0\], neither"), ("row", r"gave array\(\[1.\]\), neither"),
       ("complex", "gave 1j, neither"), ("large", r"gave 1e\+39, more than float32 holds, 3.4e\+38"),
       ("huge", "gave 1000.*more than float32 holds"),
       ("endless", "gave a whole number of 16610 bits, more than float32 holds")]


@pytest.mark.parametrize("answer, message", BAD)
def test_a_reward_that_is_no_number_names_itself_prompt_and_completion(answer, message):
  with pytest.raises(ValueError, match=f"{message}.*; for prompt 'p', completion 'ccc.*characters"):
    score("strange", prompts=["p"], completions=["c" * 999], truths=[answer])


@pytest.mark.parametrize("answer, message", BAD)
def test_a_number_that_is_none_among_those_of_a_batch_names_its_completion(answer, message):
  with pytest.raises(ValueError, match=f"strange_list' {message}.*; for prompt 'q', completion 'd'"):
    score("strange_list", prompts=["p", "q"], completions=["c", "d"], truths=["true", answer])


@pytest.mark.parametrize("name", ["strange", "strange_list"])
def test_booleans_and_numpy_numbers_are_rewards(name):
  answers = ["true", "numpy", "none", "array", "whole"]
  given = score(name, prompts=["p"] * 5, completions=["c"] * 5, truths=answers)
  np.testing.assert_array_equal(given.reward_B, np.float32([1, 0.5, np.nan, 0.25, 3]))


@pytest.mark.parametrize("weights, message", [
    ({}, "config.rewards is empty"), ({"correct": math.nan}, "must be a finite weight"),
    ({"correct": 1e39}, "must be a finite weight")])
def test_weights_must_be_given(weights, message):
  with pytest.raises(ValueError, match=message):
    Rewards(weights)


def test_a_sum_beyond_float32_names_its_parts():
  wanted = Rewards({"letters": 1.0, user("strange"): 3e38})
  with pytest.raises(ValueError, match=r"more than float32 holds: letters 1 times 1, .*strange 3 times 3e"):
    wanted.score(problems_of(["?"], ["whole"]), ["a"])


def test_columns_of_unequal_length_are_refused():
  with pytest.raises(ValueError, match=r"2 completions cannot be paired .* there are \[1\]"):
    Rewards({"letters": 1.0}).score(problems_of(["a"], [None]), ["x", "y"])
