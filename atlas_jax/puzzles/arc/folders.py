"""Folders of ARC tasks: the subsets they hold, in whatever layout, and which published ones these are.

A subset is a file of Kaggle's, PREFIX_SUBSET_challenges.json with its solutions beside it, or a folder with a
file for each task: training/ and evaluation/ of the repositories, corpus/ of ConceptARC. Both generations of
ARC come under the same names, so a published subset is known by its tasks, never by its name.

Source: the ids and contents of the repositories ARC-AGI, ARC-AGI-2 and ConceptARC, and of Kaggle's contests.
"""
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from absl import logging

from atlas_jax.puzzles.arc import tasks as arc_tasks
from atlas_jax.puzzles.arc.tasks import TEST_FIRST, TRAIN_FIRST, Task

HALVES = ("training", "evaluation", "test")  # What the repositories call their folders.
RANKS = ("training", "evaluation", "concept")  # The reference's order of subsets; others follow.


class KnownSubset(NamedTuple):
  """A published subset.

  Attributes:
    set: what `arc.read` calls the set it belongs to.
    title: what its authors call the set.
    subset: its name here.
    n_tasks: how many it has.
    ids: `arc_tasks.ids_digest` of them.
    questions, outputs: `arc_tasks.questions_digest` and `outputs_digest` of the version that the reference
      has.
    order: of the keys in the reference's files, see `Task`.
  """

  set: str
  title: str
  subset: str
  n_tasks: int
  ids: str
  questions: str
  outputs: str
  order: str


KAGGLE = "ARC-AGI-2 as in Kaggle's contest of 2025"
PUBLIC = "ARC-AGI-2 as in its repository"
# Digests are the first 16 hexadecimal digits of SHA-256. Both "arc2" and "arc2_public" have the same ids:
# only the questions of their evaluation tasks tell them apart.
KNOWN = (KnownSubset("arc1", "ARC-AGI-1", "training", 400, "e94e5c5893ab0eff", "f59e6ea15cd337a3",
                     "0ebc76d30e346095", TEST_FIRST), KnownSubset("arc1", "ARC-AGI-1", "evaluation", 400,
                     "0c9cd093d7649d3a", "71d7b818351f99df", "db1361ca3e1fdc01",
                     TEST_FIRST), KnownSubset("arc2", KAGGLE, "training2", 1000, "049c1d036fcede7d",
                     "02d8130f2083cba7", "2a9504b400af1fa1", TRAIN_FIRST), KnownSubset("arc2", KAGGLE,
                     "evaluation2", 120, "fa5eacb9cf470e5a", "e3dbdec1fc732f80", "9b9fcd8e809ab588",
                     TRAIN_FIRST), KnownSubset("arc2_public", PUBLIC, "training2", 1000, "049c1d036fcede7d",
                     "02d8130f2083cba7", "2a9504b400af1fa1", TRAIN_FIRST), KnownSubset("arc2_public", PUBLIC,
                     "evaluation2", 120, "fa5eacb9cf470e5a", "4c99239b1ef35ac7", "3cab80b4cc60a34a",
                     TRAIN_FIRST), KnownSubset("concept", "ConceptARC", "concept", 160, "e720291786f6a7a1",
                     "45eb6c69d6b409e7", "60f460cc81288b31", TRAIN_FIRST),)

