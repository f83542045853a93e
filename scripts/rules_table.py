"""Writes the table of memory rules in docs/rules.md from the rules' own files.

  python scripts/rules_table.py

A rule's docstring says its line ("In a line: ..."), its state ("Floats per head: ...") and its papers
("Source: ..." with "arXiv:..."). Speeds are of experiments/benchmarks/rules.json, over those of titans, in
the same run where a rule's entry names them (`titans_tokens_per_cpu_s`); a rule that was not measured has
none. Rules are in the order of their papers.
"""
import importlib
import json
import pathlib
import re
import sys

from atlas_jax.memory import rules

ROOT = pathlib.Path(__file__).parents[1]
RECORD = "experiments/benchmarks/rules.json"
HEAD = ("| rule | one line (per head; a, m, r, c are gates of the token, l = ½‖f(k) − v‖²) "
        "| state, floats per head | speed | source |\n| --- | --- | --- | --- | --- |\n")
TABLE = re.compile(r"^\| rule \|.*\n(\|.*\n)+", re.MULTILINE)


def row(name: str, text: str, speeds: dict[str, float]) -> tuple[list[str], str, str]:
  """Returns a rule's papers and name, by which rows are sorted, and its row.

  Args:
    name: of the rule.
    text: its docstring.
    speeds: tokens per second of each rule that was measured, titans among them.

  Raises:
    ValueError: if the docstring lacks a line that the table needs.
  """
  line = _said(name, text, "In a line", r".*")
  floats = _said(name, text, "Floats per head", r".*")
  papers = re.findall(r"arXiv:(\d{4}\.\d{4,5})", _said(name, text, "Source", r"(?s:.*)"))
  if not papers:
    raise ValueError(f"atlas_jax/memory/rules/{name}.py names no arXiv:... under Source:")
  links = ", ".join(f"[{paper}](https://arxiv.org/abs/{paper})" for paper in papers)
  speed = f"{speeds[name] / speeds['titans']:.2f}" if name in speeds else "–"
  link = f"[`{name}`](../atlas_jax/memory/rules/{name}.py)"
  return papers, name, f"| {link} | {line} | {floats} | {speed} | {links} |\n"


def table() -> str:
  """Returns the table of all rules in the folder."""
  measured = json.loads((ROOT / RECORD).read_text())["rules"]
  titans = measured["titans"]["tokens_per_cpu_s"]
  speeds = {name: found["tokens_per_cpu_s"] * titans / found.get("titans_tokens_per_cpu_s", titans)
            for name, found in measured.items()}
  docs = {name: importlib.import_module(f"{rules.__name__}.{name}").__doc__ or "" for name in rules.names()}
  rows = sorted(row(name, text, speeds) for name, text in docs.items())
  return HEAD + "".join(line for _, _, line in rows)


def written(page: str) -> str:
  """Returns a page with the table in place of the one that it has.

  Raises:
    ValueError: if it has none, or several.
  """
  if len(TABLE.findall(page)) != 1:
    raise ValueError("docs/rules.md must have one table whose first column is `rule`; restore its head")
  return TABLE.sub(lambda _: table(), page)


def _said(name: str, text: str, label: str, pattern: str) -> str:
  found = re.search(f"^{label}: ({pattern})", text, re.MULTILINE)
  if found is None:
    raise ValueError(f"atlas_jax/memory/rules/{name}.py has no line {label + ': ...'!r} in its docstring, "
                     "which the table in docs/rules.md needs")
  return found[1].strip()


def main() -> None:
  """Writes the table anew."""
  page = ROOT / "docs/rules.md"
  try:
    page.write_text(written(page.read_text()))
  except ValueError as error:
    sys.exit(f"rules_table: {error}")


if __name__ == "__main__":
  main()
