"""The script that plans all configs: its rows exist, a worse plan fails, the page has all of the record."""
import json

import pytest

from atlas_jax.command import read_config
from atlas_jax.plan import targets
from scripts import plan_all
from tests.pages import ROOT

FOUND = {"key": "configs/a.py 8 x v5e --config.mesh.fsdp=8", "config": "configs/a.py", "target": "v5e",
         "devices": 8, "fits": True, "parameters": 1_000, "rows": 8, "accumulate_steps": 2, "advice": None,
         "memory": {"peak": 2**30, "limit": 2**31}, "program": {"kernels": 1_234, "bytes": 5e9},
         "collectives": [{"bytes": 600}, {"bytes": 400}],
         "estimate": {"step_s": 0.25, "tokens_per_s": 4_000.0, "largest": [{"term": "launches"}]}}


@pytest.mark.parametrize("row", plan_all.ROWS, ids=lambda row: row.key)
def test_rows_name_configs_machines_and_fields_that_exist(row):
  assert targets.load(row.target).limit_bytes > 0
  fields = dict(flag.removeprefix("--config.").split("=", 1) for flag in row.flags)
  read_config(str(ROOT / row.config), fields)


def test_a_plan_that_does_not_fit_or_exchanges_more_is_a_problem():
  assert plan_all.problems(FOUND, None) == plan_all.problems(FOUND, FOUND) == []
  more = {**FOUND, "collectives": [{"bytes": 1_100}]}
  assert "1,100 bytes between devices, 1,000 in the record" in plan_all.problems(more, FOUND)[0]
  assert "does not fit" in plan_all.problems({**FOUND, "fits": False}, FOUND)[0]
  assert plan_all.problems({"key": "x", "error": "no compiler"}, FOUND) == ["x: no compiler"]


def test_rows_are_planned_written_in_their_order_and_put_into_the_page(tmp_path, monkeypatch, capsys):
  out, page = tmp_path / "plan.jsonl", tmp_path / "plan.md"
  page.write_text("# Plans\n\n<!-- table -->\nold\n<!-- table -->\n\nEnd.\n")
  monkeypatch.setattr(plan_all, "plan", lambda row: {**FOUND, "key": row.key, "wall_s": 1})
  assert plan_all.main([f"--out={out}", "--only=trm_arc"]) == 0
  assert plan_all.main([f"--out={out}", "--only=memory_170m"]) == 0
  keys = [json.loads(line)["key"] for line in out.read_text().splitlines()]
  assert keys == [row.key for row in plan_all.ROWS if "trm_arc" in row.key or "memory_170m" in row.key]
  plan_all.main([f"--out={out}", f"--table={page}"])
  text = page.read_text()
  row = "| 1,000 | 8 in 2 | yes | 1.00 | 2.00 | 1,234 | 5.0 | 0.000 | 0.2500 | 4,000 tokens | launches |"
  assert row in text
  assert "old" not in text and text.endswith("<!-- table -->\n\nEnd.\n")
  monkeypatch.setattr(plan_all, "plan", lambda row: {"key": row.key, "error": "why", "wall_s": 1})
  assert plan_all.main([f"--out={out}", "--only=trm_arc", "--check"]) == 1
  assert "why" in capsys.readouterr().err
  with pytest.raises(SystemExit):
    plan_all.main([f"--out={out}", "--only=nothing"])
