"""Documents made into others: what stays, what is drawn, and that nothing is mistaken for the documents."""

import numpy as np
import pytest

from atlas_jax.data import corpus, store, tokenizer, transforms
from tests.data.corpora import assert_same, take, tiny_source, write_texts

TEXT = "def one():\n  return 1\n\n\ndef zwölf():\n  return 12\n".encode() * 20
NAMES = list(transforms.TRANSFORMS)


@pytest.fixture
def folder(tmp_path):
  return write_texts(tmp_path / "texts")


def changed(name, text=TEXT, *, seed=0, number=3):
  return transforms.TRANSFORMS[name](text, transforms.DocumentRandom(seed, number))


def store_of(folder, name, *, seed=0, cache=None):
  texts = transforms.transformed(corpus.load("files", path=str(folder)), name, seed)
  return store.load(texts, tokenizer.ByteTokenizer(), cache_dir=cache, bad_input_frac=0.0)


def test_a_repeated_document_is_there_twice():
  assert changed("repeat") == TEXT + TEXT


@pytest.mark.parametrize("text", [TEXT, TEXT.rstrip(b"\n"), b"one line", b"\n"])
def test_shuffled_lines_are_the_same_lines_in_another_order(text):
  shuffled = changed("shuffle_lines", text)
  assert sorted(shuffled.split(b"\n")) == sorted(text.split(b"\n"))
  assert shuffled.endswith(b"\n") or not text.endswith(b"\n")
  assert (shuffled != text) == (text.count(b"\n") > 1)


def test_permuted_bytes_keep_their_counts_and_are_text_still():
  permuted = changed("permute_bytes")
  permuted.decode()
  counts = lambda text: sorted(np.bincount(np.frombuffer(text, np.uint8), minlength=256))
  assert counts(permuted) == counts(TEXT) and len(permuted) == len(TEXT)
  moved = dict(zip(TEXT, permuted))
  assert len(set(moved.values())) == len(moved) and all(moved[byte] == byte for byte in "ö".encode())
  assert sum(moved[byte] == byte for byte in moved if byte < 128) < 4


def test_random_bytes_are_uniform_and_independent():
  drawn = np.frombuffer(changed("random_bytes", bytes(200_003)), np.uint8)
  assert len(drawn) == 200_003
  assert abs(drawn.mean() - 127.5) < 1
  chi = lambda counts: ((counts - counts.mean()) ** 2 / counts.mean()).sum()
  assert chi(np.bincount(drawn, minlength=256)) < 256 + 6 * np.sqrt(512)
  pairs = np.bincount((drawn[:-1] >> 4).astype(int) * 16 + (drawn[1:] >> 4), minlength=256)
  assert chi(pairs) < 256 + 6 * np.sqrt(512)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_drawn_follows_from_seed_and_number_alone(name):
  assert changed(name) == changed(name)
  same = name == "repeat"
  assert (changed(name) == changed(name, number=4)) == same
  assert (changed(name) == changed(name, seed=1)) == same


@pytest.mark.parametrize("name", NAMES)
def test_documents_keep_their_names_their_split_and_have_a_cache_of_their_own(folder, tmp_path, name):
  plain, other = store_of(folder, None), store_of(folder, name)
  np.testing.assert_array_equal(other.names, plain.names)
  np.testing.assert_array_equal(other.split, plain.split)
  np.testing.assert_array_equal(other.lengths, plain.lengths * (2 if name == "repeat" else 1))
  assert other.manifest["transform"] == name and other.manifest["sha256"] != plain.manifest["sha256"] or (
    name == "shuffle_lines"  # These texts are of one line.
  )
  coder = tokenizer.ByteTokenizer()
  files = corpus.load("files", path=str(folder))
  of = lambda name, seed: store.cache_folder(transforms.transformed(files, name, seed), coder, str(tmp_path))
  assert of(name, 0) == of(name, 0) != of(None, 0)
  assert (of(name, 0) == of(name, 1)) == (name == "repeat")


def test_a_source_goes_on_with_the_very_next_batch_and_refuses_the_place_of_other_text(folder):
  source = tiny_source(folder, transform="permute_bytes")
  take(source, 3)
  state, expected = source.state(), take(source, 2)
  again = tiny_source(folder, transform="permute_bytes", process_count=1)
  again.restore(state)
  for actual, batch in zip(take(again, 2), expected):
    assert_same(actual, batch)
  for others in (dict(transform=None), dict(transform="repeat"), dict(transform="permute_bytes", seed=4)):
    with pytest.raises(ValueError, match="belongs to other data or settings"):
      tiny_source(folder, **others).restore(state)


def test_a_cached_corpus_is_transformed_once_and_read_again(folder, tmp_path):
  texts = corpus.load("files", path=str(folder))._replace(size_bytes=None)
  load = lambda texts: store.load(texts, tokenizer.ByteTokenizer(), cache_dir=str(tmp_path), bad_input_frac=0)
  built = load(transforms.transformed(texts, "random_bytes", 5))
  unread = transforms.transformed(texts._replace(documents=None), "random_bytes", 5)
  np.testing.assert_array_equal(load(unread).ids, built.ids)


def test_an_unknown_transform_is_refused(folder):
  with pytest.raises(ValueError, match="transform='reverse' is unknown; known are repeat, shuffle_lines"):
    tiny_source(folder, transform="reverse")


def test_random_bytes_are_for_the_tokenizer_of_bytes(folder, tmp_path):
  texts = (file.read_bytes() for file in sorted(folder.iterdir()))
  tokenizer.train_bpe(texts, vocab_size=270, folder=tmp_path / "bpe")
  with pytest.raises(ValueError, match="'random_bytes' is no text.*set config.data.tokenizer='byte'"):
    tiny_source(folder, transform="random_bytes", tokenizer=str(tmp_path / "bpe"))
  permuted = tiny_source(folder, transform="permute_bytes", tokenizer=str(tmp_path / "bpe"))
  coder = permuted.tokenizer
  assert set(permuted.text()) != set(tiny_source(folder, tokenizer=str(tmp_path / "bpe")).text())
  assert coder.decode_bytes(coder.encode(permuted.text())) == permuted.text()
