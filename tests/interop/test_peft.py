"""Adapters in PEFT's format: names and shapes, there and back, onto a mesh, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from atlas_jax import tree
from atlas_jax.interop import hf_import, peft
from atlas_jax.models import lora
from atlas_jax.parallel import mesh as meshes
from atlas_jax.parallel import place
from tests import hf_fixture
from tests.helpers import assert_close, assert_same_bits, quick_compilation

OPTIONS = dict(rank=4, alpha=6, targets=("q", "k", "v", "out", "gate", "up", "down"), scaling="rank")


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


def adapted(**changes):
  """Gives a model with adapters, random ones, and the base's parameters."""
  model, base = hf_fixture.load("llama_tiny")
  model = model.copy(lora={**OPTIONS, **changes})
  draw = np.random.default_rng(8)
  shapes = lora.split(hf_import.abstract(model))[0]
  random = lambda leaf: jnp.asarray(draw.normal(0, 0.1, leaf.shape), jnp.float32)
  return model, jax.tree.map(random, shapes), base


@pytest.mark.parametrize("scaling", lora.SCALINGS)
def test_adapters_written_and_read_are_the_same_bit_for_bit(scaling, tmp_path):
  model, adapters, _ = adapted(scaling=scaling, targets=("v", "down"))
  peft.save(tmp_path, model, adapters, base="some/model")
  assert peft.options(tmp_path) == {**OPTIONS, "scaling": scaling, "targets": ("v", "down")}
  assert_same_bits(peft.load(tmp_path, model), adapters)


def test_files_have_the_names_and_shapes_of_peft(tmp_path):
  model, adapters, _ = adapted()
  peft.save(tmp_path, model, adapters, base="some/model")
  assert {file.name for file in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
  settings = json.loads((tmp_path / "adapter_config.json").read_text())
  expected = dict(peft_type="LORA", task_type="CAUSAL_LM", r=4, lora_alpha=6, bias="none", use_rslora=False,
                  base_model_name_or_path="some/model")
  assert {name: settings[name] for name in expected} == expected
  modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
  assert settings["target_modules"] == modules
  tensors = load_file(tmp_path / "adapter_model.safetensors")
  assert len(tensors) == 2 * 2 * len(modules)
  prefix = "base_model.model.model.layers.1."
  shapes = {"self_attn.q_proj.lora_A": (4, 64), "self_attn.q_proj.lora_B": (128, 4),
            "self_attn.k_proj.lora_B": (64, 4), "self_attn.o_proj.lora_A": (4, 128),
            "self_attn.o_proj.lora_B": (64, 4), "mlp.down_proj.lora_A": (4, 96)}
  assert {name: tensors[f"{prefix}{name}.weight"].shape for name in shapes} == shapes


def test_stored_adapters_merge_into_the_stored_matrices(tmp_path):
  model, adapters, base = adapted()
  peft.save(tmp_path, model, adapters, base="some/model")
  tensors = load_file(tmp_path / "adapter_model.safetensors")
  weights = load_file(hf_fixture.FOLDER / "llama_tiny" / "model.safetensors")
  merged = lora.merge(lora.join(adapters, base), model.lora)
  for module, kernel in (("self_attn.o_proj", merged["blocks"]["attention"]["out"]["kernel"]),
                         ("self_attn.q_proj", merged["blocks"]["attention"]["q"]["kernel"])):
    name = f"model.layers.1.{module}"
    down, up = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    expected = (weights[f"{name}.weight"] + 6 / 4 * up @ down).T
    assert_close(np.asarray(kernel[1]).reshape(expected.shape), expected)


def test_adapters_and_base_on_eight_devices_give_the_logits_of_one(tmp_path):
  model, adapters, base = adapted()
  peft.save(tmp_path, model, adapters, base="some/model")
  mesh = meshes.make(data=1, fsdp=4, tensor=2)
  spread = peft.load(tmp_path, model, mesh=mesh)
  assert_same_bits(spread, adapters)
  specs = {name: sharding.spec for name, sharding in tree.named_leaves(place.shardings(mesh, spread))}
  assert "tensor" in specs["blocks/attention/q/lora_b"]
  base_spread = jax.device_put(base, place.shardings(mesh, base))
  tokens_BT, doc_BT, real_BT, _ = (np.repeat(x, 4, axis=0)[:8] for x in hf_fixture.batch("llama_tiny"))
  one_BTV = hf_fixture.score(model, lora.join(adapters, base), tokens_BT, doc_BT)
  tokens_BT, doc_BT = jax.device_put((tokens_BT, doc_BT), meshes.batch_sharding(mesh))
  many_BTV = hf_fixture.score(model, lora.join(spread, base_spread), tokens_BT, doc_BT)
  assert_close(np.asarray(many_BTV)[real_BT], np.asarray(one_BTV)[real_BT])


@pytest.mark.parametrize("changes, message", [
  (dict(peft_type="IA3"), "peft_type='IA3' is not supported; only 'LORA' is"),
  (dict(use_dora=True), "use_dora=True is not supported"),
  (dict(bias="all"), "bias='all' is not supported"),
  (dict(rank_pattern={"q_proj": 2}), "rank_pattern={'q_proj': 2} is not supported"),
  (dict(target_modules=["q_proj", "lm_head"]), "target_modules has lm_head, which cannot have an adapter"),
  (dict(target_modules="all-linear"), "'all-linear' is a pattern; list the projections: down_proj"),
  (dict(r=None), "has no 'r'"), (dict(r=5), "has adapters {'rank': 5.*the model has {'rank': 4"),
])
def test_adapters_that_cannot_be_followed_are_refused(changes, message, tmp_path):
  model, adapters, _ = adapted(targets=("q",))
  peft.save(tmp_path, model, adapters, base="some/model")
  file = tmp_path / "adapter_config.json"
  file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
  with pytest.raises(ValueError, match=message) as error:
    peft.load(tmp_path, model)
  assert "adapter_config.json" in str(error.value)


def test_a_missing_adapter_is_named(tmp_path):
  model, adapters, _ = adapted(targets=("q",))
  peft.save(tmp_path, model, adapters, base="some/model")
  file = tmp_path / "adapter_model.safetensors"
  tensors = load_file(file)
  tensors.pop("base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight")
  save_file(tensors, file)
  with pytest.raises(ValueError, match="has no tensor 'base_model.*layers.1.self_attn.q_proj.lora_B"):
    peft.load(tmp_path, model)
  file.unlink()
  with pytest.raises(ValueError, match="has neither adapter_model.safetensors nor"):
    peft.load(tmp_path, model)
