"""ARC tasks of one's own files: what is trained on, and a set to be solved, whose outputs may be unknown.

Demonstrations of the tasks to be solved are trained on, their test pairs never: a training task that is one
of them, by its id or by its demonstrations, is left out.
"""
from absl import logging

from atlas_jax.puzzles import arc, grids
from atlas_jax.puzzles.arc import build

TEST = "test"  # The subset of the tasks to be solved.


def read(path: str | None, test_path: str | None,
         concept: str | None = None) -> tuple[dict[str, list[arc.Task]], tuple[str, ...]]:
  """Reads the tasks of `config.puzzles` with name "files".

  Args:
    path: files and folders trained on, comma-separated, each as `arc.read` takes them; None: nothing but the
      demonstrations of the tasks to be solved.
    test_path: the file or folder of the tasks to be solved; None takes the evaluation subset of `path`, or
      its last.
    concept: where ConceptARC is, to train on it as well.

  Returns:
    Subsets of tasks by name, and the names of those to be solved.

  Raises:
    ValueError: if there is nothing to be read, or a file is wrong.
  """
  places = [place.strip() for place in (path or "").split(",") if place.strip()]
  if not places and test_path is None:
    raise ValueError("path=None and test_path=None: give path, the files or folders to train on, or "
                     "test_path, the tasks to be solved")
  subsets: dict[str, list[arc.Task]] = {}
  for place in places:
    for name, tasks in arc.read("files", place).items():
      # Several files may have one name, such as "training" of both generations; the later ones get a number.
      subsets[_free(name, subsets)] = tasks
  if concept is not None:
    subsets[_free("concept", subsets)] = arc.read("concept", concept)["concept"]
  if test_path is None:
    return subsets, (build.held_out(subsets),)
  asked = [task for tasks in arc.read("files", test_path).values() for task in tasks]
  kept = {name: _without(tasks, asked, name) for name, tasks in subsets.items()}
  test = _free(TEST, kept)
  return {**{name: tasks for name, tasks in kept.items() if tasks}, test: asked}, (test,)


def _free(name: str, taken) -> str:
  """Returns a name that is not taken: itself, or itself with a number."""
  numbered = (f"{name}_{i}" for i in range(2, len(taken) + 3))
  return next(each for each in (name, *numbered) if each not in taken)


def _without(tasks: list[arc.Task], asked: list[arc.Task], name: str) -> list[arc.Task]:
  """Leaves out the training tasks that are to be solved, and says how many."""
  ids = {task.id for task in asked}
  # By demonstrations too: a contest's tasks may come under new ids.
  known = {grids.puzzle_digest(task.train) for task in asked}
  kept = [task for task in tasks if task.id not in ids and grids.puzzle_digest(task.train) not in known]
  if len(kept) < len(tasks):
    left_out = sorted({task.id for task in tasks} - {task.id for task in kept})
    logging.warning("%d of %d tasks of %s are among those to be solved, and not trained on beyond their "
                    "demonstrations, such as %s", len(left_out), len(tasks), name, ", ".join(left_out[:3]))
  return kept
