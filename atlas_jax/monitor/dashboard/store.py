"""The run directories of one server; all its readers, which are threads, use what was read once."""
import functools
import math
import pathlib
import threading
import time

from atlas_jax.monitor import run_folder
from atlas_jax.monitor.run_folder import RunFolder

MOST_S = 0.15  # From which on a look reads no more runs.


class Store:
  """The run directories of this server; all its readers share what was read."""

  def __init__(self, root: pathlib.Path):
    """Takes the folder with the runs, which need not exist yet."""
    self.root = root
    self._runs: dict[pathlib.Path, RunFolder] = {}
    self._looked: dict[str, float] = {}  # When each run was looked at.
    self._found: tuple[RunFolder, ...] = ()
    self._ended = -math.inf  # When the last look ended.
    self.guard = threading.Lock()  # Readers are threads, and a look changes what a run holds.

  def look(self, first: str | None = None, *, fresh_s: float = 0.0) -> tuple[RunFolder, ...]:
    """Reads what is new; returns the runs, those that changed last first.

    Args:
      first: name of the run that is read whatever the others take; those that time does not suffice for are
        read at later looks, the least recently read first.
      fresh_s: nothing is read if the last look was so many seconds ago or less.
    """
    if time.perf_counter() - self._ended <= fresh_s:
      return self._found
    found = run_folder.find(self.root)
    for path in found:
      if path not in self._runs:
        name = path.name if path == self.root else path.relative_to(self.root).as_posix()
        self._runs[path] = RunFolder(path, name)
    for path in {*self._runs} - {*found}:
      del self._runs[path]
    ends = time.perf_counter() + MOST_S
    for run in sorted(self._runs.values(),
                      key=lambda run: (run.name != first, self._looked.get(run.name, 0.0))):
      run.look()
      self._looked[run.name] = time.perf_counter()
      if time.perf_counter() > ends:
        break
    self._found = tuple(self._runs[path] for path in sorted(found, key=_changed, reverse=True))
    self._ended = time.perf_counter()
    return self._found


def _changed(path: pathlib.Path) -> tuple[float, str]:
  try:
    return (path / run_folder.METRICS).stat().st_mtime, str(path)
  except OSError:
    return 0.0, str(path)


@functools.cache
def store(root: str) -> Store:
  """Returns the store of a folder, one for all readers of this process."""
  return Store(pathlib.Path(root))
