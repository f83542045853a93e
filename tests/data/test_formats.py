"""Files of every format give their documents; what is broken is counted, named, and bounded."""
import gzip
import json

import pytest

from atlas_jax.data import formats

GOOD = ["first text", "zweiter, größer", "third\nwith lines"]


def read(file, *, bad_input_frac=0.0, name="x", text_field="text"):
  """The (name, text) of a file's documents, after the check of what was skipped."""
  faults = formats.Faults(bad_input_frac)
  found = [(one.name, one.text.decode()) for one in formats.read(name, file, faults, text_field=text_field)]
  faults.documents += len(found)
  faults.check()
  return found, faults


def as_lines(texts, field="text"):
  return "".join(json.dumps({"n": 1, field: text}, ensure_ascii=False) + "\n" for text in texts).encode()


def pack_zst(data):
  return pytest.importorskip("zstandard").ZstdCompressor().compress(data)


PACKED = {"": bytes, ".gz": gzip.compress, ".zst": pack_zst}


@pytest.mark.parametrize("suffix", PACKED)
def test_plain_text_is_one_document(tmp_path, suffix):
  file = tmp_path / f"a.txt{suffix}"
  file.write_bytes(PACKED[suffix](GOOD[2].encode()))
  assert read(file)[0] == [("x", GOOD[2])]


@pytest.mark.parametrize("suffix", PACKED)
def test_each_json_line_is_a_document_named_by_its_line(tmp_path, suffix, monkeypatch):
  monkeypatch.setattr(formats, "CHUNK_BYTES", 7)
  file = tmp_path / f"a.jsonl{suffix}"
  file.write_bytes(PACKED[suffix](as_lines(GOOD[:2]) + b"\n" + as_lines(GOOD[2:]).rstrip()))
  assert read(file)[0] == [("x:1", GOOD[0]), ("x:2", GOOD[1]), ("x:4", GOOD[2])]


def test_frames_of_zstandard_follow_one_another(tmp_path):
  file = tmp_path / "a.jsonl.zst"
  file.write_bytes(pack_zst(as_lines(GOOD[:1])) + pack_zst(as_lines(GOOD[1:])))
  assert [text for _, text in read(file)[0]] == GOOD


def test_each_row_of_parquet_is_a_document(tmp_path):
  arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
  file = tmp_path / "a.parquet"
  parquet.write_table(arrow.table({"id": [1, 2, 3], "body": GOOD}), file, row_group_size=2)
  assert read(file, text_field="body")[0] == [(f"x:{n}", text) for n, text in enumerate(GOOD, start=1)]
  with pytest.raises(ValueError, match="text_field='text' is no column of .*it has id, body"):
    read(file)


def test_each_record_of_array_record_is_a_document(tmp_path):
  from array_record.python import array_record_module
  file = tmp_path / "a.array_record"
  writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
  for text in GOOD:
    writer.write(text.encode())
  writer.close()
  assert read(file)[0] == [(f"x:{n}", text) for n, text in enumerate(GOOD, start=1)]


@pytest.mark.parametrize("line, why", [
  (b'{"text": "\xff"}', "not JSON|not UTF-8"),
  (b'{"text": 3}', "its text is int, not a string"),
  (b'{"body": "x"}', r"no field 'text' \(config.data.text_field\)"),
  (b'["text"]', "is list, not an object"),
  (b'{"text": "cut', "not JSON"),
  (b'{"text": " "}', "empty"),
  (b'{"text": "\\ud800"}', "has .*half of a character"),
])
def test_a_bad_line_is_named_and_skipped_up_to_the_share(tmp_path, line, why):
  file = tmp_path / "a.jsonl"
  file.write_bytes(as_lines(GOOD) + line + b"\n")
  found, faults = read(file, bad_input_frac=0.25)
  assert [text for _, text in found] == GOOD
  assert faults.skipped == 1
  with pytest.raises(ValueError, match=rf"1 of 4 documents cannot be read, .*_frac=0.24 .*x:4 \(({why})"):
    read(file, bad_input_frac=0.24)


@pytest.mark.parametrize("data, why", [(b"", "empty"), (b"one\ntwo \xff", "not UTF-8 at line 2, byte 8")])
def test_a_bad_text_file_is_named(tmp_path, data, why):
  file = tmp_path / "a.txt"
  file.write_bytes(data)
  with pytest.raises(ValueError, match=rf"x \({why}\)"):
    read(file)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_truncated_archive_gives_what_came_before_and_counts_as_a_bad_file(tmp_path, suffix, monkeypatch):
  monkeypatch.setattr(formats, "CHUNK_BYTES", 64)
  file = tmp_path / f"a.jsonl{suffix}"
  data = PACKED[suffix](as_lines([f"text {n * n * 7919}" for n in range(30_000)]))
  file.write_bytes(data[:-20])
  found, faults = read(file, bad_input_frac=1.0)
  assert faults.bad_files == 1 and 0 < len(found) < 30_000
  with pytest.raises(ValueError, match="1 of 1 files cannot be read.*what follows in it is lost"):
    read(file, bad_input_frac=0.5)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.zst", "a.parquet", "a.array_record"])
def test_a_file_that_is_not_what_its_name_says_is_a_bad_file(tmp_path, name):
  if name.endswith("zst"):
    pytest.importorskip("zstandard")
  if name.endswith("parquet"):
    pytest.importorskip("pyarrow")
  (tmp_path / name).write_bytes(b"this is something else entirely" * 9)
  with pytest.raises(ValueError, match="1 of 1 files cannot be read"):
    read(tmp_path / name)
