"""Every test runs as tests/conftest.py promises."""

import os
import re

import jax
import jax.numpy as jnp
import pytest

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
