"""Answers to the puzzles of an evaluation's pictures after every supervision step, for the dashboard.

They stand in workdir/evals/step_NNNNNNNN/steps.json:

  {"kind": "arc" | "sudoku" | "maze",
   "puzzles": [{"name", "solved": bool, null where the target is not known, "input": rows, "target": rows,
                "steps": [{"answer": rows, "sure": rows of percents, "halt": percent, "right": fraction}]}]}

Rows are lists of numbers: colours 0 to 9 of ARC, digits of a Sudoku with 0 for a blank, tokens of a maze as
`pictures.MAZE_COLOURS` lists them. "target" is null where it is not known, and "right" then, too.
"""
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from atlas_jax.losses.stablemax import NOT_SCORED
from atlas_jax.puzzles.solver import Result
from atlas_jax.puzzles.tracing import SolvingTrace


def make(trace: Callable, kind: str, shape: tuple[int, int], name_of: Callable[[Result], str], *,
         rows: int, crop: Callable | None = None) -> Callable:
  """Makes the function that records how answers came about.

  Args:
    trace: of `tracing.make`; the answers it gives are those of mode "all" with one trajectory and no noise,
      whatever the evaluation's mode is.
    kind: "arc", "sudoku" or "maze", how tokens are read.
    shape: rows and columns of the tokens.
    name_of: result -> the name of its puzzle.
    rows: puzzles at most; fewer are filled up, so that there is one shape to compile for.
    crop: of "arc": tokens -> grid of colours.

  Returns:
    (trained, results) -> the object above, None without results. Every process must call it alike.
  """
  cells = functools.partial(_cells, kind, shape=shape, crop=crop)

  def record(trained, results: Sequence[Result]) -> dict | None:
    found = list(results)[:rows]
    if not found:
      return None
    filled = [*found, *[found[-1]] * (rows - len(found))]
    batch = {"inputs_BT": np.stack([result.input_T for result in filled]),
             "labels_BT": np.stack([result.labels_T for result in filled]),
             "ids_B": np.array([result.id for result in filled])}
    seen = trace(trained.params, batch, tuple(trained.frozen["reset"]), trained.tables)
    return {"kind": kind, "puzzles": [
        _puzzle(kind, result, name_of(result), SolvingTrace(*(array[:, row] for array in seen)), cells)
        for row, result in enumerate(found)]}

  return record


def _cells(kind: str, tokens_T: np.ndarray, shape: tuple[int, int], crop: Callable | None) -> np.ndarray:
  """Returns what the cells of a grid hold: colours, digits, or tokens of a maze."""
  if kind == "arc":
    assert crop is not None
    # Cells that are not scored are -100 in a batch; to `crop` they are what they were in the file, padding.
    return np.asarray(crop(np.maximum(tokens_T, 0)), np.int64)
  # Tokens of a Sudoku are digit + 1.
  return np.maximum(np.asarray(tokens_T).reshape(shape) - (kind == "sudoku"), 0)


def _puzzle(kind: str, result: Result, name: str, seen: SolvingTrace, cells: Callable) -> dict[str, Any]:
  scored_T = result.labels_T != NOT_SCORED
  steps = []
  for prediction_T, chance_T, halt in zip(seen.prediction_NBT, seen.chance_NBT, seen.halt_NB):
    answer = cells(prediction_T)
    sure = np.round(100 * np.reshape(chance_T, -1)).astype(int)
    steps.append({
        "answer": answer.tolist(), "sure": _like(sure, answer, kind), "halt": round(100 * float(halt)),
        "right": float(np.mean(prediction_T[scored_T] == result.labels_T[scored_T]))
                 if result.labelled else None})
  return {"name": name, "solved": result.solved if result.labelled else None,
          "input": cells(result.input_T).tolist(),
          "target": cells(result.labels_T).tolist() if result.labelled else None, "steps": steps}


def _like(values_T: np.ndarray, grid: np.ndarray, kind: str) -> list[list[int]]:
  """Returns the values of the tokens that a grid was cut out of, as rows."""
  if kind == "arc":
    # A grid stands in the upper left corner of a square canvas.
    side = math.isqrt(len(values_T))
    return values_T.reshape(side, side)[:grid.shape[0], :grid.shape[1]].tolist()
  return values_T.reshape(grid.shape).tolist()
