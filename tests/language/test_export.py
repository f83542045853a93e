"""Runs as pretrained models: the same logits, bit for bit where nothing was trained, tokenizer and all."""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from atlas_jax import config as configs
from atlas_jax import modes
from atlas_jax.checkpoint import Checkpoints
from atlas_jax.data import chats
from atlas_jax.language import assets
from atlas_jax.language import runs as language_runs
from atlas_jax.language.initial_model import load_initial_model
from atlas_jax.language.pretrained import hf_import, peft
from atlas_jax.models import head, lora
from tests import hf_fixture, program, runs, tuning
from tests.helpers import assert_same_bits
from tests.program import refused

TOLERANCE = 1e-4  # What the published programs are compared by.


def leave_run(workdir, config, params=None):
  """Leaves what a run of one checkpoint leaves, with these parameters or those it starts from; gives them."""
  start = load_initial_model(config)
  if params is None:
    params, _ = start.read(runs.one_device(), True)
  if params is None:
    params, _ = start.init(jax.random.key(3))
    params = jax.tree.map(lambda x: x + jnp.linspace(0, 0.01, x.size).reshape(x.shape), params)
  configs.save(config, workdir)
  assets.save(config, start, workdir)
  saver = Checkpoints(workdir, **config.checkpoint)
  fields = {"params": params} if config.optim.ema_decay is None else {
      "params": jax.tree.map(jnp.zeros_like, params), "ema": params}
  saver.save(2, fields, {"step": 2})
  saver.close()
  return params


def exported(workdir, *flags):
  """Runs the program's export; gives the folder and what was printed."""
  folder = pathlib.Path(workdir).parent / "out"
  done = program.run("--mode=export", f"--workdir={workdir}", f"--to={folder}", *flags)
  assert done.code == 0, done.err
  return folder, json.loads(done.out)


def logits(model, params, ids_BT):
  return np.asarray(head.logits(params, model.apply({"params": params}, jnp.asarray(ids_BT)).hidden_BTD))


def test_what_was_not_trained_comes_back_bit_for_bit(tmp_path):
  config = tuning.config_of(**tuning.published("qwen2_tiny_sharded"))
  leave_run(tmp_path / "run", config)
  folder, said = exported(tmp_path / "run")
  for file in sorted(hf_fixture.SHARDED.glob("*.safetensors*")):
    assert (folder / file.name).read_bytes() == file.read_bytes(), file.name
  assert (folder / "config.json").read_bytes() == (hf_fixture.SHARDED / "config.json").read_bytes()
  assert said == {"folder": str(folder), "step": 2, "weights": "params", "params": said["params"],
                  "architecture": "Qwen2ForCausalLM", "like": str(hf_fixture.SHARDED)}
  assert not list(tmp_path.glob("*.part"))


def test_the_average_is_exported_where_a_run_keeps_one(tmp_path):
  params = leave_run(tmp_path / "run", tuning.config_of(**tuning.published(optim__ema_decay=0.9)))
  folder, said = exported(tmp_path / "run")
  assert said["weights"] == "ema"
  assert_same_bits(hf_import.load(str(folder), param_dtype="float32").params, params)


def test_a_model_that_was_drawn_is_read_back_with_its_tokenizer(tmp_path):
  config = tuning.config_of()
  params = leave_run(tmp_path / "run", config)
  folder, said = exported(tmp_path / "run")
  assert said["like"] is None
  model, again, _ = hf_import.load(str(folder))
  assert_same_bits(again, params)
  ids_BT = np.arange(12)[None] * 17 % 257
  np.testing.assert_array_equal(logits(model, again, ids_BT),
                                logits(load_initial_model(config).language.module, params, ids_BT))
  settings = json.loads((folder / "config.json").read_text())
  assert settings["eos_token_id"] == 256 and settings["max_position_embeddings"] >= config.data.segment_len
  assert {"tokenizer.json", "tokenizer_config.json"} <= {file.name for file in folder.iterdir()}


