"""Arithmetic and Countdown: right solutions, honest splits, the same problem for the same index."""
import itertools

import pytest

from atlas_jax.data import arithmetic, countdown
from atlas_jax.data.arithmetic import Arithmetic
from atlas_jax.data.countdown import Countdown


@pytest.mark.parametrize("op, a, b, carries, steps", [
    ("+", 47, 85, 2, "7+5=12 4+8+1=13 #### 132"),
    ("+", 3, 5, 0, "3+5=8 #### 8"),
    ("+", 199, 1, 2, "9+1=10 9+0+1=10 1+0+1=2 #### 200"),
    ("-", 42, 15, 1, "12-5=7 4-1-1=2 #### 27"),
    ("-", 1000, 1, 3, "10-1=9 10-0-1=9 10-0-1=9 1-0-1=0 #### 999"),
    ("-", 7, 7, 0, "7-7=0 #### 0"),
    ("*", 24, 10, 0, "24*10=240 #### 240"),
    ("*", 47, 85, 4, "47*5=235 47*80=3760 235+3760=3995 #### 3995"),
    ("*", 5, 0, 0, "5*0=0 #### 0"),
])
def test_a_worked_problem_has_its_columns_and_carries(op, a, b, carries, steps):
  assert arithmetic.count_carries(op, a, b) == carries
  assert arithmetic.solve(op, a, b) == (int(steps.split()[-1]), steps)


@pytest.mark.parametrize("op", "+-*")
def test_every_step_of_a_solution_is_true(op):
  task = Arithmetic(operations=op, digits=(1, 4), seed=3)
  for problem in map(task.problem, range(200)):
    a, b = problem.extra["a"], problem.extra["b"]
    *steps, mark, answer = problem.solution.split()
    assert mark == "####" and answer == problem.answer
    assert int(answer) == {"+": a + b, "-": a - b, "*": a * b}[op]
    for step in steps:
      left, right = step.split("=")
      assert countdown.evaluate(left)[0] == int(right)


@pytest.mark.parametrize("carries", [(0, 0), (2, 2), (3, 4)])
def test_problems_have_as_many_carries_as_asked(carries):
  task = Arithmetic(operations="+-", digits=4, carries=carries)
  found = [arithmetic.count_carries(*map(task.problem(i).extra.get, ("op", "a", "b"))) for i in range(50)]
  assert carries[0] <= min(found) and max(found) <= carries[1]


def test_columns_carry_as_paper_does():
  for a, b in itertools.product(range(0, 130, 7), range(0, 120, 11)):
    places = range(1, 4)
    carries = sum(a % 10**place + b % 10**place >= 10**place for place in places)
    borrows = sum(a % 10**place < b % 10**place for place in places)
    assert arithmetic.count_carries("+", a, b) == carries
    if a >= b:
      assert arithmetic.count_carries("-", a, b) == borrows


TASKS = [lambda **more: Arithmetic(operations="+-*", digits=(1, 2), **more), lambda **more: Countdown(**more)]


@pytest.mark.parametrize("task", TASKS)
def test_a_problem_depends_on_seed_and_index_alone(task):
  first, again = task(seed=5), task(seed=5)
  later = [again.problem(i) for i in reversed(range(20))]
  assert [first.problem(i) for i in range(20)] == later[::-1]
  assert first.fingerprint == again.fingerprint != task(seed=6).fingerprint
  assert [task(seed=6).problem(i).prompt for i in range(20)] != [one.prompt for one in later[::-1]]


@pytest.mark.parametrize("task", TASKS)
def test_no_problem_is_in_both_splits(task):
  trained, held_out = (task(split=split, held_out_frac=0.3) for split in ("train", "held_out"))
  seen = {_key(trained.problem(i)) for i in range(400)}
  asked = {_key(held_out.problem(i)) for i in range(400)}
  assert len(seen) > 100 and len(asked) > 30 and not seen & asked


def _key(problem):
  """The problem whatever the order of its numbers."""
  if "op" in problem.extra:
    return problem.extra["op"], frozenset([problem.extra["a"], problem.extra["b"]])
  return problem.extra["target"], *sorted(problem.extra["numbers"])


@pytest.mark.parametrize("task", TASKS)
def test_the_first_problems_differ_from_each_other(task):
  chosen = task(split="held_out", held_out_frac=0.3).first(40)
  assert len({_key(one) for one in chosen}) == 40


def test_too_few_problems_are_refused():
  with pytest.raises(ValueError, match="only about .* different problems in this split, 100 are wanted"):
    Arithmetic(digits=1, split="held_out").first(100)


@pytest.mark.parametrize("settings, message", [
    (dict(operations="+%"), "operations='\\+%' must be made of"),
    (dict(digits=0), "digits=0 must be"),
    (dict(digits=(3, 2)), "least and the most"),
    (dict(style="poem"), "style='poem' is unknown; known styles: steps, direct"),
    (dict(digits=2, carries=(5, 9)), "no train problem found with carries=\\(5, 9\\)"),
    (dict(split="test"), "must be 'train' or 'held_out'"),
    (dict(split="held_out", held_out_frac=0.0), "set it above 0"),
    (dict(held_out_frac=1.0), "must be in \\[0, 1\\)"),
])
def test_impossible_arithmetic_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    Arithmetic(**settings)


def test_the_direct_style_says_the_answer_alone_and_the_prompt_may_be_words():
  problem = Arithmetic(style="direct", prompt="What is {a} {op} {b}?").problem(1)
  a, b = problem.extra["a"], problem.extra["b"]
  assert (problem.prompt, problem.solution) == (f"What is {a} + {b}?", str(a + b))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_countdown_is_solved_by_its_solution(size):
  task = Countdown(size=size, max_number=12)
  for problem in map(task.problem, range(100)):
    expression = problem.solution.rpartition("#### ")[2]
    numbers, target = problem.extra["numbers"], problem.extra["target"]
    assert countdown.solves(expression, target, numbers) and target not in numbers
    assert problem.answer == f"{target} from {' '.join(map(str, numbers))}"


@pytest.mark.parametrize("text, right", [
    ("3*5+9", True), ("(3 × 5) + 9", True), ("9+5*3 = 24", True), ("9+5*3=", True), ("9+5*3 = 23", False),
    ("24", False), ("3*5+9+3-3", False), ("9+9+3+3", False), ("8*3", False), ("[3*5]+9", True),
    ("3*5+9 #", False), ("", False), ("3*(5+", False), ("3*5+9)", False), ("35-9+3", False),
    ("__import__('os')", False), ("3**5", False), ("9+5*3 or 1", False), ("3*5--9", False), ("+9+15", False),
    ("9/(3-3)", False), ("1" * 300, False), ("(" * 100 + "9" + ")" * 100, False), ("9+5*3=24=24", False),
])
def test_an_expression_is_right_only_with_the_numbers_given(text, right):
  assert countdown.solves(text, 24, [3, 5, 9]) is right


def test_division_is_exact():
  assert countdown.solves("8/(3-8/3)", 24, [8, 3, 8, 3])
  assert countdown.evaluate("1/3 + 2/3") == (1, [1, 3, 2, 3])


def test_impossible_countdown_is_refused():
  with pytest.raises(ValueError, match="size=1, max_number=10"):
    Countdown(size=1)
  with pytest.raises(ValueError, match="no train problem found with size=2, max_number=2, max_target=2"):
    Countdown(size=2, max_number=2, max_target=2, held_out_frac=0.999999)
