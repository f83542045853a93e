"""Pretrained checkpoints against what transformers computes from them, and bad folders."""

import functools
import json
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from atlas_jax import tree
from atlas_jax.language.pretrained import hf_config, hf_export, hf_import
from atlas_jax.models import decoder, head, placement, rope
from atlas_jax.parallel import mesh as meshes
from tests import hf_fixture
from tests.helpers import assert_same_bits, quick_compilation


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


@pytest.mark.parametrize("name", hf_fixture.NAMES)
def test_logits_equal_the_reference_with_padding_on_either_side(name):
  tokens_BT, doc_BT, real_BT, expected_BTV = hf_fixture.batch(name)
  model, params = hf_fixture.load(name)
  logits_BTV = np.asarray(hf_fixture.score(model, params, tokens_BT, doc_BT))
  assert np.abs(logits_BTV - expected_BTV)[real_BT].max() < hf_fixture.TOLERANCE


@pytest.mark.parametrize("name", ["qwen2_tiny", "qwen3_tiny", "llama3_rope_tiny"])
def test_hidden_states_equal_the_reference(name):
  tokens_BT, doc_BT, real_BT, _ = hf_fixture.batch(name)
  model, params = hf_fixture.load(name)
  first = {**params, "blocks": jax.tree.map(lambda leaf: leaf[:1], params["blocks"])}

  @jax.jit
  def read(params, first):
    """Reads the table, one block without the norm after it, and the whole model."""
    embedded_BTD = params["embed"][tokens_BT]
    frequencies = rope.inverse_frequencies(model.head_dim, model.rope_base, model.rope_scaling)
    cos_sin = rope.cos_sin(decoder.positions(doc_BT), *frequencies, jnp.float32)
    block = {"params": jax.tree.map(lambda leaf: leaf[0], first["blocks"])}
    one_BTD, _ = decoder.DecoderBlock(model.shape(), False).apply(block, embedded_BTD, None, cos_sin, doc_BT,
                                                                  None)
    return embedded_BTD, one_BTD, model.apply({"params": params}, tokens_BT, doc_BT=doc_BT).hidden_BTD

  for hidden_BTD, expected_BTD in zip(read(params, first), hf_fixture.reference(name)["hidden_states"]):
    assert np.abs(np.asarray(hidden_BTD) - expected_BTD)[real_BT].max() < hf_fixture.TOLERANCE


@functools.partial(jax.jit, static_argnums=(0, 4))
def continue_greedily(model, params, tokens_BT, doc_BT, n_new):
  """Returns the likeliest next tokens and their log-probabilities, [B, n_new], with a cache."""
  start = model.apply({"params": params}, tokens_BT, doc_BT=doc_BT, room_tokens=tokens_BT.shape[1] + n_new)
  last_B = tokens_BT.shape[1] - 1 - jnp.argmax((doc_BT >= 0)[:, ::-1], axis=1)

  def step(carry, _):
    cache, hidden_BD = carry
    logprob_BV = jax.nn.log_softmax(head.logits(params, hidden_BD))
    token_B = jnp.argmax(logprob_BV, axis=-1).astype(jnp.int32)
    out = model.apply({"params": params}, token_B[:, None], cache)
    return (out.cache, out.hidden_BTD[:, 0]), (token_B, jnp.max(logprob_BV, axis=-1))

  hidden_BD = jnp.take_along_axis(start.hidden_BTD, last_B[:, None, None], axis=1)[:, 0]
  _, (token_TB, logprob_TB) = jax.lax.scan(step, (start.cache, hidden_BD), None, length=n_new)
  return token_TB.T, logprob_TB.T


@pytest.mark.parametrize("name", hf_fixture.NAMES)
@pytest.mark.parametrize("padding", ["left", "right"])
def test_greedy_continuation_with_a_cache_equals_the_reference(name, padding):
  recorded = hf_fixture.reference(name)
  tokens_BT, real_BT = recorded["greedy_prompt_ids"], recorded["greedy_prompt_mask"].astype(bool)
  if padding == "right":
    order_BT = np.argsort(~real_BT, axis=1, kind="stable")
    tokens_BT, real_BT = (np.take_along_axis(x, order_BT, axis=1) for x in (tokens_BT, real_BT))
  assert not real_BT.all()
  model, params = hf_fixture.load(name)
  doc_BT = jnp.where(real_BT, 0, -1).astype(jnp.int32)
  expected_BT = recorded["greedy_new_ids"]
  token_BT, logprob_BT = continue_greedily(
    model, params, jnp.asarray(tokens_BT, jnp.int32), doc_BT, expected_BT.shape[1])
  np.testing.assert_array_equal(token_BT, expected_BT)
  assert np.abs(np.asarray(logprob_BT) - recorded["greedy_logps"]).max() < hf_fixture.TOLERANCE


