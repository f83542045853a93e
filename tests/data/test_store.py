"""Token caches: equal to memory, whole or absent, safe to build at once, made anew when damaged."""
import concurrent.futures

import numpy as np
import pytest

from atlas_jax.data import corpus, store, tokenizer
from tests.data.corpora import write_texts


@pytest.fixture
def texts(tmp_path):
  return corpus.load("files", path=str(write_texts(tmp_path / "texts")))


def load(texts, folder, *, coder=None):
  return store.load(texts, coder or tokenizer.ByteTokenizer(), cache_dir=str(folder), bad_input_frac=0.0)


def cached(texts):
  """The same corpus with its size unknown, which is what sends it through the cache."""
  return texts._replace(size_bytes=None)


def assert_equal(one, other):
  for name in ("ids", "starts", "lengths", "split", "names"):
    np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
  assert one.manifest == other.manifest


def test_small_bytes_need_no_cache(texts, tmp_path):
  load(texts, tmp_path / "cache")
  assert not (tmp_path / "cache").exists()


def test_a_cache_equals_memory_and_is_read_again(texts, tmp_path):
  built = load(cached(texts), tmp_path / "cache")
  unread = cached(texts)._replace(documents=None)
  assert_equal(built, load(texts, tmp_path))
  assert_equal(load(unread, tmp_path / "cache"), built)


def test_small_batches_of_text_change_nothing(texts, tmp_path, monkeypatch):
  whole = load(texts, tmp_path)
  monkeypatch.setattr(store, "BATCH_BYTES", 30)
  assert_equal(load(texts, tmp_path), whole)


def test_many_may_build_at_once(texts, tmp_path):
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    built = list(pool.map(lambda _: load(cached(texts), tmp_path / "cache"), range(4)))
  for one in built:
    assert_equal(one, built[0])
  assert len([entry for entry in (tmp_path / "cache").iterdir() if entry.is_dir()]) == 1


def test_a_build_that_fails_leaves_nothing(texts, tmp_path):
  def documents(faults):
    yield from list(texts.documents(faults))[:3]
    raise RuntimeError("interrupted")

  with pytest.raises(RuntimeError, match="interrupted"):
    load(cached(texts)._replace(documents=documents), tmp_path / "cache")
  assert not [entry for entry in (tmp_path / "cache").iterdir() if entry.is_dir()]


@pytest.mark.parametrize("name", ["ids.bin", "manifest.json", "lengths.npy"])
@pytest.mark.parametrize("how", ["cut", "flipped", "deleted"])
def test_a_damaged_cache_is_made_anew_with_a_line(texts, tmp_path, name, how, caplog):
  whole = load(texts, tmp_path)
  load(cached(texts), tmp_path / "cache")
  folder = store.cache_folder(cached(texts), tokenizer.ByteTokenizer(), str(tmp_path / "cache"))
  content = bytearray((folder / name).read_bytes())
  content[len(content) // 2] ^= 1
  if how == "deleted":
    (folder / name).unlink()
  else:
    (folder / name).write_bytes(content if how == "flipped" else content[:-9])
  with caplog.at_level("WARNING"):
    assert_equal(load(cached(texts), tmp_path / "cache"), whole)
  assert str(folder / name) in caplog.text and "made anew" in caplog.text
  caplog.clear()
  assert_equal(load(cached(texts)._replace(documents=None), tmp_path / "cache"), whole)
  assert not caplog.text


def test_a_damaged_cache_whose_text_is_gone_is_an_error_of_the_text(texts, tmp_path):
  load(cached(texts), tmp_path / "cache")
  folder = store.cache_folder(cached(texts), tokenizer.ByteTokenizer(), str(tmp_path / "cache"))
  (folder / "ids.bin").write_bytes(b"")
  with pytest.raises(ValueError, match="has no text"):
    load(cached(texts)._replace(documents=lambda faults: iter(())), tmp_path / "cache")


def test_another_tokenizer_has_another_cache(texts, tmp_path):
  coder = tokenizer.ByteTokenizer()
  one = store.cache_folder(texts, coder, str(tmp_path))
  coder.fingerprint = "other"
  assert store.cache_folder(texts, coder, str(tmp_path)) != one


def test_the_width_of_ids_follows_the_vocabulary(texts, tmp_path):
  coder = tokenizer.ByteTokenizer()
  coder.fingerprint, coder.vocab_size = "wide", 70_000
  assert load(texts, tmp_path / "wide", coder=coder).ids.dtype == np.uint32
  assert load(texts, tmp_path / "bytes").ids.dtype == np.uint8


def test_names_are_found_by_their_index(texts, tmp_path):
  loaded = load(texts, tmp_path)
  assert [store.document_name(loaded, i) for i in (0, 1, 23)] == ["000.txt", "001.txt", "023.txt"]


def test_five_percent_are_the_hashes_that_twenty_divides():
  places = [store.split_place(f"file{n}.py") for n in range(4000)]
  assert all(0 <= place < 1 for place in places)
  assert abs(np.mean(places) - 0.5) < 0.03
  held_out = [n for n, place in enumerate(places) if place < 0.05]
  assert [n for n in range(4000) if hash_of(f"file{n}.py") % 20 == 0] == held_out


def hash_of(name):
  """The SHA-256 of a name as an integer."""
  import hashlib
  return int(hashlib.sha256(name.encode()).hexdigest(), 16)


def test_a_tokenizer_that_gives_ids_beyond_its_vocabulary_is_refused(texts, tmp_path):
  class Beyond(tokenizer.ByteTokenizer):
    def encode_many(self, texts):
      return [np.full(3, 256, np.int32) for _ in texts]

  with pytest.raises(ValueError, match=r"config.data.tokenizer gives ids from 256 to 256, .* own 0\.\.255"):
    load(texts, tmp_path, coder=Beyond())
