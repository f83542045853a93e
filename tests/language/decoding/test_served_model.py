"""Weights by name and version: checksums, adapters beside them, and what is refused."""
import jax
import numpy as np
import pytest

from atlas_jax.language.decoding import served_model
from atlas_jax.language.decoding.served_model import ModelTable, ServedModel
from atlas_jax.models import lora
from tests.helpers import quick_compilation
from tests.language.decoding import serving
from tests.language.languages import tiny

OPTIONS = {"rank": 2, "alpha": 4, "targets": ("q", "v"), "scaling": "rank"}


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


def adapters(seed=0):
  """Returns adapters that change what the tiny decoder writes."""
  module = tiny("decoder")[0].module.copy(lora=OPTIONS)
  draw = np.random.default_rng(seed)
  return jax.tree.map(lambda x: draw.normal(0, 0.5, x.shape).astype(np.float32),
                      lora.start(module, jax.random.key(0)))


def test_a_fingerprint_is_of_every_number_and_of_the_form():
  language, params = tiny("decoder")
  one = ServedModel("a", 0, language, params)
  assert one.fingerprint == ServedModel("b", 7, language, params).fingerprint
  other = {**params, "embed": np.asarray(params["embed"]).copy()}
  other["embed"][3, 1] = np.nextafter(other["embed"][3, 1], 9)
  assert one.fingerprint != ServedModel("a", 0, language, other).fingerprint
  assert one.fingerprint != ServedModel("a", 0, tiny("decoder", norm_eps=1e-5)[0], params).fingerprint
  shapes = serving.shapes_of("decoder")
  keys = [one.state_key(shapes, ""), one.state_key(shapes, "tenant"), one.stream_key(shapes),
          one.state_key(shapes._replace(piece_tokens=16), "")]
  assert len(set(keys)) == 4
  # States of prompts are the same in groups of any size, streams are not.
  wide = shapes._replace(group_rows=16)
  assert one.state_key(wide, "") == keys[0] and one.stream_key(wide) != keys[2]


def test_states_of_another_compiler_or_processor_are_others(tmp_path, monkeypatch):
  one, shapes = ServedModel("a", 0, *tiny("decoder")), serving.shapes_of("decoder")
  info = tmp_path / "cpuinfo"
  keys = []
  for flags, extensions in (("", "avx2"), ("", "avx2 avx512f"), ("--xla_cpu_x=false", "avx2")):
    monkeypatch.setenv("XLA_FLAGS", flags)
    info.write_text(f"model name : one\nflags : {extensions}\ncpu MHz : 2\n")
    monkeypatch.setattr(served_model, "CPU_INFO", info)
    served_model._machine.cache_clear()
    keys += [one.state_key(shapes, ""), one.stream_key(shapes)]
  served_model._machine.cache_clear()
  assert len(set(keys)) == 6


def test_adapters_share_the_arrays_of_their_base_and_follow_its_versions():
  language, params = tiny("decoder")
  table = ModelTable()
  table.load("base", language, params, 0)
  table.load_adapter("tuned", "base", OPTIONS, adapters())
  assert table.versions() == {"base": 0, "tuned": 0} and table.get(None).name == "base"
  assert table.get("tuned").params["embed"] is params["embed"]
  newer = jax.tree.map(lambda x: x * 2, params)
  table.load("base", language, newer, 3)
  assert table.versions() == {"base": 3, "tuned": 3}
  assert table.get("tuned").params["embed"] is newer["embed"]


def test_what_does_not_fit_is_refused_and_changes_nothing():
  language, params = tiny("decoder")
  table = ModelTable()
  table.load("base", language, params, 1)
  table.load("memory", *tiny("memory"), 1)
  table.load_adapter("tuned", "base", OPTIONS, adapters())
  before = table.get("tuned")
  for action, match in (
      (lambda: table.get("none"), "the model 'none' is not loaded; loaded are base, memory, tuned"),
      (lambda: table.load("base", language, params, 1), "version=1 .* must be above 1"),
      (lambda: table.load("tuned", language, params, 2), "is one of adapters of 'base'"),
      (lambda: table.load_adapter("base", "base", OPTIONS, adapters()), "has weights of its own"),
      (lambda: table.load_adapter("more", "tuned", OPTIONS, adapters()), "is one of adapters"),
      (lambda: table.load_adapter("more", "memory", OPTIONS, adapters()), "adapters are for decoders"),
      (lambda: table.load_adapter("tuned", "base", OPTIONS | {"rank": 3}, adapters()), "do not fit"),
      (lambda: table.unload("base"), "has adapters loaded upon it; unload them first: tuned")):
    with pytest.raises(ValueError, match=match):
      action()
  assert table.get("tuned") is before
  table.unload("tuned")
  table.unload("base")
  assert table.versions() == {"memory": 1}
