"""Runs this project's identities, liveness and emptied control on public packages, ours first.

  python scripts/conformance.py [--python=PATH ...] [--only=ADAPTER ...] [--row=TEXT] [--check=NAME ...]
      [--out=FILE.json] [--page=FILE.md]

Adapters are the files of experiments/conformance/adapters/. Each runs in a process of its own, with the first
Python that has its package: this one, or one of --python. A package that none has is named as not run. --row
keeps the rows whose names have that text. --out writes all that was measured, and keeps what such a file has
of adapters that --only leaves out; --page puts the table and what is behind each cell between the marks of a
Markdown page. Exit status 1: one of ours does not pass, but for what EXCUSED names of the language model, or
an installed package could not be run.
"""
import argparse
import datetime
import importlib
import json
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from atlas_jax.files import closed_pipe  # noqa: E402  As the next.
from experiments.conformance.checks import CHECKS  # noqa: E402  The root must be known first.

ADAPTERS = ROOT / "experiments" / "conformance" / "adapters"
OURS = "ours"
FINE = ("pass", "documented", "n/a")  # Shown plainly in the table.
# Of ours everything must pass but this: what the docstring of `LM` says it does not do. Check -> status.
LANGUAGE_MODEL = "LM, "
EXCUSED = {"padding": "n/a", "packing": "documented"}
LIMIT_S = 1800  # Of one adapter.
MARKS = ("<!-- table: begin -->", "<!-- table: end -->")
LOOK_UP = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"


def names() -> list[str]:
  """Returns the adapters by name, ours first."""
  found = sorted(path.stem for path in ADAPTERS.glob("[!_]*.py"))
  return sorted(found, key=lambda name: name != OURS)


def adapter_of(name: str):
  """Imports an adapter, which imports no package."""
  return importlib.import_module(f"experiments.conformance.adapters.{name}")


def find_python(package: str, pythons: list[str]) -> tuple[str, str] | None:
  """Returns the first Python that has a package, and its version; None if none has."""
  for python in pythons:
    asked = subprocess.run([python, "-c", LOOK_UP, package], capture_output=True, text=True)
    if asked.returncode == 0:
      return python, asked.stdout.strip()
  return None


def child(name: str, row: str, checks: list[str], out: str) -> None:
  """Judges the rows of one adapter and writes them."""
  from experiments.conformance import verdicts

  subjects = [one for one in adapter_of(name).subjects() if row in one.name]
  pathlib.Path(out).write_text(json.dumps(verdicts.judge_all(subjects, checks)))