# The order in which the reference reads ConceptARC; its random stream depends on it.
_CONCEPTS = {
  "ExtractObjects": (10, 7, 9, 4, 1, 5, 8, 6, 2, 3), "Count": (3, 9, 2, 8, 4, 1, 7, 5, 6, 10),
  "Copy": (5, 2, 7, 10, 4, 1, 8, 3, 6, 9), "Center": (3, 9, 6, 10, 1, 2, 4, 8, 7, 5),
  "TopBottom2D": (7, 6, 2, 3, 1, 9, 5, 4, 8, 10), "Order": (1, 10, 3, 4, 8, 7, 9, 2, 5, 6),
  "MoveToBoundary": (3, 4, 10, 6, 8, 7, 9, 2, 1, 5), "SameDifferent": (6, 3, 9, 10, 4, 8, 2, 5, 7, 1),
  "HorizontalVertical": (10, 4, 6, 3, 8, 5, 7, 2, 1, 9), "TopBottom3D": (9, 6, 1, 10, 8, 5, 7, 2, 4, 3),
  "CompleteShape": (6, 3, 7, 9, 2, 4, 8, 5, 1, 10), "AboveBelow": (5, 3, 1, 8, 10, 9, 7, 6, 4, 2),
  "FilledNotFilled": (1, 9, 2, 8, 6, 4, 7, 5, 3, 10), "InsideOutside": (8, 5, 9, 4, 3, 7, 2, 6, 1, 10),
  "CleanUp": (1, 2, 9, 8, 4, 7, 5, 6, 3, 10), "ExtendToBoundary": (9, 1, 4, 7, 3, 8, 2, 10, 5, 6),
}
CONCEPT_ORDER = tuple(f"{concept}{number}" for concept, numbers in _CONCEPTS.items() for number in numbers)


class Part(NamedTuple):
  """A subset that was found, its tasks not checked yet.

  Attributes:
    subset: its name, by its file or folder.
    place: the file of challenges, or the folder.
    tasks: {id: task as in its file}, or {id: file} of a folder with a file for each task.
  """

  subset: str
  place: pathlib.Path
  tasks: dict[str, Any]

  def __str__(self) -> str:
    """Returns what it is and where, for messages."""
    digest = arc_tasks.ids_digest(self.tasks)
    count = len(self.tasks)
    known = next((f", of {each.title.split()[0]}" for each in KNOWN if each.ids == digest), "")
    return f"{self.subset} ({count} task{'s' * (count != 1)}{known}) in {self.place.name}"


def read_known(name: str, path: pathlib.Path) -> dict[str, list[Task]]:
  """Reads the subsets of a published set out of a folder, whatever else it holds.

  Tasks come in the order in which the reference has them, and so do the keys of their files, so that builds
  of a set are equal wherever it was read from.

  Args:
    name: one of the sets of `KNOWN`.
    path: a folder with the set in it or one level below, or a file of challenges.

  Raises:
    ValueError: if the folder does not hold the set, saying what it holds; or holds it in two versions.
  """
  found = _look(path, [path, *_folders_in(path)])
  if name == "concept" and path.is_dir() and not any(part.subset == "concept" for part in found):
    found += [part for part in [_concept_part(path)] if part.tasks]  # The corpus itself was named.
  picked = [(known, *_pick(found, known, path)) for known in KNOWN if known.set == name]
  unused = [str(part) for part in found if not any(part is used for _, used, _ in picked)]
  if unused:
    logging.info("%s is read as %s; it also holds %s", path, name, "; ".join(unused))
  for _, part, tasks in picked:
    _warn_of_unknown(part, tasks)
  return {known.subset: _as_reference(tasks, known) for known, _, tasks in picked}


def read_all(path: pathlib.Path) -> dict[str, list[Task]]:
  """Reads all subsets of a folder or file, under the names they have there.

  Raises:
    ValueError: if there is none, or two have one name.
  """
  found = _look(path, [path]) or _loose(path)
  if not found:
    raise ValueError(_nothing_in(path))
  subsets: dict[str, Part] = {}
  # In the reference's order, whatever the file system lists first: the random
  # stream goes through the subsets.
  for part in sorted(found, key=lambda part: _place_of(part.subset)):
    if part.subset in subsets:
      raise ValueError(f"{path} holds the subset {part.subset!r} twice, in {subsets[part.subset].place} and "
                       f"in {part.place}; give one of them as path, or rename one")
    subsets[part.subset] = part
  read = {subset: _tasks_of(part) for subset, part in subsets.items()}
  for subset, tasks in read.items():
    _warn_of_unknown(subsets[subset], tasks)
  return read


