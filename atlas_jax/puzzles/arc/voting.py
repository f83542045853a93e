"""Votes of augmented predictions for the outputs of tasks, their ranking, and scores of the ranking.

Every augmentation of a task predicts the output of its test inputs; taken back to the original colours and
orientation, equal predictions are votes for one grid. Votes belong to a task and a test input, which is known
by its content. Nothing here knows how predictions come about.

Source: the pass@K of Jolicoeur-Martineau 2025, arXiv:2510.04871, and its program; "noisy_or" as a rule of
ranking, the scores of what is handed in and the filled submission are not in it.
"""
import gzip
import json
import math
import pathlib
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from atlas_jax.files import json_file, write
from atlas_jax.files.damage import Damaged

RULES = ("count", "noisy_or")
PASS_AT = (1, 2, 5, 10, 100, 1000)
ATTEMPTS = 2  # What ARC allows per test input.
_NOT_VOTES = (gzip.BadGzipFile, zlib.error, EOFError, ValueError, KeyError, TypeError, AttributeError)
_SEPARATOR = "/"  # Between the rows of a grid as text.
_CERTAIN = 1 - 2.0**-53  # The largest number below 1: one vote with q = 1 must not outweigh any two others.


class Tally(NamedTuple):
  """Sums of the votes for one grid."""

  n_votes: int
  q_sum: float
  log_miss: float  # Sum of log(1 - q): the log-probability that every vote is wrong, were they independent.


class Ranked(NamedTuple):
  """One prediction among those for a test input."""

  grid: np.ndarray
  n_votes: int
  mean_q: float
  noisy_or: float  # 1 - prod(1 - q)


def text_of(grid) -> str:
  """Writes a grid of digits as text, "12/34" for two rows; "" for a grid without cells.

  Raises:
    ValueError: if it has not two axes, or other values than 0 to 9.
  """
  cells = np.asarray(grid)
  if cells.size == 0:
    return ""
  if cells.ndim != 2 or cells.min() < 0 or cells.max() > 9:
    raise ValueError(f"a grid must have two axes and values from 0 to 9, got shape {cells.shape} and values "
                     f"from {cells.min()} to {cells.max()}; crop and undo the augmentation before voting")
  # Equal grids give equal texts, which are keys of dicts and stand in JSON as they are.
  letters = np.full((cells.shape[0], cells.shape[1] + 1), ord(_SEPARATOR), np.uint8)
  letters[:, :-1] = cells + ord("0")
  return letters.tobytes()[:-1].decode()


def grid_of(text: str) -> np.ndarray:
  """Reads what `text_of` wrote, uint8."""
  if not text:
    return np.zeros((0, 0), np.uint8)
  rows = text.count(_SEPARATOR) + 1
  return np.frombuffer(f"{text}{_SEPARATOR}".encode(), np.uint8).reshape(rows, -1)[:, :-1] - ord("0")


def check_rule(rule: str) -> None:
  """Refuses a rule of ranking that does not exist."""
  if rule not in RULES:
    raise ValueError(f"config.puzzle_eval.vote={rule!r} is not known; choose one of {', '.join(RULES)}")


