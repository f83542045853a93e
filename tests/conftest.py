"""Sets up every test: eight CPU devices, strict shapes, and a compilation cache.

The environment is set before jax is imported, and test subprocesses inherit it. Values that the caller
has set stay, so `JAX_PLATFORMS=cuda pytest -m accelerator` runs on a GPU.
"""

import ctypes
import gc
import importlib.metadata
import os
import pathlib
import sys
import tempfile

# Keys that sign runs are not the user's own; workers and processes that tests start share this one.
os.environ.setdefault("ATLAS_TESTS_HOME", tempfile.gettempdir() + f"/atlas_jax_tests_{os.getuid()}")
os.environ["XDG_CONFIG_HOME"] = os.environ["ATLAS_TESTS_HOME"]
CACHE_HOME = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(CACHE_HOME, "atlas_jax", "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")
# Without bytecode every process that a test starts would compile a thousand modules again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# A test runs its programs a few times and compiles each: without the slow half of the compiler.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Eight devices share one thread: collectives that two of them take in different orders would wait for ever.
XLA_FLAGS = ["--xla_cpu_enable_concurrency_optimized_scheduler=false"]
# Of the two ways to write out a fusion the older one compiles in half the time; later jaxlibs have one only,
# and end the process at a flag that they do not know.
if importlib.metadata.version("jaxlib").startswith("0.10."):
  XLA_FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(XLA_FLAGS))

import jax  # noqa: E402  The environment above must come first.
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

TESTS = pathlib.Path(__file__).parent
# Compiled programs and what was traced for them stay for ever: unbounded, a process passes five gigabytes.
FULL_BYTES = 1200 * 2**20
ROOM_BYTES = 300 * 2**20
# Every compiled program takes some twenty memory maps; Linux ends a process that asks for more than 65,530.
MAPS = pathlib.Path("/proc/self/maps")
FULL_MAPS = 20_000
LOOK_EVERY_TESTS = 20
STRICT_DTYPES = ("memory", "kernels", "models", "losses")


def pytest_addoption(parser):
  """Adds the switch that lets tests use the network."""
  parser.addoption("--network", action="store_true", help="run the tests marked network")


def pytest_collection_modifyitems(items):
  """Puts files with slow tests first: begun last, a long one keeps one worker busy and the others idle."""
  slow = {item.path for item in items if item.get_closest_marker("slow")}
  items.sort(key=lambda item: item.path not in slow)


def pytest_runtest_setup(item):
  """Skips what this machine or this call cannot run."""
  if item.get_closest_marker("network") and not item.config.getoption("--network"):
    pytest.skip("needs --network")
  if item.get_closest_marker("accelerator") and jax.default_backend() == "cpu":
    pytest.skip("needs a GPU or TPU")


def pytest_sessionstart(session):
  """Counts the tests of this process, and says from how much memory on it drops its programs."""
  session.config.tests_run = 0
  session.config.full_bytes = FULL_BYTES


def resident_bytes() -> int:
  """Returns the memory this process holds; 0 where the system does not say."""
  statm = pathlib.Path("/proc/self/statm")
  return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def pytest_runtest_teardown(item):
  """Drops compiled programs before they fill the process; the cache on disk has them still."""
  item.config.tests_run += 1
  look = item.config.tests_run % LOOK_EVERY_TESTS == 0 and MAPS.exists()
  many = look and MAPS.read_bytes().count(b"\n") > FULL_MAPS
  if many or resident_bytes() > item.config.full_bytes:
    jax.clear_caches()
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
      trim(0)
    # What the process holds apart from programs, such as libraries, must not have it drop them at every test.
    item.config.full_bytes = max(FULL_BYTES, resident_bytes() + ROOM_BYTES)


@pytest.fixture(autouse=True)
def _strict_dtypes(request):
  """Refuses implicit dtype promotion in the packages that own numerics."""
  parts = pathlib.Path(request.node.path).relative_to(TESTS).parts
  if parts[0] in STRICT_DTYPES:
    with jax.numpy_dtype_promotion("strict"):
      yield
  else:
    yield


@pytest.fixture
def x64():
  """Turns on float64 for one test; arrays made without a dtype are then float64."""
  with jax.enable_x64(True):
    yield
