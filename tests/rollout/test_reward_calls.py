"""Rewards with TRL's signature, async ones, others that can be called, and the columns they ask for."""

import json

import numpy as np
import pytest

from atlas_jax.data import prompts
from atlas_jax.rollout import async_loop, reward_calls, rewards
from atlas_jax.rollout.rewards import Rewards
from tests.rollout import user_rewards
from tests.rollout.test_rewards import COMPLETIONS, problems_of, score, user

CHATS = [[{"role": "user", "content": "a?"}]] * 3
GUIDE = {"longer", "formatted", "matches", "by_task", "slow", "logging"}


def test_a_function_of_all_completions_is_called_once_with_their_ids():
  assert score("longer", tokens=[[1, 2], [], [3]]).reward_B.tolist() == [2, 0, 1]


def test_completions_of_chats_are_messages_and_those_of_texts_are_texts():
  chats = score("formatted", prompts=CHATS, completions=["<think>", "b", "c"], tokens=[[]] * 3)
  assert chats.reward_B.tolist() == [1, 0, 0]
  with pytest.raises(ValueError, match="raised TypeError.*for 3 completions, the first of them: prompt 'a"):
    score("formatted", tokens=[[]] * 3)


def test_columns_reach_a_function_by_name():
  extras = [{"ground_truth": one} for one in ("#### 1", "x", "x")]
  assert score("matches", extras=extras, tokens=[[]] * 3).reward_B.tolist() == [1, 0, 1]


@pytest.mark.parametrize("column", ["answer", "ground_truth", "gold"])
def test_the_column_that_is_read_as_the_answer_keeps_its_name(column, tmp_path):
  file = tmp_path / "rows.jsonl"
  file.write_text(json.dumps({"question": "2?", column: "4", "level": 3}) + "\n")
  fields = {"answer": column} if column == "gold" else None
  problem = prompts.load("files", files=str(file), held_out_frac=0.0, fields=fields).problem(0)
  assert problem.answer == "4" and reward_calls.column(problem, column) == "4"
  assert reward_calls.column(problem, "question") == "2?" and reward_calls.column(problem, "level") == 3
  assert set(reward_calls.columns_of(problem)) == {"question", column, "level", "answer"}


def test_of_two_columns_that_may_be_the_answer_each_keeps_its_own_value():
  problem = prompts.parse_row("here", {"prompt": "2?", "answer": "4", "solution": "2 + 2 #### 4"})
  assert problem.answer == "4" and reward_calls.column(problem, "solution") == "2 + 2 #### 4"


def test_none_is_a_reward_that_does_not_apply():
  tasks = [{"task": "math"}, {"task": "code"}, {"task": "math"}]
  np.testing.assert_array_equal(
    score("by_task", extras=tasks, tokens=[[]] * 3).reward_B, np.float32([1, np.nan, 1])
  )


def test_async_rewards_are_awaited_side_by_side():
  user_rewards.CALLS.clear()
  wanted = Rewards({user("slow"): 1.0, user("slow_one"): 1.0, "letters": 1.0})
  scores = wanted.score(problems_of(), ["a", "bb", "ccc"], tokens=[[]] * 3)
  assert scores.reward_B.tolist() == [2.5, 3.5, 4.5]
  began = [call.endswith("began") for call in user_rewards.CALLS]
  assert began == [True] * 4 + [False] * 4


def test_async_rewards_are_awaited_in_one_loop_from_call_to_call():
  loops = [async_loop._loop() for _ in range(2)]
  assert loops[0] is loops[1] and loops[0].is_running()
  assert score("later").reward_B.tolist() == score("later").reward_B.tolist() == [4, 4, 4]


def test_an_async_reward_that_raises_names_its_completion():
  with pytest.raises(ValueError, match="slow_boom' raised KeyError: '#### 1'; for prompt 'a\\?', completion"):
    score("slow_boom")


