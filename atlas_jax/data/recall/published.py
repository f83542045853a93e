"""Sets that others published, read from files or the hub: rows in the form of BABILong or of RULER.

  BABILong   {"input": the text, "question": ..., "target": the answer}
  RULER      {"input": the text with the question in its last line, "outputs": [the answer],
              "answer_prefix": what the answer goes on from, if there is one}

Every row is asked once, in the order of the files, up to config.eval.task_samples of each file. Answered by
greedy decoding; rows of several outputs have no one answer, and are left out with a word. What of a text does
not fill a chunk belongs to the question.

Source: Kuratov et al. 2024, arXiv:2406.10149; Hsieh et al. 2024, arXiv:2404.06654.
"""
import functools
import pathlib
from collections.abc import Mapping

import numpy as np
from absl import logging

from atlas_jax.data import records
from atlas_jax.data.recall import sample

AXES = ("set",)
READS = ("published_path", "published_split")
FORMS = (("input", "question", "target"), ("input", "outputs"))


def cells(setting) -> list[dict]:
  """Returns each file, or the set of the hub.

  Raises:
    ValueError: if no path is given, or what is there cannot be read.
  """
  return [{"set": name} for name in _rows(setting)]


def draw(cell, draw, setting, *, number: int) -> sample.RecallSample:
  """Returns the text of a row."""
  del draw
  context, prompt, answer = _rows(setting)[cell["set"]][number]
  encode = setting.tokenizer.encode
  question = sample.shown_answer(encode(prompt), encode(f" {answer}"))
  return sample.at_border(setting, encode(context), question, np.zeros(1))


def chance(cell, setting) -> float:
  """Returns 0: answers are open."""
  del cell, setting
  return 0.0


def count(cell, setting) -> int:
  """Returns how many rows there are."""
  return len(_rows(setting)[cell["set"]])


def parts_of(row: Mapping, where: str) -> tuple[str, str, str] | None:
  """Returns the text, the question and the answer of a row; None where it has several answers.

  Raises:
    ValueError: if it has neither form.
  """
  fields = next((form for form in FORMS if set(form) <= set(row)), None)
  if fields is None:
    raise ValueError(f"{where}: has {', '.join(row)}; a row has input, question and target, as BABILong's, "
                     "or input and outputs, as RULER's; give other files with config.eval.published_path")
  if "question" in fields:
    return row["input"], f"\nQuestion: {row['question']} Answer:", row["target"]
  outputs = row["outputs"] if isinstance(row["outputs"], list) else [row["outputs"]]
  if len(outputs) != 1:
    return None
  context, line, question = row["input"].rstrip().rpartition("\n")
  return context, f"{line}{question}{row['answer_prefix'] if 'answer_prefix' in row else ''}", outputs[0]


def _rows(setting) -> dict[str, list[tuple[str, str, str]]]:
  path = setting.options["published_path"]
  if path is None:
    raise ValueError("config.eval.published_path=None, and the evaluation 'published' reads files of "
                     "BABILong's or RULER's form there; name some, or hf:NAME:SUBSET with "
                     "--config.data.download=True, or leave the evaluation out")
  return _read(path, setting.options["published_split"], setting.download)


@functools.cache
def _read(path: str, split: str, download: bool) -> dict[str, list[tuple[str, str, str]]]:
  found: dict[str, list[tuple[str, str, str]]] = {}
  several = 0
  try:
    for record in records.read(path, split=split, download=download):
      file = record.where.rpartition(":")[0]
      name = file if path.startswith("hf:") else pathlib.Path(file).name.partition(".")[0]
      parts = parts_of(record.row, record.where)
      several += parts is None
      if parts is not None:
        found.setdefault(name, []).append(parts)
  except (ValueError, ModuleNotFoundError) as error:
    raise type(error)(f"config.eval.published_path={path!r}: {error}") from error
  if several:
    logging.warning("config.eval.published_path=%s: %d rows have several outputs and are left out", path,
                    several)
  if not found:
    raise ValueError(f"config.eval.published_path={path!r} holds no row with one answer; name others")
  return found
