"""Corpora by name: what paths mean, and clear words where something is missing."""
import gzip
import json
import sys

import pytest

from atlas_jax.data import corpus, formats
from tests.data.corpora import take, tiny_source, write_texts


def names(loaded):
  return [document.name for document in loaded.documents(formats.Faults(0))]


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "texts" / "deep").mkdir(parents=True)
  for name in ("b.txt", "a.md", "deep/c.txt", "skipped.bin"):
    (tmp_path / "texts" / name).write_text(f"text of {name}")
  return tmp_path / "texts"


def test_a_folder_gives_the_texts_below_it_in_order(folder):
  assert names(corpus.load("files", path=str(folder))) == ["a.md", "b.txt", "deep/c.txt"]


@pytest.mark.parametrize("pattern, expected", [
  ("*.txt", ["b.txt"]), ("**/*.txt", ["b.txt", "deep/c.txt"]), ("*.bin", ["skipped.bin"]),
  ("b.txt", ["b.txt"])])
def test_a_glob_gives_the_files_that_match(folder, pattern, expected):
  assert names(corpus.load("files", path=str(folder / pattern))) == expected


def test_names_of_several_paths_tell_them_apart(folder):
  paths = [str(folder / "deep"), str(folder / "*.md")]
  for path in (paths, ", ".join(paths)):
    assert names(corpus.load("files", path=path)) == ["deep/c.txt", "texts/a.md"]


@pytest.mark.parametrize("path, message", [
  (None, "needs config.data.path"), ("missing.txt", "is no file or folder"),
  ("missing/*.txt", "matches no file"), (".", "holds no file that ends in .txt")])
def test_a_path_that_names_no_text_is_refused(path, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=message):
    corpus.load("files", path=path)


def test_text_is_limited_to_whole_documents(folder):
  loaded = corpus.load("files", path=str(folder), limit_bytes=14)
  assert names(loaded) == ["a.md", "b.txt"]
  assert loaded.manifest["limit_bytes"] == 14


def test_the_identity_changes_with_the_files(folder):
  before = corpus.load("files", path=str(folder)).identity
  assert corpus.load("files", path=str(folder)).identity == before
  (folder / "b.txt").write_text("longer than it was before")
  assert corpus.load("files", path=str(folder)).identity != before


def test_a_corpus_without_text_is_refused(tmp_path):
  (tmp_path / "a.jsonl").write_text("\n\n")
  with pytest.raises(ValueError, match="has no text in its 1 files"):
    tiny_source(tmp_path)


def test_a_dataset_that_is_not_prepared_is_refused_at_once(tmp_path):
  pytest.importorskip("tensorflow_datasets")
  with pytest.raises(ValueError, match="'lm1b' is not on this machine; .*download=True or scripts/prepare"):
    tiny_source(tmp_path, name="lm1b", cache_dir=str(tmp_path))


def test_a_name_that_nobody_knows_is_refused(tmp_path):
  pytest.importorskip("tensorflow_datasets")
  with pytest.raises(ValueError, match="'pyhton_stdlib' is none of 'python_stdlib', .*knows no such name"):
    tiny_source(tmp_path, name="pyhton_stdlib", cache_dir=str(tmp_path))


def test_a_prepared_dataset_is_read(tmp_path):
  tfds = pytest.importorskip("tensorflow_datasets")
  texts = [f"text number {n}, {'word ' * (n % 7)}" for n in range(60)]

  class TinyTexts(tfds.core.GeneratorBasedBuilder):
    """Sixty texts."""
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
      return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      yield from ((n, {"text": text}) for n, text in enumerate(texts))

  TinyTexts(data_dir=tmp_path / "tfds", file_format="array_record").download_and_prepare()
  fields = dict(name="tiny_texts", path=str(tmp_path / "tfds"), cache_dir=str(tmp_path / "cache"))
  source = tiny_source(**{"folder": tmp_path, **fields})
  assert source.manifest["documents"] == 60
  assert sum(len(text) for text in texts) == source.manifest["bytes"]
  assert take(source, 2)


def test_a_hub_dataset_without_leave_to_download_is_refused(tmp_path):
  with pytest.raises(ValueError, match="'hf:some/texts' is not on this machine; .*'python_stdlib' and"):
    tiny_source(tmp_path, name="hf:some/texts", cache_dir=str(tmp_path))


def test_a_hub_dataset_without_a_network_is_refused_in_one_line(tmp_path):
  pytest.importorskip("datasets")
  with pytest.raises(ValueError, match="'hf:some/texts' cannot be read: .*python_stdlib") as caught:
    tiny_source(tmp_path, name="hf:some/texts", download=True, cache_dir=str(tmp_path))
  assert "\n" not in str(caught.value)


def test_a_missing_library_names_the_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
  with pytest.raises(ModuleNotFoundError, match=r"pip install 'atlas_jax\[data\]', or set .*python_stdlib"):
    tiny_source(tmp_path, name="lm1b", cache_dir=str(tmp_path))


def test_a_local_dataset_folder_is_read_and_then_not_needed(tmp_path, monkeypatch):
  pytest.importorskip("datasets")
  (tmp_path / "data").mkdir()
  lines = [json.dumps({"body": f"line {n} of the data set"}) for n in range(40)]
  with gzip.open(tmp_path / "data" / "part.jsonl.gz", "wt") as file:
    file.write("\n".join(lines))
  fields = dict(name=f"hf:{tmp_path / 'data'}", text_field="body", cache_dir=str(tmp_path / "cache"))
  first = tiny_source(tmp_path, **fields)
  assert first.manifest["documents"] == 40
  monkeypatch.setitem(sys.modules, "datasets", None)
  assert tiny_source(tmp_path, **fields).state() == first.state()


def test_the_choice_of_format_changes_no_text(tmp_path):
  folder = write_texts(tmp_path / "texts")
  files = sorted(folder.iterdir())
  (tmp_path / "all.jsonl").write_text("\n".join(json.dumps({"text": file.read_text()}) for file in files))
  from_lines = tiny_source(tmp_path / "all.jsonl")
  assert from_lines.manifest["bytes"] == tiny_source(folder).manifest["bytes"]
  assert from_lines.provenance(0)[0].startswith("all.jsonl:")
