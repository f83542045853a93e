"""Writes the tables and the claims of the study into its README, and draws the rounds.

  python -m experiments.closed_loop.analysis experiments/closed_loop/results.json

Picture and README stand beside the results; of the README the part between the comments TABLE is written.
"""
import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import figure

from atlas_jax.evals import bootstrap
from experiments import arms
from experiments.adaptive_teacher.analysis import mcnemar, write_table

SAYS = {
    "none": "no training: the first teacher in every round",
    "shuffled": "training on right answers whose forms were shuffled over the sessions",
    "poison": "the gate off, 5% of the sessions poisoned",
    "poison_half": "the gate off, half of the sessions poisoned",
}
LIFT, NDR, P = 0.20, 0.97, 0.01  # What the claim asks for.
FLAT = 0.03


def rows_of(found: Mapping[str, dict], arm: str, number: int) -> list[dict]:
  """Returns the rows of a round of an arm, in the order of the seeds."""
  return sorted((row for row in found.values() if row["arm"] == arm and row["round"] == number),
                key=lambda row: row["seed"])


def last_round(found: Mapping[str, dict], arm: str) -> int:
  """Returns the last round that all seeds of an arm have."""
  by_seed: dict[int, int] = {}
  for row in found.values():
    if row["arm"] == arm:
      by_seed[row["seed"]] = max(row["round"], by_seed.get(row["seed"], 0))
  return min(by_seed.values())


def bits(rows: Sequence[dict], name: str = "right") -> np.ndarray:
  """Returns which tasks of all seeds were answered right, seed after seed."""
  return np.array([int(digit) for row in rows for digit in row[name]])


def change(found: Mapping[str, dict], arm: str, before: int, after: int) -> dict:
  """Compares two rounds of an arm on the same tasks, over the seeds that have both."""
  pairs = [(one, other) for one in rows_of(found, arm, before) for other in rows_of(found, arm, after)
           if one["seed"] == other["seed"]]
  change_N = bits([other for _, other in pairs]) - bits([one for one, _ in pairs])
  return {"seeds": len(pairs), "lift": float(change_N.mean()), "gained": int((change_N > 0).sum()),
          "lost": int((change_N < 0).sum()), "p": mcnemar(change_N), "ndr": float((change_N >= 0).mean()),
          "interval": bootstrap.interval_of_mean(change_N, np.ones(len(change_N))),
          "by_seed": [other["accuracy"] - one["accuracy"] for one, other in pairs]}


def rounds_table(found: Mapping[str, dict]) -> list[str]:
  """Writes the rounds of the loop."""
  header = ("round", "seeds", "right with the teacher", "each seed", "student alone",
            "against round 0, points", "McNemar p", "NDR against round 0", "NDR against alone",
            "teacher tokens per right answer",
            "all tokens per right answer", "training, CPU s")
  lines = _header(header)
  for number in range(last_round(found, "loop") + 1):
    rows = rows_of(found, "loop", number)
    right_N = bits(rows)
    low, high = bootstrap.interval_of_mean(right_N, np.ones(len(right_N)))
    one = change(found, "loop", 0, number)
    mean = lambda name, rows=rows: float(np.mean([row[name] for row in rows]))
    spent = [row["cpu_s"] for row in rows if "cpu_s" in row]
    lines.append(_line(
        number, len(rows), f"{right_N.mean():.1%} ({low:.1%} to {high:.1%})",
        ", ".join(f"{row['accuracy']:.1%}" for row in rows), f"{mean('alone'):.1%}",
        _points(one) if number else "", _p(one) if number else "", f"{one['ndr']:.3f}" if number else "",
        f"{mean('ndr'):.3f}", f"{mean('teacher_tokens_per_right'):.1f}", f"{mean('tokens_per_right'):.1f}",
        f"{np.mean(spent):.0f}" if spent else ""))
  return lines


def routing_table(found: Mapping[str, dict]) -> list[str]:
  """Writes what free routing does, by what counts as evidence."""
  header = ("round", "evidence", "right", "fraction auto", "in the second half", "right in auto",
            "teacher tokens, a task")
  lines = _header(header)
  for number in range(last_round(found, "loop") + 1):
    for arm, says in (("loop", "the session's answer"), ("first", "its first attempt")):
      free = [row["free"] for row in rows_of(found, arm, number)]
      if not free:
        continue
      tasks = [sum(one["lanes"].values()) for one in free]
      mean = lambda name, free=free: np.mean([one[name] for one in free if one[name] is not None])
      lines.append(_line(number, says, f"{mean('accuracy'):.1%}", f"{mean('auto_share'):.1%}",
                         f"{mean('auto_share_second_half'):.1%}", f"{mean('auto_accuracy'):.1%}",
                         f"{sum(one['teacher_tokens'] for one in free) / sum(tasks):.1f}"))
  return lines