def test_a_reward_that_raises_beside_an_async_one_leaves_nothing_to_be_awaited(recwarn):
  with pytest.raises(ValueError, match="ZeroDivisionError"):
    Rewards({user("slow"): 1.0, user("boom"): 1.0}).score(problems_of(), COMPLETIONS, tokens=[[]] * 3)
  assert not [one for one in recwarn if "never awaited" in str(one.message)]


def test_rewards_log_numbers_and_columns_and_know_the_step():
  given = score("logging", step=30, max_steps=120, tokens=[[]] * 3)
  assert given.reward_B.tolist() == [0.25] * 3
  assert given.columns == {"lengths": [6, 1, 1]} and given.logged == {"mean": pytest.approx(8 / 3)}


def test_a_function_of_keywords_alone_gets_all_there_is():
  user_rewards.CALLS.clear()
  score("everything", extras=[{"level": 1}, {"kind": "a"}, {}], tokens=[[]] * 3)
  assert user_rewards.CALLS == [
    [
      *("answer", "completion_ids", "completions", "kind", "level", "log_extra", "log_metric", "prompts"),
      "trainer_state",
    ]
  ]


@pytest.mark.parametrize(
  "name, message",
  [
    ("too_few", "gave 2 rewards for 3 completions; it must give one for each"),
    ("as_number", "gave 1.0, not a list of 3 numbers"),
    ("as_generator", "gave <generator.*, not a list of 3 numbers"),
  ],
)
def test_a_batch_of_rewards_must_be_a_list_of_one_for_each_completion(name, message):
  with pytest.raises(ValueError, match=f"reward '{user(name)}' {message}"):
    score(name)


def test_a_batch_of_rewards_may_be_an_array():
  assert score("as_array").reward_B.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
  "name, extras, given",
  [
    ("scaled", [{}, {"level": 5}, {"scale": 1.0}], [112, 502, 101]),
    ("halved", [{}, {"level": 5}, {"scale": 9.0}], [103, 500.5, 100.5]),
    ("bound", [{"ground_truth": "#### 1"}] * 3, [0, 0, 1]),
    ("length", [{}] * 3, [18, 3, 3]),
    ("later", [{}] * 3, [4, 4, 4]),
    ("only_positions", [{}] * 3, [-4, 1, 1]),
  ],
)
def test_defaults_partials_objects_and_methods_are_accepted(name, extras, given):
  """A default stands unless a column has its name; what functools.partial binds stands in any case."""
  assert score(name, extras=extras, tokens=[[]] * 3).reward_B.tolist() == given


@pytest.mark.parametrize(
  "name, required, optional, every",
  [
    ("matches", {"ground_truth"}, set(), True),
    ("scaled", set(), {"scale", "level"}, False),
    ("halved", set(), {"level"}, False),
    ("curious", set(), set(), True),
    ("needs_question", {"question"}, set(), False),
  ],
)
def test_rewards_say_which_columns_they_read(name, required, optional, every):
  asked = Rewards({user(name): 1.0, "correct": 1.0}).asked
  assert (asked.required, asked.optional, asked.every) == (required, optional, every)
  assert asked.uses(next(iter({*required, *optional}), "any")) and asked.uses("other") == every


def test_a_column_that_no_row_has_is_refused_before_anything_is_scored():
  found = problems_of(extras=[{"questoin": 1}, {}, {}])
  message = "which asks for the column 'question', and no row has it; did you mean 'questoin'"
  with pytest.raises(ValueError, match=f"needs_question', {message}.*rows have questoin, answer"):
    Rewards({user("needs_question"): 1.0}).check_columns(found)
  Rewards({user("needs_question"): 1.0}).check_columns(problems_of(extras=[{}, {"question": 1}, {}]))
  Rewards({user("scaled"): 1.0}).check_columns(found)


def test_a_column_that_some_rows_lack_is_none_there():
  extras = [{"question": "#### 1"}, {}, {"question": "y"}]
  assert score("needs_question", extras=extras).reward_B.tolist() == [1, 0, 0]


