"""Draws raw gates and emptied gains over tokens, and prints the tables of the README.

  python -m experiments.gate_collapse.analysis experiments/gate_collapse/results.json
"""
import pathlib
import sys

import numpy as np
from matplotlib import figure

from experiments import arms
from experiments.gate_collapse.run import ARMS, FAULTY, OPTIONS, OURS

LEAST_GATE = 0.1  # Of the mean of a block's raw gate; below it the gate has collapsed.
OPEN_GATE = 0.2  # What the episodic recipe shall keep.
HEADER = ("arm", "what", "seeds", "raw gate, lowest block", "emptied gain, nats per byte", "its growth per 100,000 "
          "bytes", "recall past the window", "emptied", "bits per byte", "collapse")


def rows_of(found: dict, arm: str) -> list[dict]:
  """Returns the rows of an arm in the order of their seeds."""
  named = sorted((int(name.rpartition("/")[2]), row) for name, row in found.items()
                 if name.rpartition("/")[0] == arm)
  return [row for _, row in named]


def lowest_gate(row: dict) -> float:
  """Returns the raw gate of the block where it is lowest: the mean of the last three rows of metrics."""
  return float(np.mean([entry["raw"] for entry in row["gates"][-3:]], axis=0).min())


def growth(row: dict) -> float:
  """Returns the growth of the emptied gain per 100,000 bytes read, by least squares over all evaluations."""
  tokens, gains = ([entry[name] for entry in row["evals"]] for name in ("tokens", "emptied"))
  return float(np.polyfit(np.array(tokens) / 1e5, gains, 1)[0])


def collapsed(row: dict) -> list[str]:
  """Returns the reasons for which a run counts as collapsed; none if it does not."""
  last = row["evals"][-1]
  reasons = ["gate"] if lowest_gate(row) < LEAST_GATE else []
  return reasons + (["gain"] if last["emptied_low"] <= 0 else [])


def gain_of(rows: list[dict]) -> str:
  """Writes the emptied gain at the end, with its interval over documents, or over seeds if there are several."""
  last = rows[0]["evals"][-1]
  if len(rows) == 1:
    return f"{last['emptied']:+.3f} ({last['emptied_low']:+.3f} to {last['emptied_high']:+.3f})"
  mean, low, high = arms.interval([row["evals"][-1]["emptied"] for row in rows])
  return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def mean(values) -> float:
  """Returns the mean over seeds."""
  return float(np.mean(list(values)))


def table(found: dict, chosen) -> str:
  """Writes a Markdown table of the arms that have been run."""
  lines = [f"| {' | '.join(HEADER)} |", "| --- " * len(HEADER) + "|"]
  for arm in chosen:
    rows = rows_of(found, arm.name)
    if not rows:
      continue
    reasons = [collapsed(row) for row in rows]
    count = sum(map(bool, reasons))
    names = " and ".join(dict.fromkeys(name for each in reasons for name in each))
    told = "no" if not count else f"**{names}**" + (f", {count} of {len(rows)}" if len(rows) > 1 else "")
    cells = [arm.name, arm.says, str(len(rows)), f"{mean(map(lowest_gate, rows)):.3f}", gain_of(rows),
             f"{mean(map(growth, rows)):+.3f}", f"{mean(map(recall, rows)):.2f}",
             f"{mean(row['recall_accuracy_emptied'] for row in rows):.2f}",
             f"{mean(map(bits, rows)):.3f}", told]
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def answer(found: dict) -> str:
  """Writes what was found in three sentences, of the arms that have been run."""
  def number(arm, of):
    return mean(map(of, rows_of(found, arm)))

  def end(arm):
    return number(arm, lambda row: row["evals"][-1]["emptied"])

  def listed(names):
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names) or "none"

  alone = [arm.name for arm in FAULTY if not arm.name.startswith("original") and rows_of(found, arm.name)]
  shut = [name for name in alone if any(map(collapsed, rows_of(found, name)))]
  rest = [name for name in alone if name not in shut]
  gates = {name: number(name, lowest_gate) for name in ("episodic", "plain", "original", "original_plain")}
  return (
      f"Without the faults nothing collapses here: the raw gate of the lowest block ends at {gates['episodic']:.2f} "
      f"with episodes and {gates['plain']:.2f} with plain text, and the emptied gain grows to {end('episodic'):.2f} and "
      f"{end('plain'):.2f} nats per byte.\n"
      f"With all of them the same model's gates fall to {gates['original']:.3f} in the original's episodes and to "
      f"{gates['original_plain']:.3f} in its plain training; switched on alone, those that collapse it are "
      f"{listed(shut)}, and those that do not {listed(rest)}.\n"
      f"What episodes give is recall past the window, {number('episodic', recall):.2f} of answers right for "
      f"{number('plain', recall):.2f} of plain training, and at this length they cost much: "
      f"{number('episodic', bits):.2f} bits per byte for {number('plain', bits):.2f}.")


def recall(row: dict) -> float:
  """Returns the fraction of right answers beyond the reach of attention."""
  return row["recall_accuracy_past_window"]


def bits(row: dict) -> float:
  """Returns bits per held-out byte."""
  return row["val_bits_per_byte"]


def draw(found: dict, file: pathlib.Path) -> None:
  """Draws raw gates of the lowest block above, emptied gains below; faults on the left, options on the right."""
  page = figure.Figure(figsize=(15, 8.5), layout="constrained")
  panels = page.subplots(2, 2, sharex=True, sharey="row")
  for column, chosen in enumerate(([*OURS, *FAULTY], [*OURS, *OPTIONS])):
    gates, gains = panels[:, column]
    for at, arm in enumerate(chosen):
      look = {"color": f"C{at % 10}", "linestyle": "-" if at < len(OURS) else ("--", ":")[at // 10],
              "linewidth": 2.5 if at < len(OURS) else 1.2}
      for number, row in enumerate(rows_of(found, arm.name)):
        label = arm.name if not number else None
        gates.plot([one["tokens"] for one in row["gates"]], [min(one["raw"]) for one in row["gates"]],
                   label=label, **look)
        gains.plot([one["tokens"] for one in row["evals"]], [one["emptied"] for one in row["evals"]],
                   label=label, marker=".", **look)
    gates.axhline(LEAST_GATE, color="k", linewidth=0.6)
    gains.axhline(0, color="k", linewidth=0.6)
    gains.set_xlabel("bytes read in training")
    gains.legend(fontsize="small", ncols=2)
  panels[0, 0].set(ylabel="raw gate of the lowest block, before the floor", title="faults of the original",
                   ylim=(0, 1))
  panels[0, 1].set_title("options of the episodic recipe")
  panels[1, 0].set(ylabel="emptied gain, nats per byte; symmetric logarithm", yscale="symlog")
  page.savefig(file, dpi=100)


def main(results: str) -> None:
  """Prints the tables and writes a picture of the results' name beside them."""
  path = pathlib.Path(results)
  found = arms.read(path)
  print(answer(found), "", table(found, [*OURS, *FAULTY]), "", table(found, OPTIONS), sep="\n")
  draw(found, path.with_suffix(".png"))


if __name__ == "__main__":
  main(*sys.argv[1:])
