"""Answers to a puzzle after each supervision step, as boards and curves; `puzzles.step_answers` wrote them.

A cell is black on grey where the puzzle gives it, blue where the answer is right, red and crossed where it is
wrong. Grids of ARC and mazes have colours of their own, and wrong cells are crossed.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from atlas_jax.monitor.dashboard.charts import Board, BoardRow, LineChart, Part, PlotLine

# As the pictures of evaluations have them; those of ARC are the colours of its viewers.
ARC = ("#000000", "#0074d9", "#ff4136", "#2ecc40", "#ffdc00", "#aaaaaa", "#f012be", "#ff851b", "#7fdbff",
       "#870c25")
MAZE = ("#d9d9d9", "#30353d", "#f6f3ec", "#2e9e4f", "#c2338f", "#4c8fd6")
MAZE_NAMES = ("padding", "wall", "free", "start", "goal", "path")
BLANK, GIVEN, RIGHT, WRONG = "#ffffff", "#e0e0e0", "#cfe3f5", "#f6c6c0"
CROSS = "\N{MULTIPLICATION SIGN}"


def names(record: Mapping[str, Any]) -> list[str]:
  """Returns what the puzzles of a record are called, each with how its answer ended."""
  verdicts = {True: "solved", False: "not solved", None: "target unknown"}
  return [f"{number + 1}: {one['name']} ({verdicts[one['solved']]})"
          for number, one in enumerate(record["puzzles"])]


def n_steps(record: Mapping[str, Any]) -> int:
  """Returns how many supervision steps were recorded."""
  return len(record["puzzles"][0]["steps"])


def parts(record: Mapping[str, Any], puzzle: int, step: int) -> list[Part]:
  """Returns one puzzle's question, its answer after a step and its target, and curves over all steps.

  Args:
    record: of `RunFolder.step_answers`.
    puzzle: which one, from 0.
    step: supervision steps made, from 1.
  """
  one = record["puzzles"][puzzle]
  kind = record["kind"]
  made = one["steps"][step - 1]
  given = _grid(one["input"])
  answer = _grid(made["answer"])
  target = None if one["target"] is None else _grid(one["target"])
  boards = [_board("question", given, kind),
            _board(f"answer after step {step}", answer, kind, given=given, target=target,
                   sure=np.asarray(made["sure"]))]
  if target is not None:
    boards.append(_board("target", target, kind, given=given))
  note = f"The model gives its whole answer a chance of {made['halt']}% to be right."
  if made["right"] is not None:
    note = f"{made['right']:.0%} of the cells that count are right. {note}"
  return [BoardRow(f"{one['name']}: step {step} of {len(one['steps'])}", boards,
                 _columns(answer, target), note), _curves(one)]


def _grid(rows: Sequence[Sequence[int]]) -> np.ndarray:
  """Returns rows as [height, width]; an answer to ARC may have none."""
  return np.asarray(rows, np.int64) if rows else np.zeros((0, 0), np.int64)


def _curves(one: Mapping[str, Any]) -> LineChart:
  x = np.arange(1.0, len(one["steps"]) + 1)
  halt = np.array([made["halt"] / 100 for made in one["steps"]])
  curves = [PlotLine("taken to be right by the model", x, halt, style="points")]
  if one["target"] is not None:
    right = np.array([made["right"] for made in one["steps"]])
    curves.insert(0, PlotLine("cells right", x, right, style="points"))
  return LineChart(f"{one['name']}: from step to step", curves, "supervision step", "fraction")


def _columns(answer: np.ndarray, target: np.ndarray | None) -> dict[str, list]:
  rows, columns = (places.ravel().tolist() for places in np.indices(answer.shape))
  return {"row": rows, "column": columns, "answer": answer.ravel().tolist(),
          "target": [_at(target, row, column) for row, column in zip(rows, columns)]}


def _at(grid: np.ndarray | None, row: int, column: int) -> int | None:
  """Returns a cell, None where a grid of another size has none."""
  if grid is None or row >= grid.shape[0] or column >= grid.shape[1]:
    return None
  return int(grid[row, column])


def _board(caption: str, grid: np.ndarray, kind: str, *, given: np.ndarray | None = None,
           target: np.ndarray | None = None, sure: np.ndarray | None = None) -> Board:
  colors: list[list[str]] = []
  texts: list[list[str]] = []
  hints: list[list[str]] = []
  for row in range(grid.shape[0] if grid.size else 0):
    cells = [_cell(int(value), kind, _at(given, row, column), _at(target, row, column), target is not None)
             for column, value in enumerate(grid[row])]
    colors.append([color for color, _, _ in cells])
    texts.append([text for _, text, _ in cells])
    hints.append([hint if sure is None else f"{hint}, {sure[row, column]}% sure"
                  for column, (_, _, hint) in enumerate(cells)])
  size = f"{grid.shape[0]}{CROSS}{grid.shape[1]}" if grid.size else "no grid"
  return Board(f"{caption} ({size})" if kind == "arc" else caption, colors, texts, hints)


def _cell(value: int, kind: str, given: int | None, target: int | None,
          has_target: bool) -> tuple[str, str, str]:
  """Returns colour, text and hint of a cell; `target` is None where the right grid has no such cell."""
  wrong = has_target and value != target
  if kind == "sudoku":
    # Of a board alone, without the question beside it, all digits are the question's.
    is_given = value > 0 and (given is None or given == value)
    color = WRONG if wrong else GIVEN if is_given else RIGHT if value > 0 else BLANK
    return color, str(value) if value > 0 else "", _hint(str(value), target, wrong)
  palette: Sequence[str] = ARC if kind == "arc" else MAZE
  says = [str(colour) for colour in range(len(ARC))] if kind == "arc" else MAZE_NAMES
  known = palette[value] if 0 <= value < len(palette) else "#ffffff"
  aim = says[target] if target is not None and 0 <= target < len(says) else None
  return known, CROSS if wrong else "", _hint(says[value] if 0 <= value < len(says) else "?", aim, wrong)


def _hint(value: str, target, wrong: bool) -> str:
  if not wrong:
    return value
  return f"{value}, wrong: the right grid ends before" if target is None else f"{value}, right is {target}"