def controls_table(found: Mapping[str, dict]) -> list[str]:
  """Writes the controls beside the loop after as many rounds."""
  lines = _header(("control", "what", "seeds", "rounds", "right at round 0", "right after",
                   "change, points", "McNemar p", "the loop after as many", "NDR against alone"))
  for arm, says in SAYS.items():
    if not rows_of(found, arm, 0):
      continue
    last = last_round(found, arm)
    one = change(found, arm, 0, last)
    seeds = {row["seed"] for row in rows_of(found, arm, last)}
    accuracy = lambda name, number, seeds=seeds: np.mean(
        [row["accuracy"] for row in rows_of(found, name, number) if row["seed"] in seeds])
    ndr = np.mean([row["ndr"] for row in rows_of(found, arm, last)])
    lines.append(_line(arm, says, one["seeds"], last, f"{accuracy(arm, 0):.1%}", f"{accuracy(arm, last):.1%}",
                       _points(one), _p(one), f"{accuracy('loop', last):.1%}", f"{ndr:.3f}"))
  return lines


def claims(found: Mapping[str, dict]) -> list[tuple[str, bool, str]]:
  """Returns (claim, whether it holds, numbers) of the spec's list."""
  last = last_round(found, "loop")
  first, whole = change(found, "loop", 0, 1), change(found, "loop", 0, last)
  made: list[tuple[str, bool, str]] = []
  for name, one in (("0 to 1", first), (f"0 to {last}", whole)):
    made.append((f"rounds {name}: pooled exact McNemar p < {P}, every seed up",
                 one["p"] < P and min(one["by_seed"]) > 0,
                 f"p = {_p(one)}, {one['gained']} gained, {one['lost']} lost, by seed "
                 + ", ".join(f"{100 * value:+.1f}" for value in one["by_seed"])))
  made.append((f"at least {100 * LIFT:.0f} points from round 0 to {last}", whole["lift"] >= LIFT,
               _points(whole)))
  ndr = min(row["ndr"] for number in range(last + 1) for row in rows_of(found, "loop", number))
  made.append((f"NDR at least {NDR}", min(whole["ndr"], ndr) >= NDR,
               f"{whole['ndr']:.3f} against round 0, at least {ndr:.3f} against the student alone"))
  tokens = [np.mean([row["teacher_tokens_per_right"] for row in rows_of(found, "loop", number)])
            for number in (0, last)]
  made.append(("teacher tokens per right answer fall", tokens[1] < tokens[0],
               f"{tokens[0]:.1f} to {tokens[1]:.1f}"))
  for arm, says in (("loop", "the session's answer"), ("first", "its first attempt")):
    free = [[row["free"] for row in rows_of(found, arm, number)] for number in (0, last)]
    if not all(free):
      continue
    fraction = [np.mean([one["auto_share"] for one in part]) for part in free]
    right = np.mean([one["auto_accuracy"] for one in free[1] if one["auto_accuracy"] is not None])
    made.append((f"free routing, evidence {says}: auto fraction rises, at least 90% right in auto",
                 fraction[1] > fraction[0] and right >= 0.9,
                 f"auto {fraction[0]:.1%} to {fraction[1]:.1%}, {right:.1%} right in auto"))
  return made + _control_claims(found)