@pytest.mark.parametrize("name", hf_fixture.NAMES)
def test_both_spellings_of_a_config_say_the_same(name):
  folder = hf_fixture.FOLDER / name
  old, new = (hf_config.read(folder / file) for file in ("config_v4.json", "config.json"))
  assert old == new


@pytest.mark.parametrize("shape", [dict(fsdp=4, tensor=2), dict(data=2, fsdp=1, tensor=4)])
def test_a_model_read_onto_eight_devices_is_split_and_gives_the_same_logits(shape):
  name = "qwen3_tiny"
  model, whole = hf_fixture.load(name)
  mesh = meshes.make(**shape)
  params = hf_import.load(str(hf_fixture.FOLDER / name), mesh=mesh).params
  assert_same_bits(params, whole)
  specs = {leaf: sharding.spec for leaf, sharding in tree.named_leaves(placement.shardings(mesh, params))}
  for leaf in ("attention/q", "attention/out", "mlp/gate", "mlp/up", "mlp/down"):
    assert "tensor" in specs[f"blocks/{leaf}/kernel"]
  for leaf, array in tree.named_leaves(params):
    assert array.sharding.is_equivalent_to(placement.shardings(mesh, {leaf: array})[leaf], array.ndim)
  tokens_BT, doc_BT, real_BT, expected_BTV = (np.repeat(x, 8, axis=0)[:8] for x in hf_fixture.batch(name))
  tokens_BT, doc_BT = jax.device_put((tokens_BT, doc_BT), meshes.batch_sharding(mesh))
  logits_BTV = hf_fixture.score(model, params, tokens_BT, doc_BT)
  assert np.abs(np.asarray(logits_BTV) - expected_BTV)[real_BT].max() < hf_fixture.TOLERANCE


def test_reading_onto_a_mesh_makes_no_second_copy_in_host_memory(tmp_path):
  sizes = dict(vocab_size=2048, width=256, depth=6, ff_width=512)
  model = decoder.Decoder(**sizes, heads=4, kv_heads=2, head_dim=64)
  shapes = hf_import.abstract(model)
  draw = np.random.default_rng(3)
  params = jax.tree.map(lambda leaf: draw.standard_normal(leaf.shape, np.float32), shapes)
  hf_export.save(tmp_path, model, params, max_shard_gib=2e-3, max_tokens=64)
  assert len(list(tmp_path.glob("*.safetensors"))) > 3
  del params
  tracemalloc.start()
  read = hf_import.load(str(tmp_path), mesh=meshes.make(data=1, fsdp=4, tensor=2)).params
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  # On a CPU the devices' arrays are host memory too; on top come parts of one leaf, and small things.
  assert peak < 1.3 * tree.size_bytes(read)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_checkpoints_keep_their_dtype_or_are_read_wide(dtype, tmp_path):
  model, params = hf_fixture.load("qwen2_tiny")
  hf_export.save(tmp_path, model, params, like=hf_fixture.FOLDER / "qwen2_tiny", dtype=dtype)
  narrow, wide = (hf_import.load(str(tmp_path), param_dtype=kind).params for kind in (None, "float32"))
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(narrow)} == {dtype}
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(wide)} == {"float32"}
  assert_same_bits(tree.cast(wide, dtype), tree.cast(params, dtype))
  assert_same_bits(narrow, tree.cast(params, dtype))


def change_tensors(folder, change):
  """Rewrites the one file of tensors."""
  tensors = load_file(folder / "model.safetensors")
  change(tensors)
  save_file(tensors, folder / "model.safetensors")


def cut(tensors):
  tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"][:-1].copy()


BAD_TENSORS = {
  "missing": (lambda t: t.pop("model.layers.1.self_attn.q_norm.weight"),
              "has no tensor 'model.layers.1.self_attn.q_norm.weight'"),
  "left over": (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(128, np.float32)}),
                "model.layers.0.self_attn.q_proj.bias is a tensor that the model has no place for"),
  "shape": (cut, r"model.layers.1.mlp.up_proj.weight is of shape \(95, 64\).* needs \(96, 64\)"),
  "type": (lambda t: t.update({"model.norm.weight": np.ones(64, np.int32)}), "norm.weight is of type I32"),
}


