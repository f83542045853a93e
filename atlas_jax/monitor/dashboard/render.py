"""Puts what views return on a Streamlit page; the only place that knows how each part looks."""
import csv
import functools
import html
import io
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import streamlit as st

from atlas_jax.monitor.dashboard import charts, figures, sketch
from atlas_jax.monitor.dashboard.charts import (
  BarChart,
  Board,
  BoardRow,
  Grid,
  HeatMap,
  LineChart,
  Missing,
  Part,
  Picture,
  ProgressBar,
  Tiles,
  Words,
)

SPOKEN: dict[str, Callable] = {"caption": st.caption, "info": st.info, "warning": st.warning,
                               "error": st.error, "heading": st.subheader}
PLOT = {"displayModeBar": False, "responsive": True}
# Streamlit leaves a tenth of the page empty above its content, and more between a title and its chart.
STYLE = f"""<style>
{sketch.STYLE}
.stMainBlockContainer {{ padding: 3.2rem clamp(1rem, 3vw, 3.5rem) 3rem; }}
.stMainBlockContainer h2 {{ padding-top: 0; }}
[class*="-head"] {{ margin-bottom: -0.9rem; }}
</style>"""
LONG_VALUE = 10  # Letters from which on a tile is as wide as its value needs.
CELL_REM, BOARD_REM = 2.2, 20.0  # Of a cell of a small board, and of a whole large one.
WIDE_BOARD = 9  # Cells, up to which a board is small.
DRAWN = "figures_drawn"  # In a session, once it has loaded Plotly.
PAUSE_S = 0.6  # For the browser to show what it has before it loads Plotly.
SKETCHED = 4  # Parts that are charts and stand on a page's first screen.
TILE_WIDTH = 165  # Pixels; narrower screens have two beside one another.


def draw(parts: Iterable[Part], page: str) -> None:
  """Draws the parts of a page; two charts stand beside one another where the screen is wide enough.

  A session's first figures come last: until Plotly is loaded, which stops all else in the browser for a
  second or more, the first charts are seen as sketches.

  Args:
    parts: in their order.
    page: its name, a part of the keys of widgets.
  """
  st.html(STYLE)
  later: list[Callable[[], None]] | None = [] if DRAWN not in st.session_state else None
  pending: list = []
  n_charts = 0
  for number, part in enumerate(parts):
    if isinstance(part, LineChart | HeatMap | BarChart):
      pending.append((part, f"{page} {number} {part.title}", n_charts < SKETCHED))
      n_charts += 1
      if len(pending) == 2:
        _pair(pending, later)
        pending = []
      continue
    _pair(pending, later)
    pending = []
    _one(part, f"{page} {number}")
  _pair(pending, later)
  if later:
    time.sleep(PAUSE_S)
    for put in later:
      put()
    st.session_state[DRAWN] = True


def _pair(charts: Sequence, later: list[Callable[[], None]] | None) -> None:
  if charts:
    for column, (chart, key, is_sketched) in zip(st.columns(2, gap="medium"), charts):
      with column:
        _chart(chart, key, is_sketched, later)


def _one(part: Part, key: str) -> None:
  match part:
    case Tiles():
      with st.container(horizontal=True, key=key):
        for tile in part.tiles:
          st.metric(tile.label, tile.value, tile.change or None, help=tile.hint or None, border=True,
                    width=TILE_WIDTH if len(tile.value) < LONG_VALUE else "content", height="stretch",
                    delta_color="off")
    case ProgressBar():
      st.progress(min(1.0, max(0.0, part.fraction)), part.words)
    case Words():
      SPOKEN[part.kind](part.words)
    case Missing():
      st.info(f"{part.what} {part.remedy}", icon=":material/visibility_off:")
    case Picture():
      st.markdown(f"**{part.title}**")
      st.image(str(part.path), width="stretch")
      st.caption(part.note)
    case Grid():
      _table(part, key)
    case BoardRow():
      _boards(part, key)


def _table(part: Grid, key: str) -> None:
  import pandas
  _head(part.title, part.columns, key)
  st.dataframe(pandas.DataFrame(dict(part.columns)), width="stretch", hide_index=True)
  if part.note:
    st.caption(part.note)


def _boards(part: BoardRow, key: str) -> None:
  _head(part.title, part.columns, key)
  for column, board in zip(st.columns(len(part.boards), gap="medium"), part.boards):
    with column:
      st.caption(board.caption)
      st.html(board_html(board))
  if part.note:
    st.caption(part.note)


def board_html(board: Board) -> str:
  """Returns a board as a grid of coloured cells, whose texts and hints may hold anything."""
  if not board.colors:
    return ""
  width = len(board.colors[0])
  cells = "".join(
      f'<div title="{html.escape(hint)}" style="background:{color};aspect-ratio:1;display:flex;'
      f'align-items:center;justify-content:center">{html.escape(text)}</div>'
      for colors, texts, hints in zip(board.colors, board.texts, board.hints)
      for color, text, hint in zip(colors, texts, hints))
  # One size for all boards of a puzzle; on a narrow screen a board is as wide as the screen.
  size = f"min(100%, {CELL_REM * width}rem)" if width <= WIDE_BOARD else f"min(100%, {BOARD_REM}rem)"
  return (f'<div role="img" aria-label="{html.escape(board.caption)}" style="display:grid;width:{size};'
          f"grid-template-columns:repeat({width},1fr);gap:1px;background:#8d9096;border:1px solid #8d9096;"
          f'color:#1c1c1c;font-size:{min(1.0, 12 / width):.2f}rem">{cells}</div>')


def _chart(chart: LineChart | HeatMap | BarChart, key: str, is_sketched: bool,
           later: list[Callable[[], None]] | None) -> None:
  """Draws a chart; its figure at once, or by a function that is added to `later` where there is one."""
  _head(chart.title, charts.table(chart), key)
  dark = is_dark()
  with st.container(key=f"{key} sketched" if is_sketched else None):
    if is_sketched and isinstance(chart, LineChart):
      st.html(sketch.sketch(chart, dark=dark))
    # An empty place at a later draw would take the figure off the page for a moment.
    if later is None:
      _put_figure(st, chart, key, dark)
    else:
      later.append(functools.partial(_put_figure, st.empty(), chart, key, dark))
  if chart.note:
    st.caption(chart.note)


def _put_figure(place, chart: LineChart | HeatMap | BarChart, key: str, dark: bool) -> None:
  place.plotly_chart(figures.figure(chart, dark=dark), width="stretch", theme=None, key=key, config=PLOT)


def _head(title: str, columns: Mapping[str, Sequence], key: str) -> None:
  """Writes a title, and at its right end a link to the numbers below it."""
  with st.container(horizontal=True, vertical_alignment="center", key=f"{key} head"):
    st.markdown(f"**{title}**", width="stretch")
    # A function: the table is written when someone asks for it, and not at each refresh.
    st.download_button("CSV", lambda: as_csv(columns), f"{file_name(title)}.csv", "text/csv",
                       key=f"{key} csv",
                       on_click="ignore", type="tertiary", help="The numbers that are shown here")


def as_csv(columns: Mapping[str, Sequence]) -> bytes:
  """Returns columns as a table with a head."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator="\n")
  writer.writerow(columns)
  writer.writerows(zip(*columns.values()))
  return out.getvalue().encode()


def file_name(title: str) -> str:
  """Returns a title as the name of a file."""
  return re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_") or "data"


def is_dark() -> bool:
  """Returns whether the reader's page is dark."""
  return st.context.theme.type == "dark"
