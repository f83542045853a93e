"""Tokenizers of runs, written as published ones: the same ids, the mark of documents among them."""
import json

import numpy as np
import pytest

from atlas_jax.data import tokenizer as tokenizers
from atlas_jax.language.pretrained import tokenizer_files
from tests import hf_fixture

pytest.importorskip("tokenizers")
TEXTS = ["", " def f(x):\n  return x\t+ 1", "Grüße, 東京 🙂!", "a" * 300, "\x00\x7f\r\n", " \u00a0x"]


def published(tokenizer, folder):
  """Writes a tokenizer as a run keeps it, publishes it, and opens it with the library that reads it."""
  import tokenizers as library
  tokenizer.save(folder / "kept")
  tokenizer_files.write(folder / "out", folder / "kept", max_tokens=64)
  return library.Tokenizer.from_file(str(folder / "out" / "tokenizer.json"))


def test_bytes_are_their_own_ids_and_the_mark_is_256(tmp_path):
  read = published(tokenizers.ByteTokenizer(), tmp_path)
  assert read.get_vocab_size() == 257
  for text in TEXTS:
    ids = read.encode(text).ids
    assert ids == list(text.encode()) and read.decode(ids) == text
  assert read.encode(f"a{tokenizer_files.DOC}").ids == [97, 256]
  assert read.decode([97, 256]) == "a"
  settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
  assert settings["eos_token"] == tokenizer_files.DOC and settings["model_max_length"] == 64


def test_a_tokenizer_trained_here_gets_the_mark_it_was_trained_with(tmp_path):
  texts = [text.encode() * 5 for text in TEXTS]
  trained = tokenizers.train_bpe(texts, vocab_size=265, folder=tmp_path / "bpe")
  read = published(trained, tmp_path)
  assert read.get_vocab_size() == trained.vocab_size == 265
  assert read.token_to_id(tokenizer_files.DOC) == trained.doc_id
  for text in TEXTS:
    assert read.encode(text).ids == trained.encode(text).tolist()


def test_a_published_tokenizer_travels_as_it_is(tmp_path):
  given = hf_fixture.FOLDER / "byte_tokenizer"
  tokenizers.load(str(given)).save(tmp_path / "kept")
  tokenizer_files.copy(given, tmp_path / "kept")
  tokenizer_files.write(tmp_path / "out", tmp_path / "kept", max_tokens=64)
  for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
    assert (tmp_path / "out" / name).read_bytes() == (given / name).read_bytes()
  assert {file.name for file in (tmp_path / "out").iterdir()} == {
      "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


@pytest.mark.parametrize("name", ["byte", "trained", "published"])
def test_transformers_gives_the_same_ids(name, tmp_path):
  transformers = pytest.importorskip("transformers")
  if name == "byte":
    tokenizer = tokenizers.ByteTokenizer()
  elif name == "trained":
    tokenizer = tokenizers.train_bpe([text.encode() * 5 for text in TEXTS], vocab_size=265,
                                     folder=tmp_path / "bpe")
  else:
    tokenizer = tokenizers.load(str(hf_fixture.FOLDER / "byte_tokenizer"))
  tokenizer.save(tmp_path / "kept")
  if name == "published":
    tokenizer_files.copy(hf_fixture.FOLDER / "byte_tokenizer", tmp_path / "kept")
  tokenizer_files.write(tmp_path / "out", tmp_path / "kept", max_tokens=64)
  read = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
  for text in TEXTS:
    np.testing.assert_array_equal(np.array(read(text)["input_ids"], np.int32), tokenizer.encode(text))
  assert read.eos_token_id == tokenizer.doc_id and len(read) == tokenizer.vocab_size
