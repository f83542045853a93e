"""ARC tasks that a run knows: whether it was trained on them, and their rows."""
from absl import logging

from atlas_jax.parallel import hosts
from atlas_jax.puzzles import arc, files, grids
from atlas_jax.puzzles import sets as puzzle_sets

HELD_OUT = "held out"
WHOLE = "trained on whole"


class KnownTasks:
  """The tasks of a run, read when the first one is asked for."""

  def __init__(self, config, workdir):
    """Takes the config and the workdir of a run."""
    self._config = config
    self._workdir = workdir
    self._parts: dict[str, dict[str, str]] | None = None  # part -> task id -> digest of its demonstrations
    self._names: tuple[str, ...] = ()  # of ids of a built folder
    self._sets: puzzle_sets.Sets | None = None

  def part_of(self, task: arc.Task) -> str | None:
    """Returns which part of the run's tasks has this one, by id and demonstrations; None if none has.

    Raises:
      ImportError, ValueError: if the data of the run are not here.
    """
    if self._parts is None:
      self._parts = self._read()
    # Names are TASK|||..., and the task as it stands has its id for a name.
    if task.id in self._names and task.id not in self._parts[HELD_OUT]:
      return WHOLE  # A built folder does not hold its pairs apart: the id must do.
    # By demonstrations as well as id: an id such as "task1" says little, and edited tasks keep theirs.
    digest = grids.puzzle_digest(task.train)
    return next((part for part, known in self._parts.items() if known.get(task.id) == digest), None)

  def _read(self) -> dict[str, dict[str, str]]:
    fields = self._config.puzzles
    if fields.name == "built":
      found = files.load(fields.path)
      self._names = tuple(found.train.names)
      tasks = [arc.task_of(name, raw, fields.path) for name, raw in found.test_puzzles.items()]
      return {HELD_OUT: _digests(tasks), WHOLE: {}}
    subsets, test_sets = puzzle_sets.arc_subsets(fields)
    return {part: _digests(task for name, tasks in subsets.items() for task in tasks
                           if (name in test_sets) == (part == HELD_OUT)) for part in (HELD_OUT, WHOLE)}

  def say(self, task: arc.Task) -> None:
    """Says in a line of the log whether the run was trained on a task."""
    if not hosts.is_main():
      return
    try:
      part = self.part_of(task)
    # It is only said: answering needs no data of the run.
    except (ImportError, ValueError) as error:
      logging.info("whether the run was trained on %s is not known here: %s", task.id, error)
      return
    if part is None:
      logging.info("%s is new to the run", task.id)
    else:
      more = "" if part == HELD_OUT else " and its test pairs too: being right means nothing"
      logging.info("%s is known to the run, %s, where its demonstrations are trained on%s; it is tuned to "
                   "anew", task.id, part, more)

  def rows_of(self, task: arc.Task, n_augmentations: int | None) -> dict[str, int]:
    """Returns the rows of the run's table that belong to a task, by the names of its augmentations.

    Args:
      task: one of the run's.
      n_augmentations: how many at most, besides the task itself, which comes first; None: all.

    Raises:
      ValueError: if the run has other puzzles than its data here, or does not know the task.
    """
    if self._sets is None:
      self._sets = puzzle_sets.load(self._config)
      self._sets.check_run(self._workdir)
    train = self._sets.train
    ids = {name: row for row, name in enumerate(train.names) if name.split(grids.SEPARATOR)[0] == task.id}
    if task.id not in ids:
      raise ValueError(f"--rows=run: the task {task.id!r} is not in the table of the run in {self._workdir}, "
                       f"of {train.n_groups} tasks; leave out --rows=run to give it rows of its own")
    if self.part_of(task) is None:
      raise ValueError(f"--rows=run: the run in {self._workdir} knows {task.id!r} with other demonstrations, "
                       "its rows stand for those; leave out --rows=run, or give the task as the run has it")
    first = sorted(ids, key=lambda name: name != task.id)  # The task as it stands, as `arc_build` wants it.
    return {name: ids[name] for name in first[:None if n_augmentations is None else n_augmentations + 1]}


def _digests(tasks) -> dict[str, str]:
  return {task.id: grids.puzzle_digest(task.train) for task in tasks}
