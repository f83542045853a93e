"""Weights in one file: read back bit for bit, and refused for any other model, by what differs."""
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax.files.damage import Damaged
from atlas_jax.language import weights_file
from tests.language.languages import tiny


@pytest.mark.parametrize("kind", ["decoder", "memory"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_come_back_bit_for_bit(kind, dtype, tmp_path):
  language, params = tiny(kind)
  params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
  file = tmp_path / "a.safetensors"
  weights_file.write(file, language, params)
  found = weights_file.read(file, language, jax.tree.map(jnp.zeros_like, params))
  assert jax.tree.structure(found) == jax.tree.structure(params)
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_how_fast_a_model_computes_does_not_tell_it_from_others(tmp_path):
  language, params = tiny("decoder")
  file = tmp_path / "a.safetensors"
  weights_file.write(file, tiny("decoder", remat="block", scan_unroll=2)[0], params)
  weights_file.read(file, language, params)


def test_another_model_is_refused_by_what_differs(tmp_path):
  language, params = tiny("decoder")
  file = tmp_path / "a.safetensors"
  weights_file.write(file, tiny("decoder", norm_eps=1e-3, rope_base=5.0)[0], params)
  with pytest.raises(ValueError, match="norm_eps=0.001, and .* has norm_eps=1e-06, and 1 more fields differ"):
    weights_file.read(file, language, params)
  other, its = tiny("memory")
  weights_file.write(file, language, params)
  with pytest.raises(ValueError, match="a model with"):
    weights_file.read(file, other, its)
  weights_file.write(file, language, {"embedding": np.zeros(3, np.float32)})
  with pytest.raises(ValueError, match="weights have"):
    weights_file.read(file, language, params)
  weights_file.write(file, language, jax.tree.map(lambda leaf: leaf[..., :1], params))
  with pytest.raises(ValueError, match="of shape"):
    weights_file.read(file, language, params)
  weights_file.write(file, language, jax.tree.map(lambda leaf: leaf.astype(jnp.float16), params))
  with pytest.raises(ValueError, match="are float16 of shape .* needs float32"):
    weights_file.read(file, language, params)


def test_broken_files_are_refused(tmp_path):
  language, params = tiny("decoder")
  file = tmp_path / "a.safetensors"
  weights_file.write(file, language, params)
  whole = file.read_bytes()
  for content in (b"", whole[:100], whole[:-4], b"x" * 50):
    file.write_bytes(content)
    with pytest.raises(Damaged):
      weights_file.read(file, language, params)
  size = int.from_bytes(whole[:8], "little")
  header = json.loads(whole[8:8 + size])
  for metadata in ({}, {"fields": "["}, {"fields": "[1]"}):
    text = json.dumps({**header, "__metadata__": metadata}).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + size:])
    with pytest.raises(Damaged, match="does not say which model"):
      weights_file.read(file, language, params)
