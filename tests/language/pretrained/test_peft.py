"""Adapters in PEFT's format: names and shapes, there and back, onto a mesh, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from atlas_jax import tree
from atlas_jax.language.pretrained import hf_import, peft
from atlas_jax.models import lora, placement
from atlas_jax.parallel import mesh as meshes
from tests import hf_fixture
from tests.helpers import assert_close, assert_same_bits, quick_compilation

OPTIONS = dict(rank=4, alpha=6, targets=("q", "k", "v", "out", "gate", "up", "down"), scaling="rank")


@pytest.fixture(autouse=True, scope="module")
def _compile_quickly():
  with quick_compilation():
    yield


def adapted(**changes):
  """Returns a model with adapters, random ones, and the base's parameters."""
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
  specs = {name: sharding.spec for name, sharding in tree.named_leaves(placement.shardings(mesh, spread))}
  assert "tensor" in specs["blocks/attention/q/lora_b"]
  base_spread = jax.device_put(base, placement.shardings(mesh, base))
  tokens_BT, doc_BT, real_BT, _ = (np.repeat(x, 4, axis=0)[:8] for x in hf_fixture.batch("llama_tiny"))
  one_BTV = hf_fixture.score(model, lora.join(adapters, base), tokens_BT, doc_BT)
  tokens_BT, doc_BT = jax.device_put((tokens_BT, doc_BT), meshes.batch_sharding(mesh))
  many_BTV = hf_fixture.score(model, lora.join(spread, base_spread), tokens_BT, doc_BT)
  assert_close(np.asarray(many_BTV)[real_BT], np.asarray(one_BTV)[real_BT])


