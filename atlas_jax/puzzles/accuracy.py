"""Accuracy of answers to puzzles, and pictures of them."""
from collections.abc import Callable, Collection, Hashable

import numpy as np

from atlas_jax.evals import EvalOut, folder_of
from atlas_jax.files import write
from atlas_jax.parallel import hosts
from atlas_jax.puzzles import pictures, solver
from atlas_jax.puzzles.solver import Result
from atlas_jax.workdir import STEPS


class AccuracyTotals:
  """Sums over results, read as metrics at the end."""

  def __init__(self, batch_rows: int) -> None:
    """Starts empty; `batch_rows` slots were paid for in every call of the model."""
    self._batch_rows = batch_rows
    self._examples = 0
    self._count = 0
    self._calls = 0
    self._sums = dict.fromkeys(solver.MEANS, 0.0)

  def add(self, result: Result) -> None:
    """Adds one result; means are over those with labels."""
    self._examples += 1
    # `calls` counts calls of the model up to this result, so the largest is that of the whole evaluation:
    # each of them paid for all slots, idle ones too. That is the cost which early halting saves.
    self._calls = max(self._calls, result.calls)
    # What needs labels is 0 in the metrics of an example without them, and would lower the means.
    if result.labelled:
      self._count += 1
      for name in solver.MEANS:
        self._sums[name] += result.metrics[name]

  def scalars(self, prefix: str = "eval/all") -> dict[str, float]:
    """Returns count, the means over labelled examples, and steps_spent, those of all slots per example."""
    found = {f"{prefix}/count": float(self._count)}
    if self._count:
      found |= {f"{prefix}/{name}": total / self._count for name, total in self._sums.items()}
    if self._examples:
      found[f"{prefix}/steps_spent"] = self._calls * self._batch_rows / self._examples
    return found


class Gallery:
  """Keeps the first solved and unsolved results for pictures; those without labels fill what room is left."""

  def __init__(self, n_each: int, subject: Callable[[Result], Hashable | None] | None = None) -> None:
    """Keeps `n_each` of both kinds, one per subject at most; those whose subject is None are passed over."""
    self._n_each = n_each
    self._subject = subject or (lambda result: result.example)
    self._solved = {}
    self._unsolved = {}
    self._unknown = {}

  def add(self, result: Result) -> None:
    """Keeps a result if there is room for it."""
    # Results come in the order of the examples: what is kept follows from the answers, not
    # from which slot was done first.
    kept = self._solved if result.solved else self._unsolved if result.labelled else self._unknown
    if len(kept) < self._n_each and (subject := self._subject(result)) is not None:
      kept.setdefault(subject, result)

  @property
  def solved(self) -> list[Result]:
    """Returns the solved ones."""
    return list(self._solved.values())

  @property
  def unsolved(self) -> list[Result]:
    """Returns the unsolved ones, then those without labels, as many as are kept of a kind."""
    return [*self._unsolved.values(), *self._unknown.values()][:self._n_each]


def make(solve: Callable, *, batch_rows: int, n_pictures: int = 0, page: Callable | None = None,
         record: Callable | None = None, trained_on: Collection[int] = ()):
  """Makes the evaluation of Sudokus, mazes and other puzzles whose examples stand for themselves.

  Args:
    solve: what `solver.make` gives.
    batch_rows: its slots.
    n_pictures: puzzles drawn at most, half of them solved; an odd number is rounded up.
    page: (solved, unsolved) -> uint8 page of pictures, see `pictures.make_page`.
    record: of `step_answers.make`, for the puzzles that are drawn; None: they are not traced.
    trained_on: examples whose question is trained on; if there are any, "eval/unseen/..." has the same
      numbers of the others.

  Returns:
    run(trained, *, step, workdir=None) -> EvalOut with "eval/all/count" (labelled examples), the
    means "accuracy" (of tokens), "exact_accuracy", "q_halt_accuracy", "steps", "lm_loss" and "q_halt_loss" in
    nats, and "steps_spent": steps of all slots, also idle ones and other trajectories, per example. Process 0
    draws "eval/puzzles", and writes it to workdir/evals/step_NNNNNNNN/puzzles.png, with steps.json beside it.
  """
  def run(trained, *, step: int, workdir=None) -> EvalOut:
    totals = AccuracyTotals(batch_rows)
    unseen = AccuracyTotals(batch_rows)
    gallery = Gallery(-(-n_pictures // 2))
    # In every process: the solver's calls are collective, and a process that left
    # early would stop the others.
    for result in solve(trained):
      totals.add(result)
      gallery.add(result)
      # Apart, not in place of the whole: numbers under eval/all are over the same examples
      # as anybody else's on that set.
      if result.example not in trained_on:
        unseen.add(result)
    images = draw(gallery, page if n_pictures else None, "puzzles", step=step, workdir=workdir)
    record_steps(gallery, record if n_pictures else None, trained, step=step, workdir=workdir)
    scalars = totals.scalars() | (unseen.scalars("eval/unseen") if trained_on else {})
    return EvalOut(scalars, images=images)

  return run


def draw(gallery: Gallery, page: Callable | None, name: str, *, step: int, workdir) -> dict[str, np.ndarray]:
  """Draws a gallery in process 0 and writes the picture, if there is a workdir."""
  # One process draws and writes; the results are the same in all of them.
  if page is None or not hosts.is_main():
    return {}
  image = page(gallery.solved, gallery.unsolved)
  if workdir is not None:
    pictures.write_png(folder_of(workdir, step) / f"{name}.png", image)
  return {f"eval/{name}": image}


def record_steps(gallery: Gallery, record: Callable | None, trained, *, step: int, workdir) -> None:
  """Traces the puzzles of a gallery, and writes them to workdir/evals/step_NNNNNNNN/steps.json.

  Args:
    gallery: of the evaluation.
    record: of `step_answers.make`; None: nothing is done.
    trained: `state.Trained`.
    step, workdir: of the evaluation; without a workdir nothing is done.
  """
  if record is None or workdir is None:
    return
  # In every process: the model's call is collective.
  found = record(trained, [*gallery.solved, *gallery.unsolved])
  if found is not None and hosts.is_main():
    write.json(folder_of(workdir, step) / STEPS, found, indent=None)
