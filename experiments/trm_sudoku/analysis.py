"""Keeps the curves of recursive models: NAME.csv and NAME.json for each run, and curves.png of all of them.

  python experiments/trm_sudoku/analysis.py experiments/trm_sudoku 4x4=runs/sudoku4 6x6=runs/sudoku6
"""
import json
import pathlib
import sys

from matplotlib import figure

from atlas_jax.monitor import report

COLUMNS = {"step": "step", "supervision_steps": "train/supervision_steps_seen",
           "loss_nats": "train/loss_nats",
           "train_exact_accuracy": "recent/exact_accuracy", "train_steps": "recent/steps",
           "held_out_exact_accuracy": "eval/all/exact_accuracy", "held_out_accuracy": "eval/all/accuracy",
           "pass_at_2": "ARC/pass@2"}


def draw(runs: dict[str, list[dict]], file: pathlib.Path) -> None:
  """Draws exact accuracy against steps, one panel per run."""
  page = figure.Figure(figsize=(5.5 * len(runs), 4), layout="constrained")
  lines = (("recent/exact_accuracy", "-", "training puzzles"), ("eval/all/exact_accuracy", "o-", "held out"),
           ("ARC/pass@2", "s--", "held-out tasks, two attempts"))
  for axes, (name, rows) in zip(page.subplots(1, len(runs), squeeze=False)[0], runs.items(), strict=True):
    for column, style, label in lines:
      if found := [(row["step"], row[column]) for row in rows if row.get(column) is not None]:
        axes.plot(*zip(*found, strict=True), style, label=label, linewidth=1.2, markersize=5)
    axes.set(xlabel="updates", ylabel="fraction solved exactly", ylim=(-0.02, 1.02), title=name)
    axes.grid(alpha=0.3)
    axes.legend()
  page.savefig(file, dpi=110)


def main(folder: str, *named: str) -> None:
  """Reads the runs, given as NAME=WORKDIR, and writes into `folder`."""
  runs = {}
  for name, _, workdir in (each.partition("=") for each in named):
    runs[name] = report.read_metrics(workdir)
    report.write_csv(runs[name], COLUMNS, pathlib.Path(folder) / f"{name}.csv")
    summary = json.loads((pathlib.Path(workdir) / "summary.json").read_text())
    (pathlib.Path(folder) / f"{name}.json").write_text(json.dumps(summary, indent=1) + "\n")
  draw(runs, pathlib.Path(folder) / "curves.png")


if __name__ == "__main__":
  main(*sys.argv[1:])