def test_what_was_exported_writes_text_as_it_is_and_is_no_run(tmp_path):
  pytest.importorskip("tokenizers")
  params = leave_run(tmp_path / "run", tuning.config_of())
  folder, _ = exported(tmp_path / "run")
  config = modes.config_of_run(str(folder), {"serve.slots": "2"}, mode="serve")
  assert (config.data.chat_template, config.serve.slots) == (None, 2)
  opened = language_runs.open_tuned(config, folder, runs.one_device())
  assert_same_bits(opened.params, params)
  assert opened.step == 0 and not language_runs.is_pretrained(tmp_path / "run")
  with pytest.raises(ValueError, match="holds a pretrained model and no run: .* --mode=serve, chat"):
    modes.config_of_run(str(folder), {}, mode="eval")
  (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
  assert chats.has_template(folder)


def test_a_run_may_start_from_what_was_exported(tmp_path):
  pytest.importorskip("tokenizers")
  params = leave_run(tmp_path / "run", tuning.config_of())
  folder, _ = exported(tmp_path / "run")
  config = tuning.config_of(model__path=str(folder), data__tokenizer="model")
  start = load_initial_model(config)
  assert start.tokenizer.encode("é1").tolist() == list("é1".encode()) and start.tokenizer.doc_id == 256
  assert_same_bits(start.read(runs.one_device(), True)[0], params)


def test_adapters_are_merged_or_saved_alone(tmp_path):
  config = tuning.config_of(**tuning.published(lora__rank=2, lora__targets="q,down"))
  start = load_initial_model(config)
  adapters, _ = start.init(jax.random.key(0))
  adapters = jax.tree.map(lambda x: x + 0.05, adapters)
  leave_run(tmp_path / "run", config, adapters)
  folder, _ = exported(tmp_path / "run")
  base = hf_import.load(config.model.path, param_dtype="float32").params
  model, merged, _ = hf_import.load(str(folder), param_dtype="float32")
  ids_BT = np.arange(20)[None] * 11 % 300
  expected = logits(start.language.module, lora.join(adapters, base), ids_BT)
  np.testing.assert_allclose(logits(model, merged, ids_BT), expected, atol=TOLERANCE)
  untouched = load_file(hf_fixture.FOLDER / "qwen2_tiny" / "model.safetensors")
  for name, tensor in load_file(folder / "model.safetensors").items():
    same = tensor.tobytes() == untouched[name].tobytes()
    assert same != ("q_proj.weight" in name or "down_proj" in name), name
  shutil.rmtree(folder)
  folder, said = exported(tmp_path / "run", "--adapters")
  said_of = json.loads((folder / "adapter_config.json").read_text())
  assert said_of["base_model_name_or_path"] == config.model.path
  assert not (folder / "model.safetensors").exists() and said["like"] is None
  assert_same_bits(peft.load(folder, start.language.module), adapters)


def test_the_original_folder_may_be_gone(tmp_path):
  shutil.copytree(hf_fixture.FOLDER / "qwen3_tiny", tmp_path / "model")
  config = tuning.config_of(model__path=str(tmp_path / "model"))
  params = leave_run(tmp_path / "run", config)
  shutil.rmtree(tmp_path / "model")
  folder, said = exported(tmp_path / "run")
  assert said["like"] is None
  assert_same_bits(hf_import.load(str(folder), param_dtype="float32").params, params)
  original = json.loads((hf_fixture.FOLDER / "qwen3_tiny" / "config.json").read_text())
  assert json.loads((folder / "config.json").read_text()) == original


def test_a_narrow_copy_is_written_on_request(tmp_path):
  leave_run(tmp_path / "run", tuning.config_of(**tuning.published()))
  folder, _ = exported(tmp_path / "run", "--dtype=bfloat16")
  _, params, _ = hf_import.load(str(folder))
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"bfloat16"}


def test_the_chat_template_travels(tmp_path):
  pytest.importorskip("jinja2")
  template = hf_fixture.FOLDER / "byte_tokenizer"
  config = tuning.config_of(**tuning.published(data__chat_template=str(template)))
  leave_run(tmp_path / "run", config)
  folder, _ = exported(tmp_path / "run")
  assert (folder / "chat_template.jinja").read_text() == (template / "chat_template.jinja").read_text()


