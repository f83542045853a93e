"""The world of sums: tasks that differ, a student that forgets to carry, and what helps it."""
import pytest

from atlas_jax.runtime.worlds import arithmetic


def test_tasks_differ_and_follow_from_the_seed():
  found = arithmetic.tasks(200, seed=3)
  assert len({one["task"] for one in found}) == 200 and found == arithmetic.tasks(200, seed=3)
  assert found != arithmetic.tasks(200, seed=4)
  assert all(eval_sum(one["task"]) == one["ground_truth"] for one in found)
  with pytest.raises(ValueError, match="count=0 must be"):
    arithmetic.tasks(0)


def eval_sum(task: str) -> str:
  left, right = task.removesuffix("=").split("+")
  return str(int(left) + int(right))


def test_the_student_carries_when_it_is_told_to_and_the_first_teacher_does_not():
  ask = lambda text: arithmetic.student([{"role": "user", "content": text}])
  assert ask("27+45=") == "62" and ask("c 27+45=") == "72"
  assert ask(f"{arithmetic.first_teacher([])} 27+45=") == "62"
