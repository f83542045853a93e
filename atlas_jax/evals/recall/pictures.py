"""Accuracy by the axes of a task: a map of cells for each way to read the question."""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import image as images
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 110
CELL = 0.62  # Inches of a cell's side.
MARGIN = 1.1


def by_axes(name: str, axes: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
  """Draws rows as maps of cells in colours, from 0 (nothing right) to 1.

  The last axis goes up, the one before it to the right, and an axis before these has a panel for each of its
  values; a row of panels stands for each way to read.

  Args:
    name: of the task, the title.
    axes: of its cells, three at most.
    rows: see `asking.rows_of`.

  Returns:
    The picture, uint8, height x width x 3.
  """
  across = axes[-2] if len(axes) > 1 else axes[0]
  up = axes[-1] if len(axes) > 1 else None
  panels = list(dict.fromkeys(row[axes[0]] for row in rows)) if len(axes) > 2 else [None]
  ways = list(dict.fromkeys(row["condition"] for row in rows))
  columns = list(dict.fromkeys(row[across] for row in rows))
  lines = [None] if up is None else list(dict.fromkeys(row[up] for row in rows))
  size = (len(panels) * (CELL * len(columns) + MARGIN) + 1, len(ways) * (CELL * len(lines) + MARGIN) + 0.4)
  figure = Figure(figsize=size, dpi=DPI, layout="constrained")
  canvas = FigureCanvasAgg(figure)
  grid = figure.subplots(len(ways), len(panels), squeeze=False)
  for line, way in enumerate(ways):
    for column, panel in enumerate(panels):
      here = {(row[across], None if up is None else row[up]): row["accuracy"] for row in rows
              if row["condition"] == way and (panel is None or row[axes[0]] == panel)}
      values = np.array([[here.get((x, y), np.nan) for x in columns] for y in lines])
      words = way.replace("_", " ")
      _panel(grid[line, column], values, (across, columns), (up, lines),
             words if panel is None else f"{axes[0]} {panel}, {words}")
  figure.suptitle(f"{name}: right answers, percent")
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _panel(axes, values: np.ndarray, across: tuple, up: tuple, title: str) -> None:
  """Draws one map, with the percentage in each of its cells."""
  axes.imshow(values, vmin=0, vmax=1, cmap="viridis", origin="lower", aspect="auto")
  for line, column in np.ndindex(values.shape):
    if np.isfinite(values[line, column]):
      axes.text(column, line, f"{100 * values[line, column]:.0f}", ha="center", va="center", fontsize=8,
                color="black" if values[line, column] > 0.6 else "white")
  axes.set_xticks(range(len(across[1])), [f"{value}" for value in across[1]], fontsize=7)
  axes.set_xlabel(across[0], fontsize=8)
  if up[0] is None:
    axes.set_yticks([])
  else:
    axes.set_yticks(range(len(up[1])), [f"{value}" for value in up[1]], fontsize=7)
    axes.set_ylabel(up[0], fontsize=8)
  axes.set_title(title, fontsize=8)


def write_png(path, image) -> None:
  """Writes a picture as a PNG file."""
  images.imsave(path, image, format="png")
