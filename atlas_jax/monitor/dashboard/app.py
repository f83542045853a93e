"""The Streamlit script: a sidebar to choose page, run and axis, and the page, drawn anew every few seconds.

`python -m atlas_jax.monitor.dashboard` runs it. Only the page is drawn anew, as a fragment: the reader stays
where he is, and his choices stay as they are. Page, run and axis stand in the address, too.
"""
import argparse
import math
import pathlib
import sys
import threading
import time

import streamlit as st

from atlas_jax.monitor import run_folder
from atlas_jax.monitor.dashboard import render
from atlas_jax.monitor.dashboard.views import View, pages
from atlas_jax.monitor.run_folder import RunFolder

FASTER_S = 1.0  # Between refreshes while a large file is still being read.
FRESH_S = 0.3  # A refresh so soon after a look reads nothing.
MOST_S = 0.15  # From which on a refresh reads no more runs.
CHOICES = ("page", "run", "axis")  # That stand in the address.


class Store:
  """The run directories of this server; all its readers share what was read."""

  def __init__(self, root: pathlib.Path):
    """Takes the folder with the runs, which need not exist yet."""
    self.root = root
    self._runs: dict[pathlib.Path, RunFolder] = {}
    self._looked: dict[str, float] = {}  # When each run was looked at.
    self._found: tuple[RunFolder, ...] = ()
    self._ended = -math.inf  # When the last look ended.
    self.guard = threading.Lock()  # Readers are threads, and a look changes what a run holds.

  def look(self, first: str | None = None, *, fresh_s: float = 0.0) -> tuple[RunFolder, ...]:
    """Reads what is new; returns the runs, those that changed last first.

    Args:
      first: name of the run that is read whatever the others take; those that time does not suffice for are
        read at later looks, the least recently read first.
      fresh_s: nothing is read if the last look was so many seconds ago or less.
    """
    if time.perf_counter() - self._ended <= fresh_s:
      return self._found
    found = run_folder.find(self.root)
    for path in found:
      if path not in self._runs:
        name = path.name if path == self.root else path.relative_to(self.root).as_posix()
        self._runs[path] = RunFolder(path, name)
    for path in {*self._runs} - {*found}:
      del self._runs[path]
    ends = time.perf_counter() + MOST_S
    for run in sorted(self._runs.values(),
                      key=lambda run: (run.name != first, self._looked.get(run.name, 0.0))):
      run.look()
      self._looked[run.name] = time.perf_counter()
      if time.perf_counter() > ends:
        break
    self._found = tuple(self._runs[path] for path in sorted(found, key=_changed, reverse=True))
    self._ended = time.perf_counter()
    return self._found


def _changed(path: pathlib.Path) -> tuple[float, str]:
  try:
    return (path / run_folder.METRICS).stat().st_mtime, str(path)
  except OSError:
    return 0.0, str(path)


@st.cache_resource
def store(root: str) -> Store:
  """Returns the store of a folder, one for all readers."""
  return Store(pathlib.Path(root))


def parsed(arguments) -> argparse.Namespace:
  """Reads the arguments of the script; `__main__` hands them on."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--runs", default="runs")
  parser.add_argument("--refresh_s", type=float, default=3.0)
  return parser.parse_args(arguments)


def _remember(key: str, options) -> None:
  """Starts a choice with what the address says, and drops one that is no longer there."""
  if st.session_state.get(key) not in options:
    asked = st.query_params.get(key)
    st.session_state[key] = asked if asked in options else next(iter(options), None)


def main(arguments=None) -> None:
  """Draws the sidebar and the page."""
  args = parsed(sys.argv[1:] if arguments is None else arguments)
  st.set_page_config("atlas_jax", ":material/monitoring:", layout="wide", initial_sidebar_state="auto")
  shared = store(args.runs)
  with shared.guard:
    runs = shared.look(st.session_state.get("run") or st.query_params.get("run"))
  names = [run.name for run in runs]
  found = pages()
  for key, options in zip(CHOICES, (found, names, run_folder.AXES)):
    _remember(key, options)
  with st.sidebar:
    st.title("atlas_jax")
    page = st.radio("Page", list(found), format_func=lambda name: found[name].TITLE, key="page")
    if names:
      st.selectbox("Run", names, key="run")
    axis = st.radio("Axis", run_folder.AXES, horizontal=True, key="axis")
    follow = st.toggle("Follow the runs", value=True, key="follow",
                       help=f"Reads what is new every {args.refresh_s:g} s")
    st.caption(f"Runs in `{args.runs}`")
  # Setting a parameter that is as it was would tell the browser of a change.
  for key in CHOICES:
    value = st.session_state.get(key)
    if value is not None and st.query_params.get(key) != value:
      st.query_params[key] = value
  reading = any(run.metrics.fraction < 1 for run in runs)
  every = (min(FASTER_S, args.refresh_s) if reading else args.refresh_s) if follow else None
  st.fragment(_page, run_every=every)(shared, page, st.session_state.get("run"), axis, tuple(names), reading)


def _page(shared: Store, page: str, chosen: str | None, axis: str, names: tuple[str, ...],
          reading: bool) -> None:
  """Draws one page; runs on its own at each refresh."""
  with shared.guard:
    # The script has just looked where it draws all of the page; other readers may have, too.
    runs = shared.look(chosen, fresh_s=FRESH_S)
    now_reading = any(run.metrics.fraction < 1 for run in runs)
    # The sidebar is no part of this fragment: it is drawn anew where there are other runs to choose from.
    if {run.name for run in runs} != {*names} or now_reading != reading:
      st.rerun()
    run = next((run for run in runs if run.name == chosen), runs[0] if runs else None)
    view = pages()[page]
    st.header(view.TITLE)
    if run is not None and page != "overview":
      st.caption(f"**{run.name}** · {run.state().words}")
    if run is not None:
      _warn(run)
    draw = lambda parts: render.draw(parts, page)
    looked_at = View(run, runs, axis)
    if hasattr(view, "show"):
      view.show(looked_at, draw)
    else:
      draw(view.parts(looked_at))


def _warn(run: RunFolder) -> None:
  if run.metrics.fraction < 1:
    st.caption(f":material/hourglass_top: {run.metrics.fraction:.0%} of this large file is read; of the rest "
               "a sample and the newest rows are shown.")
  if run.metrics.damaged:
    st.warning(f"{run.metrics.damaged} lines of metrics.jsonl are no rows and are left out.")
  if run.config == {} and (run.path / run_folder.CONFIG).exists():
    st.warning("config.json cannot be read; what it says of the run is left out.")


if __name__ == "__main__":
  main()
