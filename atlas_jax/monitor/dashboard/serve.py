"""Runs Streamlit in this process, and makes ready for the first reader while its server starts.

  python -m atlas_jax.monitor.dashboard.serve SCRIPT [flags of streamlit run] -- --runs=FOLDER [...]

`__main__` starts it. Streamlit alone imports what the script needs, and reads the runs, when the first reader
has opened the page; those seconds would stand before the first figure.
"""
import sys
import threading

from absl import logging


def warm(root: str) -> None:
  """Imports what pages need, and reads the runs of a folder for the first time."""
  import numpy as np

  from atlas_jax.monitor.dashboard import charts, render, store, views

  views.pages()
  # Plotly imports the larger part of itself at its first figure.
  line = charts.PlotLine("", np.zeros(1), np.zeros(1))
  render.figures.figure(charts.LineChart("", [line])).to_json()
  shared = store.store(root)
  with shared.guard:
    found = shared.look()
  logging.info("the pages are ready; %d runs in %s", len(found), root)


def root_of(arguments: list[str]) -> str:
  """Returns the folder of the runs, from the arguments of the script."""
  from atlas_jax.monitor.dashboard import app

  return app.parsed(arguments[arguments.index("--") + 1:]).runs


def main(arguments=None) -> None:
  """Serves until a signal ends it."""
  from streamlit.web import cli

  arguments = list(sys.argv[1:] if arguments is None else arguments)
  threading.Thread(target=lambda: warm(root_of(arguments)), name="warm", daemon=True).start()
  cli.main(["run", *arguments], prog_name="streamlit")


if __name__ == "__main__":
  main()
