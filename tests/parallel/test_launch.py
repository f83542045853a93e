"""Where processes come from: flags and clusters, whose variables are set here; and the devices each takes."""

import socket
import sys
import types

import jax
import pytest
from jax._src.clusters import cloud_tpu_cluster, k8s_cluster

from atlas_jax.parallel import hosts, launch

SLURM = {"SLURM_JOB_ID": "70000", "SLURM_STEP_NODELIST": "node[003-004]", "SLURM_NTASKS": "2",
         "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}  # fmt: skip
OMPI = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911", "OMPI_COMM_WORLD_SIZE": "3",
        "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}  # fmt: skip
FLAGS = ("here:1", 4, 3)


@pytest.fixture
def env(monkeypatch):
  """Returns a function that sets variables of a cluster."""
  return lambda variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


def find(*flags):
  """Asks for the place of this process, by flags or by what the cluster says."""
  return launch.find(*(flags or (None, None, None)), within_s=1)


def test_nothing_that_says_otherwise_is_a_run_of_one_process():
  assert find() is None


@pytest.mark.parametrize("variables, place", [
  (SLURM, launch.ProcessPlace(f"node003:{70000 % 4096 + 61440}", 2, 1)),
  (OMPI, launch.ProcessPlace(f"10.96.0.1:{1531576320 // 4096 % 4096 + 61440}", 3, 2)),
])  # fmt: skip
def test_a_cluster_says_who_belongs_together(variables, place, env):
  env(variables)
  assert find() == place
  assert find(*FLAGS) == launch.ProcessPlace(*FLAGS)
  assert find(None, 1, None) is None


def test_hosts_of_a_tpu_pod_are_joined_and_one_host_is_not(env, monkeypatch):
  monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
  monkeypatch.setattr("jax._src.cloud_tpu_init.running_in_cloud_tpu_vm", True)
  slices = {f"MEGASCALE_{name}": "" for name in ("COORDINATOR_ADDRESS", "NUM_SLICES", "SLICE_ID")}
  env({**slices, "TPU_WORKER_HOSTNAMES": "localhost,other", "TPU_WORKER_ID": "1"})
  assert find() == launch.ProcessPlace("localhost:8482", 2, 1)
  env({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"})
  assert find() is None


def test_one_task_of_a_cluster_is_a_run_of_one_process(env):
  env({**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"})
  assert find() is None


@pytest.mark.parametrize("variables, words", [
  ({"SLURM_NTASKS": "4", "SLURM_PROCID": "2"}, "SLURM says by SLURM_NTASKS=4 .*start them with srun, .*=2"),
  ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, "SLURM says by SLURM_STEP_NUM_TASKS=4"),
  ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, "Open MPI says .*--num_processes=2 .*id=1"),
  ({**OMPI, "OMPI_MCA_orte_hnp_uri": "1.0;unknown"}, "cannot be joined .Could not parse coordinator"),
  ({"PMI_SIZE": "2", "PMI_RANK": "0"}, "MPI says by PMI_SIZE=2"),
  ({"TPU_WORKER_HOSTNAMES": "a,b,c", "TPU_WORKER_ID": "2"}, "the TPU pod says .* number of its workers=3"),
  ({"WORLD_SIZE": "8", "RANK": "5"}, "torchrun says by WORLD_SIZE=8 that this is task 5"),
  ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "3"},
   "Kubernetes says by JOB_COMPLETION_INDEX=3 .*--num_processes=N .*--process_id=3; or, for"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*Kubernetes environment detected")
def test_tasks_that_cannot_be_joined_are_refused(variables, words, env):
  env(variables)
  with pytest.raises(ValueError, match=words):
    find()


def test_a_pod_of_no_indexed_job_is_a_run_of_one_process(env):
  env({"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
  assert find() is None


def named(**fields):
  """An object with attributes, as Kubernetes' client has them."""
  return types.SimpleNamespace(**fields)


def test_a_pod_of_a_jobset_is_found_without_flags(env, monkeypatch):
  """The API server's answers are made up; who asks it, and makes an address of them, is JAX."""
  job = named(metadata=named(name="train-workers-0", labels={"jobset.sigs.k8s.io/jobset-name": "train"}),
              spec=named(parallelism=4))  # fmt: skip
  pod = named(metadata=named(labels={"job-name": "train-workers-0"},
                             owner_references=[named(controller=True, kind="Job")]))  # fmt: skip
  client = named(CoreV1Api=lambda: named(list_namespaced_pod=lambda **_: named(items=[pod])),
                 BatchV1Api=lambda: named(read_namespaced_job=lambda **_: job),
                 exceptions=named(ApiException=OSError))  # fmt: skip
  config = named(load_incluster_config=lambda: None)
  monkeypatch.setitem(sys.modules, "kubernetes", named(client=client, config=config))
  monkeypatch.setattr(k8s_cluster.K8sCluster, "_namespace", classmethod(lambda cls: "default"))
  looked_up = []
  monkeypatch.setattr(socket, "gethostbyname", lambda host: looked_up.append(host) or "127.0.0.1")
  env({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "3", "HOSTNAME": "train-workers-0-3"})
  cluster = k8s_cluster.K8sCluster
  try:
    assert find() == launch.ProcessPlace("train-workers-0-0.train:55527", 4, 3)
  finally:
    for asked in (cluster._pod, cluster._job, cluster._controller):
      asked.__func__.cache_clear()
  assert looked_up[-1] == "train-workers-0-0.train"


def test_slices_of_tpus_are_one_run(env, monkeypatch):
  monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
  monkeypatch.setattr("jax._src.cloud_tpu_init.running_in_cloud_tpu_vm", True)
  env({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "localhost:8080",
       "MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1"})  # fmt: skip
  assert find() == launch.ProcessPlace("localhost:8482", 4, 3)


def node(tasks, local, **more):
  """Variables of a SLURM task on a node of eight GPUs."""
  return {"SLURM_GPUS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": "0",
          "SLURM_LOCALID": local, **more}  # fmt: skip


EIGHT = ",".join(map(str, range(8)))


@pytest.mark.parametrize("told, variables, ids, promised", [
  (None, node("1(x2)", "0"), [], 8),
  (None, node("1(x2)", "0", CUDA_VISIBLE_DEVICES="0,1"), [], 2),
  (None, node("4(x2)", "1", CUDA_VISIBLE_DEVICES=EIGHT), [2, 3], 2),
  (None, node("8", "7"), [7], 1),
  (None, node("4(x2)", "1", CUDA_VISIBLE_DEVICES="0,1"), [], 2),  # Bound by SLURM already.
  (None, node("8", "7", JAX_PLATFORMS="cpu"), [], None),
  (None, node("1", "0", CUDA_VISIBLE_DEVICES="-1"), [], None),
  (None, {**OMPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
          "CUDA_VISIBLE_DEVICES": "4,5"}, [1], 1),
  (None, {"JAX_LOCAL_DEVICE_IDS": "2,3", **node("1", "0")}, [2, 3], 2),
  ("5", node("1", "0"), [5], 1),
  (None, {"JAX_PLATFORMS": "tpu", "TPU_CHIPS_PER_PROCESS_BOUNDS": "2,2,1"}, [], 4),
])  # fmt: skip
def test_a_process_takes_all_of_its_machine_or_its_share_or_what_it_is_told(told, variables, ids, promised):
  found = launch.devices(told, variables)
  assert (found.ids, found.promised) == (ids, promised)


@pytest.mark.parametrize("told, variables, words", [
  ("0,0", {}, "--local_devices=0,0 must be different numbers"),
  ("all", {}, "--local_devices=all must be"),
  (None, node("3", "0"), "SLURM_GPUS_ON_NODE=8 gives 8 devices to the 3 tasks of this machine"),
])  # fmt: skip
def test_devices_that_cannot_be_shared_are_refused(told, variables, words):
  with pytest.raises(ValueError, match=words):
    launch.devices(told, variables)


def test_fewer_devices_than_promised_are_refused():
  here = jax.local_device_count()
  launch.check_devices(launch.Devices([], here, "TPU_CHIPS_PER_PROCESS_BOUNDS", are_cuda=False), 0)
  words = f"TPU_CHIPS_PER_PROCESS_BOUNDS promises 99 devices to process 1, and JAX finds {here}"
  with pytest.raises(ValueError, match=words):
    launch.check_devices(launch.Devices([], 99, "TPU_CHIPS_PER_PROCESS_BOUNDS", are_cuda=False), 1)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="looks for GPUs where there are none")
def test_the_cpu_in_place_of_promised_gpus_is_refused(monkeypatch):
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
  hosts.start()  # Nobody has promised them to a process that was started by hand.
  monkeypatch.setenv("SLURM_GPUS_ON_NODE", "1")
  with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES=0 promises 1 devices to process 0, and JAX"):
    hosts.start()


def test_a_program_of_some_processes_alone_is_not_waited_for():
  """The meeting is called for programs of all processes; one process is all of them here."""
  names = []
  from jax._src import compiler

  from atlas_jax.parallel import compiled
  plain = compiler.compile_or_get_cached
  try:
    compiled.after_each(names.append)
    jax.jit(lambda x: x + 1.25)(1.0)
  finally:
    compiler.compile_or_get_cached = plain
  assert names and all(name.startswith("jit_") for name in names)
  assert isinstance(plain, types.FunctionType)
