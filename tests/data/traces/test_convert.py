"""The converter: both ways, and a file that cannot be read leaves nothing."""

from atlas_jax.data.traces import convert
from tests.data.traces import sessions


def test_a_file_goes_both_ways(tmp_path, capsys):
  source = sessions.FIXTURES / "export_all.jsonl"
  small, plain = tmp_path / "small.jsonl.gz", tmp_path / "plain.jsonl"
  assert convert.main([str(source), str(small)]) == 0
  assert convert.main([str(small), str(plain), "--plain"]) == 0
  assert plain.read_bytes() == source.read_bytes() and "4 traces" in capsys.readouterr().out


def test_a_line_that_is_no_trace_leaves_no_file(tmp_path, capsys):
  file = sessions.write(tmp_path / "a.jsonl", [sessions.session(), "{"])
  assert convert.main([file, str(tmp_path / "out.jsonl")]) == 1
  assert "a.jsonl:2: json" in capsys.readouterr().err
  assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]
