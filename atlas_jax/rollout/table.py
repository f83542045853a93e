"""Completions for the eye: a few of every rollout, in JSON lines beside the run and as a text."""
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from atlas_jax.files import json_file, json_lines, write
from atlas_jax.files.damage import Damaged, clipped
from atlas_jax.workdir import COMPLETIONS

FILE_STEPS = 1_000  # Steps with one file: none grows without end, and a start rewrites the newest at most.
SHOWN_CHARS = 240  # Of a prompt or completion in the text; the files have all of it.


class CompletionLog:
  """The files workdir/completions/*.jsonl, one row per completion; rows of a run's steps rise.

  The first write drops rows of its own step and later ones, which an earlier start has left.
  """

  def __init__(self, workdir):
    """Takes the run directory; nothing is made before the first row."""
    self._folder = pathlib.Path(workdir) / COMPLETIONS
    self._begun = False

  def write(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds the rows of a step.

    Args:
      step: the update that they are for.
      rows: JSON objects; each gets the step as its first field.
    """
    if not rows:
      return
    self._folder.mkdir(parents=True, exist_ok=True)
    # Not when it is made: a run that is only looked at, or fails before its first rollout, keeps its rows.
    if not self._begun:
      self._drop(step)
      self._begun = True
    file = self._file(step)
    # Rows are added and the file is not written anew: it grows with the run; a cut last row is dropped later.
    with write.naming(file), file.open("a", encoding="utf-8") as stream:
      stream.writelines(json.dumps({"step": step, **row}, ensure_ascii=False) + "\n" for row in rows)

  def _file(self, step: int) -> pathlib.Path:
    return self._folder / f"{step // FILE_STEPS * FILE_STEPS:08d}.jsonl"

  def _drop(self, step: int) -> None:
    for file in sorted(self._folder.glob("*.jsonl")):
      if file.name > self._file(step).name:
        file.unlink()
    file = self._file(step)
    if file.exists():
      # A row without its line end was cut by a kill, and its step is made again.
      rows = [(line, json_lines.parse(file, number, line))
              for number, line in enumerate(json_lines.lines(file), start=1) if line.endswith(b"\n")]
      for number, (_, row) in enumerate(rows, start=1):
        if not json_file.is_int(row.get("step")):
          raise Damaged(file, "has no whole 'step'", json_lines.MEND, line=number)
      write.whole(file, b"".join(line for line, row in rows if row["step"] < step))


def text_of(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns rows as a text: what was asked, what was written, and what it earned.

  Args:
    rows: with "prompt", "completion", "answer", "reward", "rewards", "advantage", "reason" and
      "length_tokens".
  """
  return "\n\n".join(
      f"prompt: {_short(row['prompt'])}\n"
      f"completion: {_short(row['completion'])}\n"
      f"answer: {_short(row['answer'])}\n"
      f"reward {_number(row['reward'])} ({_each(row['rewards'])}), advantage {_number(row['advantage'])}, "
      f"{row['length_tokens']} tokens, {row['reason']}" for row in rows)


def _each(rewards: Mapping[str, float | None]) -> str:
  return ", ".join(f"{name} {_number(reward)}" for name, reward in rewards.items())


def _number(value: float | None) -> str:
  return "none" if value is None else f"{value:.3g}"


def _short(text: str | None) -> str:
  return clipped(repr(text), SHOWN_CHARS, f" ({len(str(text))} characters)")
