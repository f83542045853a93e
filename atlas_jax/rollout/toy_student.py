"""A student without a model, which adds column by column and forgets to carry: a toy for a teacher to learn.

Told anything with CARRY in it, it carries; told anything with SPOIL in it, it answers nonsense, whatever else
it is told. So guidance can help where a sum has carries, and can do harm anywhere.
"""
import re
from collections.abc import Sequence

from atlas_jax.rollout.students import Messages, StudentReply

CARRY = "c"
SPOIL = "x"
_SUM = re.compile(r"([0-9]+)\+([0-9]+)")


class ToyStudent:
  """See the module; it answers the last sum of what it is shown, and reads what stands before as guidance."""

  def __init__(self):
    self.calls = 0
    self.rows = 0

  def answer(self, asked: Sequence[Messages], *, max_tokens: int, temperature: float,
             seed: int) -> list[StudentReply]:
    """Answers; see `students.Student.answer`."""
    del temperature, seed
    self.calls += 1
    self.rows += len(asked)
    return [self._reply("\n".join(one["content"] for one in messages), max_tokens) for messages in asked]

  def _reply(self, text: str, max_tokens: int) -> StudentReply:
    found = list(_SUM.finditer(text))
    if not found:
      return StudentReply("", 0)
    guidance = text[:found[-1].start()]
    if SPOIL in guidance:
      said = "?"
    elif CARRY in guidance:
      said = str(int(found[-1][1]) + int(found[-1][2]))
    else:
      said = without_carries(found[-1][1], found[-1][2])
    return StudentReply(said[:max_tokens], min(len(said), max_tokens))


def without_carries(left: str, right: str) -> str:
  """Returns the sum of two numbers, each column by itself; right where no column reaches 10."""
  width = max(len(left), len(right))
  columns = zip(left.rjust(width, "0"), right.rjust(width, "0"))
  return "".join(str((int(one) + int(other)) % 10) for one, other in columns)


def make(config) -> ToyStudent:
  """Makes the student; see `students`."""
  del config
  return ToyStudent()
