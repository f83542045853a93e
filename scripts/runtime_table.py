"""Writes the table of the runtime in docs/benchmarks.md from the rows that were measured.

  python scripts/bench.py runtime --json > experiments/benchmarks/runtime.jsonl
  python scripts/runtime_table.py
"""
import json
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
RECORD = "experiments/benchmarks/runtime.jsonl"
PAGE = "docs/benchmarks.md"
HEAD = "| of the runtime | store | found | bar | met |\n| --- | --- | --- | --- | --- |\n"
TABLE = re.compile(r"^\| of the runtime \|.*\n(\|.*\n)+", re.MULTILINE)
# What a row is about -> what is measured, as people read it.
NAMES = {"concurrent": "{sessions} sessions at once", "session": "a session of two attempts, alone",
         "messages": "characters of the messages for a task of three", "tokens": "tokens that results count",
         "cpu": "an auto session, {judge_calls} calls of judges"}
FOUND = {"concurrent": "{ended} ended, {stored} stored, {connections} connections, {statements} statements a "
                       "session, {wall_s} s",
         "session": "{statements} statements, {bytes:,} bytes",
         "messages": "{student_chars} to a student, {teacher_chars} to a teacher",
         "tokens": "{tokens_counted:.0%}", "cpu": "{cpu_ms} CPU-ms"}


def rows() -> list[dict[str, Any]]:
  """Returns the rows that were measured."""
  return [json.loads(line) for line in (ROOT / RECORD).read_text().splitlines()]


def table(found: Sequence[Mapping[str, Any]]) -> str:
  """Returns the table of rows.

  Raises:
    ValueError: if one has an error.
  """
  lines = []
  for one in found:
    if "error" in one:
      raise ValueError(f"{RECORD} has a row with an error: {one['error']}; measure it again")
    what = one["what"]
    cells = (NAMES[what].format(**one), one["store"], FOUND[what].format(**one), one["bar"],
             "yes" if one["met"] else "**no**")
    lines.append(f"| {' | '.join(cells)} |\n")
  return HEAD + "".join(lines)


def written(page: str) -> str:
  """Returns a page with the table in place of the one that it has.

  Raises:
    ValueError: if it has none, or several.
  """
  if len(TABLE.findall(page)) != 1:
    raise ValueError(f"{PAGE} must have one table whose first column is `of the runtime`; restore its head")
  return TABLE.sub(lambda _: table(rows()), page)


def main() -> None:
  """Writes the table anew."""
  page = ROOT / PAGE
  try:
    page.write_text(written(page.read_text()))
  except ValueError as error:
    sys.exit(f"runtime_table: {error}")


if __name__ == "__main__":
  main()