def run(name: str, pythons: list[str], row: str, checks: list[str]) -> dict:
  """Runs one adapter in a process of its own.

  Returns:
    what it is of, and its rows; or why there are none, under "not_run".
  """
  adapter = adapter_of(name)
  about = {"adapter": name, "package": adapter.PACKAGE, "documented": adapter.DOCUMENTED,
           "date": f"{datetime.date.today()}", "machine": f"{platform.machine()}, CPU alone"}
  found = find_python(adapter.PACKAGE, pythons)
  if found is None:
    return about | {"not_run": f"{adapter.PACKAGE} is installed in none of: {', '.join(pythons)}"}
  python, about["version"] = found
  with tempfile.TemporaryDirectory() as folder:
    out = pathlib.Path(folder) / "rows.json"
    command = [python, __file__, f"--child={name}", f"--row={row}", f"--out={out}",
               *(f"--check={check}" for check in checks)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    try:
      done = subprocess.run(command, env=environment, timeout=LIMIT_S, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
      return about | {"not_run": f"it took more than {LIMIT_S} seconds"}
    if done.returncode or not out.exists():
      last = done.stderr.strip().splitlines()[-1:] or ["no word"]
      return about | {"not_run": f"its process ended with {done.returncode}: {last[0]}"}
    return about | {"rows": json.loads(out.read_text())}


def table(results: list[dict], checks: list[str]) -> str:
  """Returns the table in Markdown: a row for each memory, a column for each check."""
  head = ["package", "version", "memory", *checks]
  lines = [head, ["---"] * len(head)]
  for result in results:
    if "not_run" in result:
      lines.append([result["package"], result.get("version", ""), "**not run**", *[""] * len(checks)])
    for row in result.get("rows", ()):
      said = [_cell(row["cells"][check]["status"]) for check in checks]
      lines.append([result["package"], result["version"], row["row"], *said])
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(status: str) -> str:
  return status if status in FINE else f"**{status}**"


def details(results: list[dict], checks: list[str]) -> str:
  """Returns what is behind each cell that is no plain pass, and how to see it."""
  lines = []
  for result in results:
    title = f"{result['package']} {result.get('version', '')}".strip()
    made = ", ".join(result[name] for name in ("date", "machine") if name in result)
    lines.append(f"\n### {title}\n\nWritten from: {result['documented']}. Run: {made}.\n")
    if "not_run" in result:
      lines.append(f"\nNot run: {result['not_run']}.\n")
    for row in result.get("rows", ()):
      see = shlex.join(["python", "scripts/conformance.py", f"--only={result['adapter']}",
                        f"--row={row['row']}"])
      lines.append(f"\n**{row['row']}** ({row['settings']}); `{see} --check=CHECK`\n\n")
      said = [f"- {check}, {_cell(row['cells'][check]['status'])}: {row['cells'][check]['text']}\n"
              for check in checks if row["cells"][check]["status"] != "pass"]
      lines += said or ["All pass.\n"]
  return "".join(lines)


def write_page(path: pathlib.Path, text: str) -> None:
  """Puts a text between the marks of a page.

  Raises:
    ValueError: if the page does not have them.
  """
  pattern = re.compile(f"{re.escape(MARKS[0])}.*{re.escape(MARKS[1])}", re.DOTALL)
  page = path.read_text()
  if not pattern.search(page):
    raise ValueError(f"--page={path} has no lines {' and '.join(MARKS)}; add them where the table belongs")
  path.write_text(pattern.sub(lambda _: f"{MARKS[0]}\n\n{text}\n{MARKS[1]}", page))


def record(path: pathlib.Path, results: list[dict], checks: list[str]) -> list[dict]:
  """Writes results to a file, in place of those of the same adapters.

  Returns:
    all that the file then holds, ours first.

  Raises:
    ValueError: if the file has results of other checks.
  """
  kept = {}
  if path.exists():
    before = json.loads(path.read_text())
    if before["checks"] != checks:
      raise ValueError(f"--out={path} has results of the checks {before['checks']}; these are of {checks}: "
                       "name another file, or run the same checks")
    kept = {result["adapter"]: result for result in before["results"]}
  kept |= {result["adapter"]: result for result in results}
  results = [kept[name] for name in names() if name in kept]
  path.write_text(json.dumps({"checks": checks, "results": results}, indent=1) + "\n")
  return results


def failed(results: list[dict]) -> bool:
  """Returns whether one of ours does not pass, see EXCUSED, or an installed package could not be run."""
  ours = [row for result in results if result["adapter"] == OURS for row in result.get("rows", ())]
  differs = any(not _passes(row["row"], check, cell["status"]) for row in ours
                for check, cell in row["cells"].items())
  return differs or any("not_run" in result and "version" in result for result in results)


def _passes(row: str, check: str, status: str) -> bool:
  return status == "pass" or (row.startswith(LANGUAGE_MODEL) and EXCUSED.get(check) == status)


def flags(arguments: list[str] | None) -> argparse.Namespace:
  """Reads the flags; ends the program where one is unknown."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--python", action="append", default=[], help="a Python with some of the packages")
  parser.add_argument("--only", action="append", choices=names(), help="adapters to run")
  parser.add_argument("--row", default="", help="text in the names of rows to run")
  parser.add_argument("--check", action="append", choices=[*CHECKS], help="checks to run")
  parser.add_argument("--out", help="file for all that was measured, JSON")
  parser.add_argument("--page", type=pathlib.Path, help="page that gets the table")
  parser.add_argument("--child", choices=names(), help=argparse.SUPPRESS)
  given = parser.parse_args(arguments)
  if given.row and not given.child and (given.out or given.page):
    parser.error("--row is for looking at some rows; --out and --page take all of an adapter: leave it out")
  return given


@closed_pipe.quiet
def main(arguments: list[str] | None = None) -> int:
  """Runs what is asked for and prints the table; returns the exit status."""
  given = flags(arguments)
  checks = given.check or [*CHECKS]
  if given.child:
    child(given.child, given.row, checks, given.out)
    return 0
  pythons = [sys.executable, *given.python]
  ran = []
  for name in given.only or names():
    print(f"{name} ...", file=sys.stderr, flush=True)
    ran.append(run(name, pythons, given.row, checks))
  results = ran
  if given.out:
    results = record(pathlib.Path(given.out), results, checks)
  text = table(results, checks) + details(results, checks)
  print(text)
  if given.page:
    write_page(given.page, text)
  return int(failed(ran))


if __name__ == "__main__":
  sys.exit(main())
