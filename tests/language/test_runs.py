"""Writing with language runs: a decoder token by token equals the whole pass; chats; what is missing."""
import functools
import json
import shutil

import jax
import numpy as np
import pytest

from atlas_jax.data.tokenizer import ByteTokenizer
from atlas_jax.language.decoding import engine as engines
from atlas_jax.language.decoding import streams
from atlas_jax.language.initial_model import load_initial_model
from atlas_jax.models import head, placement
from atlas_jax.parallel import mesh as meshes
from tests import hf_fixture, program, tuning
from tests.helpers import assert_close
from tests.language import languages
from tests.language.test_export import leave_run
from tests.program import refused

ROOM = 48


@functools.lru_cache
def setup():
  """Language, parameters and engine of a decoder; prompts are padded to multiples of 7."""
  language, params = languages.tiny("decoder")
  return language, params, engines.make(language, piece_tokens=7, room_tokens=ROOM)


def whole_pass(tokens_T):
  """Logits after each token of a text, read at once."""
  language, params, _ = setup()
  hidden_BTD, _ = language.read(params, np.asarray(tokens_T)[None], np.zeros((1, len(tokens_T)), np.int32))
  return np.asarray(head.logits(params, hidden_BTD)[0])


def random_tokens(*shape):
  return np.random.default_rng(0).integers(0, 257, shape).astype(np.int32)


def write(prompt="", **options):
  language, params, _ = setup()
  return "".join(streams.generate(language, params, ByteTokenizer(), prompt, **{"tokens": 6, **options}))


def test_a_decoder_read_one_by_one_equals_the_whole_pass():
  _, params, engine = setup()
  tokens_T = random_tokens(20)
  state, first_BV = engine.prefill(params, engine.init(), tokens_T[None, :10])
  decoded = [np.asarray(first_BV)[0]]
  for token in tokens_T[10:]:
    state, logits_BV = engine.decode(params, state, np.array([token]))
    decoded.append(np.asarray(logits_BV)[0])
  assert_close(np.stack(decoded), whole_pass(tokens_T)[9:], tolerance=2e-5)


def test_prompts_of_a_decoder_may_differ_in_length():
  _, params, engine = setup()
  tokens_BT, count_B = random_tokens(2, 20), np.array([17, 5])
  _, logits_BV = engine.prefill(params, engine.init(2), tokens_BT, count_B)
  expected = [whole_pass(row)[count - 1] for row, count in zip(tokens_BT, count_B)]
  assert_close(np.asarray(logits_BV), np.stack(expected), tolerance=2e-5)


def test_a_cold_decoder_takes_the_likeliest_tokens():
  tokens = [256, *b"de"]
  for _ in range(6):
    tokens.append(int(whole_pass(tokens)[-1].argmax()))
  ends = [at for at, token in enumerate(tokens[3:]) if token == 256]
  assert write("de", temperature=0) == ByteTokenizer().decode(tokens[3:][:min(ends, default=6)])


def test_ids_beyond_the_tokenizer_stand_for_no_text():
  assert "".join(streams._texts([97, 300, 98, 256, 99], ByteTokenizer(), {256})) == "ab"


def test_a_mesh_writes_the_same_text():
  language, params, _ = setup()
  mesh = meshes.make(data=2, fsdp=2, tensor=2)
  split = jax.device_put(params, placement.shardings(mesh, params))
  text = "".join(streams.generate(language, split, ByteTokenizer(), "de", tokens=6, temperature=0, mesh=mesh))
  assert text == write("de", temperature=0)


def test_text_ends_at_any_of_the_ids_that_end_it():
  first = int(whole_pass([256, *b"de"])[-1].argmax())
  assert write("de", temperature=0, end_tokens=[first]) == ""


def test_learned_positions_bound_a_text():
  language, params = languages.tiny("decoder", learned_positions=12)
  with pytest.raises(ValueError, match="3 tokens and tokens=10 are more than the model's 12 learned"):
    streams.generate(language, params, ByteTokenizer(), "de", tokens=10)


