"""Evaluations that only a memory can pass: tasks of data/recall, read and asked under controls.

A text is read segment by segment, as it is, with a state of fixed size. Its question is then read in up to
four ways, see `CONDITIONS` and `memory_gain`: what a model answers as it is counts for its memory only as far
as it cannot when the memory is emptied, another text's, or never written.
"""
from collections.abc import Callable, Mapping
from typing import Any

from atlas_jax.data import recall
from atlas_jax.data import tokenizer as tokenizers
from atlas_jax.data.recall import haystack
from atlas_jax.defaults import bounds
from atlas_jax.evals import Eval
from atlas_jax.evals.recall import asking, harness, reading
from atlas_jax.fields import nearest
from atlas_jax.models import lm

HARNESS = "lm_eval"
SEED = 0  # Every run is asked the same, whatever its own seed.


def names() -> list[str]:
  """Returns the names of all evaluations of config.eval.tasks."""
  return sorted((*recall.names(), HARNESS))


def chosen(text: str | None, *, field: str = "config.eval.tasks") -> tuple[str, ...]:
  """Returns the evaluations that a text with commas names.

  Args:
    text: None: none.
    field: that holds it, for errors.

  Raises:
    ValueError: if one is unknown; lists the known ones.
  """
  if text is None:
    return ()
  found = bounds.names_of(text)
  for name in found:
    if name not in names():
      close = nearest(name, names())
      known = "" if close.startswith("known") else f" (known are {', '.join(names())})"
      raise ValueError(f"{field}={text!r}: there is no evaluation {name!r}; {close}{known}")
  if not found:
    raise ValueError(f"{field}={text!r} names no evaluation; known are {', '.join(names())}")
  return tuple(dict.fromkeys(found))


def evals_of(config, model: lm.LM, mesh) -> dict[str, Eval]:
  """Makes the evaluations that config.eval.tasks names.

  Texts are made here once, so that what is wrong with them is said before anything compiles.

  Args:
    config: resolved.
    model: of the run.
    mesh: over which rows are split.

  Raises:
    ValueError: for an unknown name, or options that do not fit each other, the vocabulary or the model.
  """
  wanted = chosen(config.eval.tasks)
  if not wanted:
    return {}
  tokenizer = tokenizers.load(config.data.tokenizer)
  found: dict[str, Eval] = {}
  tasks = [recall.load(name) for name in wanted if name != HARNESS]
  if tasks:
    setting = setting_of(config, model, tasks, tokenizer)
    reader = reading.make(model, mesh, rows=config.eval.batch_rows, segment_len=segment_len(config, model))
    for task in tasks:
      cells = asking.drawn(task, setting, samples=config.eval.task_samples, seed=SEED)
      found[task.name] = Eval(asking.make(task, setting, cells, reader), "every")
  if HARNESS in wanted:
    found[HARNESS] = Eval(harness.make(config, model, tokenizer, mesh), "every")
  return {name: found[name] for name in wanted}


def setting_of(config, model: lm.LM, tasks, tokenizer, *, split: str = "eval"):
  """Returns the setting of the tasks of a config, over the real text of a split of data.recall."""
  given = {name: config.eval[name] for task in tasks for name in task.reads}
  corpus = {name: config.data[name] for name in haystack.FIELDS}
  text: Callable = haystack.of_corpus(**corpus, tokenizer=tokenizer, split=split)
  return recall.setting_of(given, tokenizer=tokenizer, align_tokens=align_of(config, model), haystack=text,
                           download=config.data.download)


def align_of(config, model: lm.LM) -> int:
  """Returns what the length of a context is a multiple of, for models with and without a memory alike."""
  return reading.common_multiple(model.align_tokens, config.data.align_tokens)


def segment_len(config, model: lm.LM) -> int:
  """Returns how many tokens are read at once: those of a segment in training, in whole chunks."""
  align = align_of(config, model)
  return max(align, config.data.segment_len // align * align)


def only(found: Mapping[str, Any], text: str) -> dict[str, Any]:
  """Returns of a recipe's evaluations those that --evals names.

  Raises:
    ValueError: if the recipe makes none of that name.
  """
  wanted = chosen(text, field="--evals")
  if missing := [name for name in wanted if name not in found]:
    raise ValueError(f"--evals={text}: the recipe of this run makes no evaluation {missing[0]!r}; one "
                     "of your own adds those of evals.recall.evals_of")
  return {name: found[name] for name in wanted}
