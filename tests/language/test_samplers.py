"""The sampler of a run is the one that its config names."""
import pytest

from atlas_jax.language import samplers
from atlas_jax.language.decoding.native import NativeSampler
from atlas_jax.language.initial_model import load_initial_model
from tests import runs, tuning


def test_the_native_sampler_is_made_for_any_model():
  config = tuning.config_of("memory")
  assert isinstance(samplers.load(config, load_initial_model(config), runs.one_device()), NativeSampler)


def test_a_model_that_no_server_takes_is_refused_before_anything_starts(tmp_path):
  config = runs.changed(tuning.config_of("memory").as_configdict(), {"sampler__kind": "vllm"})
  with pytest.raises(ValueError, match="serves published decoders, and not a model with memory"):
    samplers.load(config, load_initial_model(config), runs.one_device(), tmp_path)
  assert not list(tmp_path.iterdir())
