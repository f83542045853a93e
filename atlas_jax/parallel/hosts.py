"""Several processes as one run: starting them, feeding them, stopping them at the same step."""
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from atlas_jax import lock
from atlas_jax.lock import Lock, LockError
from atlas_jax.parallel import mesh as meshes
from atlas_jax.parallel import signals

# What errors of collectives and of the coordination service say when a process is gone.
_LOST = ("Gloo ", "NCCL ", "Connection reset", "Connection closed", "Socket closed", "sending heartbeats",
         "coordination service", "CoordinationService")
_HEARTBEAT_S = 30  # A lost process is noticed after this long, if no collective fails before.


def start(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None, *,
          heartbeat_s: int = _HEARTBEAT_S) -> None:
  """Joins this process to the others of the run; does nothing if no flag is given.

  Args:
    coordinator: "host:port" of process 0, the same in every process.
    num_processes: how many processes the run has.
    process_id: which one this is, from 0.
    heartbeat_s: after how many silent seconds a process counts as lost.

  Raises:
    ValueError: if only some of the three are given, or the id is out of range.
  """
  given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
  missing = [name for name, value in given.items() if value is None]
  if len(missing) == len(given):
    return
  if coordinator is None or num_processes is None or process_id is None:
    raise ValueError(f"--{missing[0]} is missing; several processes need all of "
                     f"{', '.join('--' + name for name in given)}, or none for a run of one process")
  if not 0 <= process_id < num_processes:
    raise ValueError(f"--process_id={process_id} must lie in 0..{num_processes - 1}, below --num_processes")
  # On CPU the processes talk through gloo; accelerators ignore this setting.
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(coordinator, num_processes=num_processes, process_id=process_id,
                             heartbeat_timeout_seconds=heartbeat_s)
  logging.info("process %d of %d joined, %d local devices of %d", process_id, num_processes,
               jax.local_device_count(), jax.device_count())


def is_main() -> bool:
  """Says whether this is process 0, the one that prints and writes metrics."""
  return jax.process_index() == 0


@contextlib.contextmanager
def owned(workdir) -> Iterator[Lock | None]:
  """Owns a run directory while the block runs, for all processes of the run; see `lock.held`.

  Gives the lock in process 0, None in the others.

  Raises:
    LockError: in every process, if another run owns it.
  """
  if jax.process_count() == 1:
    with lock.held(workdir) as whole:
      yield whole
    return
  with contextlib.ExitStack() as stack:
    mine: Lock | None = None
    refusal: LockError | None = None
    if is_main():
      try:
        mine = stack.enter_context(lock.held(workdir))
      except LockError as error:
        refusal = error
    refused = int(multihost_utils.broadcast_one_to_all(np.int32(refusal is not None)))
    if refusal is not None:
      raise refusal
    if refused:
      raise LockError(f"process 0 was refused --workdir={workdir}; its message says why")
    yield mine


def lost_peer(error: BaseException | None) -> bool:
  """Says whether an error, or one it comes from, means that another process of the run has died.

  A failed collective arrives as JaxRuntimeError or as ValueError, so the words decide, not the kind.
  """
  if jax.process_count() == 1:
    return False
  while error is not None:
    if any(word in str(error) for word in _LOST):
      return True
    error = error.__cause__ or error.__context__
  return False


def leave(code: int) -> NoReturn:
  """Ends this process at once after a peer was lost: the usual way out would wait for that peer and abort."""
  lock.release_all()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def global_batch(mesh: Mesh, local_batch):
  """Joins the rows that every process read into arrays over the whole mesh.

  Args:
    mesh: what `mesh.make` gives.
    local_batch: pytree of NumPy arrays that lead with this process's rows, in the order of its process id.

  Returns:
    The same tree of jax arrays with the rows of all processes, split over data and fsdp.

  Raises:
    ValueError: if the rows do not divide over the mesh.
  """
  sharding = meshes.batch_sharding(mesh)
  processes = jax.process_count()
  return jax.tree.map(lambda local: _join_rows(mesh, sharding, np.asarray(local), processes), local_batch)


def _join_rows(mesh: Mesh, sharding: NamedSharding, local, processes: int):
  shape = (local.shape[0] * processes, *local.shape[1:])
  meshes.check_rows(mesh, shape[0])
  return jax.make_array_from_process_local_data(sharding, local, shape)


class StopFlag:
  """Notes SIGTERM and SIGINT, and lets all processes stop at the same step without waiting for each other.

  Every process puts `array` into its step; the step returns the sum, which all processes read alike and
  hand to `agreed`. A second signal ends the run at once: by `signals.StopSignals` in the program, elsewhere
  because a second one of the same kind has its usual effect.

    with StopFlag(mesh) as stop:
      state, metrics = step(state, batch, stop.array())   # metrics["stop"] = jnp.sum(stop)
      if stop.agreed(metrics["stop"]): save and leave
  """

  def __init__(self, mesh: Mesh):
    self.signal_name: str | None = None
    self._program: signals.StopSignals | None = None
    self._before: dict[int, object] = {}
    self._arrays = tuple(_flag_array(mesh, value) for value in (0, 1))

  def __enter__(self):
    self._program = signals.active()
    if self._program is not None:
      self._deferred = self._program.deferred()
      self._deferred.__enter__()
      return self
    for number in signals.NUMBERS:
      self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *error):
    if self._program is not None:
      self._deferred.__exit__(*error)
    for number in list(self._before):
      self._put_back(number)

  @property
  def requested(self) -> bool:
    """Says whether this process was asked to stop; other processes may not know yet."""
    return self.signal_name is not None or self._program is not None and self._program.name is not None

  def array(self):
    """Gives int32, one number per device of the mesh: 1 from processes that were asked to stop."""
    return self._arrays[int(self.requested)]

  @staticmethod
  def agreed(total) -> bool:
    """Says whether any process had been asked when the step that gave this total was sent."""
    return int(total) > 0

  def _note(self, number, frame):
    del frame
    self.signal_name = signal.Signals(number).name
    self._put_back(number)

  def _put_back(self, number: int):
    before = self._before.pop(number, None)
    if before is not None:
      signal.signal(number, before)  # type: ignore[arg-type]  # It is what signal.signal gave us.


def _flag_array(mesh: Mesh, value: int):
  sharding = NamedSharding(mesh, PartitionSpec(meshes.AXES))
  local: np.ndarray = np.full(len(sharding.addressable_devices), value, np.int32)
  return jax.make_array_from_process_local_data(sharding, local, (mesh.size,))
