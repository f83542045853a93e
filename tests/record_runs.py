"""Records what the dashboard reads of real runs, as fixtures of its tests: tests/fixtures/dashboard.

  export JAX_NUM_CPU_DEVICES=1
  python -m atlas_jax.main --config=configs/memory_40m.py:smoke --workdir=/tmp/runs/flagship_smoke \
    --config.optim.steps=240 --config.train.eval_every_steps=40 --config.train.log_every_steps=1 \
    --config.eval.gain_max_tokens=8192 --config.eval.max_tokens=8192
  python -m atlas_jax.main --config=configs/trm_sudoku.py:4x4 --workdir=/tmp/runs/sudoku_4x4 \
    --config.optim.steps=120 --config.train.eval_every_steps=40 --config.train.log_every_steps=2
  python -m atlas_jax.main --config=configs/grpo_arithmetic.py:cpu --workdir=/tmp/runs/grpo_sums \
    --config.optim.steps=120 --config.train.eval_every_steps=20 --config.train.log_every_steps=2
  python -m atlas_jax.main --config=configs/modular.py:smoke --workdir=/tmp/runs/modular_smoke \
    --config.optim.steps=40 --config.train.eval_every_steps=4 --config.train.log_every_steps=1
  python -m tests.record_runs /tmp/runs/*
"""

import json
import pathlib
import shutil
import sys

FOLDER = pathlib.Path(__file__).parent / "fixtures" / "dashboard"
FILES = ("config.json", "metrics.jsonl", "summary.json", "time.json")
COMPLETIONS = 160  # The newest ones.
DIGITS = 6  # Of numbers: what a clock measured has more, and nobody looks at them.


def short(value):
  """Rounds the numbers in a value of JSON."""
  match value:
    case float():
      return float(f"{value:.{DIGITS}g}")
    case dict():
      return {key: short(one) for key, one in value.items()}
    case _:
      return value


def write_lines(source: pathlib.Path, target: pathlib.Path, newest: int | None = None) -> None:
  """Copies JSON lines with fewer digits."""
  lines = source.read_text().splitlines()
  lines = lines[-newest:] if newest else lines
  target.write_text("".join(json.dumps(short(json.loads(line)), ensure_ascii=False) + "\n" for line in lines))


def record(run: pathlib.Path) -> None:
  """Copies what is read of a run, its newest two evaluations' pictures among it."""
  target = FOLDER / run.name
  shutil.rmtree(target, ignore_errors=True)
  target.mkdir(parents=True)
  for name in FILES:
    if (run / name).exists():
      write_lines(run / name, target / name) if name.endswith("l") else shutil.copy(run / name, target / name)
  for file in sorted((run / "completions").glob("*.jsonl"))[-1:]:
    (target / "completions").mkdir()
    write_lines(file, target / "completions" / file.name, COMPLETIONS)
  for folder in sorted((run / "evals").glob("step_*"))[-2:]:
    for name in ("puzzles.png", "steps.json"):
      if (folder / name).exists():
        (target / "evals" / folder.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, target / "evals" / folder.name / name)


if __name__ == "__main__":
  for path in sys.argv[1:]:
    record(pathlib.Path(path))
