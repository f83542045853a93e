"""Several processes as one run: starting them, feeding them, stopping them at the same step."""
import atexit
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from atlas_jax import lock
from atlas_jax.lock import Lock, LockError
from atlas_jax.parallel import agree, compiled, launch, signals, wire
from atlas_jax.parallel import mesh as meshes
from atlas_jax.parallel.peers import GoneError, Limits, PeerError, Peers

__all__ = ["Limits", "PeerError", "StopFlag", "global_batch", "is_main", "joined", "leave", "lost_peer",
           "may_speak", "meet", "on_loss", "owned", "start", "why_lost"]

# What errors of collectives and of the coordination service say when a process is gone.
_LOST = ("Gloo ", "NCCL ", "Connection reset", "Connection closed", "Socket closed", "sending heartbeats",
         "coordination service", "CoordinationService")
_LIMITS = Limits()
_NEVER_S = 1_000_000  # JAX's own heartbeats: what misses them ends its process by SIGABRT.
_SHUTDOWN_S = 60
_FATE_S = 5.0  # For the word of a process that is gone to arrive, behind the error of a collective.
_peers: Peers | None = None


def start(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None, *,
          local_devices: str | None = None, limits: Limits = _LIMITS,
          facts: Callable[[], Mapping[str, str]] = dict) -> None:
  """Joins this process to the others of the run, whom flags or a cluster name; finds nobody in a run of one.

  Args:
    coordinator: "host:port" of process 0, the same in every process.
    num_processes: how many processes the run has; 1 alone stands for a run of one, whatever the cluster says.
    process_id: which one this is, from 0.
    local_devices: CUDA devices this process takes, such as "0,1"; None: all of its machine, or its part.
    limits: how long processes wait for each other.
    facts: gives what all must have alike, by name; see `agree`.

  Raises:
    ValueError: if flags are missing or wrong, or devices are missing.
    PeerError: if other processes are missing or differ.
  """
  global _peers
  place = launch.find(coordinator, num_processes, process_id, within_s=limits.join_s)
  wanted = launch.devices(local_devices, os.environ, several=place is not None)
  if place is None:
    if wanted.ids and local_devices is not None:
      jax.config.update("jax_cuda_visible_devices", local_devices)
    _find_devices(wanted, 0)
    return
  # Before JAX connects anything: processes of other code or settings would wait for each other in some
  # collective, and nothing would say why.
  peers = Peers(place.process, place.processes, limits)
  peers.gather(place.coordinator, facts())
  _peers = peers
  _initialize(peers, place, wanted.ids)
  # Runs before JAX takes leave of its service, which needs all processes: what is registered last runs
  # first, and JAX registers its own when it is imported.
  atexit.register(_part, peers)
  _find_devices(wanted, place.process)
  # A process without its devices has left by now, and the others learn of it here and not in a collective.
  peers.meet("devices", agree.facts_of_devices())
  compiled.after_each(peers.meet)
  logging.info("process %d of %d joined, %d local devices of %d", place.process, place.processes,
               jax.local_device_count(), jax.device_count())


