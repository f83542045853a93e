"""Test pairs of ARC that are trained on: evaluation tasks that are training tasks too, under whatever id.

A task's score means nothing if a pair it is asked for, input and output, stands among the pairs trained on.
One task of ARC-AGI-1 is so: evaluation's 070dd51e is training's 40853293. A pair that is one of them only
after a rotation or a change of colours is no leak: many tasks ask for just that.
"""
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from absl import logging

from atlas_jax.puzzles import arc
from atlas_jax.puzzles.arc import tasks
from atlas_jax.puzzles.arc.tasks import Task

NAMED = 5  # Leaks that a warning names.


class Leak(NamedTuple):
  """An evaluation task that is trained on.

  Attributes:
    task: its id.
    source: the id of the task whose training pairs hold one of its test pairs.
    whole: whether the two have the same pairs, all of them.
  """

  task: str
  source: str
  whole: bool

  def __str__(self) -> str:
    """Returns the leak as words of a message."""
    if self.source == self.task:
      return f"{self.task} asks what one of its demonstrations shows"
    return f"{self.task} {'equals' if self.whole else 'shares a test pair with'} {self.source}"


def find(training: Sequence[Task], evaluation: Sequence[Task]) -> list[Leak]:
  """Finds the evaluation tasks that are trained on.

  Args:
    training: tasks all of whose known pairs are trained on; for an evaluation task, one of its
      demonstrations alone.
    evaluation: tasks whose test pairs are scored. Unknown outputs are not, and do not count.

  Returns:
    One leak for each pair of tasks concerned, in the order of the evaluation tasks.
  """
  owners: dict[str, list[str]] = {}
  for task in training:
    # A set: a task that shows one pair twice is one owner of it.
    for digest in {tasks.pair_digest(pair) for pair in tasks.labelled_pairs(task)}:
      owners.setdefault(digest, []).append(task.id)
  same = {(task, source) for source, task in arc.same_content(training, evaluation)}
  found = {}
  for task in evaluation:
    for pair in task.test:
      for source in owners.get(tasks.pair_digest(pair), ()):
        # Keyed by both, so that a task of several leaked pairs is named once.
        found[task.id, source] = Leak(task.id, source, (task.id, source) in same)
  return list(found.values())


def warn(leaks: Iterable[Leak], n_tasks: int) -> None:
  """Logs one warning that names the leaks."""
  leaks = list(leaks)
  if leaks:
    more = f", and {len(leaks) - NAMED} more" if len(leaks) > NAMED else ""
    logging.warning(
        "%d of %d evaluation tasks are trained on with their answers: %s%s; scores are given with them as "
        "ARC/* and without them as ARC/unseen/*", len({leak.task for leak in leaks}), n_tasks,
        "; ".join(map(str, leaks[:NAMED])), more)
