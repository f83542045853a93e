"""Tokenizers: round trips, byte lengths, the separator, saving, and clear refusals."""
import io
import json
import sys

import numpy as np
import pytest

from atlas_jax.data import tokenizer

TEXTS = ["plain words", "  indented\n\n\tcode()", "naïve café, 日本語, 🙂🙂", "<|endoftext|> <s> </s>",
         "x" * 50]


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
  """A byte-level BPE with a special token, as a file."""
  tokenizers = pytest.importorskip("tokenizers")
  model = tokenizers.Tokenizer(tokenizers.models.BPE())
  model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
      vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False,
      initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
  model.train_from_iterator(TEXTS * 20, trainer)
  file = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
  model.save(str(file))
  return file


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
  """A SentencePiece model with byte fallback, as a file."""
  sentencepiece = pytest.importorskip("sentencepiece")
  written = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(["plain words of text", "indented code", "more plain text"] * 20),
      model_writer=written, vocab_size=300, model_type="bpe", byte_fallback=True, add_dummy_prefix=False,
      minloglevel=2,
      normalization_rule_name="identity", remove_extra_whitespaces=False)
  file = tmp_path_factory.mktemp("pieces") / "small.model"
  file.write_bytes(written.getvalue())
  return file


@pytest.fixture(params=["byte", "bpe", "pieces"])
def coder(request):
  return tokenizer.load("byte" if request.param == "byte" else str(request.getfixturevalue(request.param)))


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_the_round_trip(coder, text):
  assert coder.decode(coder.encode(text)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_byte_lengths_add_up_to_the_text(coder, text):
  ids = coder.encode(text)
  assert ids.dtype == np.int32
  assert coder.byte_lengths()[ids].sum() == len(text.encode())
  assert coder.byte_lengths().shape == (coder.vocab_size,)


def test_the_separator_stands_for_no_byte_and_never_comes_from_text(coder):
  assert coder.byte_lengths()[coder.doc_id] == 0
  assert coder.decode([coder.doc_id]) == ""
  assert not any((coder.encode(text) == coder.doc_id).any() for text in TEXTS)


def test_encoding_many_equals_encoding_each(coder):
  texts = [text.encode() for text in TEXTS]
  for many, text in zip(coder.encode_many(texts), texts):
    np.testing.assert_array_equal(many, coder.encode(text))


def test_a_stream_never_shows_half_a_character(coder):
  text = "".join(TEXTS)
  stream = tokenizer.StreamDecoder(coder)
  shown = [stream.push([i]) for i in coder.encode(text)]
  assert "".join(shown) + stream.flush() == text
  assert not any("\ufffd" in part for part in shown)


def test_a_saved_tokenizer_loads_from_its_folder(coder, tmp_path):
  coder.save(tmp_path / "kept")
  loaded = tokenizer.load(str(tmp_path / "kept"))
  assert (loaded.fingerprint, loaded.vocab_size, loaded.doc_id) == (
      coder.fingerprint, coder.vocab_size, coder.doc_id)
  np.testing.assert_array_equal(loaded.encode(TEXTS[2]), coder.encode(TEXTS[2]))
  loaded.save(tmp_path / "kept")


def test_bytes_have_one_special():
  coder = tokenizer.load("byte")
  assert (coder.vocab_size, coder.doc_id) == (257, 256)


def test_any_bytes_survive_the_byte_tokenizer():
  coder, data = tokenizer.ByteTokenizer(), bytes(range(256)) + b"\xe6\x97"
  assert coder.decode_bytes(coder.encode(data)) == data
  assert coder.decode(coder.encode(b"ok \xff\xe6\x97")) == "ok \ufffd\ufffd"


def test_an_unfinished_character_is_replaced_at_the_end():
  stream = tokenizer.StreamDecoder(tokenizer.ByteTokenizer())
  assert stream.push([0xE6, 0x97]) == ""
  assert stream.flush() == "\ufffd"


def test_a_file_without_eos_gets_one_id_more(bpe):
  coder = tokenizer.load(str(bpe))
  assert (coder.vocab_size, coder.doc_id) == (301, 300)


@pytest.mark.parametrize("eos", ["<|endoftext|>", {"content": "<|endoftext|>"}])
def test_an_eos_named_beside_the_file_is_the_separator(bpe, tmp_path, eos):
  (tmp_path / "tokenizer.json").write_bytes(bpe.read_bytes())
  (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
  for path in (tmp_path, tmp_path / "tokenizer.json"):
    coder = tokenizer.load(str(path))
    assert (coder.vocab_size, coder.doc_id) == (300, 0)


def test_broken_utf8_is_replaced_before_encoding(bpe):
  coder = tokenizer.load(str(bpe))
  assert coder.decode(coder.encode(b"a\xffb")) == "a\ufffdb"


@pytest.mark.parametrize("name", ["gpt2", "missing/tokenizer.json"])
def test_what_is_not_there_is_refused_with_the_forms(name):
  with pytest.raises(ValueError, match="neither a file nor a folder; it must be 'byte'"):
    tokenizer.load(name)


def test_an_empty_folder_is_refused(tmp_path):
  with pytest.raises(ValueError, match="holds neither"):
    tokenizer.load(str(tmp_path))


@pytest.mark.parametrize("name, library", [("tokenizer.json", "tokenizers"), ("x.model", "sentencepiece")])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, name, library):
  pytest.importorskip(library)
  (tmp_path / name).write_text('{"not": "one"}')
  with pytest.raises(ValueError, match="is not a"):
    tokenizer.load(str(tmp_path / name))


def test_a_missing_library_names_the_extra(tmp_path, monkeypatch):
  (tmp_path / "tokenizer.json").write_text("{}")
  monkeypatch.setitem(sys.modules, "tokenizers", None)
  with pytest.raises(ModuleNotFoundError, match=r"atlas_jax\[hf\]"):
    tokenizer.load(str(tmp_path))


def test_a_hub_name_without_a_network_is_refused_at_once(monkeypatch):
  pytest.importorskip("huggingface_hub")
  with pytest.raises(ValueError, match="cannot be fetched .* without a network give the path"):
    tokenizer.load("hf:nobody/nothing")


def test_a_trained_tokenizer_has_the_size_asked_for(tmp_path):
  pytest.importorskip("tokenizers")
  texts = [text.encode() for text in TEXTS * 3]
  coder = tokenizer.train_bpe(texts, vocab_size=280, folder=tmp_path / "bpe")
  assert (coder.vocab_size, coder.doc_id) == (280, 279)
  assert tokenizer.load(str(tmp_path / "bpe")).fingerprint == coder.fingerprint
  assert coder.decode(coder.encode("žluťoučký \x00")) == "žluťoučký \x00"


@pytest.mark.parametrize("size, message", [(2000, "needs more text"), (256, "at least 257")])
def test_a_size_that_the_text_does_not_give_is_refused(tmp_path, size, message):
  pytest.importorskip("tokenizers")
  with pytest.raises(ValueError, match=message):
    tokenizer.train_bpe([b"too little text"], vocab_size=size, folder=tmp_path)
