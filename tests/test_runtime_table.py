"""The runtime's table in the page of benchmarks is what was measured, and nothing is left out."""
import pytest

from scripts import bench_runtime, runtime_table
from tests.program import ROOT


def test_the_page_has_the_table_that_the_script_writes_from_the_rows():
  page = (ROOT / runtime_table.PAGE).read_text()
  assert runtime_table.written(page) == page, "run python scripts/runtime_table.py"
  found = runtime_table.rows()
  assert {one["what"] for one in found} == set(bench_runtime.WHAT)
  for one in found:  # The date and machine that the page names are those of the rows.
    assert one["date"][:10] in page and one["device"] in page


def test_a_row_with_an_error_is_no_figure_and_a_missed_bar_is_said():
  row = {"what": "cpu", "store": "sqlite", "judge_calls": 0, "cpu_ms": 5.1, "bar": "cpu_ms <= 5",
         "met": False}
  assert runtime_table.table([row]).endswith(
    "| an auto session, 0 calls of judges | sqlite | 5.1 CPU-ms | cpu_ms <= 5 | **no** |\n")
  with pytest.raises(ValueError, match="a row with an error: of 40 sessions 5 ended"):
    runtime_table.table([{**row, "error": "of 40 sessions 5 ended"}])
  with pytest.raises(ValueError, match="one table whose first column is `of the runtime`"):
    runtime_table.written("# Page\n")
