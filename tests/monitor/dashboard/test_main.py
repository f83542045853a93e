"""The command that starts the dashboard."""

import subprocess
import sys

import pytest

from atlas_jax.monitor.dashboard import __main__ as main
from atlas_jax.monitor.dashboard import app


def test_the_command_serves_the_script_with_its_flags(tmp_path):
  command = main.command(main.parse([f"--runs={tmp_path}", "--port=8600", "--address=0.0.0.0",
                                     "--refresh_s=2"]))
  assert command[1:3] == ["-m", "atlas_jax.monitor.dashboard.serve"] and command[3].endswith("app.py")
  options = dict(zip(command[4:-3:2], command[5:-3:2]))
  assert options["--server.port"] == "8600" and options["--server.address"] == "0.0.0.0"
  assert options["--browser.gatherUsageStats"] == "false"
  args = app.parsed(command[command.index("--") + 1:])
  assert args.runs == str(tmp_path) and args.refresh_s == 2.0


def test_the_usual_port_is_that_of_streamlit_and_only_this_machine_sees_it():
  args = main.parse([])
  assert (args.runs, args.port, args.address) == ("runs", 8501, "127.0.0.1")


@pytest.mark.parametrize(("flag", "words"), [
  ("--port=0", "is no port"), ("--refresh_s=0", "must be above 0"), (f"--runs={__file__}", "is a file"),
  ("--prot=1", "unrecognized arguments")])
def test_wrong_flags_are_refused_in_words(flag, words, capsys):
  with pytest.raises(SystemExit):
    main.parse([flag])
  assert words in capsys.readouterr().err


def test_without_the_extra_one_line_says_what_to_install():
  code = ("import importlib.util, sys; real = importlib.util.find_spec;"
          "importlib.util.find_spec = lambda name, *more: None if name == 'streamlit' else real(name, *more);"
          "from atlas_jax.monitor.dashboard.__main__ import main; sys.exit(main([]))")
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.returncode == 1
  assert done.stderr.strip() == 'the dashboard needs streamlit and plotly: pip install -e ".[dashboard]"'