@pytest.mark.parametrize("changes, message", [
  (dict(peft_type="IA3"), "peft_type='IA3' is not supported; it must be 'LORA'"),
  (dict(use_dora=True), "use_dora=True is not supported"),
  (dict(bias="all"), "bias='all' is not supported"),
  (dict(rank_pattern={"q_proj": 2}), "rank_pattern={'q_proj': 2} is not supported; it must be empty"),
  (dict(init_lora_weights="pissa"), "init_lora_weights='pissa' is not supported.*save_pretrained"),
  (dict(init_lora_weights="olora"), "init_lora_weights='olora' is not supported.*change the model"),
  (dict(lora_depth=2), "lora_depth=2 is not supported; it must be null, false, or empty"),
  (dict(target_modules=["q_proj", "lm_head"]), "target_modules has lm_head, which cannot have an adapter"),
  (dict(target_modules=["model.layers.0.self_attn.q_proj"]), "target_modules has model.layers.0"),
  (dict(target_modules="all-linear"), "'all-linear' is not supported; it must be a list of projections"),
  (dict(lora_alpha=10**400), "has a number of more than 40 digits"),
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


def test_a_folder_without_a_config_of_adapters_says_what_it_has(tmp_path):
  with pytest.raises(ValueError, match="adapter_config.json is missing; a folder of adapters has"):
    peft.describe(tmp_path)


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


# --- any config ---

# What PEFT writes where nothing is asked for: in version 0.4, in 0.11 and in 0.18.
OLD = dict(auto_mapping=None, base_model_name_or_path="some/model", bias="none", fan_in_fan_out=False,
           inference_mode=True, init_lora_weights=True, layers_pattern=None, layers_to_transform=None,
           lora_alpha=6, lora_dropout=0.0, modules_to_save=None, peft_type="LORA", r=4, revision=None,
           target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
MIDDLE = {**OLD, **dict(alpha_pattern={}, rank_pattern={}, loftq_config={}, megatron_config=None,
                        megatron_core="megatron.core", use_dora=False, use_rslora=False,
                        layer_replication=None)}
NEW = {**MIDDLE, **dict(
  alora_invocation_tokens=None, arrow_config=None, corda_config=None, ensure_weight_tying=False,
  eva_config=None, exclude_modules=None, kasa_config=None, lora_bias=False, lora_ga_config=None,
  monteclora_config=None, peft_version="0.18.2", qalora_group_size=16, target_parameters=None,
  trainable_token_indices=None, use_bdlora=None, use_qalora=False, velora_config=None)}
# What changes nothing, or only what is read.
HARMLESS = dict(
  init_lora_weights=[True, False, "gaussian", "orthogonal", "eva"], lora_dropout=[0, 0.05, 0.5],
  inference_mode=[True, False], task_type=[None, "CAUSAL_LM"], revision=["main", "a1b2"], r=[1, 8, 64],
  lora_alpha=[1, 32, 0.5], use_rslora=[True, False, None], base_model_name_or_path=["/a/folder", None],
  auto_mapping=[{"base_model_class": "Qwen2ForCausalLM", "parent_library": "transformers"}],
  eva_config=[{"rho": 2.0}], peft_version=["9.9"], layers_to_transform=[[], None], modules_to_save=[[]],
  target_modules=[["q_proj"], ["self_attn.o_proj", "mlp.up_proj"]], exclude_modules=[[]],
  unknown=[None, False, [], {}, ""], rank_pattern=[None, {}], trainable_token_indices=[{}])
HARMFUL = dict(
  init_lora_weights=["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "PiSSA", "new"],
  use_dora=[True, 1, "yes"], bias=["all", "lora_only"], fan_in_fan_out=[True], modules_to_save=[["lm_head"]],
  layers_to_transform=[[0], 1], rank_pattern=[{"q_proj": 99}], alpha_pattern=[{".*": 99}],
  layer_replication=[[[0, 2], [1, 2]]], lora_bias=[True], target_parameters=[["mlp.experts"]],
  alora_invocation_tokens=[[1, 2]], use_qalora=[True], trainable_token_indices=[[5]],
  kasa_config=[{"beta": 1}], unknown=[True, 1, "a"], r=[0, -1, True, 2.5, "8"],
  exclude_modules=[["q_proj"], "q_proj"], task_type=["SEQ_CLS", "FEATURE_EXTRACTION"], peft_type=["ADALORA"],
  megatron_config=[{"a": 1}], use_bdlora=[{"nblocks": 2}], arrow_config=[{"top_k": 2}],
  velora_config=[{"a": 1}], target_modules=["all-linear", ".*q_proj", ["embed_tokens"], [], [["q_proj"], 3]],
  lora_alpha=[0, -1, "16", True], use_rslora=["true", 1], loftq_config=[{"loftq_bits": 4}],
  ensure_weight_tying=[True], monteclora_config=[{"a": 1}], corda_config=[{"a": 1}],
  auto_mapping=[{"base_model_class": "Qwen2Model"}, "x"], lora_dropout=[2, "0.1"])


def options_of(folder, settings):
  (folder / "adapter_config.json").write_text(json.dumps(settings))
  return peft.options(folder)


@pytest.mark.parametrize("settings", [OLD, MIDDLE, NEW])
def test_what_versions_of_peft_write_for_plain_adapters_is_read(settings, tmp_path):
  assert options_of(tmp_path, settings) == {**OPTIONS, "targets": ("q", "v")}


def test_generated_configs_are_read_if_and_only_if_all_their_settings_are_harmless(tmp_path):
  """A setting that asks for something else is refused by its name and value, among whatever others."""
  draw = np.random.default_rng(5)
  pick = lambda table, name: table[name][draw.integers(len(table[name]))]
  harmful = [(name, value) for name, values in HARMFUL.items() for value in values]
  for trial in range(300):
    settings = dict([OLD, MIDDLE, NEW][trial % 3])
    for name in draw.choice(list(HARMLESS), size=draw.integers(0, 6), replace=False):
      settings[str(name)] = pick(HARMLESS, name)
    if trial % 4 == 0:
      chosen = options_of(tmp_path, settings)
      assert (chosen["rank"], chosen["alpha"]) == (settings["r"], settings["lora_alpha"])
      assert chosen["scaling"] == ("sqrt_rank" if settings.get("use_rslora") else "rank")
      continue
    name, value = harmful[trial % len(harmful)]
    with pytest.raises(ValueError, match="adapter_config.json") as error:
      options_of(tmp_path, {**settings, name: value})
    assert name in str(error.value) and (isinstance(value, list) or f"{name}={value!r}" in str(error.value))


def test_patterns_that_say_what_holds_for_all_are_read(tmp_path):
  same = {**NEW, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"model.layers.0.self_attn.v_proj": 6}}
  assert options_of(tmp_path, same)["rank"] == 4


def test_a_description_names_base_and_dropout(tmp_path):
  (tmp_path / "adapter_config.json").write_text(json.dumps({**NEW, "lora_dropout": 0.1, "revision": "main"}))
  found = peft.describe(tmp_path)
  assert found[1:] == ("some/model", "main", 0.1, False)


def test_tensors_that_plain_adapters_do_not_have_are_refused(tmp_path):
  model, adapters, _ = adapted(targets=("q",))
  peft.save(tmp_path, model, adapters, base="some/model")
  file = tmp_path / "adapter_model.safetensors"
  extra = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"
  save_file({**load_file(file), extra: np.ones(4, np.float32)}, file)
  with pytest.raises(ValueError, match="lora_magnitude_vector"):
    peft.load(tmp_path, model)
