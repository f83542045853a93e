"""Every test runs as tests/conftest.py promises."""

import os
import re

import jax
import jax.numpy as jnp
import pytest

from tests.helpers import full_compilation

pytest_plugins = ["pytester"]


@pytest.mark.core
@pytest.mark.skipif(os.environ["JAX_PLATFORMS"] != "cpu", reason="the caller chose another platform")
def test_there_are_eight_cpu_devices():
  assert [device.platform for device in jax.devices()] == ["cpu"] * 8


@pytest.mark.core
def test_ranks_are_never_promoted():
  with pytest.raises(ValueError, match="rank"):
    jnp.ones((2, 3)) + jnp.ones(3)


@pytest.mark.core
def test_float64_is_there_on_request_only(x64):
  assert jnp.ones(3).dtype == jnp.float64


def test_without_request_floats_have_32_bits():
  assert jnp.ones(3).dtype == jnp.float32


@pytest.mark.core
@pytest.mark.parametrize("folder, outcome", [("memory", "failed"), ("data", "passed")])
def test_numeric_packages_refuse_dtype_promotion(pytester, folder, outcome):
  conftest = os.path.join(os.path.dirname(__file__), "conftest.py")
  with open(conftest) as source:
    pytester.makeconftest(source.read())
  promotes = "import jax.numpy as jnp\ndef test_it():\n  jnp.ones(3) + jnp.ones(3, jnp.bfloat16)\n"
  path = pytester.mkdir(folder) / "test_it.py"
  path.write_text(promotes)
  pytester.runpytest("-p", "no:cacheprovider", path).assert_outcomes(**{outcome: 1})


def test_files_with_slow_tests_come_first(pytester):
  with open(os.path.join(os.path.dirname(__file__), "conftest.py")) as source:
    pytester.makeconftest(source.read())
  pytester.makeini("[pytest]\nmarkers = slow")
  slow = "import pytest\ndef test_one(): pass\n@pytest.mark.slow\ndef test_two(): pass\n"
  pytester.makepyfile(test_a="def test_it(): pass\n", test_b=slow, test_c="def test_it(): pass\n")
  found = pytester.runpytest("-p", "no:cacheprovider", "--collect-only", "-q").outlines[:4]
  assert found == ["test_b.py::test_one", "test_b.py::test_two", "test_a.py::test_it", "test_c.py::test_it"]


@pytest.mark.core
@pytest.mark.skipif(os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] != "1", reason="the caller chose otherwise")
def test_programs_are_compiled_quickly():
  quick = lambda: jax.config.read("jax_disable_most_optimizations")
  assert quick()
  with full_compilation():
    assert not quick()
  assert quick()


CALLS = """import jax
traces = []

@jax.jit
def f(x):
  traces.append(1)
  return x + 1

def test_once():
  f(1.0)

def test_again():
  f(1.0)
  assert len(traces) == TIMES
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="only Linux lists memory maps")
@pytest.mark.parametrize("low, times", [("FULL_MAPS", 2), ("FULL_BYTES", 2), (None, 1)])
def test_compiled_programs_are_dropped_before_there_are_too_many(pytester, low, times):
  with open(os.path.join(os.path.dirname(__file__), "conftest.py")) as source:
    text = source.read()
  changed = {"FULL_MAPS": 10**6, "FULL_BYTES": 2**60, "LOOK_EVERY_TESTS": 1} | ({low: 0} if low else {})
  for name, value in changed.items():
    text, found = re.subn(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
    assert found == 1
  pytester.makeconftest(text)
  path = pytester.makepyfile(CALLS.replace("TIMES", str(times)))
  pytester.runpytest("-p", "no:cacheprovider", path).assert_outcomes(passed=2)
