"""Programs whose reader may leave: `arc-atlas review sessions | head` ends without a traceback."""
import functools
import os
import select
import sys
from collections.abc import Callable
from typing import Any

CLOSED = 1  # The exit code, as of the programs of Python's own library.


def quiet(main: Callable[..., Any]) -> Callable[..., Any]:
  """Returns a program's main function so that it ends quietly where nobody reads its output any more.

  It then returns 1. A broken pipe to anything else, such as a server, is raised as it is.
  """

  @functools.wraps(main)
  def program(*arguments, **named):
    try:
      try:
        return main(*arguments, **named)
      finally:
        # The last lines may find the pipe closed as well; help leaves by SystemExit.
        sys.stdout.flush()
    except BrokenPipeError as error:
      if not is_of_output(error):
        raise
      # A flush at the interpreter's exit would fail once more.
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      return CLOSED

  return program


def is_of_output(error: BaseException) -> bool:
  """Returns whether an error says that nobody reads the output any more.

  Programs that catch OSError raise it again.
  """
  if not isinstance(error, BrokenPipeError):
    return False
  looked = select.poll()
  looked.register(sys.stdout.fileno(), select.POLLOUT)
  # An error condition of a pipe's writing end is that its reading end is closed; see poll(2).
  return any(event & (select.POLLERR | select.POLLHUP) for _, event in looked.poll(0))
