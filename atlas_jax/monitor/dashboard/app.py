"""The Streamlit script: a sidebar to choose page, run and axis, and the page, drawn anew every few seconds.

`python -m atlas_jax.monitor.dashboard` runs it. Only the page is drawn anew, as a fragment: the reader stays
where he is, and his choices stay as they are. Page, run and axis stand in the address, too.
"""
import argparse
import sys

import streamlit as st

from atlas_jax.monitor import run_folder
from atlas_jax.monitor.dashboard import render
from atlas_jax.monitor.dashboard.store import Store, store
from atlas_jax.monitor.dashboard.views import View, pages
from atlas_jax.monitor.run_folder import RunFolder

FASTER_S = 1.0  # Between looks while a large file is still being read.
FRESH_S = 0.3  # A refresh so soon after a look reads nothing.
CHOICES = ("page", "run", "axis")  # That stand in the address.


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
  chosen = st.session_state.get("run")
  st.fragment(_page, run_every=args.refresh_s if follow else None)(shared, page, chosen, axis, tuple(names),
                                                                   reading)
  if reading and follow:
    # Apart from the page: drawing its figures so often would leave the browser no time for anything else.
    st.fragment(_read_on, run_every=min(FASTER_S, args.refresh_s))(shared, chosen)


def _read_on(shared: Store, chosen: str | None) -> None:
  """Reads more of a large file, and draws nothing."""
  with shared.guard:
    shared.look(chosen, fresh_s=FRESH_S)


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
