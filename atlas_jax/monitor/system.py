"""The machine under a run, measured by a thread of its own: processor, memory, disk and GPUs.

A slow disk or driver holds up the thread, never the loop, which takes the newest numbers that there are.
"""
import threading
import types
from pathlib import Path

import psutil
from absl import logging

from atlas_jax.monitor.profile import GIB


class SystemMeter:
  """Measures every few seconds.

  Args:
    workdir: on the disk whose free space is measured.
    every_s: seconds between measurements.
  """

  def __init__(self, workdir, *, every_s: float):
    self._workdir = Path(workdir)
    self._every_s = every_s
    self._ended = threading.Event()
    self._row: dict[str, float] = {}
    self._warned: set[str] = set()
    self._gpus = open_gpus()
    self._thread = threading.Thread(target=self._measure, name="system metrics", daemon=True)

  def start(self) -> None:
    """Starts the thread."""
    psutil.cpu_percent()  # The next call counts from here.
    self._thread.start()

  def row(self) -> dict[str, float]:
    """Returns the newest numbers; {} before the first."""
    return self._row

  def close(self) -> None:
    """Ends the thread; a measurement that hangs is left behind."""
    self._ended.set()
    if self._thread.is_alive():
      self._thread.join(timeout=1.0)

  def _measure(self) -> None:
    # The processor's use is of the time between two measurements, so that the first has none.
    self._row = {**self._each("memory", memory), **self._each("disk", self._disk),
                 **self._each("GPUs", self._of_gpus)}
    while not self._ended.wait(self._every_s):
      self._row = {"system/cpu_percent": psutil.cpu_percent(), **self._each("memory", memory),
                   **self._each("disk", self._disk), **self._each("GPUs", self._of_gpus)}

  def _each(self, what: str, measure) -> dict[str, float]:
    try:
      return measure()
    except Exception as error:  # Of a driver or a disk: without its numbers the run goes on. Warned of once.
      if what not in self._warned:
        logging.warning("system metrics: the %s cannot be measured, and are absent: %s", what, error)
        self._warned.add(what)
      return {}

  def _disk(self) -> dict[str, float]:
    return {"system/disk_free_gib": psutil.disk_usage(str(self._workdir)).free / GIB}

  def _of_gpus(self) -> dict[str, float]:
    return {} if self._gpus is None else gpus(self._gpus)


def memory() -> dict[str, float]:
  """Returns the memory of the machine that is in use."""
  found = psutil.virtual_memory()
  return {"system/memory_gib": (found.total - found.available) / GIB}


def open_gpus() -> types.ModuleType | None:
  """Returns the library of NVIDIA's driver, ready to be asked; None without the package or the driver."""
  try:
    import pynvml  # Of the package nvidia-ml-py, which machines without such GPUs need not have.
  except ModuleNotFoundError:
    logging.debug("metrics of GPUs are absent: the package nvidia-ml-py is not installed")
    return None
  try:
    pynvml.nvmlInit()
  except pynvml.NVMLError:  # The package is there, and no driver.
    return None
  return pynvml


def gpus(library) -> dict[str, float]:
  """Returns the use of the GPUs of this machine: the mean of their load, the memory of the fullest."""
  handles = [library.nvmlDeviceGetHandleByIndex(i) for i in range(library.nvmlDeviceGetCount())]
  if not handles:
    return {}
  load = [library.nvmlDeviceGetUtilizationRates(handle).gpu for handle in handles]
  used = [library.nvmlDeviceGetMemoryInfo(handle).used for handle in handles]
  return {"system/gpu_percent": sum(load) / len(load), "system/gpu_memory_gib": max(used) / GIB}
