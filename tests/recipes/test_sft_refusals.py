"""What is wrong with model, tokenizer or data is one line that names it, before anything compiles."""
import json
import re
import shutil

import pytest
from safetensors.numpy import load_file, save_file

from tests import hf_fixture, program, tuning
from tests.program import refused

CHAT = hf_fixture.FOLDER / "byte_tokenizer"
MODEL = hf_fixture.FOLDER / "qwen2_tiny"


def line_of(workdir, **changes) -> str:
  """The one line that a run is refused with; no update was made in its workdir."""
  line = refused(program.run(*tuning.flags_of(**changes), f"--workdir={workdir}"))
  assert not list(workdir.glob("metrics.jsonl")) and not list(workdir.glob("checkpoints/*"))
  return line


def line_of_file(workdir, file, **changes) -> str:
  """The same of a run that reads a file; options of a task cannot be taken back by flags."""
  mine = workdir.parent / "mine.py"
  mine.write_text("""from configs import sft

def get_config(arg=None):
  config = sft.get_config("smoke")
  config.data.options = {}
  return config
""")
  flags = tuning.flags_of(**{"data__name": "files", "data__files": file, "data__max_problems": None,
                             "eval__max_problems": None, **changes})[1:]
  return refused(program.run(f"--config={mine}", *flags, f"--workdir={workdir}"))


def edited(folder, name, change):
  """Copies a model with one tensor changed, or left out where `change` gives None."""
  shutil.copytree(MODEL, folder)
  tensors = load_file(folder / "model.safetensors")
  changed = change(tensors.pop(name))
  save_file(tensors if changed is None else {**tensors, name: changed}, folder / "model.safetensors",
            metadata={"format": "pt"})
  return str(folder)


def test_a_missing_shard_is_named(tmp_path):
  shutil.copytree(hf_fixture.SHARDED, tmp_path / "model")
  shard = tmp_path / "model" / "model-00002-of-00003.safetensors"
  shard.unlink()
  assert f"the shard {shard} is missing" in line_of(tmp_path / "run", model__path=str(tmp_path / "model"))


def test_a_tensor_of_another_shape_is_named(tmp_path):
  name = "model.layers.1.mlp.up_proj.weight"
  folder = edited(tmp_path / "model", name, lambda tensor: tensor[:, :-1].copy())
  line = line_of(tmp_path / "run", model__path=folder)
  assert name in line and "(64, 127)" in line and "(64, 128)" in line, line


def test_a_missing_tensor_is_named(tmp_path):
  name = "model.norm.weight"
  assert name in line_of(tmp_path / "run", model__path=edited(tmp_path / "model", name, lambda tensor: None))


def test_a_cut_file_is_named(tmp_path):
  shutil.copytree(MODEL, tmp_path / "model")
  file = tmp_path / "model" / "model.safetensors"
  file.write_bytes(file.read_bytes()[:-9])
  assert f"{file}: is not a whole safetensors file" in line_of(tmp_path / "run",
                                                             model__path=str(tmp_path / "model"))


def test_a_tokenizer_with_more_ids_than_the_model_is_named(tmp_path):
  shutil.copytree(MODEL, tmp_path / "model")
  settings = json.loads((tmp_path / "model" / "config.json").read_text())
  (tmp_path / "model" / "config.json").write_text(json.dumps({**settings, "vocab_size": 200}))
  line = line_of(tmp_path / "run", model__path=str(tmp_path / "model"))
  assert "config.data.tokenizer='byte' has 257 ids, the model only 200" in line


def test_a_template_with_ids_that_the_model_lacks_is_named(tmp_path):
  pytest.importorskip("jinja2")
  file = tuning.write_rows(tmp_path / "rows.jsonl", tuning.TALKS)
  line = line_of_file(tmp_path / "run", file, data__chat_template=str(CHAT))
  assert f"{file}:1: has the id 260, the model only 257" in line and f"'{CHAT}' must be those of" in line


ROWS = [  # Rows of a file; what is said of it; further fields.
    ([{"question": "1+1=", "completion": "2"}, {"text": "no prompt"}],
     ":2: has no prompt: one of 'messages', 'prompt'", {}),
    ([{"prompt": "1+1=", "completion": "2"}, {"prompt": "3", "answer": "3"}],
     ":2: has no solution to learn: give 'messages' that end with the assistant's, or a field", {}),
    ([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}],
     ":1: its prompt is a chat, which needs a chat template; set config.data.chat_template", {}),
    ([{"prompt": "p" * 80, "completion": "c"}],
     "1 of 1 examples are longer than config.data.segment_len=64, the longest 82", {}),
    ([{"messages": [{"role": "robot", "content": "a"}]}],
     ":1: messages.0. has role 'robot'; it must be one of system", {}),
    (["no object"], ":1: is str, not an object with fields", {}),
    ([{"prompt": "1", "completion": "2"}], "1 prompt of .* cannot be split", {"data__held_out_frac": 0.05}),
]


@pytest.mark.parametrize(("rows", "words", "fields"), ROWS)
def test_a_row_that_cannot_be_used_is_named(rows, words, fields, tmp_path):
  file = tuning.write_rows(tmp_path / "rows.jsonl", rows)
  line = line_of_file(tmp_path / "run", file, **{"data__held_out_frac": 0.0, **fields})
  assert re.search(words, line) and ("rows.jsonl" in line or "examples" in line), line


FIELDS = [
    ({"model__path": "nowhere"}, "config.model.path='nowhere' is no folder; give that of a pretrained model"),
    ({"data__name": "files", "data__files": "x.jsonl"},
     "are of a task .arithmetic, convention, countdown.; 'files' has"),
    ({"data__max_problems": None}, "config.data.name='arithmetic' has no end; set config.data.max_problems"),
    ({"eval__max_problems": None}, "config.data.name='arithmetic' has no end; set config.eval.max_problems"),
    ({"data__chat_template": "model"}, "config.data.chat_template='model' is that of a pretrained model"),
    ({"data__tokenizer": "model"}, "config.data.tokenizer='model' is that of config.model.path, which is"),
    ({"sampler__kind": "vllm"}, "sft answers held-out problems with the native sampler alone"),
    ({"sft__loss": "mse"}, "config.sft.loss='mse' is unknown"),
    ({"kind": "memory", "lora__rank": 4}, "config.lora.rank=4 puts adapters into a decoder, and this is"),
    ({"lora__rank": 4, "lora__targets": "q,w"}, "config.lora.targets=.* must be some of q, k, v, out"),
    ({"kind": "memory", "data__segment_len": 60}, "config.data.segment_len=60 is not a multiple of"),
    ({"decoder__learned_positions": 32}, "segment_len=64 is longer than the model's 32 learned positions"),
    ({"optim__steps": None}, "config.optim.steps=None takes the run's length from"),
    ({"model__kind": "memory", "model__path": str(MODEL)}, "pretrained model, .*model.kind=.memory."),
]


@pytest.mark.parametrize(("fields", "words"), FIELDS)
def test_a_field_that_cannot_be_is_named(fields, words, tmp_path):
  line = line_of(tmp_path / "run", **fields)
  assert re.search(words, line), line


def test_files_that_are_not_there_are_named(tmp_path):
  assert "'nowhere.jsonl' names no file" in line_of_file(tmp_path / "run", "nowhere.jsonl")
  assert "config.data.files=None: 'files' needs them" in line_of_file(tmp_path / "run", None)
