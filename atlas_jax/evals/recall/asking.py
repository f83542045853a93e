"""One evaluation: all cells of a task asked in all ways, as rows, metrics, a line and a picture."""
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from atlas_jax.data.recall import RecallTask
from atlas_jax.data.recall.sample import RecallSample, TaskSetting
from atlas_jax.evals import EvalOut, bootstrap, folder_of, stopping
from atlas_jax.evals.recall import reading
from atlas_jax.files import write
from atlas_jax.parallel import hosts

METRIC = "eval/recall"


class Cell(NamedTuple):
  """The texts of one kind."""

  axes: Mapping[str, Any]  # what tells them apart, by the task's axes
  texts: Sequence[RecallSample]
  chance: float


class CellScores(NamedTuple):
  """The outcome of a cell, sums over answers for each way to read and each text."""

  right_WB: np.ndarray
  nats_WB: np.ndarray
  chosen_WB: np.ndarray | None  # bool: the likeliest candidate is the right one; None where answers are open
  count_B: np.ndarray  # answers
  growth_bytes: int | None


def drawn(task: RecallTask, setting: TaskSetting, *, samples: int, seed: int) -> list[Cell]:
  """Draws the texts of a task's cells; those of real text are views of it, and take no room.

  Args:
    task: whose texts.
    setting: of the task.
    samples: texts of each cell, fewer where there are no more.
    seed: of the draws.

  Raises:
    ValueError: if a cell cannot be drawn with these options.
  """
  found = []
  for axes in task.cells(setting):
    count = samples if task.text_count is None else min(samples, task.text_count(axes, setting))
    texts = [task.sample(axes, setting, seed=seed, split="eval", number=number) for number in range(count)]
    found.append(Cell(axes, texts, task.chance(axes, setting)))
  return found


def make(task: RecallTask, setting: TaskSetting, cells: Sequence[Cell], reader: reading.Reader):
  """Makes the evaluation.

  Args:
    task: whose cells these are.
    setting: they were drawn with.
    cells: see `drawn`.
    reader: answers them.

  Returns:
    run(trained, *, step, workdir) -> EvalOut with

      rows      one per cell and way to read, see `rows_of`
      scalars   over all cells "eval/recall/TASK/accuracy", of the model as it is, with its interval "_low"
                and "_high" over texts; "eval/recall/TASK/emptied_accuracy" and so on; of tasks with
                candidates "choice_accuracy", the likeliest of all, in the same ways; "chance", "nats" per
                answer, "answers", "texts"; as it is, for each value of an axis,
                "eval/recall/TASK/AXIS_VALUE/accuracy"; and where some answers stand beyond the reach of
                attention, "beyond_reach_accuracy"
      images    "eval/recall/TASK": accuracy by the axes, a row of panels for each way to read
      text      a line

    and, in a workdir, evals/step_NNNNNNNN/TASK.json with the rows and TASK.png with the picture.
  """
  shape = reading.shape_of([text for cell in cells for text in cell.texts], setting.align_tokens)

  def run(trained, *, step: int, workdir=None) -> EvalOut:
    found = [scored(reader, trained, cell, shape) for cell in cells]
    rows = [row for cell, sums in zip(cells, found) for row in rows_of(task, cell, sums, reader)]
    from atlas_jax.evals.recall import pictures  # Matplotlib, which a start need not wait for.

    image = pictures.by_axes(task.name, task.axes, rows)
    if workdir is not None and hosts.is_main():
      folder = folder_of(workdir, step)
      write.json(folder / f"{task.name}.json", rows)
      pictures.write_png(folder / f"{task.name}.png", image)
    scalars = scalars_of(task, cells, found, reader)
    return EvalOut(scalars, line_of(task.name, scalars, reader.conditions), {f"{METRIC}/{task.name}": image},
                   rows=tuple(rows))

  return run


def scored(reader: reading.Reader, trained, cell: Cell, shape: reading.QuestionShape) -> CellScores:
  """Has all texts of a cell answered; where they fill no batch, earlier ones stand in, and count once."""
  count = len(cell.texts)
  right, nats, chosen = [], [], []
  growth = None
  for first in range(0, count, reader.rows):
    stopping.check()
    texts = batch_of(cell.texts, first, reader.rows)
    found = reader.score(trained, texts, shape)
    here = min(reader.rows, count - first)
    right.append(found.right_WBN.sum(axis=-1)[:, :here])
    nats.append(found.nats_WBN.sum(axis=-1)[:, :here])
    correct_B = np.array([text.correct for text in texts])
    chosen.append((found.choice_WB == correct_B[None])[:, :here])
    growth = max((one for one in (growth, reader.growth_bytes()) if one is not None), default=None)
  return CellScores(np.concatenate(right, axis=1), np.concatenate(nats, axis=1),
                    np.concatenate(chosen, axis=1) if cell.texts[0].candidates else None,
                    np.array([len(text.distance_N) for text in cell.texts]), growth)


def batch_of(texts: Sequence[RecallSample], first: int, rows: int) -> list[RecallSample]:
  """Returns texts from a number on, filled up from the first again; no text that counts follows itself.

  The row before the first is the last one: memories are swapped in a ring.
  """
  found = list(itertools.islice(itertools.cycle(texts), first, first + rows))
  if len(texts) > 1 and found[-1] is found[0]:
    found[-1] = texts[(first + 1) % len(texts)]
  return found


