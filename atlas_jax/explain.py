"""Messages and exit codes of failures: one line that tells the caller what to do."""
import pathlib
import tempfile
import traceback

import jax

from atlas_jax import failures, train
from atlas_jax.checkpoint import CheckpointError
from atlas_jax.lock import LockError
from atlas_jax.monitor.idle import IdleError
from atlas_jax.monitor.skipped import NonFiniteError
from atlas_jax.parallel import hosts, signals


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