def _look(path: pathlib.Path, roots: Iterable[pathlib.Path]) -> list[Part]:
  """Finds the subsets that stand in folders, or in their data/."""
  if path.is_file():
    return [_file_part(path)]
  parts: dict[pathlib.Path, Part] = {}
  # The repositories have their folders below data/; a path may name either.
  for root in (each for top in roots for each in (top, top / "data") if each.is_dir()):
    for file in sorted(root.glob("*_challenges.json")):
      parts.setdefault(file, _file_part(file))
    for file in sorted(root.glob("*_solutions.json")):
      if not _twin(file, "solutions", "challenges").exists():
        logging.warning("%s is not used: it has no challenges beside it", file)
    for half in HALVES:
      if files := sorted((root / half).glob("*.json")):
        parts.setdefault(root / half, _folder_part(half, root / half, files))
    corpus = root / "corpus"
    if corpus.is_dir():
      parts.setdefault(corpus, _concept_part(corpus))
  return list(parts.values())


def _folders_in(path: pathlib.Path) -> list[pathlib.Path]:
  return sorted(each for each in path.iterdir() if each.is_dir()) if path.is_dir() else []


def _loose(path: pathlib.Path) -> list[Part]:
  """Finds files of one task each, and files of tasks by id, that lie in a folder."""
  loose = []
  parts = []
  for file in sorted(path.glob("*.json")):
    raw = arc_tasks.load_json(file)
    # A task has the keys train and test; any other object is tasks by id.
    if isinstance(raw, dict) and not {"train", "test"} & raw.keys():
      parts.append(_file_part(file))
    else:
      loose.append(file)
  return [*([_folder_part("tasks", path, loose)] if loose else []), *parts]


def _file_part(file: pathlib.Path) -> Part:
  raw = arc_tasks.load_tasks(file)
  if {"train", "test"} & raw.keys():
    raise ValueError(f"{file} holds one task, not tasks by id as PREFIX_SUBSET_challenges.json does; "
                     "read_task reads one task alone")
  # arc-agi_evaluation_challenges.json is the subset "evaluation".
  match = re.fullmatch(r"(?:.*_)?([^_]+)_challenges\.json", file.name)
  return Part(match[1] if match else file.stem, file, raw)


def _folder_part(subset: str, folder: pathlib.Path, files: Sequence[pathlib.Path]) -> Part:
  stems = [file.stem for file in files]
  for stem in stems:
    if stems.count(stem) > 1:
      raise ValueError(f"{folder} has the task {stem!r} twice; ids must differ")
  return Part(subset, folder, dict(zip(stems, files)))


def _concept_part(root: pathlib.Path) -> Part:
  """Finds ConceptARC in the reference's order; tasks of other names follow, sorted."""
  rank = {task_id: index for index, task_id in enumerate(CONCEPT_ORDER)}
  # The corpus has "minimal tasks" besides, which the reference does not take.
  files = [file for file in root.rglob("*.json") if "Minimal" not in file.stem]
  files.sort(key=lambda file: (rank[file.stem] if file.stem in rank else len(rank), file.stem))
  return _folder_part("concept", root, files)


def _pick(found: Sequence[Part], known: KnownSubset, path: pathlib.Path) -> tuple[Part, list[Task]]:
  """Returns the part that is a published subset: in the reference's version, or the only version there."""
  same = [(part, _tasks_of(part)) for part in found if arc_tasks.ids_digest(part.tasks) == known.ids]
  digests = [arc_tasks.questions_digest(tasks) for _, tasks in same]
  # Questions decide, not outputs: a contest's files come without the outputs of its test pairs,
  # and are the set all the same.
  right = [each for each, digest in zip(same, digests) if digest == known.questions]
  if right:
    return _best(right, known)
  for other in KNOWN:
    if other.ids == known.ids and other.questions in digests:
      raise ValueError(f"{path} holds {other.title}, not {known.title}: evaluation tasks differ; ask for "
                       f"{other.set!r}, or give the other files")
  if len(set(digests)) > 1:
    raise ValueError(f"{path} holds {known.subset} of {known.title} in versions that differ, in "
                     f"{' and '.join(str(part.place) for part, _ in same)}; give the folder of one")
  if not same:
    if not found:
      raise ValueError(_nothing_in(path))
    raise ValueError(f"{path} does not hold {known.title}: its {known.subset}, {known.n_tasks} tasks known "
                     f"by their ids, is not among what is there: {'; '.join(map(str, found))}. Tasks of your "
                     "own are read with the name 'files'")
  logging.warning("%s holds another version of the %s of %s than the reference has: builds of it have other "
                  "digests, and scores may differ", same[0][0].place, known.subset, known.title)
  # Of one other version in several copies the one that knows most outputs.
  return min(same, key=lambda each: arc_tasks.count_unknown(each[1]))


