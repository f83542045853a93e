"""The log of the program, and for failures an exit code and one line that tells the caller what to do."""
import logging as python_logging
import pathlib
import sys
import tempfile
import time
import traceback

import jax
from absl import logging

from atlas_jax import failures, train
from atlas_jax.checkpoint import CheckpointError
from atlas_jax.lock import LockError
from atlas_jax.monitor.idle import IdleError
from atlas_jax.monitor.skipped import NonFiniteError
from atlas_jax.parallel import hosts, signals


def start_log() -> None:
  """Shows the log of the program on standard error, and of libraries only warnings."""
  # What a library logged while it was imported gave the root a handler that shows every line once more.
  for handler in list(python_logging.root.handlers):
    if type(handler) is python_logging.StreamHandler:
      python_logging.root.removeHandler(handler)
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  # Libraries log every event of their own; of them only warnings are of use here.
  logging.get_absl_handler().addFilter(is_of_use)


def is_of_use(record) -> bool:
  """Returns whether a record is shown; errors of a library's threads come again as those of the run."""
  if "atlas_jax" in record.pathname:
    return True
  return record.levelname == "WARNING" or record.levelname == "ERROR" and not record.exc_info


def explain(error: BaseException, workdir: str | None = None) -> str | None:
  """Says in one line what the caller can do; None for an error that is a fault of the program."""
  if isinstance(error, KeyboardInterrupt):
    by = f" by {error}" if isinstance(error, signals.Stopped) else ""
    return f"interrupted{by}; the same command starts again, from the newest checkpoint if there is one"
  # Asked first whether processes were joined: counting them would look for devices, only to explain a
  # misspelt flag.
  lost = jax.distributed.is_initialized() and hosts.lost_peer(error)
  if lost and not isinstance(error, train.LostPeerError):
    return f"{hosts.why_lost(error)}; the same command goes on from the newest checkpoint"
  # A CheckpointError may come from a full disk, and the disk is what the caller can mend: it goes first.
  if named := failures.true_name(error, [workdir or ".", tempfile.gettempdir()]):
    return named
  ours = isinstance(error, (CheckpointError, NonFiniteError, IdleError, LockError, train.LostPeerError,
                            hosts.PeerError, OSError, ImportError))
  if isinstance(error, (ValueError, TypeError)):  # Those of a library are faults of the program.
    frame = traceback.extract_tb(error.__traceback__)[-1]
    ours = pathlib.Path(__file__).parent in pathlib.Path(frame.filename).parents and not _notes(error)
  return " ".join(str(error).split()) if ours else None


def _notes(error) -> list[str]:
  # JAX cuts its own frames out of a traceback and adds a note that it did. The last frame may then be one of
  # this package, though the error was raised below it.
  return [note for note in getattr(error, "__notes__", ()) if "JAX" in note]


def code_of(error: BaseException) -> int:
  """Returns the exit code after an error: that of a run that can go on where a signal ended training."""
  if isinstance(error, signals.Stopped):
    return signals.STOPPED
  return 130 if isinstance(error, KeyboardInterrupt) else 1  # 128 + SIGINT, as shells have it.


def report(error: BaseException, line: str | None, *, traced: bool) -> str:
  """Says on standard error why the program ends.

  Args:
    error: that ends it.
    line: what `explain` gives for it; None: a fault of the program, whose traceback is shown.
    traced: whether the traceback is shown beside a line, too.

  Returns:
    why, in one line, for the other processes of the run.
  """
  if not hosts.may_speak():
    time.sleep(60)  # Another thread is saying why this process ends, and ends it.
  if line is None or traced:
    traceback.print_exception(error)
  if line is not None:
    print(f"atlas_jax: {line}", file=sys.stderr, flush=True)
  return line or f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
