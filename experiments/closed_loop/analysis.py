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
    "poison_fifth": "the gate off, 20% of the sessions poisoned",
    "poison_letter": "the gate off, 20% of the sessions poisoned, all of one letter",
    "poison_half": "the gate off, half of the sessions poisoned",
}
# Arm -> poisoned sessions for each honest one of a plain letter, of which a round has 32 in the mean.
DOSES = {"poison": 13 / 96, "poison_fifth": 64 / 96, "poison_letter": 64 / 32, "poison_half": 256 / 96}
EVIDENCE = {"answers": "the session's answer, as the runtime had it", "free": "its first attempt, as it is"}
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
  header = ("round", "evidence", "seeds", "right", "fraction auto", "in the second half",
            "right in auto, of all seeds' sessions", "teacher tokens, a task")
  lines = _header(header)
  for number in range(last_round(found, "loop") + 1):
    for arm, says in EVIDENCE.items():
      if free := [row["free"] for row in rows_of(found, arm, number)]:
        lines.append(_line(number, says, len(free), *_free_cells(free)))
  if taught := _last_rows(found, "lessons"):
    for name, says in (("free", "first attempts with lessons, first teacher"),
                       ("free_loop", "first attempts with lessons, the loop's last teacher"),
                       ("stale", "the same, first teacher, and all sessions before the lessons")):
      lines.append(_line("lessons", says, len(taught), *_free_cells([row[name] for row in taught])))
  return lines


def _free_cells(free: Sequence[dict]) -> list[str]:
  tasks = sum(sum(one["lanes"].values()) for one in free)
  mean = lambda name: np.mean([one[name] for one in free])
  auto, right = _auto(free)
  return [f"{mean('accuracy'):.1%}", f"{mean('auto_share'):.1%}", f"{mean('auto_share_second_half'):.1%}",
          f"{right / auto:.1%} of {auto}" if auto else "",
          f"{sum(one['teacher_tokens'] for one in free) / tasks:.1f}"]


def _auto(free: Sequence[dict]) -> tuple[int, int]:
  """Returns the sessions in auto, and the right ones of them."""
  counts = [(one["lanes"].get("auto", 0), one["auto_accuracy"] or 0.0) for one in free]
  return sum(count for count, _ in counts), round(sum(count * right for count, right in counts))


def families_table(found: Mapping[str, dict]) -> list[str]:
  """Writes what free routing does with families that the student knows in part, and with drawn ones."""
  lines = _header(("family", "tasks", "right alone", "fraction auto", "right in auto (95% interval)"))
  kinds: dict[str, list[dict]] = {}
  for row in found.values():
    for name, one in row.get("families", {}).items() if row["arm"] == "mixed" else ():
      kinds.setdefault(name, []).append(one)
  for name, ones in kinds.items():
    total = {field: sum(one[field] for one in ones) for field in ones[0]}
    lines.append(_line(f"{len(ones)} seeds, {name.partition(': ')[2]}", total["tasks"],
                       f"{total['alone'] / total['tasks']:.1%}", f"{total['auto'] / total['tasks']:.1%}",
                       _fraction(total["auto_right"], total["auto"])))
  drawn: dict[str, list[dict]] = {}
  for row in found.values():
    for name, one in row.get("chances", {}).items():
      drawn.setdefault(name, []).append(one)
  for name, ones in drawn.items():
    mean = lambda field, ones=ones: np.mean([one[field] for one in ones])
    right = [one["auto_right"] for one in ones if one["auto_right"] is not None]
    lines.append(_line(f"drawn, chance {name}", "256 each", name, f"{mean('auto'):.1%}",
                       f"{np.mean(right):.1%}" if right else ""))
  return lines


def _fraction(right: int, count: int) -> str:
  if not count:
    return ""
  right_N = np.arange(count) < right
  low, high = bootstrap.interval_of_mean(right_N.astype(float), np.ones(count))
  return f"{right / count:.1%} ({low:.1%} to {high:.1%})"


