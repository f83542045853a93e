"""Plans every shipped full-size config for its machines, and writes the table of results.

  python scripts/plan_all.py --out=experiments/benchmarks/plan.jsonl
  python scripts/plan_all.py --only=memory_40m --out=experiments/benchmarks/plan.jsonl
  python scripts/plan_all.py --table=experiments/benchmarks/plan.md --out=experiments/benchmarks/plan.jsonl

Each plan is made by the program, in a process of its own (`python -m atlas_jax.main --mode=plan`); rows that
are there are replaced. With --check it fails where a config does not fit a machine that it is listed for, or
where a program exchanges over 5% more bytes between devices than the row that is there says. Needs the extra
`plan`.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import NamedTuple

from atlas_jax.files import closed_pipe

ROOT = pathlib.Path(__file__).resolve().parent.parent
GIB = 2**30


class Row(NamedTuple):
  """One plan: a config, its machine, and fields that differ."""

  config: str
  target: str
  devices: int = 1
  flags: tuple[str, ...] = ()

  @property
  def key(self) -> str:
    """Returns what tells rows apart."""
    return " ".join((self.config, f"{self.devices} x {self.target}", *self.flags))


SHARDED = ("--config.mesh.fsdp=8",)
ROWS = (
    Row("configs/memory_40m.py", "rtx4090", flags=("--config.data.batch_rows=24",)),
    *(Row("configs/memory_40m.py", target) for target in ("rtx5090", "h100", "v5e")),
    Row("configs/memory_40m.py", "v5e", 8, SHARDED),
    Row("configs/memory_170m.py", "h100"), Row("configs/memory_170m.py", "v5e", 8, SHARDED),
    Row("configs/memory_340m.py", "h100"), Row("configs/memory_340m.py", "v5e", 8, SHARDED),
    Row("configs/memory_760m.py", "h100"), Row("configs/memory_1300m.py", "h200"),
    Row("configs/memory_tnt.py", "h100"),
    Row("configs/atlas_ranked.py", "rtx5060ti16"), Row("configs/atlas_ranked.py", "h100"),
    Row("configs/trm_sudoku.py", "rtx5090"), Row("configs/trm_maze.py", "h100"),
    Row("configs/trm_arc1.py", "h100"), Row("configs/trm_arc2.py", "h100"),
    Row("configs/modular.py", "rtx5090"),
)
TOLERATED = 1.05  # Bytes between devices over those of the record.


def plan(row: Row) -> dict:
  """Runs the program for a row and returns its object, or {"error": its line}."""
  env = os.environ | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "-1", "TPU_SKIP_MDS_QUERY": "1"}
  command = [sys.executable, "-m", "atlas_jax.main", "--mode=plan", f"--config={row.config}",
             f"--target={row.target}", f"--devices={row.devices}", *row.flags]
  began = time.monotonic()
  done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
  try:
    found = json.loads(done.stdout)
  except ValueError:
    found = {"error": (done.stderr.strip().splitlines() or ["no output"])[-1], "devices": row.devices,
             "config": row.config, "target": row.target}
  return {"key": row.key, **found, "wall_s": round(time.monotonic() - began),
          "date": time.strftime("%Y-%m-%d")}


def exchanged(found: dict) -> int:
  """Returns the bytes that a device exchanges in an update."""
  return sum(one["bytes"] for one in found.get("collectives", ()))


def problems(found: dict, before: dict | None) -> list[str]:
  """Lists what is wrong with a plan, and worse than in the record."""
  if "error" in found:
    return [f"{found['key']}: {found['error']}"]
  bad = [] if found["fits"] else [f"{found['key']}: does not fit"]
  if before and "error" not in before and exchanged(found) > TOLERATED * exchanged(before):
    bad.append(f"{found['key']}: {exchanged(found):,} bytes between devices, {exchanged(before):,} in the "
               "record")
  return bad


def read(file: pathlib.Path) -> dict[str, dict]:
  """Reads the record by key; {} where there is none."""
  lines = file.read_text().splitlines() if file.exists() else []
  return {row["key"]: row for row in map(json.loads, lines)}


def table(rows: dict[str, dict]) -> str:
  """Returns the rows as Markdown."""
  head = ("| config | machine | parameters | rows | fits | peak GiB | of | kernels | GB moved | GB between "
          "devices | estimated s | per second | largest term |\n" + "| --- " * 13 + "|")
  lines = [head]
  for row in rows.values():
    name = " ".join([row["config"].removeprefix("configs/"), *row["key"].split()[4:]])
    machine = f"{row['devices']} x {row['target']}"
    if "error" in row:
      lines.append(f"| {name} | {machine} | {row['error'][:90]} |" + " |" * 10)
      continue
    memory, time_ = row["memory"], row["estimate"]
    unit, speed = next((name, value) for name, value in time_.items() if name.endswith("_per_s"))
    fits = "yes" if row["fits"] else "no: " + (row["advice"] or {"lines": [""]})["lines"][0]
    lines.append(
        f"| {name} | {machine} | {row['parameters']:,} | {row['rows']} in {row['accumulate_steps']} | "
        f"{fits} | "
        f"{memory['peak'] / GIB:.2f} | {memory['limit'] / GIB:.2f} | {row['program']['kernels']:,} | "
        f"{row['program']['bytes'] / 1e9:.1f} | {exchanged(row) / 1e9:.3f} | {time_['step_s']:.4f} | "
        f"{speed:,.0f} {unit.removesuffix('_per_s')} | {time_['largest'][0]['term']} |")
  return "\n".join(lines)


@closed_pipe.quiet
def main(argv: list[str] | None = None) -> int:
  """Plans, writes, and returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  add = parser.add_argument
  add("--out", type=pathlib.Path, required=True, help="the record, a JSON object in each line")
  add("--only", default="", help="rows whose key has this in it")
  add("--table", type=pathlib.Path, help="the page whose table is written anew; nothing is planned")
  add("--check", action="store_true", help="fail where a config does not fit or exchanges more")
  asked = parser.parse_args(argv)
  record = read(asked.out)
  if asked.table:
    mark = "<!-- table -->\n"
    page = asked.table.read_text()
    before, _, rest = page.partition(mark)
    asked.table.write_text(before + mark + table(record) + "\n" + rest[rest.index(mark):])
    return 0
  chosen = [row for row in ROWS if asked.only in row.key]
  if not chosen:
    parser.error(f"--only={asked.only}: no row has it; rows are {'; '.join(row.key for row in ROWS)}")
  bad = []
  for row in chosen:
    found = plan(row)
    bad += problems(found, record.get(row.key))
    record[row.key] = found
    ordered = [record[one.key] for one in ROWS if one.key in record]
    asked.out.write_text("".join(json.dumps(one) + "\n" for one in ordered))
    print(f"{row.key}: {found.get('error') or ('fits' if found['fits'] else 'does not fit')}, "
          f"{found['wall_s']} s", flush=True)
  print("\n".join(bad), file=sys.stderr)
  return int(bool(bad) and asked.check)


if __name__ == "__main__":
  sys.exit(main())
