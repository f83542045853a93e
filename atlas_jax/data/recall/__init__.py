"""Tasks whose answers stand in the text before the question, made from a seed; one per file, found by name.

A file defines

  AXES     names of what tells its kinds of texts apart, such as ("kind", "length"), written out
  READS    names of the options that it reads, fields of config.eval
  cells    (setting) -> the kinds of texts, each a dict of AXES
  draw     (cell, draw, setting) -> RecallSample, a text drawn with a random generator; with a parameter
           `split` it is handed whose text it is, where so few differ that splits might draw the same
  chance   (cell, setting) -> fraction of answers that are right by guessing, knowing the form of an answer
           and not the text

and may define

  count    (cell, setting) -> how many different texts there are; `draw` is then handed their number, too

Evaluations (`evals.recall`) and training (`data.recall_tasks`) draw from here, apart from each other.
"""
import functools
import hashlib
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from atlas_jax import modules
from atlas_jax.data.recall import options
from atlas_jax.data.recall.sample import RecallSample, TaskSetting

SPLITS = ("train", "held_out", "eval")  # Whose texts are drawn apart.


class RecallTask(NamedTuple):
  """The definitions of a file of this folder."""

  name: str
  axes: tuple[str, ...]
  reads: tuple[str, ...]
  cells: Callable
  draw: Callable
  chance: Callable
  text_count: Callable | None

  def sample(self, cell: Mapping, setting: TaskSetting, *, seed: int, split: str,
             number: int) -> RecallSample:
    """Returns one text of a cell; the same for the same arguments, and another for any other.

    Raises:
      ValueError: if the options do not fit each other, or the vocabulary is too small.
    """
    key = hashlib.sha256(f"{self.name} {sorted(cell.items())}".encode()).digest()
    draw = np.random.default_rng([seed, SPLITS.index(split), int.from_bytes(key[:8]), number])
    wanted = inspect.signature(self.draw).parameters
    more = {name: value for name, value in (("number", number), ("split", split)) if name in wanted}
    return self.draw(cell, draw, setting, **more)


def names() -> list[str]:
  """Returns the names of all tasks of this folder."""
  return sorted(modules.constants("data/recall", "AXES"))


@functools.cache
def load(name: str) -> RecallTask:
  """Returns the task of a file name.

  Raises:
    ValueError: if there is none; lists the known ones.
  """
  if name not in names():
    raise ValueError(f"the task {name!r} is unknown; known are {', '.join(names())}")
  module = importlib.import_module(f"{__name__}.{name}")
  return RecallTask(name, module.AXES, module.READS, module.cells, module.draw, module.chance,
                    getattr(module, "count", None))


def setting_of(given: Mapping, *, tokenizer, align_tokens: int, haystack: Callable,
               download: bool = False) -> TaskSetting:
  """Returns the setting of tasks, with the options that are given and the defaults of the others.

  Raises:
    ValueError: for an option that does not exist or cannot be.
  """
  return TaskSetting(options.parse(given), tokenizer, align_tokens, haystack, download)