def poison_table(found: Mapping[str, dict]) -> list[str]:
  """Writes what a dose of poison does through an open gate; behind a closed one the loop has what is left."""
  lines = _header(("poison", "for each honest session of the letters aimed at", "seed", "right after",
                   "gate closed", "plain letters right", "gate closed", "other letters right", "gate closed",
                   "NDR against alone"))
  for arm, dose in DOSES.items():
    for row in rows_of(found, arm, 1):
      closed = next(one for one in rows_of(found, "loop", 1) if one["seed"] == row["seed"])
      cells = [f"{part:.1%}" for parts in zip(_parts(row), _parts(closed), strict=True) for part in parts]
      lines.append(_line(SAYS[arm].removeprefix("the gate off, "), f"{dose:.2f}", row["seed"], *cells,
                         f"{row['ndr']:.3f}"))
  return lines


def _parts(row: Mapping) -> tuple[float, float, float]:
  """Returns what is right: of all tasks, of plain letters, which the student has alone, and of others."""
  right_N, alone_N = bits([row]), bits([row], "right_alone") == 1
  return float(right_N.mean()), float(right_N[alone_N].mean()), float(right_N[~alone_N].mean())


def lessons_table(found: Mapping[str, dict]) -> list[str]:
  """Writes what lessons alone do, beside the loop after as many rounds."""
  lines = _header(("arm", "round", "seeds", "right with active lessons", "each seed", "against none, points",
                   "McNemar p", "NDR against none", "with those in trial too", "right in the round itself",
                   "the loop", "right hints active", "other lessons active", "retired: harm, no use, review"))
  for arm, number in sorted({(row["arm"], row["round"]) for row in found.values()
                             if row["arm"].startswith("lessons") and row["round"]}):
    rows = rows_of(found, arm, number)
    one, right_N = change(found, arm, 0, number), bits(rows)
    low, high = bootstrap.interval_of_mean(right_N, np.ones(len(right_N)))
    mean = lambda name, rows=rows: f"{np.mean([row[name] for row in rows]):.1%}"
    loop = [row["accuracy"] for row in rows_of(found, "loop", number) if row["seed"] in
            {one["seed"] for one in rows}]
    count = lambda *names, rows=rows: sum(row["lessons"].get(f"{kind}, {name}", 0) for row in rows
                                          for name in names for kind in ("right", "other"))
    active = [sum(row["lessons"].get(f"{kind}, active", 0) for row in rows) for kind in ("right", "other")]
    retired = [count(f"retired: {why}")
               for why in ("it harms", "no use is shown", "its session is quarantined")]
    lines.append(_line(
        arm, number, len(rows), f"{right_N.mean():.1%} ({low:.1%} to {high:.1%})",
        ", ".join(f"{row['accuracy']:.1%}" for row in rows), _points(one), _p(one), f"{one['ndr']:.3f}",
        mean("with_trials"), mean("right_in_round"), f"{np.mean(loop):.1%}" if loop else "",
        f"{active[0]} of {5 * len(rows)}", active[1], ", ".join(map(str, retired))))
  return lines


def _last_rows(found: Mapping[str, dict], arm: str) -> list[dict]:
  return [row for row in found.values() if row["arm"] == arm and "free" in row]


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
  made += _routing_claims(found, last)
  return made + _control_claims(found)