class Votes:
  """Votes per task, test input and predicted grid; grids stay in the order in which they appeared."""

  def __init__(self) -> None:
    """Starts without votes."""
    self._tallies: dict[str, dict[str, dict[str, Tally]]] = {}

  def add(self, task: str, input_grid, prediction, q: float) -> None:
    """Adds one vote.

    Args:
      task: id of the original task.
      input_grid: the test input, augmentation undone.
      prediction: the predicted output, augmentation undone; may have no cells.
      q: in [0, 1], how likely the model takes it to be right.

    Raises:
      ValueError: if q is no probability, or a grid is none.
    """
    if not 0 <= q <= 1:
      raise ValueError(f"a vote for {task} has q={q}, which must be in [0, 1]: hand the sigmoid of the logit")
    # Sums only, so that evaluations can be added up without the single votes.
    vote = Tally(1, float(q), math.log1p(-min(float(q), _CERTAIN)))
    self._add(task, text_of(input_grid), text_of(prediction), vote)

  def _add(self, task: str, input_text: str, prediction: str, more: Tally) -> None:
    tallies = self._tallies.setdefault(task, {}).setdefault(input_text, {})
    before = tallies.get(prediction)
    tallies[prediction] = more if before is None else Tally(
        before.n_votes + more.n_votes, before.q_sum + more.q_sum, before.log_miss + more.log_miss)

  def _items(self) -> Iterator[tuple[str, str, str, Tally]]:
    for task, inputs in self._tallies.items():
      for input_text, tallies in inputs.items():
        for prediction, tally in tallies.items():
          yield task, input_text, prediction, tally

  @property
  def tasks(self) -> set[str]:
    """Returns the tasks that have votes."""
    return set(self._tallies)

  def counts(self, task: str) -> dict[str, int]:
    """Counts the votes of each test input of a task; inputs as `text_of` writes them."""
    return {input_text: sum(tally.n_votes for tally in tallies.values())
            for input_text, tallies in self._tallies.get(task, {}).items()}

  def ranking(self, task: str, input_grid, rule: str = "count") -> list[Ranked]:
    """Returns the predictions for one test input, best first; see `ordered`."""
    return [Ranked(grid_of(text), tally.n_votes, tally.q_sum / tally.n_votes, -math.expm1(tally.log_miss))
            for text, tally in self.ordered(task, input_grid, rule)]

  def ordered(self, task: str, input_grid, rule: str = "count") -> list[tuple[str, Tally]]:
    """Returns the predictions for one test input as `text_of` writes them, with their votes, best first.

    Args:
      task: its id.
      input_grid: the test input.
      rule: "count": by votes, equal ones by mean q; "noisy_or": by 1 - prod(1 - q), equal ones by votes.
        What is still equal stays in order of appearance.

    Raises:
      ValueError: if the rule is unknown.
    """
    check_rule(rule)
    tallies = self._tallies.get(task, {}).get(text_of(input_grid), {})
    # "count" is the reference's: q only orders predictions of equal counts. With 1 - prod(1 - q)
    # a few sure votes can outweigh many unsure ones; its logarithm is compared, since the
    # product itself soon rounds to 1.
    keys = {"count": lambda tally: (tally.n_votes, tally.q_sum / tally.n_votes),
            "noisy_or": lambda tally: (-tally.log_miss, tally.n_votes)}
    # A stable sort, also with reverse=True: what is equal stays in order of appearance, as in the reference.
    return sorted(tallies.items(), key=lambda item: keys[rule](item[1]), reverse=True)

  def save(self, path) -> None:
    """Writes the votes as compressed JSON, equal bytes for equal votes, whole or not at all."""
    path = pathlib.Path(path)
    tasks = {task: {text: [[prediction, *tally] for prediction, tally in tallies.items()]
                    for text, tallies in inputs.items()} for task, inputs in self._tallies.items()}
    # mtime=0: gzip would put the time into the file, and equal votes would differ.
    write.whole(path, gzip.compress(json.dumps({"tasks": tasks}).encode(), 6, mtime=0))


def load(path) -> Votes:
  """Reads what `Votes.save` wrote.

  Raises:
    ValueError: if the file is something else.
  """
  votes = Votes()
  try:
    content = gzip.decompress(pathlib.Path(path).read_bytes())
    for task, inputs in json_file.parse(path, content)["tasks"].items():
      for input_text, tallies in inputs.items():
        for prediction, count, q_sum, log_miss in tallies:
          # A sum of q may exceed the count by rounding alone.
          if not (json_file.is_int(count, 1) and json_file.is_real(q_sum, 0, count + 1e-6)
                  and json_file.is_real(log_miss, -1e6, 0) and isinstance(prediction, str)):
            raise ValueError(f"the votes for {task!r} are {[prediction, count, q_sum, log_miss]!r:.80}")
          votes._add(task, input_text, prediction, Tally(count, q_sum, log_miss))
  except _NOT_VOTES as error:
    why = error.why if isinstance(error, Damaged) else error
    raise ValueError(f"{path} is no file of votes ({why}); delete it and evaluate that step "
                     "again") from error
  return votes


def merged(parts: Iterable[Votes]) -> Votes:
  """Adds votes up; grids are in order of appearance, earlier parts first."""
  whole = Votes()
  for part in parts:
    for task, input_text, prediction, tally in part._items():
      whole._add(task, input_text, prediction, tally)
  return whole


def solved_at(votes: Votes, task: str, pairs, rule: str = "count") -> list[int | None]:
  """Returns the place of the right output of each test pair in its ranking, from 1.

  None where it is absent.
  """
  places: list[int | None] = []
  for input_grid, output in pairs:
    right = text_of(output)
    ranked = [text for text, _ in votes.ordered(task, input_grid, rule)]
    places.append(ranked.index(right) + 1 if right in ranked else None)
  return places


