"""Files of pretrained models that others made: their values are checked, and they name no file outside."""

import json
import shutil

import pytest

from atlas_jax.language.pretrained import hf_config, hf_import
from tests import hf_fixture

WRONG = [
  (dict(num_key_value_heads=3), "num_attention_heads=.* is not a multiple of num_key_value_heads=3"),
  (dict(head_dim=7), "head_dim=7 is odd"),
  (dict(vocab_size=-1), "vocab_size=-1 must be a whole number"),
  (dict(vocab_size=10**12), "vocab_size=1000000000000 must be"),
  (dict(hidden_size=64.0), "hidden_size=64.0 must"),
  (dict(num_hidden_layers=True), "num_hidden_layers=True must be"),
  (dict(rms_norm_eps="x"), "rms_norm_eps='x'"),
  (dict(tie_word_embeddings="no"), "tie_word_embeddings='no' must be true or false"),
  (dict(architectures="Llama"), "architectures='Llama' must be a list of names"),
  (dict(rope_theta=0.5), "rope_theta=0.5 must be a number above 1"),
  (dict(rope_scaling=[1]), "rope_scaling="),
  (dict(intermediate_size=[]), r"intermediate_size=\[\] must be"),
  (dict(model_type=3), "model_type=3 must be"),
  (dict(rope_scaling=dict(rope_type="linear", factor=-2)), "factor=-2 must be a positive number"),
  (dict(rope_scaling=dict(rope_type=[1])), "rope_type is"),
]


@pytest.mark.parametrize(("changes", "words"), WRONG)
def test_a_value_that_cannot_be_is_named_with_its_file(changes, words, tmp_path):
  settings = json.loads((hf_fixture.FOLDER / "llama_tiny" / "config.json").read_text())
  file = tmp_path / "config.json"
  file.write_text(json.dumps({**settings, "rope_parameters": None, **changes}))
  with pytest.raises(ValueError, match=words) as raised:
    hf_config.read(file)
  assert str(file) in str(raised.value)


@pytest.mark.parametrize("outside", ["../outside/x.safetensors", "/etc/x.safetensors", "a/../../x"])
def test_an_index_names_no_shard_outside_its_folder(outside, tmp_path):
  folder = hf_fixture.copy(hf_fixture.SHARDED, tmp_path / "model")
  (tmp_path / "outside").mkdir()
  shutil.copy(folder / "model-00001-of-00003.safetensors", tmp_path / "outside" / "x.safetensors")
  index = folder / "model.safetensors.index.json"
  content = json.loads(index.read_text())
  for name, file in content["weight_map"].items():
    if file == "model-00001-of-00003.safetensors":
      content["weight_map"][name] = outside
  index.write_text(json.dumps(content))
  with pytest.raises(ValueError, match="index.json: names the file"):
    hf_import.load(str(folder))


@pytest.mark.parametrize("token", [{"id": -1, "content": "x"}, {"id": 10**9, "content": "x"}, {"id": 1.0},
                                   [], "x"])  # fmt: skip
def test_an_added_token_that_is_none_is_refused(token, tmp_path):
  (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [token], "model": {"vocab": {}}}))
  with pytest.raises(ValueError, match="tokenizer.json: its added_tokens have"):
    hf_import.check_tokenizer(tmp_path, 100)
