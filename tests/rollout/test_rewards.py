"""Rewards: found by name, combined with what is missing left out, and faults that say where they are."""
import math

import numpy as np
import pytest

from atlas_jax.data.arithmetic import Arithmetic
from atlas_jax.data.countdown import Countdown
from atlas_jax.rollout import rewards
from atlas_jax.rollout.rewards import Rewards

PROMPTS, COMPLETIONS, TRUTHS = ["a?", "b?", "c?"], ["#### 1", "2", "x"], ["1", "3", None]


def boom(prompt, completion, answer):
  """Raises for one completion."""
  return 1 / (completion != "2")


def strange(prompt, completion, answer):
  """Gives what no reward may give, as the answer says."""
  return {"nan": math.nan, "inf": math.inf, "text": "1", "list": [1.0], "none": None, "true": True,
          "numpy": np.float32(0.5)}[answer]


def curious(prompt, completion, answer, tokens, length, extra):
  """Asks for all it may."""
  return sum(tokens) + 10 * length + 100 * extra["level"]


def misnamed(question, completion, answer):
  """Has a parameter that no reward is given."""
  return 0.0


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
  assert rewards.names() == ["correct", "countdown", "letters", "marked", "places", "verbatim"]
  assert rewards.load("correct") is rewards.correct
  assert rewards.load("tests.rollout.test_rewards.boom")("", "1", "") == 1


@pytest.mark.parametrize("name, message", [
    ("corect", "'corect', which is unknown; known rewards: correct, countdown"),
    ("no.such.module", "'no.such.module', which cannot be imported"),
    ("tests.rollout.test_rewards.nothing", "cannot be imported: .*nothing"),
    ("tests.rollout.test_rewards.misnamed", r"takes \(question, completion, answer\); it must be"),
    ("tests.rollout.test_rewards.PROMPTS", r"takes \(\); it must be"),
])
def test_a_reward_that_is_not_there_is_refused(name, message):
  with pytest.raises(ValueError, match=message):
    Rewards({name: 1.0})


def test_rewards_are_weighed_and_what_is_missing_is_left_out():
  scores = Rewards({"correct": 2.0, "letters": 0.5}).score(PROMPTS, COMPLETIONS, TRUTHS)
  np.testing.assert_array_equal(scores.each["correct"], np.float32([1, 0, np.nan]))
  np.testing.assert_array_equal(scores.each["letters"], np.float32([0, 0, 1]))
  np.testing.assert_array_equal(scores.reward_B, np.float32([2, 0, 0.5]))
  assert scores.reward_B.dtype == np.float32


def test_a_row_without_any_reward_is_missing_itself():
  scores = Rewards({"correct": 1.0, "verbatim": 1.0}).score(PROMPTS, COMPLETIONS, TRUTHS)
  np.testing.assert_array_equal(scores.reward_B, np.float32([1, 0, np.nan]))


def test_a_reward_may_ask_for_ids_length_and_columns():
  name = "tests.rollout.test_rewards.curious"
  scores = Rewards({name: 1.0}).score(["a", "b"], ["x", "y"], [None, None], tokens=[[1, 2], []],
                                      extras=[{"level": 1}, {"level": 0}])
  assert scores.reward_B.tolist() == [123.0, 0.0]
  with pytest.raises(ValueError, match="asks for tokens, length, extra, which this run does not hand over"):
    Rewards({name: 1.0}).score(["a"], ["x"], [None])


def test_a_reward_that_raises_names_itself_prompt_and_completion():
  with pytest.raises(ValueError, match="reward 'tests.rollout.test_rewards.boom' raised ZeroDivisionError: .*"
                                       "for prompt 'b\\?', completion '2', answer '3'"):
    Rewards({"tests.rollout.test_rewards.boom": 1.0}).score(PROMPTS, COMPLETIONS, TRUTHS)


@pytest.mark.parametrize("answer, message", [("nan", "gave nan"), ("inf", "gave inf"), ("text", "gave '1'"),
                                             ("list", r"gave \[1.0\]")])
def test_a_reward_that_is_no_number_names_itself_prompt_and_completion(answer, message):
  with pytest.raises(ValueError, match=f"{message}, neither a finite number nor None; for prompt 'p', "
                                       "completion 'ccc.*characters"):
    Rewards({"tests.rollout.test_rewards.strange": 1.0}).score(["p"], ["c" * 999], [answer])


def test_booleans_and_numpy_numbers_are_rewards():
  strange = Rewards({"tests.rollout.test_rewards.strange": 1.0})
  given = strange.score(["p"] * 3, ["c"] * 3, ["true", "numpy", "none"])
  np.testing.assert_array_equal(given.reward_B, np.float32([1, 0.5, np.nan]))


@pytest.mark.parametrize("weights, message", [({}, "config.rewards is empty"),
                                              ({"correct": math.nan}, "must be a finite weight")])
def test_weights_must_be_given(weights, message):
  with pytest.raises(ValueError, match=message):
    Rewards(weights)


def test_columns_of_unequal_length_are_refused():
  with pytest.raises(ValueError, match=r"2 completions cannot be paired .* there are \[1, 2\]"):
    Rewards({"letters": 1.0}).score(["a"], ["x", "y"], [None, None])
