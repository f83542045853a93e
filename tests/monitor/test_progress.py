"""The progress bar where there is a terminal, and its silence where there is none."""
import io

import rich.console

from atlas_jax.monitor import progress


def run_bar(**options):
  with progress.Progress(20, start_step=10, **options) as bar:
    bar.update(11, loss=1.23456, per_s=45678.9)
    bar.update(12)
  bar.close()


def terminal():
  return rich.console.Console(file=io.StringIO(), force_terminal=True, width=120)


def test_nothing_is_printed_without_a_terminal(capfd):
  run_bar()
  printed = capfd.readouterr()
  assert printed.out == printed.err == ""


def test_a_terminal_shows_step_loss_speed_and_time_left():
  console = terminal()
  run_bar(console=console)
  shown = console.file.getvalue()
  for word in ("12/20", "loss 1.2346", "45,679 tokens/s", "left"):
    assert word in shown


def test_it_can_be_switched_off():
  console = terminal()
  run_bar(console=console, enabled=False)
  assert console.file.getvalue() == ""