# --- rewards of files ---

FILE = """
import {sibling}

def short(prompt, completion, answer):
  return {sibling}.FACTOR * len(completion)

def shorter(completions, **kwargs):
  return [-1.0 for _ in completions]
"""


@pytest.fixture
def file(tmp_path):
  name = f"sibling_{tmp_path.name.strip('0123456789')}_{abs(hash(tmp_path))}"
  (tmp_path / f"{name}.py").write_text("FACTOR = -2\n")
  path = tmp_path / "my_rewards.py"
  path.write_text(FILE.format(sibling=name))
  return path


def test_rewards_of_a_file_are_loaded_by_its_path_and_may_import_what_lies_beside_it(file, monkeypatch):
  weights = rewards.parse_weights(f"letters=1,{file}:short=0.5,{file}:shorter")
  assert list(weights.values()) == [1, 0.5, 1]
  given = Rewards(weights).score(problems_of(), ["a", "bb", "ccc"], tokens=[[]] * 3)
  assert given.reward_B.tolist() == [-1, -2, -3]
  monkeypatch.chdir(file.parent)
  assert rewards.load("my_rewards.py:short") is rewards.load(f"{file}:short")


def test_a_file_that_is_not_there_says_where_it_was_looked_for(file, monkeypatch):
  monkeypatch.chdir(file.parent)
  with pytest.raises(ValueError, match=f"no file 'my_reward.py': looked for {file.parent}/my_reward.py; .*"
                                       "did you mean 'my_rewards.py'"):
    rewards.load("my_reward.py:short")
  with pytest.raises(ValueError, match="no 'sort'; did you mean 'short'.* there are short, shorter"):
    rewards.load("my_rewards.py:sort")
  with pytest.raises(ValueError, match="is a file; name a function in it, my_rewards.py:FUNCTION"):
    rewards.load("my_rewards.py")
  with pytest.raises(ValueError, match="no module 'my_rewardz'.*looked for in .*PYTHONPATH"):
    rewards.load("my_rewardz.short")
  with pytest.raises(ValueError, match="did you mean 'my_rewards.py:short'"):
    monkeypatch.syspath_prepend(file.parent)
    rewards.load("my_rewards.py.short")


@pytest.mark.parametrize("content, message", [("1 / 0", "ZeroDivisionError"), ("def f(:", "SyntaxError"),
                                              ("import no_such", "No module named 'no_such'")])
def test_a_file_that_cannot_be_run_says_why(tmp_path, content, message):
  (tmp_path / "bad.py").write_text(content)
  with pytest.raises(ValueError, match=f"running {tmp_path}/bad.py raised .*{message}"):
    rewards.load(f"{tmp_path}/bad.py:f")


def test_a_file_that_ends_the_program_is_refused(tmp_path):
  (tmp_path / "script.py").write_text("import argparse\nargparse.ArgumentParser(usage='').exit(2)\n")
  with pytest.raises(ValueError, match=f"running {tmp_path}/script.py raised SystemExit: 2"):
    rewards.load(f"{tmp_path}/script.py:f")
  with pytest.raises(ValueError, match="leaves' raised RuntimeError: SystemExit: no .*; for prompt 'a"):
    score("leaves")


def test_a_reward_that_adds_to_what_it_is_given_changes_no_row():
  prompts_of_chats = [[{"role": "user", "content": "a?"}] for _ in range(3)]
  extras, tokens = [{"tags": []} for _ in range(3)], [[1], [1, 2], []]
  for _ in range(2):
    found = score("extends", prompts=prompts_of_chats, extras=extras, tokens=tokens)
    one = score("extends_one", prompts=prompts_of_chats, extras=extras, tokens=tokens)
  assert found.reward_B.tolist() == [2, 2, 2] and one.reward_B.tolist() == [3, 4, 2]
  assert prompts_of_chats == CHATS and extras == [{"tags": []}] * 3 and tokens == [[1], [1, 2], []]
