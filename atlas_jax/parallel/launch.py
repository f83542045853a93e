"""Launching: the processes of a run, by flags or by what a cluster has set, and the devices each takes."""
import glob
import itertools
import os
import re
from collections.abc import Mapping
from typing import NamedTuple

import jax

# Launchers of several tasks: the variables for the number of tasks, and for the number of this one. The
# first that fits counts, so a SLURM step stands before its job, which may have more tasks than the step.
_LAUNCHERS = (
    ("SLURM", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"), ("SLURM", "SLURM_NTASKS", "SLURM_PROCID"),
    ("Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("MPI", "PMI_SIZE", "PMI_RANK"),
    ("MVAPICH", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"), ("torchrun", "WORLD_SIZE", "RANK"))
_ALONE = "for a run of this one process alone give --num_processes=1"


class ProcessPlace(NamedTuple):
  """A process among those of its run."""

  coordinator: str  # HOST:PORT of process 0
  processes: int
  process: int


class Announced(NamedTuple):
  """A launcher's account of the tasks it has started."""

  launcher: str
  tasks: int | None  # None: several or one, it does not say
  process: str
  variable: str


def find(coordinator: str | None, num_processes: int | None, process_id: int | None, *,
         within_s: float) -> ProcessPlace | None:
  """Returns this process's place in its run; None for a run of one process.

  Args:
    coordinator, num_processes, process_id: the flags; where none is given JAX looks for SLURM, Open MPI, TPU
      pods and Kubernetes.
    within_s: for how long the machine of process 0 is looked for.

  Raises:
    ValueError: if only some flags are given, the id is out of range, or several tasks cannot be joined.
  """
  given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
  missing = [name for name, value in given.items() if value is None]
  if len(missing) == len(given):
    return _detected(os.environ, within_s)
  if num_processes == 1 and process_id in (None, 0):
    return None
  if coordinator is None or num_processes is None or process_id is None:
    raise ValueError(f"--{missing[0]} is missing; several processes need all of "
                     f"{', '.join('--' + name for name in given)}, or none for a run of one process")
  if not 0 <= process_id < num_processes:
    raise ValueError(f"--process_id={process_id} must lie in 0..{num_processes - 1}, below --num_processes")
  return ProcessPlace(coordinator, num_processes, process_id)


def announced(env: Mapping[str, str]) -> Announced | None:
  """Returns what a launcher says of its tasks; None where there is none, or one task only."""
  for launcher, count, process in _LAUNCHERS:
    if env.get(count, "").isdecimal() and env.get(process, "").isdecimal():
      found = Announced(launcher, int(env[count]), env[process], count)
      return found if found.tasks != 1 else None
  workers = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES", "")
  if "," in workers and "TPU_WORKER_ID" in env:
    return Announced("the TPU pod", workers.count(",") + 1, env["TPU_WORKER_ID"], "the number of its workers")
  if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
    return Announced("Kubernetes", None, env["JOB_COMPLETION_INDEX"], "JOB_COMPLETION_INDEX")
  return None


def _detected(env: Mapping[str, str], within_s: float) -> ProcessPlace | None:
  # Detection is a part of jax.distributed.initialize, which would join at once and cannot be asked alone.
  from jax._src import cloud_tpu_init, clusters
  found = announced(env)
  if found is None and not cloud_tpu_init.running_in_cloud_tpu_vm:
    return None
  why = "JAX knows nothing of how to join them"
  try:
    coordinator, count, process, _ = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, [], None, int(within_s))
    if coordinator is not None and count is not None and process is not None:
      return ProcessPlace(coordinator, int(count), int(process)) if int(count) > 1 else None
  except Exception as error:  # Metadata servers, Kubernetes and the parsing of variables raise many kinds.
    why = " ".join(str(error).split())[:300] or type(error).__name__
    if found is None:
      raise ValueError(f"this machine has TPUs, and JAX cannot tell whether those of others belong to them "
                       f"({why}); give --coordinator, --num_processes and --process_id; or, {_ALONE}"
                       ) from error
  if found is None:
    return None  # A machine with TPUs that knows of no others.
  raise ValueError(_cannot_join(found, why))


def _cannot_join(task: Announced, why: str) -> str:
  hint = {"SLURM": "start them with srun, ", "Kubernetes": "install jax[k8s], "}.get(task.launcher, "")
  count, value = ("N", task.process) if task.tasks is None else (task.tasks, task.tasks)
  return (f"{task.launcher} says by {task.variable}={value} that this is task {task.process} of several, and "
          f"they cannot be joined ({why}); {hint}give every one --coordinator=HOST:PORT of task 0, "
          f"--num_processes={count} and its own number, here --process_id={task.process}; or, {_ALONE}")


class Devices(NamedTuple):
  """The CUDA devices that a process takes, and the number of devices it is promised."""

  ids: list[int]  # [] takes all there are
  promised: int | None
  why: str  # by what they are promised
  are_cuda: bool = True  # whether those promised are, so that the CPU will not do


def devices(chosen: str | None, env: Mapping[str, str], *, several: bool = True) -> Devices:
  """Returns which devices this process takes: all of its machine, or its part where several tasks run there.

  JAX by itself would take one device per task under SLURM and Open MPI, that of the task's number on its
  machine, however many there are.

  Args:
    chosen: --local_devices, such as "0,1"; None leaves it to what is found.
    env: the variables of the process.
    several: whether the run has several processes; one that no scheduler has started is promised nothing.

  Raises:
    ValueError: if the flag is no list of numbers, or the devices do not divide over the tasks.
  """
  if chosen is not None:
    words = chosen.split(",")
    if not all(word.strip().isdecimal() for word in words) or len({*map(int, words)}) < len(words):
      raise ValueError(f"--local_devices={chosen} must be different numbers of CUDA devices with commas "
                       "between them, such as 0,1")
    return Devices([int(word) for word in words], len(words), f"--local_devices={chosen}")
  if named := env.get("JAX_LOCAL_DEVICE_IDS"):
    return devices(named, {})._replace(why=f"JAX_LOCAL_DEVICE_IDS={named}")
  # The GPUs of the machine may be there and not be meant.
  if env.get("JAX_PLATFORMS", "").split(",")[0] in ("cpu", "tpu"):
    return Devices([], *_promised_chips(env), are_cuda=False)
  total, why = _cuda_devices(env)
  tasks, place = _tasks_here(env)
  on_node = env.get("SLURM_GPUS_ON_NODE", "")
  if not total:
    return Devices([], *_promised_chips(env), are_cuda=False)
  promise = why and (several or "SLURM_JOB_ID" in env or on_node)
  if tasks == 1 or on_node.isdecimal() and total < int(on_node):  # The second case: it has its part already.
    return Devices([], total if promise else None, why)
  if total % tasks:
    raise ValueError(f"{why or 'the machine'} gives {total} devices to the {tasks} tasks of this machine, "
                     "which does not divide; start as many tasks as divide them, or name each one's by "
                     "--local_devices")
  per_task = total // tasks
  ids = list(range(place * per_task, (place + 1) * per_task))
  return Devices(ids, per_task if promise else None, f"{why} for {tasks} tasks")


def _cuda_devices(env: Mapping[str, str]) -> tuple[int, str]:
  """Counts the CUDA devices that this process is given, and says by what; "" where nothing promises them."""
  visible = env.get("CUDA_VISIBLE_DEVICES")
  on_node = env.get("SLURM_GPUS_ON_NODE", "")
  if visible is not None:
    # CUDA ignores all that follows the first entry it does not know, so counting stops there.
    def valid(one):
      return one.strip().isdecimal() or one.strip().startswith(("GPU-", "MIG-"))

    return len(list(itertools.takewhile(valid, visible.split(",")))), f"CUDA_VISIBLE_DEVICES={visible}"
  if on_node.isdecimal():
    return int(on_node), f"SLURM_GPUS_ON_NODE={on_node}"
  return len(glob.glob("/dev/nvidia[0-9]*")), ""


def _promised_chips(env: Mapping[str, str]) -> tuple[int | None, str]:
  bounds = env.get("TPU_CHIPS_PER_PROCESS_BOUNDS", "")
  if env.get("JAX_PLATFORMS", "") != "cpu" and re.fullmatch(r"\d+,\d+,\d+", bounds):
    x, y, z = map(int, bounds.split(","))
    return x * y * z, f"TPU_CHIPS_PER_PROCESS_BOUNDS={bounds}"
  return None, ""


def _tasks_here(env: Mapping[str, str]) -> tuple[int, int]:
  """Returns how many tasks run on this machine, and which of them this is."""
  if env.get("OMPI_COMM_WORLD_LOCAL_SIZE", "").isdecimal():
    return int(env["OMPI_COMM_WORLD_LOCAL_SIZE"]), int(env.get("OMPI_COMM_WORLD_LOCAL_RANK", "0"))
  text = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE", "")
  counts: list[int] = []
  # SLURM writes 2(x3),1 for three machines of two tasks and a fourth of one.
  for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
    counts += [int(count)] * int(times or 1)
  node = env.get("SLURM_NODEID", "")
  if not counts or not node.isdecimal() or "SLURM_LOCALID" not in env:
    return 1, 0
  return counts[min(int(node), len(counts) - 1)], int(env["SLURM_LOCALID"])


def check_devices(wanted: Devices, process: int) -> None:
  """Refuses fewer devices than were promised, such as the CPU where a driver is broken.

  Raises:
    ValueError: says by what they were promised, and what there is.
  """
  # JAX falls back to the CPU where a driver is broken; a run would go on there, far slower.
  here = jax.local_devices()
  others = wanted.are_cuda and here[0].platform == "cpu"
  if wanted.promised is not None and (others or len(here) < wanted.promised):
    raise ValueError(
        f"{wanted.why} promises {wanted.promised} devices to process {process}, and JAX finds {len(here)} "
        f"({here[0].device_kind}); look at the driver and at atlas_jax[cuda12], [cuda13] or [tpu], or set "
        "JAX_PLATFORMS or --local_devices to what is to be used")
