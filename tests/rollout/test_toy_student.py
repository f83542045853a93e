"""The student that forgets to carry."""
import pytest

from atlas_jax.rollout import toy_student


@pytest.mark.parametrize(("text", "answer"), [
    ("47+85=", "22"), ("12+34=", "46"), ("c 47+85=", "132"), ("cx 47+85=", "?"), ("x 12+34=", "?"),
    ("5+17=", "12"), ("a 1+2= c 47+85=", "132"), ("nothing", "")])
def test_it_carries_when_told(text, answer):
  student = toy_student.make(None)
  replies = student.answer([[{"role": "user", "content": text}]], max_tokens=9, temperature=0.0, seed=0)
  assert replies[0].text == answer and student.rows == 1


def test_an_answer_is_cut():
  student = toy_student.make(None)
  found = student.answer([[{"role": "user", "content": "c 47+85="}]], max_tokens=2, temperature=0.0, seed=0)
  assert found[0][:2] == ("13", 2)
