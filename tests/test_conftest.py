"""Every test runs as tests/conftest.py promises."""

import os

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
