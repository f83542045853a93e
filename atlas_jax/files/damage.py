"""The one error of files that cannot be used, and texts of any length in messages of bounded length."""
import contextlib
from collections.abc import Iterator

AGAIN = "restore it, or make it again"
WHY_CHARS = 300  # Of what a library says; some quote the whole file.


class Damaged(ValueError):
  """A file that cannot be used as it is.

  Attributes:
    file: its path.
    why: what is wrong with it, without the file's name.
    remedy: what to do.
  """

  def __init__(self, file, why: object, remedy: str = AGAIN, *, line: int | None = None):
    """Takes what the message says; `line` is counted from 1."""
    self.file = file
    self.why = one_line(why)
    self.remedy = remedy
    place = f"{file}" if line is None else f"{file}:{line}"
    super().__init__(f"{place}: {self.why}; {remedy}")


def clipped(text: str, most: int, note: str = "") -> str:
  """Returns a text for a message: whole, or its first characters and a note, such as how long it is."""
  return text if len(text) <= most else f"{text[:most]}...{note}"


def one_line(why: object) -> str:
  """Returns what an error says in one line of bounded length."""
  text = " ".join(str(why).split()) or type(why).__name__
  return clipped(text, WHY_CHARS)


@contextlib.contextmanager
def as_damaged(file, what: str, remedy: str = AGAIN) -> Iterator[None]:
  """Turns whatever a parser raises into `Damaged`; its own errors and those of the system pass.

  Parsers of libraries raise dozens of types for broken input, among them RecursionError, MemoryError and a
  panic of Rust, which is no Exception.

  Args:
    file: that is read.
    what: it should be, such as "no NumPy array", for the message.
    remedy: what to do.
  """
  try:
    yield
  except Damaged:
    raise
  # pyarrow and others raise OSError without a number for broken content. With one it is the system's, such as
  # no permission or a full disk, and no copy of the file would help.
  except OSError as error:
    if error.errno is not None:  # Of the system; parsers raise bare ones.
      raise
    raise Damaged(file, f"{what} ({one_line(error)})", remedy) from error
  except Exception as error:
    why = f"{what} ({type(error).__name__}: {one_line(error)})"
    raise Damaged(file, why, remedy) from error
  except BaseException as error:
    # Of Rust libraries, such as tokenizers; its class is in no module that could be imported. Whatever else
    # is no Exception, KeyboardInterrupt first, passes.
    if type(error).__name__ != "PanicException":
      raise
    raise Damaged(file, f"{what} ({one_line(error)})", remedy) from error