def _part(peers: Peers) -> None:
  """Waits for the others at the end of the program, or tells them of the error that ends it."""
  error = getattr(sys, "last_value", None)
  if error is None:
    peers.finish()
  else:
    leave(1, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _initialize(peers: Peers, place: launch.ProcessPlace, ids: list[int]) -> None:
  """Joins JAX's service; who lives is watched by `peers`, since JAX's own watch ends a process by SIGABRT."""
  # The libraries that connect processes write to descriptor 1, past Python, and only results belong there.
  # So Python's standard output gets a copy of the descriptor, and 1 itself becomes standard error. The flush
  # comes first: what is buffered is a result.
  sys.stdout.flush()
  sys.stdout = os.fdopen(os.dup(sys.stdout.fileno()), "w")
  os.dup2(sys.stderr.fileno(), 1)
  # On CPU the processes talk through gloo; accelerators ignore this setting.
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  # gRPC would ask a proxy even for this machine's own address.
  if any(name.lower().endswith("_proxy") for name in os.environ):
    before = os.environ.get("no_grpc_proxy") or os.environ.get("no_proxy")
    os.environ["no_grpc_proxy"] = ",".join(filter(None, (before, "127.0.0.1")))
  # Process 0 holds the service, the others reach it through a relay of their own: see `wire.Relay` for what
  # would happen without.
  port = peers.port
  bound = f"[::]:{peers.port}"
  if place.process:
    host, _ = wire.split_address(place.coordinator)
    port = wire.Relay(host, peers.port, within_s=peers.limits.join_s).port
  jax.config.update("jax_enable_preemption_service", False)  # It would take SIGTERM from `signals`.
  jax.distributed.initialize(
      f"127.0.0.1:{port}", num_processes=place.processes, process_id=place.process, local_device_ids=ids,
      coordinator_bind_address=bound, initialization_timeout=int(peers.limits.join_s + peers.limits.wait_s),
      heartbeat_timeout_seconds=_NEVER_S, shutdown_timeout_seconds=_SHUTDOWN_S)


def _find_devices(wanted: launch.Devices, process: int) -> None:
  """Finds the devices of the run.

  Raises:
    ValueError: if a platform is asked for that is not here, or there are fewer devices than promised.
  """
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:  # The second where a plugin is missing.
    raise ValueError(
        f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')} asks for devices that are not here; install "
        "what they need, atlas_jax[cuda12], [cuda13] or [tpu], or unset JAX_PLATFORMS to take what there is "
        f"({str(error).split(' (set')[0] or 'no such plugin'})") from error
  launch.check_devices(wanted, process)


def joined() -> bool:
  """Returns whether this is one of several processes."""
  return _peers is not None


def meet(name: str, facts: Callable[[], Mapping[str, str]] = dict) -> None:
  """Waits until all processes are at the same place, and refuses facts that differ; see `Peers.meet`."""
  if _peers is not None:
    _peers.meet(name, facts())


def on_loss(advice: Callable[[], str]) -> None:
  """Sets what a process says behind the reason, when it ends because another one is gone."""
  if _peers is not None:
    _peers.advice = advice


def is_main() -> bool:
  """Returns whether this is process 0, the one that prints and writes metrics."""
  return jax.process_index() == 0


def of_main(array):
  """Returns the array of process 0 in all processes, each of which gives one of the same shape and type."""
  return array if jax.process_count() == 1 else np.asarray(multihost_utils.broadcast_one_to_all(array))


def json_of_main(value):
  """Returns what JSON holds of process 0's value in all processes; that of the others is not read."""
  if jax.process_count() == 1:
    return value
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  # Its length first: what is broadcast must have one shape everywhere.
  size = int(of_main(np.int64(len(text))))
  room = np.zeros(size, np.uint8)
  return json.loads(of_main(text if is_main() else room).tobytes())


@contextlib.contextmanager
def owned(workdir) -> Iterator[Lock | None]:
  """Owns a run directory while the block runs, for all processes of the run; see `lock.held`.

  Yields the lock in process 0, None in the others.

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
    # Process 0 raises only after it has told the others: they would wait for it in the first collective. The
    # broadcast also keeps them from writing before the directory is owned.
    refused = int(multihost_utils.broadcast_one_to_all(np.int32(refusal is not None)))
    if refusal is not None:
      raise refusal
    if refused:
      raise LockError(f"process 0 was refused --workdir={workdir}; its message says why")
    yield mine


def lost_peer(error: BaseException | None) -> bool:
  """Returns whether an error, or one it comes from, means that another process of the run is gone or late.

  A failed collective arrives as JaxRuntimeError or as ValueError, so its message decides, not its class.
  """
  if jax.process_count() == 1:
    return False
  while error is not None:
    if isinstance(error, GoneError):
      return True
    if not isinstance(error, PeerError) and any(word in str(error) for word in _LOST):
      return True
    error = error.__cause__ or error.__context__
  return False


def why_lost(error: BaseException) -> str:
  """Returns why the processes lost each other: the last words or the end of one of them, else the error."""
  fate = None if _peers is None else _peers.fate(within_s=_FATE_S)
  first = (str(error).splitlines() or [type(error).__name__])[0][:300]
  return fate or f"the processes of this run did not meet, though all live ({first})"


def may_speak() -> bool:
  """Returns whether the caller is the first to say why this process ends; then it has to say it."""
  return _peers is None or _peers.may_speak()


def leave(code: int, line: str | None = None) -> NoReturn:
  """Ends this process at once: the usual way out would wait for processes that may wait for this one.

  Args:
    code: the exit code.
    line: why, which the others are told; None where all end alike.
  """
  # os._exit runs neither `finally` nor atexit: what others wait for is done here, the lock first, since the
  # words below may take seconds.
  lock.release_all()
  if _peers is not None:
    if line is None:
      _peers.finish(within_s=_peers.limits.silent_s)
    else:
      _peers.leave(line)
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
  # All processes read equally many rows: `agree` has compared their settings.
  shape = (local.shape[0] * processes, *local.shape[1:])
  meshes.check_rows(mesh, shape[0])
  return jax.make_array_from_process_local_data(sharding, local, shape)


class StopFlag:
  """Notes SIGTERM, SIGINT and SIGUSR1, and lets all processes stop at one step without waiting for another.

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
    # Both values are on the devices before the loop: the flag of a step is a choice between them, and no
    # transfer.
    self._arrays = tuple(_flag_array(mesh, value) for value in (0, 1))

  def __enter__(self):
    self._program = signals.active()
    if self._program is not None:
      self._deferred = self._program.deferred()
      self._deferred.__enter__()
      return self
    # Without the program, as in a notebook, handlers are set for the block alone.
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
    """Returns whether this process was asked to stop; other processes may not know yet."""
    return self.signal_name is not None or self._program is not None and self._program.name is not None

  def array(self):
    """Returns int32, one number per device of the mesh: 1 from processes that were asked to stop."""
    return self._arrays[int(self.requested)]

  @staticmethod
  def agreed(total) -> bool:
    """Returns whether any process had been asked when the step that gave this total was sent."""
    return int(total) > 0

  def _note(self, number, frame):
    del frame
    # The handler before comes back at the first signal, so that a second one ends the process also where the
    # loop hangs.
    self.signal_name = signal.Signals(number).name
    self._put_back(number)

  def _put_back(self, number: int):
    before = self._before.pop(number, None)
    if before is not None:
      signal.signal(number, before)  # type: ignore[arg-type]  # It is what signal.signal gave us.


def _flag_array(mesh: Mesh, value: int):
  sharding = NamedSharding(mesh, PartitionSpec(meshes.AXES))
  # One number per device, which the step adds up: the message travels in the step, and nobody waits apart.
  local: np.ndarray = np.full(len(sharding.addressable_devices), value, np.int32)
  return jax.make_array_from_process_local_data(sharding, local, (mesh.size,))
