"""Starts the dashboard.

  python -m atlas_jax.monitor.dashboard [--runs=runs] [--port=8501] [--address=127.0.0.1] [--refresh_s=3]

  --runs       the folder with run directories, at most three folders below it, or a run directory itself; it
               need not exist yet
  --port       of the page, http://ADDRESS:PORT
  --address    127.0.0.1 is seen from this machine alone; 0.0.0.0 from all that reach it, without a password
  --refresh_s  seconds between two looks at the files
"""
import argparse
import importlib.util
import os
import pathlib
import sys

EXTRA = 'the dashboard needs streamlit and plotly: pip install -e ".[dashboard]"'
APP = pathlib.Path(__file__).with_name("app.py")
LIBRARIES = ("streamlit", "plotly", "pandas")


def parse(arguments) -> argparse.Namespace:
  """Reads the flags; ends the program with a line on those that are wrong."""
  parser = argparse.ArgumentParser(prog="python -m atlas_jax.monitor.dashboard", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  parser.add_argument("--runs", default="runs")
  parser.add_argument("--port", type=int, default=8501)
  parser.add_argument("--address", default="127.0.0.1")
  parser.add_argument("--refresh_s", type=float, default=3.0)
  args = parser.parse_args(arguments)
  if not 1 <= args.port <= 65_535:
    parser.error(f"--port={args.port} is no port; choose one of 1 to 65535, 8501 is usual")
  if not args.refresh_s > 0:
    parser.error(f"--refresh_s={args.refresh_s:g} must be above 0, in seconds")
  if pathlib.Path(args.runs).is_file():
    parser.error(f"--runs={args.runs} is a file; name the folder with the run directories")
  return args


def command(args: argparse.Namespace) -> list[str]:
  """Returns the command that serves the page."""
  options = {"server.headless": "true", "server.port": str(args.port), "server.address": args.address,
             "server.fileWatcherType": "none", "browser.gatherUsageStats": "false",
             "theme.light.primaryColor": "#0072b2", "theme.dark.primaryColor": "#4fa8e0",
             "client.toolbarMode": "minimal", "server.showEmailPrompt": "false"}
  flags = [part for name, value in options.items() for part in (f"--{name}", value)]
  return [sys.executable, "-m", "atlas_jax.monitor.dashboard.serve", str(APP), *flags, "--",
          f"--runs={args.runs}", f"--refresh_s={args.refresh_s:g}"]


def main(arguments=None) -> int:
  """Starts the server in place of this process; returns only if it cannot."""
  args = parse(sys.argv[1:] if arguments is None else arguments)
  if any(importlib.util.find_spec(name) is None for name in LIBRARIES):
    print(EXTRA, file=sys.stderr)
    return 1
  # In place of this process: signals and the exit status are those of the server.
  os.execv(sys.executable, command(args))
  return 0


if __name__ == "__main__":
  sys.exit(main())
