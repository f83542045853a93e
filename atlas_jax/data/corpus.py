"""Corpora by name: each gives its documents, one after another, in a fixed order.

`python_stdlib` is on every machine, `files` reads what a path names; "hf:NAME" and every other name come from
the packages `datasets` and `tensorflow_datasets` (see `hub`).
"""
import pathlib
import platform
import sysconfig
from typing import Callable, Iterator, NamedTuple

from absl import logging

OFFLINE = ("python_stdlib", "files")
NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
SHOWN = 5  # Faults logged one by one; the rest are counted.


class Document(NamedTuple):
  """One text."""
  name: str      # a file, or file:line, or dataset:row; decides on which side of the split it falls
  text: bytes    # UTF-8


class Corpus(NamedTuple):
  """A named collection of documents."""
  name: str
  identity: dict                                           # JSON; equal when the documents are, cheap to know
  size_bytes: int | None                                   # of all text, if known beforehand
  documents: Callable[["Faults"], Iterator[Document]]      # reports what it skips


class Faults:
  """Counts what was read and what had to be skipped, and raises when that is too much."""

  def __init__(self, bad_input_frac: float):
    """Sets the share of documents, and of files, that may be skipped."""
    self.bad_input_frac = bad_input_frac
    self.files = self.documents = self.bad_files = self.bad_documents = 0
    self._first: list[str] = []

  @property
  def skipped(self) -> int:
    """How many documents and files were skipped."""
    return self.bad_files + self.bad_documents

  def skip(self, where: str, why: str, *, whole_file: bool = False) -> None:
    """Notes that `where` (file, or file:line) was skipped."""
    self.bad_files += whole_file
    self.bad_documents += not whole_file
    if self.skipped <= SHOWN:
      self._first.append(f"{where} ({why})")
      logging.warning("skipped %s: %s", where, why)

  def check(self) -> None:
    """Raises ValueError if more was skipped than `bad_input_frac` allows."""
    for bad, seen, what in ((self.bad_files, self.files, "files"), (self.bad_documents, self.documents, "documents")):
      if bad > self.bad_input_frac * seen:
        raise ValueError(f"{bad} of {seen} {what} cannot be read, more than config.data.bad_input_frac="
                         f"{self.bad_input_frac} allows: {'; '.join(self._first)}; mend them or raise that field")
    if self.skipped > SHOWN:
      logging.warning("skipped %d documents and %d files in all", self.bad_documents, self.bad_files)


def load(name: str, *, path=None, text_field: str = "text", limit_bytes: int | None = None,
         download: bool = False) -> Corpus:
  """Finds a corpus.

  Args:
    name: "python_stdlib", "files", "hf:NAME" (Hugging Face, streamed) or a tensorflow_datasets name.
    path: for "files": a file, folder or glob, or several.
    text_field: the field that holds the text, in JSON lines, tables and datasets.
    limit_bytes: stop after so much text; None reads all.
    download: whether a dataset that is not on this machine may be fetched.

  Raises:
    ValueError: if there is no such corpus here; says what would make it one.
    ModuleNotFoundError: if it needs the extra `data`.
  """
  if name == "python_stdlib":
    corpus = python_stdlib()
  else:
    raise ValueError(f"config.data.name={name!r} is unknown")
  return corpus


def python_stdlib() -> Corpus:
  """The standard library of the running interpreter, without its tests (PSF-2.0, 10 to 12 MB)."""
  root = pathlib.Path(sysconfig.get_paths()["stdlib"])
  inside = [(file.relative_to(root), file) for file in root.rglob("*.py")]
  files = sorted((local.as_posix(), file) for local, file in inside if not NOT_LIBRARY.intersection(local.parts))

  def documents(faults: Faults):
    for name, file in files:
      text = file.read_bytes()
      faults.files += 1
      if text:  # An empty __init__.py is no fault.
        yield Document(name, text)

  return Corpus("python_stdlib", {"corpus": "python_stdlib", "python": platform.python_version()},
                sum(file.stat().st_size for _, file in files), documents)
