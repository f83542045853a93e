"""Files that grow: whole lines alone, of one writer."""
import pytest

from atlas_jax.files import json_lines
from atlas_jax.files.append import Appender


def test_a_line_that_was_cut_off_is_taken_away(tmp_path):
  file = tmp_path / "a.jsonl"
  for value in ({"a": "ä\u2028\ud800"}, {"a": 2}):
    out = Appender(file)
    out.line(value)
    out.close()
    with file.open("ab") as torn:
      torn.write(b'{"a": 1')
  Appender(file).close()
  assert list(json_lines.read(file)) == [{"a": "ä\u2028\ufffd"}, {"a": 2}]


def test_a_second_writer_is_refused(tmp_path):
  out = Appender(tmp_path / "a")
  with pytest.raises(OSError, match="another process"):
    Appender(tmp_path / "a")
  out.close()
  Appender(tmp_path / "a").close()
