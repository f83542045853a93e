"""The evaluation on ARC: augmented predictions vote, for this checkpoint and for all so far, apart.

The votes of every evaluation are left in the run's folder. What is accumulated is read from the files of this
and earlier steps: a step evaluated again after a restart takes the place of its first evaluation, and later
steps that were trained before the restart do not count.

Source: the evaluator of Jolicoeur-Martineau 2025, arXiv:2510.04871, which reports accumulated votes only.
"""
import json
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from atlas_jax.evals import EvalOut, puzzles, voting
from atlas_jax.evals.solver import Result
from atlas_jax.parallel import hosts

BLANK_ID = 0  # The name of padding.
VOTES = "votes.json.gz"
SUBMISSION, ACCUMULATED_SUBMISSION = "submission.json", "submission_accumulated.json"
_STEP = re.compile(r"step_(\d+)")


class Grids(NamedTuple):
  """How ARC's names and grids are written, see data.puzzles.grids."""

  parse_name: Callable  # name -> (task id, transform, permutation)
  crop: Callable  # tokens -> grid
  undo: Callable  # (grid, transform, permutation) -> grid


def make(solve: Callable, grids: Grids, *, batch_rows: int, names, tasks: Mapping[str, dict],
         rule: str = "count", whole: bool = True, n_pictures: int = 0, page: Callable | None = None):
  """Makes the evaluation.

  Args:
    solve: what `solver.make` gives.
    grids: how names and tokens are read.
    batch_rows: slots of the solver.
    names: names[id] is the name of the augmentation that has the id.
    tasks: task id -> {"test": [{"input": rows, "output": rows, absent where it is not known}, ...], ...}.
    rule: of ranking, see `voting.Votes.ordered`.
    whole: whether the solver reads all examples. If not, scores are over the tasks it reached, of which the
      last may lack votes.
    n_pictures: tasks drawn, half of them solved, as they are without augmentation.
    page: (solved, unsolved) -> uint8 page of pictures, see `pictures.make_page`.

  Returns:
    run(params, *, step, tables=(), workdir=None) -> EvalOut with the numbers of `puzzles.make`, and
    "ARC/exact_accuracy/NAME" for every transform, t0 to t7, and for "original", tasks as they stand.
    Process 0 adds "ARC/pass@K" and "ARC/official_score", see `voting.scores`, over tasks whose outputs are
    known, and with a workdir the same under "ARC/accumulated/", with the votes of earlier steps; it writes
    votes.json.gz, submission.json and submission_accumulated.json into workdir/evals/step_NNNNNNNN.

  Raises:
    ValueError: if the rule is unknown.
  """
  voting.check_rule(rule)

  def run(params, *, step: int, tables=(), workdir=None) -> EvalOut:
    totals, seen, votes = puzzles.Totals(batch_rows), ByTransform(), voting.Votes()
    gallery = puzzles.Gallery(-(-n_pictures // 2), lambda result: _unaugmented(names[result.id], grids))
    for result in solve(params, tables):
      if result.id == BLANK_ID:
        continue
      name = names[result.id]
      totals.add(result)
      gallery.add(result)
      seen.add(result, name, grids)
      if hosts.is_main():
        vote(votes, name, result, grids)
    scalars = totals.scalars() | seen.scalars()
    if hosts.is_main():
      reached = tasks if whole else {task: tasks[task] for task in tasks if task in votes.tasks}
      scalars |= _judged(votes, tasks, reached, rule, step=step, workdir=workdir)
    images = puzzles.draw(gallery, page if n_pictures else None, "arc", step=step, workdir=workdir)
    return EvalOut(scalars, images=images)

  return run


def vote(votes: voting.Votes, name: str, result: Result, grids: Grids) -> None:
  """Takes the augmentation back and adds the prediction to the votes for its test input."""
  task, *augmentation = grids.parse_name(name)
  input_grid, prediction = (grids.undo(grids.crop(tokens_T), *augmentation)
                            for tokens_T in (result.input_T, result.prediction_T))
  votes.add(task, input_grid, prediction, result.q)


class ByTransform:
  """Exact accuracy of each transform, and of tasks as they stand."""

  def __init__(self) -> None:
    """Starts empty."""
    self._seen: Counter = Counter()
    self._solved: Counter = Counter()

  def add(self, result: Result, name: str, grids: Grids) -> None:
    """Counts a result that has labels."""
    task, transform, _ = grids.parse_name(name)
    kind = "original" if name == task else f"t{transform}"
    self._seen[kind] += result.labelled
    self._solved[kind] += result.solved

  def scalars(self) -> dict[str, float]:
    """Gives the accuracies of what was seen."""
    return {f"ARC/exact_accuracy/{kind}": self._solved[kind] / count
            for kind, count in sorted(self._seen.items()) if count}


def accumulated(workdir, step: int) -> voting.Votes:
  """Adds up the votes that evaluations up to a step left in a run's folder, earlier ones first."""
  found = {}
  for file in pathlib.Path(workdir).glob(f"evals/step_*/{VOTES}"):
    number = _STEP.fullmatch(file.parent.name)
    if number and int(number[1]) <= step:
      found[int(number[1])] = file
  return voting.merged(voting.load(found[number]) for number in sorted(found))


def _unaugmented(name: str, grids: Grids) -> str | None:
  """Gives the task of a name that is one."""
  return name if grids.parse_name(name)[0] == name else None


def _judged(votes: voting.Votes, tasks: Mapping[str, dict], reached: Mapping[str, dict], rule: str, *,
            step: int, workdir) -> dict[str, float]:
  """Scores the votes, writes them, and scores and writes those accumulated."""
  scalars = _scores("ARC", votes, reached, rule)
  if workdir is None or len(reached) < len(tasks):  # A part would take the place of the whole.
    return scalars
  folder = puzzles.folder_of(workdir, step)
  votes.save(folder / VOTES)
  everything = accumulated(workdir, step)
  inputs = {task: [np.asarray(pair["input"]) for pair in found["test"]] for task, found in tasks.items()}
  for file, source in ((SUBMISSION, votes), (ACCUMULATED_SUBMISSION, everything)):
    content = json.dumps(voting.submission(source, inputs, rule=rule))
    voting.write_whole(folder / file, content.encode())
  return scalars | _scores("ARC/accumulated", everything, reached, rule)


def _scores(prefix: str, votes: voting.Votes, tasks: Mapping[str, dict], rule: str) -> dict[str, float]:
  pairs = {task: [(pair["input"], pair["output"]) for pair in found["test"]] for task, found in tasks.items()
           if all(pair.get("output") is not None for pair in found["test"])}
  found = voting.scores(votes, pairs, rule=rule) if pairs else {}
  return {f"{prefix}/{name}": value for name, value in found.items()}
