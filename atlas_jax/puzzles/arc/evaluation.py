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
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np

from atlas_jax.evals import EvalOut, folder_of
from atlas_jax.files import write
from atlas_jax.parallel import hosts
from atlas_jax.puzzles import accuracy
from atlas_jax.puzzles.arc import voting
from atlas_jax.puzzles.solver import Result
from atlas_jax.workdir import VOTES

BLANK_ID = 0  # The name of padding.
SUBMISSION = "submission.json"
ACCUMULATED_SUBMISSION = "submission_accumulated.json"
_STEP = re.compile(r"step_(\d+)")


class Grids(NamedTuple):
  """Functions that read ARC's names and grids, see `puzzles.grids`."""

  parse_name: Callable  # name -> (task id, transform, permutation)
  crop: Callable  # tokens -> grid
  undo: Callable  # (grid, transform, permutation) -> grid


def make(solve: Callable, grids: Grids, *, batch_rows: int, names, tasks: Mapping[str, dict],
         leaked: Collection[str] = (), rule: str = "count", whole: bool = True, n_pictures: int = 0,
         page: Callable | None = None, record: Callable | None = None):
  """Makes the evaluation.

  Args:
    solve: what `solver.make` gives.
    grids: how names and tokens are read.
    batch_rows: slots of the solver.
    names: names[id] is the name of the augmentation that has the id.
    tasks: task id -> {"test": [{"input": rows, "output": rows, absent where it is not known}, ...], ...}.
    leaked: ids of tasks whose answers are trained on; scores are given with and without them.
    rule: of ranking, see `voting.Votes.ordered`.
    whole: whether the solver reads all examples; if not, scores are over tasks reached, the last maybe cut.
    n_pictures: tasks drawn, half of them solved, as they are without augmentation.
    page, record: see `accuracy.make`.

  Returns:
    run(trained, *, step, workdir=None) -> EvalOut with the numbers of `puzzles.make`, and
    "ARC/exact_accuracy/NAME" for every transform, t0 to t7, and for "original", tasks as they stand, of
    "ARC/n_examples/NAME" examples with labels.
    Process 0 adds the scores and counts of `voting.scores` as "ARC/pass@K" and so on; with a workdir the same
    of earlier steps' votes too, under "ARC/accumulated/", and writes votes.json.gz, submission.json and
    submission_accumulated.json into workdir/evals/step_NNNNNNNN. Where tasks are leaked, "eval/unseen/",
    "ARC/unseen/" and "ARC/accumulated/unseen/" are without them.

  Raises:
    ValueError: if the rule is unknown.
  """
  voting.check_rule(rule)
  def run(trained, *, step: int, workdir=None) -> EvalOut:
    totals = ArcTotals(batch_rows, leaked)
    votes = voting.Votes()
    gallery = accuracy.Gallery(-(-n_pictures // 2), lambda result: _unaugmented(names[result.id], grids))
    for result in solve(trained):
      if result.id == BLANK_ID:
        continue
      totals.add(result, names[result.id], grids)
      gallery.add(result)
      if hosts.is_main():  # Results are the same everywhere; votes, hundreds of thousands, are kept once.
        vote(votes, names[result.id], result, grids)
    scalars = totals.scalars()
    if hosts.is_main():
      reached = tasks if whole else {task: tasks[task] for task in tasks if task in votes.tasks}
      scalars |= _judged(votes, tasks, reached, leaked, rule, step=step, workdir=workdir)
    images = accuracy.draw(gallery, page if n_pictures else None, "arc", step=step, workdir=workdir)
    accuracy.record_steps(gallery, record if n_pictures else None, trained, step=step, workdir=workdir)
    return EvalOut(scalars, images=images)

  return run


def vote(votes: voting.Votes, name: str, result: Result, grids: Grids) -> None:
  """Takes the augmentation back and adds the prediction to the votes for its test input."""
  # Input and prediction are cropped and turned back by the same rule: votes find
  # their test pair by its input.
  task, *augmentation = grids.parse_name(name)
  input_grid, prediction = (grids.undo(grids.crop(tokens_T), *augmentation)
                            for tokens_T in (result.input_T, result.prediction_T))
  votes.add(task, input_grid, prediction, result.q)


class ArcTotals:
  """Metrics of all examples, of those that are not trained on, and exact accuracy of each transform."""

  def __init__(self, batch_rows: int, leaked: Collection[str] = ()) -> None:
    """Starts empty; `leaked` are the tasks that are trained on."""
    self._all = accuracy.AccuracyTotals(batch_rows)
    self._unseen = accuracy.AccuracyTotals(batch_rows)
    self._leaked = leaked
    self._labelled: Counter = Counter()
    self._solved: Counter = Counter()

  def add(self, result: Result, name: str, grids: Grids) -> None:
    """Adds a result; it counts where it has labels."""
    task, transform, _ = grids.parse_name(name)
    # "original" is the task as it stands; an augmentation may have transform 0
    # with other colours, which is t0.
    kind = "original" if name == task else f"t{transform}"
    self._labelled[kind] += result.labelled
    self._solved[kind] += result.solved
    self._all.add(result)
    if task not in self._leaked:
      self._unseen.add(result)

  def scalars(self) -> dict[str, float]:
    """Returns the metrics, and of how many examples the accuracies are."""
    found = self._all.scalars() | (self._unseen.scalars("eval/unseen") if self._leaked else {})
    for kind, count in sorted(self._labelled.items()):
      if count:
        found[f"ARC/exact_accuracy/{kind}"] = self._solved[kind] / count
        found[f"ARC/n_examples/{kind}"] = float(count)
    return found


def accumulated(workdir, step: int) -> voting.Votes:
  """Adds up the votes that evaluations up to a step left in a run's folder, earlier ones first."""
  found = {}
  for file in pathlib.Path(workdir).glob(f"evals/step_*/{VOTES}"):
    number = _STEP.fullmatch(file.parent.name)
    # Later folders are of a run that was set back to an earlier checkpoint, and
    # would be votes from the future.
    if number and int(number[1]) <= step:
      found[int(number[1])] = file
  # In order of steps: ties go to the grid that appeared first, so the order is part of the result.
  return voting.merged(voting.load(found[number]) for number in sorted(found))


def _unaugmented(name: str, grids: Grids) -> str | None:
  """Returns the task of a name that is one."""
  return name if grids.parse_name(name)[0] == name else None


def _judged(votes: voting.Votes, tasks: Mapping[str, dict], reached: Mapping[str, dict],
            leaked: Collection[str], rule: str, *, step: int, workdir) -> dict[str, float]:
  """Scores the votes, writes them, and scores and writes those accumulated."""
  scalars = _scores("ARC", votes, reached, leaked, rule)
  if workdir is None or len(reached) < len(tasks):  # A part would take the place of the whole.
    return scalars
  folder = folder_of(workdir, step)
  votes.save(folder / VOTES)
  everything = accumulated(workdir, step)
  # For all tasks, also those without votes: a submission must have an entry for each.
  inputs = {task: [np.asarray(pair["input"]) for pair in found["test"]] for task, found in tasks.items()}
  for file, source in ((SUBMISSION, votes), (ACCUMULATED_SUBMISSION, everything)):
    content = json.dumps(voting.submission(source, inputs, rule=rule))
    write.whole(folder / file, content)
  return scalars | _scores("ARC/accumulated", everything, reached, leaked, rule)


def _scores(prefix: str, votes: voting.Votes, tasks: Mapping[str, dict], leaked: Collection[str],
            rule: str) -> dict[str, float]:
  """Scores all tasks, and those whose answers are not trained on if there are others."""
  pairs = {task: [(pair["input"], pair.get("output")) for pair in found["test"]]
           for task, found in tasks.items()}
  parts = {prefix: pairs}
  if leaked:
    parts[f"{prefix}/unseen"] = {task: found for task, found in pairs.items() if task not in leaked}
  return {f"{part}/{name}": value for part, chosen in parts.items()
          for name, value in voting.scores(votes, chosen, rule=rule).items()}
