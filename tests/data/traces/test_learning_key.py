"""Learning keys are those of the Atlas SDK."""
import pytest

from atlas_jax.data.traces.learning_key import learning_key
from tests import stores


@pytest.mark.parametrize("case", stores.read_json("sdk_runtime_rules.json")["learning_key"], ids=str)
def test_recorded_keys(case):
  assert learning_key(case["agent"], case["task"], case["meta"]) == case["key"]


def test_the_order_of_tags_does_not_matter_and_the_tenant_does():
  key = learning_key("a", "t", {"tags": ["x", "y"]})
  assert key == learning_key("a", "t", {"tags": ["y", "x"]})
  assert key != learning_key("a", "t", {"tags": ["x", "y"], "tenant_id": "other"})
