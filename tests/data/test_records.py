"""Files of rows: tables in text, marks of the order of bytes, blank lines, and names that come twice."""

import codecs
import json
import logging

import pytest

from atlas_jax.data import prompts, records

ROWS = [{"prompt": 'a, "b"?', "answer": "1"}, {"prompt": "two\nlines", "answer": "é"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
TABLE = 'prompt,answer\r\n"a, ""b""?",1\r\n"two\nlines",é\r\n'


def read(path, content):
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return list(records.read(str(path)))


@pytest.mark.parametrize(
  "name, text, lines",
  [
    ("a.jsonl", LINES, [1, 2]),
    ("a.ndjson", LINES, [1, 2]),
    ("a.json", json.dumps(ROWS, ensure_ascii=False), [1, 2]),
    ("a.json", LINES, [1, 2]),
    ("a.csv", TABLE, [2, 3]),
    ("a.tsv", TABLE.replace(",a", "\ta").replace('",', '"\t'), [2, 3]),
  ],
)
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("end", ["", "\n", "\n\n  \n", "\r\n\r\n"])
def test_all_kinds_are_read_with_a_mark_before_and_blank_lines_behind(tmp_path, name, text, lines, mark, end):
  found = read(tmp_path / name, mark + (text + end).encode())
  assert [one.row for one in found] == ROWS
  assert [one.where for one in found] == [f"{tmp_path / name}:{line}" for line in lines]


@pytest.mark.parametrize("name, text", [("a.json", json.dumps(ROWS)), ("a.csv", TABLE)])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_files_of_other_encodings_are_read_by_their_mark(tmp_path, name, text, encoding):
  assert [one.row for one in read(tmp_path / name, text.encode(encoding))] == ROWS


@pytest.mark.parametrize(
  "name, content, message",
  [
    ("a.csv", "prompt,answer\na?,1\nb?\n", "a.csv:3: has 1 cells, the first line 2"),
    ("a.csv", "prompt,answer\na?,1,2\n", "a.csv:2: has 3 cells, the first line 2"),
    ("a.csv", "prompt,prompt\na?,1\n", "a.csv:1: the first line must name each column once"),
    ("a.csv", "prompt,\na?,1\n", "a.csv:1: the first line must name each column once"),
    ("a.csv", 'prompt\n"a?\n', "a.csv:2: cannot be read as a table"),
    ("a.csv", b"prompt\n\xff\xfe\n", "a.csv: not UTF-8"),
    ("a.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}\n', "a.jsonl:2: not UTF-8"),
    ("a.jsonl", '{"prompt": "a", "prompt": "b"}', "a.jsonl:1: has 'prompt' twice in one object"),
    ("a.json", '[{"messages": [{"role": "user", "role": "user"}]}]', "a.json: has 'role' twice"),
    (
      "a.jsonl",
      '[{"prompt": "a"},\n {"prompt": "b"}]',
      "a.jsonl:1: begins with '\\[' .* name the file a.json",
    ),
  ],
)
def test_what_cannot_be_read_names_file_and_line(tmp_path, name, content, message):
  with pytest.raises(ValueError, match=message):
    read(tmp_path / name, content)


def test_cells_may_have_semicolons_between_them(tmp_path):
  assert [one.row for one in read(tmp_path / "a.csv", "prompt;answer\na, b?;1\n")] == [
    {"prompt": "a, b?", "answer": "1"}
  ]


def test_a_table_holds_chats_as_json_and_long_cells(tmp_path):
  chat = [{"role": "user", "content": "a" * 200_000}, {"role": "assistant", "content": "b"}]
  cell = json.dumps(chat).replace('"', '""')
  (tmp_path / "chats.csv").write_text(f'id,messages\n1,"{cell}"\n')
  found = prompts.load("files", files=str(tmp_path), held_out_frac=0.0).problem(0)
  assert (found.prompt, found.solution) == (chat[:1], "b")


def test_half_of_a_character_is_refused_and_a_pair_is_read(tmp_path):
  assert read(tmp_path / "a.jsonl", '{"prompt": "\\ud83d\\ude00"}\n')[0].row == {"prompt": "\U0001f600"}
  with pytest.raises(ValueError, match=r"a.jsonl:1: has '\\ud83d', half of a character"):
    read(tmp_path / "a.jsonl", '{"prompt": "a", "completion": "cut \\ud83d"}\n')


def test_brackets_without_end_are_refused(tmp_path):
  with pytest.raises(ValueError, match="a.jsonl:1: has more than 100 brackets"):
    read(tmp_path / "a.jsonl", '{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}\n")


def test_a_column_that_comes_twice_in_parquet_is_refused(tmp_path):
  arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
  table = arrow.Table.from_arrays([arrow.array(["a"]), arrow.array(["b"])], names=["prompt", "prompt"])
  parquet.write_table(table, tmp_path / "a.parquet")
  with pytest.raises(ValueError, match="a.parquet: has 'prompt' twice among its columns"):
    list(records.read(str(tmp_path / "a.parquet")))


def test_files_of_a_folder_that_are_not_read_are_named_once(tmp_path, caplog):
  for name in ("a.jsonl", "b.JSONL", "c.csv.gz", "README.md"):
    (tmp_path / name).write_text('{"prompt": "a"}\n')
  with caplog.at_level(logging.WARNING, logger="absl"):
    assert [len(list(records.read(str(tmp_path)))) for _ in range(2)] == [1, 1]
  assert len(caplog.messages) == 1 and caplog.messages[0].endswith(": b.JSONL, c.csv.gz")


def test_files_of_no_bytes_are_counted_and_named(tmp_path, caplog):
  (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
  (tmp_path / "b.jsonl").write_bytes(b"")
  (tmp_path / "c.csv").write_bytes(b"")
  with caplog.at_level("WARNING"):
    assert len(list(records.read(str(tmp_path)))) == 1
  assert "2 of 3 files are empty (0 bytes) and give no rows: " in caplog.text
  assert f"{tmp_path}/b.jsonl, {tmp_path}/c.csv" in caplog.text
  (tmp_path / "a.jsonl").write_bytes(b"")
  with pytest.raises(ValueError, match=r"3 of 3 files are empty \(0 bytes\)"):
    list(records.read(str(tmp_path)))
