"""System metrics come from a thread, agree with the system, and do without what is not there."""
import threading
import time
import types

import psutil
import pytest

from atlas_jax.monitor import schema
from atlas_jax.monitor.system import SystemMeter, gpus, memory

GIB = 2**30


def wait_for(condition):
  for _ in range(500):
    if condition():
      return
    time.sleep(0.01)
  raise AssertionError("nothing was measured in 5 s")


def test_a_thread_measures_until_it_is_closed(tmp_path):
  meter = SystemMeter(tmp_path, every_s=0.01)
  assert meter.row() == {}
  meter.start()
  wait_for(lambda: "system/cpu_percent" in meter.row())
  row = meter.row()
  meter.close()
  assert not any(thread.name == "system metrics" for thread in threading.enumerate())
  assert 0 <= row["system/cpu_percent"] <= 100 * psutil.cpu_count()
  assert row["system/disk_free_gib"] == pytest.approx(psutil.disk_usage(str(tmp_path)).free / GIB, abs=1)
  assert schema.unknown(row) == []


def test_memory_grows_by_what_is_taken():
  before = memory()["system/memory_gib"]
  taken = bytearray(b"x" * (GIB // 4))
  after = memory()["system/memory_gib"]
  assert after - before > 0.1 and len(taken) == GIB // 4


def test_what_cannot_be_measured_is_absent_and_said_once(tmp_path, caplog):
  meter = SystemMeter(tmp_path / "gone", every_s=0.001)
  meter.start()
  wait_for(lambda: "system/cpu_percent" in meter.row())
  meter.close()
  assert "system/disk_free_gib" not in meter.row() and "system/memory_gib" in meter.row()
  assert len([line for line in caplog.messages if "disk cannot be measured" in line]) == 1


def test_gpus_have_the_mean_of_their_load_and_the_memory_of_the_fullest():
  """With a library that answers like NVIDIA's, of two GPUs."""
  load, used = (30, 50), (3 * GIB, 8 * GIB)
  library = types.SimpleNamespace(
    nvmlDeviceGetCount=lambda: 2, nvmlDeviceGetHandleByIndex=lambda i: i,
    nvmlDeviceGetUtilizationRates=lambda i: types.SimpleNamespace(gpu=load[i]),
    nvmlDeviceGetMemoryInfo=lambda i: types.SimpleNamespace(used=used[i]),
  )  # fmt: skip
  assert gpus(library) == {"system/gpu_percent": 40, "system/gpu_memory_gib": 8}