def _routing_claims(found: Mapping[str, dict], last: int) -> list[tuple[str, bool, str]]:
  """Returns the claim of free routing: by evidence, and with lessons in place of the rounds of a teacher."""
  pairs = [(says, [row["free"] for row in rows_of(found, arm, 0)],
            [row["free"] for row in rows_of(found, arm, last)]) for arm, says in EVIDENCE.items()]
  first = {row["seed"]: row["free"] for row in rows_of(found, "free", 0)}
  taught = [row for row in _last_rows(found, "lessons") if row["seed"] in first]
  pairs.append(("its first attempt, with lessons", [first[row["seed"]] for row in taught],
                [row["free"] for row in taught]))
  made = []
  for says, before, after in pairs:
    if before and after:
      fraction = [np.mean([one["auto_share"] for one in part]) for part in (before, after)]
      auto, right = _auto(after)
      made.append((f"free routing, evidence {says}: auto fraction rises, at least 90% right in auto",
                   fraction[1] > fraction[0] and right >= 0.9 * auto,
                   f"auto {fraction[0]:.1%} to {fraction[1]:.1%}, {right} right of {auto} in auto"))
  return made


def _control_claims(found: Mapping[str, dict]) -> list[tuple[str, bool, str]]:
  made = []
  for arm, says, holds in (
      ("none", f"no training: flat within {100 * FLAT:.0f} points", lambda one: abs(one["lift"]) <= FLAT),
      ("shuffled", "shuffled rewards: no gain", lambda one: one["lift"] <= 0 or one["p"] >= P),
      ("poison", "5% poison through an open gate hurts", None),
      ("poison_fifth", "20% poison through an open gate hurts", None),
      ("poison_letter", "20% poison, of one letter, through an open gate hurts", None),
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
  parts = (rounds_table(found), listed, controls_table(found), poison_table(found), lessons_table(found),
           routing_table(found), families_table(found))
  return "\n\n".join("\n".join(part) for part in parts)


def draw(found: Mapping[str, dict], path: pathlib.Path) -> None:
  """Draws accuracy, tokens per right answer, and free routing over the rounds."""
  picture = figure.Figure(figsize=(12.5, 3.8), layout="constrained")
  left, middle, right = picture.subplots(1, 3)
  numbers = list(range(last_round(found, "loop") + 1))
  mean = lambda arm, number, name: np.mean([row[name] for row in rows_of(found, arm, number)])
  for colour, seed in enumerate(sorted({row["seed"] for row in found.values() if row["arm"] == "loop"})):
    of = lambda name, seed=seed: [next(row[name] for row in rows_of(found, "loop", number)
                                       if row["seed"] == seed) for number in numbers]
    left.plot(numbers, of("accuracy"), "o-", color=f"C{colour}", label=f"loop, seed {seed}")
    middle.plot(numbers, of("teacher_tokens_per_right"), "o-", color=f"C{colour}")
  left.plot(numbers, [mean("loop", one, "alone") for one in numbers], ":", color="grey",
            label="student alone")
  for arm, style, says in (("none", "--", "no training"), ("shuffled", "-.", "shuffled rewards"),
                           ("poison_half", ":", "50% poison, gate open"),
                           ("lessons", "s-", "lessons alone")):
    own = sorted({row["round"] for row in found.values() if row["arm"] == arm})
    if own:
      left.plot(own, [mean(arm, one, "accuracy") for one in own], style, label=says,
                color="C4" if arm == "lessons" else "black")
  for arm, says in EVIDENCE.items():
    if rows_of(found, arm, 0):
      free = [[row["free"] for row in rows_of(found, arm, number)] for number in numbers]
      colour = "C3" if arm == "answers" else "C2"
      right.plot(numbers, [np.mean([one["auto_share"] for one in part]) for part in free], "o-", color=colour,
                 label=f"fraction auto: {says}")
      hits = [right / auto if auto else np.nan for auto, right in map(_auto, free)]
      right.plot(numbers, hits, "x--", color=colour, label="right in auto")
  left.set(xlabel="round", ylabel="held-out tasks answered right", ylim=(0, 1.02))
  middle.set(xlabel="round", ylabel="teacher tokens per right answer", xticks=numbers)
  middle.set_ylim(bottom=0)
  right.set(xlabel="round", ylabel="free routing", ylim=(0, 1.04), xticks=numbers)
  left.legend(fontsize=6, loc="lower right")
  right.legend(fontsize=6, loc="center right")
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
