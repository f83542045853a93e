"""Completions are kept line by line, whatever characters they have."""

import json

import pytest

from atlas_jax.rollout import table
from atlas_jax.workdir import COMPLETIONS

TEXTS = ["a\u2028b", "a\u2029b", "a\x85b", "a\x0b\x0c\x1c\x1d\x1eb", "\r\n"]


def rows_of(folder):
  file = folder / COMPLETIONS / "00000000.jsonl"
  return [json.loads(line) for line in file.read_bytes().split(b"\n") if line]


def test_a_run_goes_on_whose_completions_have_line_ends_of_unicode(tmp_path):
  for step in (1, 2):
    table.CompletionLog(tmp_path).write(step, [{"completion": text} for text in TEXTS])
  table.CompletionLog(tmp_path).write(2, [{"completion": "again"}])  # As after a restart at step 2.
  assert [row["completion"] for row in rows_of(tmp_path)] == [*TEXTS, "again"]


def test_a_row_cut_by_a_kill_is_dropped_and_a_broken_one_named(tmp_path):
  table.CompletionLog(tmp_path).write(1, [{"completion": "x"}])
  file = tmp_path / COMPLETIONS / "00000000.jsonl"
  file.write_bytes(file.read_bytes() + b'{"step": 1, "comp')
  table.CompletionLog(tmp_path).write(2, [{"completion": "y"}])
  assert [row["step"] for row in rows_of(tmp_path)] == [1, 2]
  file.write_bytes(b"nonsense\n" + file.read_bytes())
  with pytest.raises(ValueError, match="00000000.jsonl:1: not JSON"):
    table.CompletionLog(tmp_path).write(3, [{"completion": "z"}])