@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_a_bad_tensor_is_named_with_its_file(kind, tmp_path):
  change, message = BAD_TENSORS[kind]
  folder = hf_fixture.copy(hf_fixture.FOLDER / "qwen3_tiny", tmp_path / "model")
  change_tensors(folder, change)
  with pytest.raises(ValueError, match=message) as error:
    hf_import.load(str(folder))
  assert str(folder) in str(error.value)


def test_a_bad_shard_is_named(tmp_path):
  shard = "model-00002-of-00003.safetensors"
  folder = hf_fixture.copy(hf_fixture.SHARDED, tmp_path / "model")
  (folder / shard).write_bytes((folder / shard).read_bytes()[:-100])
  with pytest.raises(ValueError, match=f"{shard}: is not a whole safetensors file"):
    hf_import.load(str(folder))
  shutil.copyfile(folder / "model-00001-of-00003.safetensors", folder / shard)
  with pytest.raises(ValueError, match=f"{shard} has no tensor 'model.layers.0.input_layernorm.weight'"):
    hf_import.load(str(folder))
  (folder / shard).unlink()
  with pytest.raises(ValueError, match=f"the shard .*{shard} is missing"):
    hf_import.load(str(folder))


@pytest.mark.parametrize("changes, message", [
  (dict(architectures=["MambaForCausalLM"]), "'MambaForCausalLM' is unknown; known are AtlasForCausalLM, L"),
  (dict(architectures=None, model_type="gpt2"), "'gpt2' is unknown"),
  (dict(rope_parameters={"rope_type": "longrope", "factor": 4}), "rope_type='longrope' is not supported"),
  (dict(rope_parameters={"rope_type": "llama3", "factor": 4}), "has no 'low_freq_factor'"),
  (dict(rope_scaling={"type": "linear", "factor": 4, "odd": 1}, rope_parameters=None), "has odd, which"),
  (dict(hidden_act="gelu"), "hidden_act='gelu' is not supported"),
  (dict(use_sliding_window=True), "use_sliding_window=True is not supported"),
  (dict(intermediate_size=None), "has no 'intermediate_size', which Qwen3ForCausalLM needs"),
])
def test_a_config_that_cannot_be_followed_is_refused(changes, message, tmp_path):
  folder = hf_fixture.copy(hf_fixture.FOLDER / "qwen3_tiny", tmp_path / "model", **changes)
  with pytest.raises(ValueError, match=message) as error:
    hf_import.load(str(folder))
  assert "config.json" in str(error.value)


def test_a_tokenizer_with_ids_the_model_lacks_is_refused(tmp_path):
  folder = hf_fixture.copy(hf_fixture.SHARDED, tmp_path / "model", vocab_size=200)
  with pytest.raises(ValueError, match="tokenizer.json has ids up to 262, but the model's vocab_size is 200"):
    hf_import.load(str(folder))


def test_a_folder_without_tensors_or_that_is_none_is_refused(tmp_path):
  with pytest.raises(ValueError, match="is no folder"):
    hf_import.load(str(tmp_path / "nothing"))
  with pytest.raises(ValueError, match="config.json is missing"):
    hf_import.load(str(tmp_path))
  shutil.copyfile(hf_fixture.SHARDED / "config.json", tmp_path / "config.json")
  (tmp_path / "pytorch_model.bin").write_bytes(b"")
  with pytest.raises(ValueError, match="pytorch_model.bin is a pickle, which is never read"):
    hf_import.load(str(tmp_path))


def test_a_stored_head_of_a_tied_model_must_equal_the_embedding(tmp_path):
  folder = hf_fixture.copy(hf_fixture.FOLDER / "qwen2_tiny", tmp_path / "model")
  add = lambda t, change: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + change})
  change_tensors(folder, lambda t: add(t, 0))
  assert_same_bits(hf_import.load(str(folder)).params, hf_fixture.load("qwen2_tiny")[1])
  change_tensors(folder, lambda t: add(t, 1))
  with pytest.raises(ValueError, match="lm_head.weight differs from model.embed_tokens.weight"):
    hf_import.load(str(folder))


def test_values_a_config_leaves_out_are_those_of_the_family(tmp_path):
  settings = json.loads((hf_fixture.FOLDER / "llama_tiny" / "config.json").read_text())
  for name in ("num_key_value_heads", "head_dim", "rope_parameters", "tie_word_embeddings", "architectures"):
    del settings[name]
  (tmp_path / "config.json").write_text(json.dumps(settings))
  _, fields = hf_config.read(tmp_path / "config.json")
  assert (fields["kv_heads"], fields["head_dim"], fields["rope_base"], fields["tied"]) == (4, 16, 1e4, False)
