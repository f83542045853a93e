"""Draws raw gates and emptied gains over tokens, and writes the answer and the tables into the README.

  python -m experiments.gate_collapse.analysis experiments/gate_collapse/results.json

Picture and README stand beside the results; of the README the parts between comments of PARTS are written.
"""
import pathlib
import sys

import numpy as np
from matplotlib import figure

from experiments import arms
from experiments.gate_collapse.run import ARMS, FAULTY, OPTIONS, OURS

COMPARED = ("episodic", "plain", "original", "original_plain")  # In words.
LEAST_GATE = 0.1  # Of the mean of a block's raw gate; below it the gate has collapsed.
HEADER = ("arm", "what", "seeds", "raw gate, lowest block", "emptied gain, nats per byte",
          "its growth per 100,000 bytes", "recall past the window", "emptied", "bits per byte", "collapse")


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
  """Writes the emptied gain at the end, and its interval: over documents, or over several seeds."""
  last = rows[0]["evals"][-1]
  if len(rows) == 1:
    return f"{last['emptied']:+.3f} ({last['emptied_low']:+.3f} to {last['emptied_high']:+.3f})"
  middle, low, high = arms.interval(list(map(gain, rows)))
  return f"{middle:+.3f} ({low:+.3f} to {high:+.3f})"


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
  def of(arm, measure):
    return mean(map(measure, rows_of(found, arm)))

  alone = [arm.name for arm in FAULTY if not arm.name.startswith("original") and rows_of(found, arm.name)]
  shut = [name for name in alone if any(map(collapsed, rows_of(found, name)))]
  alive = [name for name in alone if name not in shut]
  gates, gains, recalls, losses = ({arm: of(arm, measure) for arm in COMPARED}
                                   for measure in (lowest_gate, gain, recall, bits))
  return (
      f"{open_words(found)}: the raw gate of the lowest block ends at {gates['episodic']:.2f} with episodes "
      f"and at {gates['plain']:.2f} with plain text, and the emptied gain at {gains['episodic']:.2f} and "
      f"{gains['plain']:.2f} nats per byte.\n"
      f"With all of them the same model's lowest gate falls to {gates['original']:.3f} in the original's "
      f"episodes and to {gates['original_plain']:.3f} in its plain training, with gains of "
      f"{gains['original']:.3f} and {gains['original_plain']:.3f}; switched on alone, these collapse it: "
      f"{', '.join(shut) or 'none'}; and these do not: {', '.join(alive) or 'none'}.\n"
      f"Episodes give recall past the window, {recalls['episodic']:.2f} of answers right for "
      f"{recalls['plain']:.2f} of plain training, at {losses['episodic']:.2f} bits per byte of text in "
      f"place of {losses['plain']:.2f}.")


def open_words(found: dict) -> str:
  """Says whether anything collapses without the faults."""
  ours = [row for arm in OURS for row in rows_of(found, arm.name)]
  return "Without the faults " + ("something collapses" if any(map(collapsed, ours)) else "nothing collapses")


def gain(row: dict) -> float:
  """Returns the emptied gain at the end."""
  return row["evals"][-1]["emptied"]


def recall(row: dict) -> float:
  """Returns the fraction of right answers beyond the reach of attention."""
  return row["recall_accuracy_past_window"]


def bits(row: dict) -> float:
  """Returns bits per held-out byte."""
  return row["val_bits_per_byte"]


def draw(found: dict, file: pathlib.Path) -> None:
  """Draws raw gates of the lowest block above, emptied gains below; faults left, options right."""
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


def not_run(found: dict) -> str:
  """Lists the arms without results."""
  names = [arm.name for arm in ARMS if not rows_of(found, arm.name)]
  return f"Arms that have not been run: {', '.join(names)}." if names else "All arms have been run."


PARTS = {
    "answer": answer,
    "faults": lambda found: table(found, [*OURS, *FAULTY]),
    "options": lambda found: table(found, [*OURS[:1], *OPTIONS]),
    "not run": not_run,
}


def filled(page: str, found: dict) -> str:
  """Returns a page with its parts written anew; each stands between comments with its name and with "end"."""
  for name, write in PARTS.items():
    before, begin, rest = page.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition("\n<!-- end -->")
    page = f"{before}{begin}{write(found)}{end}{after}"
  return page


def main(results: str) -> None:
  """Writes a picture of the results' name, and the README, beside them."""
  path = pathlib.Path(results)
  found, page = arms.read(path), path.with_name("README.md")
  page.write_text(filled(page.read_text(), found))
  draw(found, path.with_suffix(".png"))


if __name__ == "__main__":
  main(*sys.argv[1:])