def attempts_of(votes: Votes, task: str, input_grid, rule: str = "count",
                attempts: int = ATTEMPTS) -> list[Ranked]:
  """Returns the best predictions for a test input that can be handed in: those that have cells."""
  return [ranked for ranked in votes.ranking(task, input_grid, rule) if ranked.grid.size][:attempts]


def scores(votes: Votes, tests: Mapping[str, list], *, rule: str = "count",
           pass_at: tuple[int, ...] = PASS_AT) -> dict[str, float]:
  """Scores the rankings, and what `submission` makes of them, against the solutions.

  A task may ask for several outputs. Outputs that are unknown count nowhere.

  Args:
    votes: of the predictions.
    tests: task id -> test pairs (input, output or None); a task without votes counts as unsolved.
    rule: see `Votes.ranking`.
    pass_at: numbers of attempts.

  Returns:
    "pass@K": mean over tasks of the fraction of outputs that are among the first K predictions, as in the
    original program. Of the two attempts that are handed in: "kaggle_score", the fraction of outputs solved,
    over the outputs of all tasks, which ranks the competition; "harness_score", the mean over tasks of the
    fraction of outputs solved, which the public harness of ARC Prize reports; "whole_task_score", ours, the
    fraction of tasks all of whose outputs are solved. And over how many: "n_tasks" with a known output,
    "n_outputs" that are known, "n_whole_tasks" without an unknown one. Without a known output there are the
    counts alone.
  """
  # An output that is unknown can be neither right nor wrong: it is in no mean and no count.
  known = {task: [pair for pair in pairs if pair[1] is not None] for task, pairs in tests.items()}
  known = {task: pairs for task, pairs in known.items() if pairs}
  whole = [task for task, pairs in known.items() if len(pairs) == len(tests[task])]
  counts = {"n_tasks": len(known), "n_outputs": sum(map(len, known.values())), "n_whole_tasks": len(whole)}
  found: dict[str, float] = {name: float(count) for name, count in counts.items()}
  if not known:
    return found
  # Over all predictions, also empty grids, which take a place as in the reference; what is handed in passes
  # them over, so pass@2 and kaggle_score may differ.
  places = [solved_at(votes, task, pairs, rule) for task, pairs in known.items()]
  within = [[math.inf if place is None else place for place in pairs] for pairs in places]
  found |= {f"pass@{k}": float(np.mean([np.mean([place <= k for place in pairs]) for pairs in within]))
            for k in pass_at}
  solved = {task: [_is_solved(votes, task, left, right, rule) for left, right in pairs]
            for task, pairs in known.items()}
  # Every output counts the same here, every task in the next line.
  found["kaggle_score"] = float(np.mean(sum(solved.values(), [])))
  found["harness_score"] = float(np.mean([np.mean(each) for each in solved.values()]))
  if whole:
    found["whole_task_score"] = float(np.mean([all(solved[task]) for task in whole]))
  return found


def _is_solved(votes: Votes, task: str, input_grid, output, rule: str) -> bool:
  attempts = [ranked.grid for ranked in attempts_of(votes, task, input_grid, rule)]
  return text_of(output) in map(text_of, attempts or [input_grid])  # See `submission`.


def submission(votes: Votes, inputs: Mapping[str, list], *, rule: str = "count", attempts: int = ATTEMPTS,
               fill: bool = True) -> dict[str, list[dict[str, list]]]:
  """Returns the file that ARC's graders read; every attempt in it is a grid with cells.

  Args:
    votes: of the predictions.
    inputs: task id -> test inputs, in the task's order.
    rule: see `Votes.ranking`.
    attempts: per test input; where there are fewer predictions, the first one is repeated. Predictions
      without cells are passed over.
    fill: gives a test input without prediction itself as attempt, so that every pair keeps its place. False
      leaves it out, as the original program does, and later pairs of the task move up.
  """
  def entry(task, input_grid):
    grids = [ranked.grid for ranked in attempts_of(votes, task, input_grid, rule, attempts)]
    # `fill` False leaves an empty list: no attempts, an entry without keys, which the last line drops.
    grids = grids or [np.asarray(input_grid)] * fill
    padded = grids + grids[:1] * (attempts - len(grids))
    return {f"attempt_{i}": grid.tolist() for i, grid in enumerate(padded, start=1)}

  entries = {task: [entry(task, grid) for grid in grids] for task, grids in inputs.items()}
  return {task: [each for each in found if each] for task, found in entries.items()}
