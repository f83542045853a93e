"""Keeps a run's curve: curve.csv and curve.png from its metrics, and the yardsticks from its summary.

  python experiments/embedded_corpus/analysis.py runs/cpu_1h experiments/embedded_corpus
"""
import json
import pathlib
import sys

from matplotlib import figure

from atlas_jax.monitor import report

COLUMNS = {"step": "step", "tokens": "train/tokens_seen", "train_bits_per_byte": "train/bits_per_byte",
           "held_out_bits_per_byte": "val/bits_per_byte"}
YARDSTICKS = ("trigram_bits_per_byte", "gzip_bits_per_byte")


def draw(rows: list[dict], summary: dict, file: pathlib.Path) -> None:
  """Draws bits per byte against tokens, with the yardsticks of the same held-out bytes."""
  page = figure.Figure(figsize=(9, 5), layout="constrained")
  axes = page.subplots()
  for name, style in (("train/bits_per_byte", "-"), ("val/bits_per_byte", "o-")):
    found = [(row["train/tokens_seen"] / 1e6, row[name]) for row in rows if name in row]
    axes.plot(*zip(*found, strict=True), style, label=name, linewidth=1)
  for name, line in zip(YARDSTICKS, ("--", ":"), strict=True):
    axes.axhline(summary[name], linestyle=line, color="grey", label=f"{name} {summary[name]:.3f}")
  axes.set(xlabel="million tokens seen", ylabel="bits per byte", ylim=(1, 4))
  axes.legend()
  page.savefig(file, dpi=110)


def main(workdir: str, folder: str) -> None:
  """Reads the run in `workdir`, writes into `folder`."""
  rows = report.read_metrics(workdir)
  summary = json.loads((pathlib.Path(workdir) / "summary.json").read_text())
  report.write_csv(rows, COLUMNS, pathlib.Path(folder) / "curve.csv")
  draw(rows, summary, pathlib.Path(folder) / "curve.png")


if __name__ == "__main__":
  main(*sys.argv[1:])