def rows_of(task: RecallTask, cell: Cell, sums: CellScores, reader: reading.Reader) -> list[dict]:
  """Returns a row for each way to read, as JSON holds it.

  It has the task, the cell's axes, "condition", "accuracy" by greedy decoding with "low" and "high" (None for
  one text), "chance", "nats" per answer, "answers" and "texts"; "choice_accuracy" and so on of the likeliest
  candidate, where there are any; "distance_tokens", the least and the median of all answers, and
  "reach_tokens" of attention; "state_bytes" of a row, and "growth_bytes", by how much the process's peak of
  memory in the second half of the texts exceeds that in the first: 0 where a longer text needs no more.
  """
  distances = np.concatenate([text.distance_N for text in cell.texts])
  shared = {"eval": task.name, **cell.axes}
  size = {"answers": int(sums.count_B.sum()), "texts": len(cell.texts), "chance": cell.chance,
          "context_tokens": max(text.context_len for text in cell.texts),
          "distance_tokens_least": int(distances.min()),
          "distance_tokens_median": float(np.median(distances)),
          "reach_tokens": reader.reach_tokens, "state_bytes": reader.state_bytes,
          "growth_bytes": sums.growth_bytes}
  found = []
  for way, condition in enumerate(reader.conditions):
    if condition == "swapped" and len(cell.texts) < 2:
      continue  # There is no other text.
    row = {**shared, "condition": condition, **_interval("", sums.right_WB[way], sums.count_B)}
    row["nats"] = float(sums.nats_WB[way].sum() / sums.count_B.sum())
    if sums.chosen_WB is not None:
      row |= _interval("choice_", sums.chosen_WB[way], np.ones(len(cell.texts)))
    found.append({**row, **size})
  return found


def _interval(prefix: str, right_B, count_B) -> dict:
  """Returns the fraction of right answers and its interval over texts."""
  interval = bootstrap.interval_of_mean(right_B, count_B) or (None, None)
  low, high = (None if one is None else min(max(one, 0.0), 1.0) for one in interval)
  return {f"{prefix}accuracy": float(np.sum(right_B) / np.sum(count_B)), f"{prefix}low": low,
          f"{prefix}high": high}


def scalars_of(task: RecallTask, cells: Sequence[Cell], found: Sequence[CellScores],
               reader: reading.Reader) -> dict[str, float]:
  """Returns the metrics over all cells; see `make`."""
  base = f"{METRIC}/{task.name}"
  count_B = np.concatenate([sums.count_B for sums in found])
  chance = sum(cell.chance * sums.count_B.sum() for cell, sums in zip(cells, found)) / count_B.sum()
  scalars = {f"{base}/chance": float(chance), f"{base}/answers": float(count_B.sum()),
             f"{base}/texts": float(len(count_B))}
  for way, condition in enumerate(reader.conditions):
    start = f"{base}/" if condition == reading.AS_IT_IS else f"{base}/{condition}_"
    scalars |= _named(start, _interval("", np.concatenate([sums.right_WB[way] for sums in found]), count_B))
    scalars[f"{start}nats"] = float(sum(sums.nats_WB[way].sum() for sums in found) / count_B.sum())
    chosen = [sums.chosen_WB[way] for sums in found if sums.chosen_WB is not None]
    if len(chosen) == len(found):
      chosen_B = np.concatenate(chosen)
      scalars |= _named(start, _interval("choice_", chosen_B, np.ones(len(chosen_B))))
  for axis in task.axes:
    for value in dict.fromkeys(cell.axes[axis] for cell in cells):
      here = [sums for cell, sums in zip(cells, found) if cell.axes[axis] == value]
      scalars[f"{base}/{axis}_{value}/accuracy"] = _accuracy(here)
  beyond = [sums for cell, sums in zip(cells, found)
            if min(text.distance_N.min() for text in cell.texts) > reader.reach_tokens]
  if beyond:
    scalars[f"{base}/beyond_reach_accuracy"] = _accuracy(beyond)
  return scalars


def _accuracy(found: Sequence[CellScores]) -> float:
  """Returns the fraction of right answers of the model as it is."""
  return float(sum(sums.right_WB[0].sum() for sums in found) / sum(sums.count_B.sum() for sums in found))


def _named(start: str, interval: Mapping) -> dict[str, float]:
  """Names an interval as metrics, "accuracy", "accuracy_low", "accuracy_high"."""
  found = {}
  for name, value in interval.items():
    if value is not None:
      head, _, end = name.rpartition("_")
      bound = end if end in ("low", "high") else ""
      kind = f"{head}_accuracy".removeprefix("_") if bound else name
      found[f"{start}{kind}{f'_{bound}' * bool(bound)}"] = value
  return found


def line_of(name: str, scalars: Mapping[str, float], conditions: Sequence[str]) -> str:
  """Says the outcome in words."""
  base = f"{METRIC}/{name}/"
  parts = []
  for condition in conditions:
    start = "" if condition == reading.AS_IT_IS else f"{condition}_"
    low, high = (scalars.get(f"{base}{start}accuracy_{end}") for end in ("low", "high"))
    interval = "" if low is None else f" ({low:.3f} to {high:.3f})"
    parts.append(f"{condition.replace('_', ' ')} {scalars[f'{base}{start}accuracy']:.3f}{interval}")
  texts, answers = int(scalars[f"{base}texts"]), int(scalars[f"{base}answers"])
  return (f"{name}: right of {answers:,} answers in {texts:,} texts: {', '.join(parts)}; chance "
          f"{scalars[f'{base}chance']:.3g}")