REFUSED = [
    ({}, ["--to=FULL"], "FULL holds note.txt; name a folder that does not exist yet, or is empty"),
    ({}, ["--to=FILE"], "FILE is a file; name a folder that does not exist yet"),
    ({}, [], "--to is missing: the folder to write the model to"),
    ({}, ["--to=out", "--dtype=float64"], "--dtype=float64: value should be one of <float32|bfloat"),
    ({}, ["--to=out", "--adapters"], "this run trained the whole model .config.lora.rank=None.; leave"),
    ({}, ["--to=out", "--config.optim.lr=3"], "belongs to the run in"),
    ({}, ["--to=out", "--tokens=3"], "--tokens is for --mode=generate, this is --mode=export"),
    ({"kind": "memory"}, ["--to=out"], "config.model.kind='memory': a memory model has no Hugging Face form"),
]


@pytest.mark.parametrize(("fields", "flags", "words"), REFUSED)
def test_what_cannot_be_exported_is_one_line(fields, flags, words, tmp_path):
  leave_run(tmp_path / "run", tuning.config_of(**fields))
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "note.txt").write_text("kept")
  (tmp_path / "file").write_text("kept")
  named = [flag.replace("FULL", str(tmp_path / "full")).replace("FILE", str(tmp_path / "file"))
           .replace("=out", f"={tmp_path / 'out'}") for flag in flags]
  line = refused(program.run("--mode=export", f"--workdir={tmp_path / 'run'}", *named))
  pattern = words.replace("FULL", str(tmp_path / "full")).replace("FILE", str(tmp_path / "file"))
  assert re.search(pattern.replace("|", "[|]"), line), line
  assert not (tmp_path / "out").exists() and (tmp_path / "full" / "note.txt").read_text() == "kept"


def test_a_run_without_a_language_model_is_named(tmp_path):
  configs.save(runs.puzzle_config(tmp_path / "boards"), tmp_path / "run")
  for mode, more in (("export", [f"--to={tmp_path / 'out'}"]), ("generate", [])):
    line = refused(program.run(f"--mode={mode}", f"--workdir={tmp_path / 'run'}", *more))
    assert f"--mode={mode} uses a language model" in line and "holds a run of config.recipe='trm'" in line


# Prints the logits that transformers computes, and the ids of a text; in a process of its own, because torch
# and JAX share threads badly.
READER = """
import json, sys
import torch, transformers
folder, ids = sys.argv[1], json.loads(sys.argv[2])
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
with torch.no_grad():
  logits = model(torch.tensor([ids])).logits[0]
print(json.dumps({"logits": logits.tolist(), "ids": tokenizer(sys.argv[3])["input_ids"]}))
"""


@pytest.mark.parametrize("start", ["drawn", "published"])
def test_transformers_gives_the_same_logits(start, tmp_path):
  """The extras hf and parity; ATLAS_PARITY_PYTHON names an interpreter that has them, if not this one."""
  python = os.environ.get("ATLAS_PARITY_PYTHON", sys.executable)
  has = subprocess.run([python, "-c", "import torch, transformers"], capture_output=True)
  if has.returncode:
    pytest.skip("needs torch and transformers: pip install 'atlas_jax[hf,parity]'")
  fields = tuning.published("qwen2_tiny_sharded") if start == "published" else {}
  config = tuning.config_of(**fields)
  params = leave_run(tmp_path / "run", config)
  folder, _ = exported(tmp_path / "run")
  ids_T = (np.arange(24) * 37 % 256).tolist()
  done = subprocess.run([python, "-c", READER, str(folder), json.dumps(ids_T), "1+2=é"], capture_output=True,
                        text=True)
  assert done.returncode == 0, done.stderr
  read = json.loads(done.stdout.splitlines()[-1])
  expected = logits(load_initial_model(config).language.module, params, [ids_T])[0]
  np.testing.assert_allclose(np.array(read["logits"]), expected, atol=TOLERANCE)
  assert read["ids"] == list("1+2=é".encode())


def test_another_tokenizer_than_the_models_takes_its_place(tmp_path):
  leave_run(tmp_path / "run", tuning.config_of(**tuning.published("qwen2_tiny_sharded")))
  folder, _ = exported(tmp_path / "run")
  added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
  assert [token["content"] for token in added] == ["<|document|>"]
  assert json.loads((folder / "tokenizer_config.json").read_text())["eos_token"] == "<|document|>"
  assert not (folder / "chat_template.jinja").exists()