def _control_claims(found: Mapping[str, dict]) -> list[tuple[str, bool, str]]:
  made = []
  for arm, says, holds in (
      ("none", f"no training: flat within {100 * FLAT:.0f} points", lambda one: abs(one["lift"]) <= FLAT),
      ("shuffled", "shuffled rewards: no gain", lambda one: one["lift"] <= 0 or one["p"] >= P),
      ("poison", "5% poison through an open gate hurts", None),
      ("poison_half", "50% poison through an open gate hurts", None)):
    if not rows_of(found, arm, 0):
      continue
    last = last_round(found, arm)
    one = change(found, arm, 0, last)
    if holds is None:
      hurt = against(found, "loop", arm, last)
      # Poison is aimed at what the student has right by itself: a loss elsewhere may be luck of training.
      ndr = float(np.mean([row["ndr"] for row in rows_of(found, arm, last)]))
      made.append((says, hurt["lift"] < 0 and hurt["p"] < P and ndr < NDR,
                   f"{_points(hurt)} against the loop after {last} round, p = {_p(hurt)}, NDR {ndr:.3f}"))
    else:
      made.append((says, bool(holds(one)), f"{_points(one)}, p = {_p(one)}"))
  caught = [row["collected"] for row in found.values() if row["arm"] == "loop" and "collected" in row]
  planted, quarantined = (sum(one[name] for one in caught) for name in ("planted", "quarantined"))
  made.append(("all poisoned sessions are caught, and no other", planted == quarantined,
               f"{quarantined} quarantined of {planted} planted"))
  if broken := [row for row in found.values() if row["arm"] == "broken"]:
    made.append(("a broken checkpoint is taken back within 40 sessions",
                 all(row["decision"] == "roll_back" and row["sessions"] <= 40 for row in broken),
                 f"after {', '.join(str(row['sessions']) for row in broken)} pairs"))
  for name, state in (("deployed", "active"), ("deployed_broken", "rolled_back")):
    for row in (row for row in found.values() if row["arm"] == name):
      at_work = next(iter(row["by_version"].values()))["tasks"]
      made.append((f"`atlas deploy` behind our own server, seed {row['seed']}, "
                   f"{'a broken' if 'broken' in name else 'the'} teacher of round {row['round']}: {state}",
                   row["state"] == state and (state == "active" or at_work <= 40),
                   f"decided after {row['decision']['pairs']} pairs, gain {row['decision']['delta']:+.3f}; "
                   f"{at_work} sessions got it"))
  return made


def against(found: Mapping[str, dict], arm: str, other: str, number: int) -> dict:
  """Compares a round of another arm with the same round of an arm, on the same tasks."""
  ours = {row["seed"]: row for row in rows_of(found, arm, number)}
  theirs = [row for row in rows_of(found, other, number) if row["seed"] in ours]
  pair = {f"a{row['seed']}": {**ours[row["seed"]], "arm": "pair", "round": 0} for row in theirs}
  pair |= {f"b{row['seed']}": {**row, "arm": "pair", "round": 1} for row in theirs}
  return change(pair, "pair", 0, 1)


def text_of(found: Mapping[str, dict]) -> str:
  """Writes all that stands in the README between the marks."""
  listed = _header(("claim", "holds", "measured"))
  listed += [_line(name, "yes" if holds else "**no**", said) for name, holds, said in claims(found)]
  parts = (rounds_table(found), listed, controls_table(found), routing_table(found))
  return "\n\n".join("\n".join(part) for part in parts)


def draw(found: Mapping[str, dict], path: pathlib.Path) -> None:
  """Draws accuracy, and tokens per right answer, over the rounds."""
  picture = figure.Figure(figsize=(9, 3.6), layout="constrained")
  left, right = picture.subplots(1, 2)
  numbers = list(range(last_round(found, "loop") + 1))
  for colour, seed in enumerate(sorted({row["seed"] for row in found.values() if row["arm"] == "loop"})):
    of = lambda name, seed=seed: [next(row[name] for row in rows_of(found, "loop", number)
                                       if row["seed"] == seed) for number in numbers]
    left.plot(numbers, of("accuracy"), "o-", color=f"C{colour}", label=f"seed {seed}")
    right.plot(numbers, of("teacher_tokens_per_right"), "o-", color=f"C{colour}")
  left.plot(numbers, [np.mean([row["alone"] for row in rows_of(found, "loop", one)]) for one in numbers],
            ":", color="grey", label="student alone")
  for arm, style in (("none", "--"), ("shuffled", "-."), ("poison_half", ":")):
    if rows_of(found, arm, 0):
      own = range(last_round(found, arm) + 1)
      left.plot(own, [np.mean([row["accuracy"] for row in rows_of(found, arm, one)]) for one in own], style,
                color="black", label=arm)
  left.set(xlabel="round", ylabel="held-out tasks answered right", ylim=(0, 1.02), xticks=numbers)
  right.set(xlabel="round", ylabel="teacher tokens per right answer", xticks=numbers)
  right.set_ylim(bottom=0)
  left.legend(fontsize=7)
  picture.savefig(path, dpi=110)


def _points(one: Mapping) -> str:
  low, high = one["interval"]
  return f"{100 * one['lift']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _p(one: Mapping) -> str:
  return f"{one['p']:.0e}" if one["p"] < 0.001 else f"{one['p']:.3f}"


def _header(cells: Sequence[str]) -> list[str]:
  return [_line(*cells), "| --- " * len(cells) + "|"]


def _line(*cells) -> str:
  return f"| {' | '.join(map(str, cells))} |"


def main(out: pathlib.Path) -> None:
  """Writes the tables and the picture beside the results."""
  found = arms.read(out)
  text = text_of(found)
  write_table(out.parent / "README.md", text)
  draw(found, out.parent / "rounds.png")
  print(text)


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
