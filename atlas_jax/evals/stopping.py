"""Lets an evaluation stop between two batches, or between two pieces of text, when its program is asked to.

A preempted machine has a minute or two; an evaluation may take longer. The training loop says by `stoppable`
how to ask, and whatever computes for an evaluation calls `check` where it may be left. Its numbers are then
dropped, since they would stand for a part of the data, and made by the next start.
"""
import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from typing import Any

PIECE_TOKENS = 32  # That a sampler draws between two checks.

_asked: contextvars.ContextVar[Callable[[], bool] | None] = contextvars.ContextVar("asked", default=None)


class EvalStopped(Exception):
  """The program was asked to stop in the middle of an evaluation."""


@contextlib.contextmanager
def stoppable(asked: Callable[[], bool]) -> Iterator[None]:
  """Lets what is computed in the block be stopped.

  Args:
    asked: whether to stop. It is called at places that several processes need not reach together: where all
      must agree, evaluations cannot be left in their middle.
  """
  token = _asked.set(asked)
  try:
    yield
  finally:
    _asked.reset(token)


def active() -> bool:
  """Returns whether the caller computes for something that may be stopped, so that it should check."""
  return _asked.get() is not None


def check() -> None:
  """Raises EvalStopped if the program was asked to stop; does nothing outside of `stoppable`."""
  asked = _asked.get()
  if asked is not None and asked():
    raise EvalStopped


def parts(whole: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
  """Yields a sequence in parts of a size, the last one maybe shorter, and checks before each."""
  for first in range(0, len(whole), size):
    check()
    yield whole[first:first + size]
