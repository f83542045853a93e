"""The sampler of a run is the one that its config names."""
import pytest

from atlas_jax.language import samplers
from atlas_jax.language.decoding.native import NativeSampler
from atlas_jax.language.decoding.sampler import ScriptedSampler
from atlas_jax.language.initial_model import load_initial_model
from tests import runs, tuning


def test_the_native_sampler_is_made_for_any_model():
  config = tuning.config_of("memory")
  assert isinstance(samplers.load(config, load_initial_model(config), runs.one_device()), NativeSampler)


def make(config, start, mesh, workdir):
  """A sampler of one's own."""
  return ScriptedSampler(start.tokenizer, lambda text, params: [text[:1]])


def test_a_module_of_ones_own_makes_the_sampler():
  settings = tuning.config_of("memory").as_configdict()
  config = runs.changed(settings, {"sampler__kind": "tests.language.test_samplers"})
  assert isinstance(samplers.load(config, load_initial_model(config), runs.one_device()), ScriptedSampler)
  with pytest.raises(ValueError, match="config.sampler.kind='tests.language.languages': .* defines no make"):
    config = runs.changed(settings, {"sampler__kind": "tests.language.languages"})
    samplers.load(config, load_initial_model(config), runs.one_device())


def test_a_name_that_is_neither_is_refused():
  with pytest.raises(ValueError, match="config.sampler.kind='vlm' is unknown; did you mean 'vllm'"):
    runs.changed(tuning.config_of("memory").as_configdict(), {"sampler__kind": "vlm"})


def test_a_model_that_no_server_takes_is_refused_before_anything_starts(tmp_path):
  config = runs.changed(tuning.config_of("memory").as_configdict(), {"sampler__kind": "vllm"})
  with pytest.raises(ValueError, match="serves pretrained decoders, and not a model with memory"):
    samplers.load(config, load_initial_model(config), runs.one_device(), tmp_path)
  assert not list(tmp_path.iterdir())
