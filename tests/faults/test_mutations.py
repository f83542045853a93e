"""A broken file of any kind is refused with a line or read as it was; the long form is `mutations`."""

import pytest

from atlas_jax.files import json_text
from tests.faults import kinds, mutations

NEEDED = {"parquet_rows": "pyarrow", "sentencepiece_model": "sentencepiece", "chat_template": "jinja2",
          "tokenizer_settings": "jinja2", "hf_tokenizer": "tokenizers", "kept_tokenizer": "tokenizers",
          "kept_marker": "tokenizers", "kept_sums": "tokenizers"}  # fmt: skip
COUNT = 12  # Of each kind: some hundreds in all.


@pytest.mark.parametrize("name", kinds.ALL)
def test_a_broken_file_is_refused_with_a_line_or_read_as_it_was(name, tmp_path):
  if name in NEEDED:
    pytest.importorskip(NEEDED[name])
  counts, failed = mutations.run(name, COUNT, seed=1, folder=tmp_path)
  assert not failed, "\n".join(failed)
  assert sum(counts.values()) == COUNT
  assert counts[mutations.REFUSED] > 0


@pytest.mark.parametrize("name", [name for name in kinds.ALL if name != "completions"])
@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"\xff" * 64], ids=["none", "brackets", "noise"])
def test_a_file_of_nothing_deep_brackets_or_noise_is_refused(name, content, tmp_path):
  if name in NEEDED:
    pytest.importorskip(NEEDED[name])
  kind = kinds.opened(name, tmp_path / name)
  result, said = mutations.outcome(kind, content)
  if not (name in ("metrics", "chat_template") and result != mutations.TRACEBACK):
    assert result == mutations.REFUSED, said


@pytest.mark.parametrize("name", sorted(kinds.WITH_SUM))
def test_one_flipped_bit_is_seen_where_there_is_a_checksum(name, tmp_path):
  kind = kinds.opened(name, tmp_path / name)
  for at in range(0, len(kind.content), max(1, len(kind.content) // 20)):
    broken = bytearray(kind.content)
    broken[at] ^= 1
    result, said = mutations.outcome(kind, bytes(broken))
    assert result in (mutations.REFUSED, mutations.EQUAL), (at, said)


@pytest.mark.parametrize(("text", "words"), [
  ('{"a": 1' + "0" * 60 + "}", "more than 40 digits"), ("9" * 5000, "thousands of digits"),
  ("[1e999]", "beyond 1.8e308"), ("[" * 101 + "]" * 101, "more than 100 brackets"),
  ("[" * 50_000, "more than 100 brackets|Expecting value"), ("[NaN]", "NaN"),
  ('{"a": 1, "a": 2}', "'a' twice"), ('"\\ud800"', "half of a character")])  # fmt: skip
def test_what_json_may_not_have_is_refused(text, words):
  with pytest.raises(ValueError, match=words):
    json_text.parse(text)


def test_json_keeps_what_others_write():
  assert json_text.parse('{"model_max_length": 1000000000000000019884624838656}')["model_max_length"] > 1e29
  assert json_text.parse("[1e308, 123456789012345678901234567890.5, -1e-400]")[0] == 1e308
