"""The log of a search over texts: every call before it is made and after, on the disk, to go on from."""
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from atlas_jax.files import json_lines, write
from atlas_jax.files.append import Appender

LOG, ABOUT, RESULT = "log.jsonl", "search.json", "result.json"


class Graded(NamedTuple):
  """A metric's grade of texts at a task."""

  score: float | None           # from 0 to 1; None: no score, and `feedback` says why
  feedback: str = ""            # what was wrong, for whoever rewrites the texts
  answer: str | None = None     # that was given


class ReflectionLog:
  """The log; a context.

  Attributes:
    folder: of its files.
    spent: metric calls of all starts, those whose end a kill took away among them.
    errors: metric calls without a score.
  """

  def __init__(self, folder, about: Mapping[str, Any]):
    """Opens a log, which goes on if there is one.

    Args:
      folder: made if it is not there.
      about: what the search is; a log of another one is refused.

    Raises:
      ValueError: if the folder has another search.
      files.damage.Damaged: if the log cannot be read.
    """
    self.folder = pathlib.Path(folder)
    self.spent = 0
    self.errors = 0
    self._graded: dict[tuple[str, str], Graded] = {}
    self._proposals: dict[int, dict[str, Any]] = {}
    self._known = 0
    self.folder.mkdir(parents=True, exist_ok=True)
    self._check(about)
    self._out = Appender(self.folder / LOG)  # First: nobody else writes while it is read.
    for row in json_lines.read(self.folder / LOG):
      self._take(row)
    self._known = len(self._proposals)

  def __enter__(self) -> "ReflectionLog":
    """Returns itself."""
    return self

  def __exit__(self, *error) -> None:
    """Closes the file."""
    self._out.close()

  def graded(self, sha: str, task: str) -> Graded | None:
    """Returns what was said of texts at a task, None if it was not asked."""
    return self._graded.get((sha, task))

  def proposed(self, number: int) -> dict[str, Any] | None:
    """Returns a reflection, None if it was not asked for."""
    return self._proposals.get(number)

  def replays(self, number: int) -> bool:
    """Returns whether a reflection was made before the start."""
    return number < self._known

  def asking(self, sha: str, task: str) -> None:
    """Writes that a metric call is made."""
    self._write({"kind": "asking", "sha": sha, "task": task})

  def got(self, sha: str, task: str, found: Graded) -> None:
    """Writes what it gave."""
    self._write({"kind": "got", "sha": sha, "task": task, **found._asdict()})

  def proposal(self, number: int, said: Mapping[str, Any]) -> None:
    """Writes a reflection."""
    self._write({"kind": "proposal", "number": number, "said": dict(said)})

  def result(self, found: Mapping[str, Any]) -> None:
    """Writes the result."""
    write.json(self.folder / RESULT, found)

  def _write(self, row: dict[str, Any]) -> None:
    self._out.line(row)
    self._take(row)

  def _take(self, row: Mapping[str, Any]) -> None:
    if row["kind"] == "asking":
      self.spent += 1
    elif row["kind"] == "got":
      self._graded[row["sha"], row["task"]] = Graded(row["score"], row["feedback"], row["answer"])
      self.errors += row["score"] is None
    else:
      self._proposals[row["number"]] = dict(row["said"])

  def _check(self, about: Mapping[str, Any]) -> None:
    file = self.folder / ABOUT
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    if not file.exists():
      write.json(file, {"sha256": digest, **about})
    elif json.loads(file.read_text(encoding="utf-8")).get("sha256") != digest:
      raise ValueError(f"{self.folder} has a search with other texts, tasks or settings; give another "
                       "folder, or the same search to go on with it")


def texts_sha(texts: Mapping[str, str]) -> str:
  """Returns a name of texts that depends on them alone."""
  text = json.dumps(dict(texts), sort_keys=True, ensure_ascii=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]
