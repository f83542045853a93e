"""Checkpoints written back: bit for bit, untied, narrow, in shards, from scratch; and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from atlas_jax import tree
from atlas_jax.language.pretrained import hf_export, hf_import
from atlas_jax.models import decoder, lora
from atlas_jax.parallel import mesh as meshes
from tests import hf_fixture
from tests.helpers import assert_same_bits

FIELDS = dict(vocab_size=40, width=16, depth=3, heads=4, kv_heads=2, head_dim=6, ff_width=24)
KINDS = {
  "llama": dict(rope_base=5e5, rope_scaling=dict(rope_type="linear", factor=2.0), norm_eps=1e-5),
  "llama with biases": dict(qkv_bias=True, out_bias=True, mlp_bias=True),
  "qwen2": dict(qkv_bias=True, tied=True),
  "qwen3": dict(qk_norm=True),
  "atlas": dict(learned_positions=9, tied=True),
}


def draw(model, dtype="float32"):
  """Returns random parameters, biases and scales among them."""
  rng = np.random.default_rng(5)
  random = lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape, np.float32), dtype)
  return jax.tree.map(random, hf_import.abstract(model))


def files_of(folder):
  return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("name", hf_fixture.NAMES)
def test_a_model_read_and_written_is_the_same_bit_for_bit(name, tmp_path):
  model, params = hf_fixture.load(name)
  hf_export.save(tmp_path, model, params, like=hf_fixture.FOLDER / name)
  written, original = files_of(tmp_path), files_of(hf_fixture.FOLDER / name)
  assert written == {file: original[file] for file in written}
  assert set(original) - set(written) == {"reference.npz", "config_v4.json"}


def test_what_is_written_is_open_to_who_may_read_a_new_file(tmp_path):
  model, params = hf_fixture.load("qwen2_tiny")
  hf_export.save(tmp_path / "model", model, params, like=hf_fixture.FOLDER / "qwen2_tiny")
  (tmp_path / "new").touch()
  modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "model").iterdir()}
  assert modes == {(tmp_path / "new").stat().st_mode & 0o777}


def test_a_model_spread_over_eight_devices_is_written_the_same(tmp_path):
  mesh = meshes.make(data=2, fsdp=2, tensor=2)
  model, params, folder = hf_import.load(str(hf_fixture.SHARDED), mesh=mesh)
  hf_export.save(tmp_path, model, params, like=folder)
  original = files_of(folder)
  assert all(original[file] == content for file, content in files_of(tmp_path).items())


def test_a_narrow_checkpoint_trained_in_float32_is_written_the_same(tmp_path):
  model = decoder.Decoder(**FIELDS, **KINDS["qwen3"])
  hf_export.save(tmp_path / "first", model, draw(model, "bfloat16"), max_tokens=64)
  _, params, folder = hf_import.load(str(tmp_path / "first"), param_dtype="float32")
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"float32"}
  hf_export.save(tmp_path / "second", model, params, like=folder)
  assert files_of(tmp_path / "first") == files_of(tmp_path / "second")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_shard_gib", [4.0, 5e-6])
def test_a_model_made_here_is_written_and_read_back(kind, max_shard_gib, tmp_path):
  model = decoder.Decoder(**FIELDS, **KINDS[kind])
  params = draw(model)
  hf_export.save(tmp_path, model, params, max_tokens=64, max_shard_gib=max_shard_gib,
                 specials=dict(eos_token_id=3))
  again, read, _ = hf_import.load(str(tmp_path))
  assert again == model
  assert_same_bits(read, params)
  assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == 3
  shards = sorted(tmp_path.glob("*.safetensors"))
  assert len(shards) == 1 if max_shard_gib == 4.0 else len(shards) > 2
  # Above the size stands only a tensor that is larger on its own.
  assert all(len(load_file(file)) == 1 or file.stat().st_size < 4.0 * 2**30 * 5e-6
             for file in shards if len(shards) > 1)


@pytest.mark.parametrize("name", ["qwen2_tiny", "llama3_rope_tiny"])
def test_a_tied_head_is_written_untied_on_request(name, tmp_path):
  model, params = hf_fixture.load(name)
  hf_export.save(tmp_path, model, params, like=hf_fixture.FOLDER / name, head="untied")
  again, untied, _ = hf_import.load(str(tmp_path))
  assert not again.tied
  assert_same_bits(untied["head"]["kernel"], params["embed"].T)
  tokens_BT, doc_BT, real_BT, expected_BTV = hf_fixture.batch(name)
  logits_BTV = hf_fixture.score(again, untied, tokens_BT, doc_BT)
  assert np.abs(np.asarray(logits_BTV) - expected_BTV)[real_BT].max() < hf_fixture.TOLERANCE


def test_an_untied_head_in_shards_is_in_the_index(tmp_path):
  model = decoder.Decoder(**FIELDS, **KINDS["qwen2"])
  params = draw(model)
  hf_export.save(tmp_path / "tied", model, params, max_tokens=64, max_shard_gib=5e-6)
  hf_export.save(tmp_path / "untied", model, params, like=tmp_path / "tied", head="untied")
  index = json.loads((tmp_path / "untied" / "model.safetensors.index.json").read_text())
  assert "lm_head.weight" in index["weight_map"]
  assert index["metadata"]["total_size"] == tree.size_bytes(params) + params["embed"].nbytes
  assert_same_bits(hf_import.load(str(tmp_path / "untied")).params["head"]["kernel"], params["embed"].T)


def test_tensors_that_follow_from_the_config_travel(tmp_path):
  folder = hf_fixture.copy(hf_fixture.FOLDER / "llama_tiny", tmp_path / "model")
  tensors = load_file(folder / "model.safetensors")
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(16, np.float32)
  save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", "made": "before"})
  model, params, _ = hf_import.load(str(folder))
  hf_export.save(tmp_path / "again", model, params, like=folder)
  assert files_of(tmp_path / "again")["model.safetensors"] == files_of(folder)["model.safetensors"]


def test_what_cannot_be_written_is_refused(tmp_path):
  folder = hf_fixture.FOLDER / "qwen3_tiny"
  model, params = hf_fixture.load("qwen3_tiny")
  with pytest.raises(ValueError, match="is the folder the model was read from"):
    hf_export.save(folder, model, params, like=folder)
  with pytest.raises(ValueError, match="is another model: its width is 128, this one's is 64"):
    hf_export.save(tmp_path, model, params, like=hf_fixture.FOLDER / "qwen2_tiny")
  with pytest.raises(ValueError, match="needs max_tokens"):
    hf_export.save(tmp_path, model, params)
  with pytest.raises(ValueError, match="head='tied' is unknown"):
    hf_export.save(tmp_path, model, params, like=folder, head="tied")
  with pytest.raises(ValueError, match="no known family has models with qk_norm=True, qkv_bias=True"):
    hf_export.save(tmp_path, model.copy(qkv_bias=True), params, max_tokens=64)
  with pytest.raises(ValueError, match="no known family has models with qk_norm=True"):
    hf_export.save(tmp_path, model.copy(learned_positions=9), params, max_tokens=64)
  adapted = model.copy(lora=dict(rank=2, alpha=4, targets=("q",), scaling="rank"))
  both = lora.join(lora.start(adapted, jax.random.key(0)), params)
  with pytest.raises(ValueError, match="the parameters have adapters; merge them"):
    hf_export.save(tmp_path, adapted, both, like=folder)
  hf_export.save(tmp_path, model, params, like=folder)
  (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"")
  with pytest.raises(ValueError, match="holds model-00001-of-00002.safetensors, which is not part"):
    hf_export.save(tmp_path, model, params, like=folder)