def _best(versions: Sequence[tuple[Part, list[Task]]], known: KnownSubset) -> tuple[Part, list[Task]]:
  """Returns, of copies that ask the same, the one that knows most outputs, and of such the reference's."""

  def rank(tasks):
    return (arc_tasks.count_unknown(tasks), arc_tasks.outputs_digest(tasks) != known.outputs)

  best = min(versions, key=lambda each: rank(each[1]))
  if rank(best[1]) == (0, True):
    logging.warning("%s has other outputs of test pairs in the %s of %s than the reference has: scores are "
                    "not those of the published set", best[0].place, known.subset, known.title)
  return best


def _as_reference(tasks: list[Task], known: KnownSubset) -> list[Task]:
  """Returns the tasks of a published subset as the reference orders them."""
  rank = {task_id: index for index, task_id in enumerate(CONCEPT_ORDER)}
  # ARC's own files are in the order of their ids, where `rank` is 0 for all;
  # ConceptARC has an order of its own.
  tasks = sorted(tasks, key=lambda task: (rank.get(task.id, 0), task.id))
  return [task._replace(order=known.order) for task in tasks]


def _tasks_of(part: Part) -> list[Task]:
  """Reads and checks the tasks of a part."""
  if not part.place.is_file():
    return [arc_tasks.task_of(task_id, arc_tasks.load_json(file), str(file))
            for task_id, file in part.tasks.items()]
  tasks = [arc_tasks.task_of(task_id, task, str(part.place)) for task_id, task in part.tasks.items()]
  solutions = _twin(part.place, "challenges", "solutions")
  # A file without "_challenges" in its name has no twin: `_twin` gives it back as it is.
  if solutions == part.place or not solutions.exists():
    return tasks
  outputs = arc_tasks.load_tasks(solutions)
  if spare := outputs.keys() - part.tasks.keys():
    logging.warning("%s has solutions of %d tasks that are not in %s, such as %s: they are not used",
                    solutions, len(spare), part.place.name, min(spare))
  return [_solved(task, outputs, str(solutions)) for task in tasks]


def _solved(task: Task, solutions: dict[str, Any], where: str) -> Task:
  """Returns a task with the outputs of its test pairs."""
  outputs = solutions[task.id] if task.id in solutions else None
  if not isinstance(outputs, list) or len(outputs) != len(task.test):
    raise ValueError(f"{where}: task {task.id!r} must have a list of {len(task.test)} outputs, "
                     f"got {'none' if outputs is None else str(outputs)[:60]}")
  pairs = [(pair[0], arc_tasks.grid_of(rows, f"{where}: task {task.id!r}, output {number}"))
           for number, (pair, rows) in enumerate(zip(task.test, outputs))]
  return task._replace(test=tuple(pairs))


def _twin(file: pathlib.Path, here: str, there: str) -> pathlib.Path:
  """Names the file of solutions of one of challenges, or the reverse."""
  return file.with_name(re.sub(rf"_{here}\.json$", f"_{there}.json", file.name))


def _warn_of_unknown(part: Part, tasks: Sequence[Task]) -> None:
  if unknown := arc_tasks.count_unknown(tasks):
    total = sum(len(task.test) for task in tasks)
    logging.warning("%s: the outputs of %d of %d test pairs are unknown; these are neither trained on nor "
                    "scored", part.place, unknown, total)


def _nothing_in(path: pathlib.Path) -> str:
  return (f"{path} has neither data/training and data/evaluation nor PREFIX_SUBSET_challenges.json, and no "
          "*.json with a task")


def _place_of(subset: str) -> tuple[int, str]:
  rank = next((index for index, name in enumerate(RANKS) if subset.startswith(name)), len(RANKS))
  return rank, subset
