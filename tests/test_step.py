"""One update of the loop; what a recipe does in it is tested with the recipe."""

import jax.numpy as jnp
import pytest

from atlas_jax import step as stepping
from tests import trm_fixture
from tests.helpers import assert_close

pytestmark = pytest.mark.core


def test_the_average_is_the_original_programs():
  given = trm_fixture.part("misc", "ema/")
  average = {name: jnp.asarray(given[name][0]) for name in ("weights", "biases")}
  for i in range(1, len(given["weights"])):
    params = {name: jnp.asarray(given[name][i]) for name in average}
    average = stepping.ema_update(average, params, 0.999)
  assert_close(average, {"weights": given["weight_out"], "biases": given["bias_out"]}, tolerance=1e-6)
