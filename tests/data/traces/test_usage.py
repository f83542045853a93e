"""Tokens: those of all roles are compared, and those of the student alone are not."""

import pytest

from atlas_jax.data.traces import usage
from atlas_jax.data.traces.record import Trace
from tests.data.traces import sessions


def counted(number, lane="paired", **roles):
  tokens = {role: {"prompt": count, "completion": 1, "calls": 1} for role, count in roles.items()}
  return Trace.from_json(sessions.session(number, tokens=tokens, execution_mode=lane))


def test_tokens_of_all_roles_are_added_up():
  assert usage.of_trace(counted(1, student=9, teacher=4)) == ({"student": 10, "teacher": 5}, True)
  assert usage.of_trace(counted(1, student=9, teacher=4)).total == 15
  row = sessions.session()
  for one in row["steps"][0]["attempt_details"]:
    one["tokens"] = {"student": {"prompt": 3, "completion": 2}, "teacher": {"completion": 1}}
  assert usage.of_trace(Trace.from_json(row)) == ({"student": 10, "teacher": 2}, True)
  assert usage.of_trace(Trace.from_json(sessions.session())) is None


def test_the_student_alone_is_marked_but_where_no_teacher_took_part():
  assert not usage.of_trace(counted(1, student=9)).complete
  assert usage.of_trace(counted(1, lane="auto", student=9)).complete
  old = usage.of_trace(Trace.from_json(sessions.exported()[3]))
  assert old == ({"student": 1020}, False)


def test_a_reduction_needs_the_tokens_of_all_roles():
  before = [counted(1, student=59, teacher=39), counted(2, student=99, teacher=99)]
  assert usage.reduction(before, [counted(3, student=49, teacher=24)]) == pytest.approx(0.5)
  for after in ([Trace.from_json(sessions.exported()[3])], [counted(3, student=9)], []):
    with pytest.raises(ValueError, match="the student's tokens alone"):
      usage.reduction(before, after)