def generated(workdir, *flags) -> str:
  """What the program writes in mode generate."""
  done = program.run("--mode=generate", f"--workdir={workdir}", "--tokens=8", "--temperature=0", *flags)
  assert done.code == 0 and done.err == "", done.err
  return done.out


@pytest.mark.parametrize("kind", ["decoder", "memory"])
def test_a_tuned_run_writes_on_from_its_prompt(kind, tmp_path):
  leave_run(tmp_path / "run", tuning.config_of(kind))
  text = generated(tmp_path / "run", "--prompt=1+2=")
  assert text.startswith("1+2=") and len(text) > 5


def test_a_tuned_run_needs_neither_data_nor_the_model_it_started_from(tmp_path):
  pytest.importorskip("jinja2")
  shutil.copytree(hf_fixture.FOLDER / "qwen2_tiny_sharded", tmp_path / "model")
  config = tuning.config_of(model__path=str(tmp_path / "model"), data__chat_template="model",
                            data__files="nowhere.jsonl", data__name="files")
  leave_run(tmp_path / "run", config)
  before = generated(tmp_path / "run", "--prompt=hi")
  shutil.rmtree(tmp_path / "model")
  assert generated(tmp_path / "run", "--prompt=hi") == before


@pytest.mark.parametrize("kind", ["decoder", "memory"])
def test_a_run_that_started_from_a_run_needs_it_no_more(kind, tmp_path):
  wide = {"model__width": 48} if kind == "memory" else {"decoder__width": 48}
  leave_run(tmp_path / "first", tuning.config_of(kind, **wide))
  for earlier, later in (("first", "second"), ("second", "third")):
    config = tuning.config_of(kind, model__path=str(tmp_path / earlier), data__tokenizer="model")
    leave_run(tmp_path / later, config)
  before = generated(tmp_path / "third", "--prompt=1+2=")
  assert before == generated(tmp_path / "first", "--prompt=1+2=")
  shutil.rmtree(tmp_path / "first")
  shutil.rmtree(tmp_path / "second")
  assert generated(tmp_path / "third", "--prompt=1+2=") == before


def test_a_chat_is_answered_as_its_template_asks(tmp_path):
  pytest.importorskip("jinja2")
  config = tuning.config_of(**tuning.published(data__chat_template=str(hf_fixture.FOLDER / "byte_tokenizer")))
  params, start = leave_run(tmp_path / "run", config), load_initial_model(config)
  prompt = start.template.prompt([{"role": "user", "content": "hi"}], start.tokenizer)
  expected = "".join(streams.generate(start.language, params, start.tokenizer, prompt.tolist(), tokens=8,
                                      temperature=0, end_tokens=start.end_tokens))
  assert generated(tmp_path / "run", "--prompt=hi") == f"hi\n{expected}\n"


def test_adapters_write_too_and_miss_their_model(tmp_path):
  shutil.copytree(hf_fixture.FOLDER / "qwen2_tiny", tmp_path / "model")
  config = tuning.config_of(model__path=str(tmp_path / "model"), lora__rank=2)
  start = load_initial_model(config)
  leave_run(tmp_path / "run", config, start.init(jax.random.key(0))[0])
  plain = tuning.config_of(model__path=str(tmp_path / "model"))
  leave_run(tmp_path / "plain", plain)
  assert generated(tmp_path / "run") == generated(tmp_path / "plain")  # Fresh adapters change nothing.
  shutil.rmtree(tmp_path / "model")
  line = refused(program.run("--mode=generate", f"--workdir={tmp_path / 'run'}"))
  assert f"{tmp_path / 'model'}" in line


def test_evaluating_a_tuned_run_prints_what_training_wrote(tmp_path):
  flags = tuning.flags_of()
  done = program.run(*flags, f"--workdir={tmp_path / 'run'}")
  assert done.code == 0, done.err
  summary = json.loads((tmp_path / "run" / "summary.json").read_text())
  again = program.run("--mode=eval", f"--workdir={tmp_path / 'run'}")
  assert again.code == 0, again.err
  found = json.loads(again.out)
  for name in ("val/loss_nats", "val/accuracy", "val/tokens"):
    assert found[name] == summary[name.replace("/", "_")], name
