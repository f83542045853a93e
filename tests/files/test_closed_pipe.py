"""Programs end quietly where nobody reads what they print."""

import ast
import contextlib
import os
import pathlib
import subprocess
import sys

import pytest

from atlas_jax.data.traces import commands
from atlas_jax.data.traces.store import open_store
from atlas_jax.files import closed_pipe
from tests.monitor.dashboard.test_sessions import trace

ROOT = pathlib.Path(__file__).parents[2]
# Programs that print no list: what reads them is another program of ours, or nothing.
OTHERS = {
  "atlas_jax/language/vllm/server.py", "atlas_jax/monitor/dashboard/app.py",
  "atlas_jax/monitor/dashboard/serve.py", "scripts/bench_child.py", "scripts/bench_runtime.py",
  "scripts/launch_start.py", "scripts/launch_with_server.py", "scripts/launch_words.py",
  "scripts/docker/health.py", "scripts/docker/stop_pod.py", "atlas_jax/monitor/dashboard/__main__.py",
}  # fmt: skip


def programs():
  """Every file that is a program, with its text."""
  for folder in ("atlas_jax", "scripts"):
    for file in sorted((ROOT / folder).rglob("*.py")):
      text = file.read_text()
      if '__name__ == "__main__"' in text:
        yield file.relative_to(ROOT).as_posix(), text


def prints(text):
  """Whether a program prints to its output, or leaves that to the functions of another program."""
  calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
  return any(isinstance(call.func, ast.Name) and call.func.id == "print" and
             not any(word.arg == "file" for word in call.keywords) for call in calls)


def test_every_program_that_prints_ends_quietly():
  loud = [name for name, text in programs() if name not in OTHERS and prints(text)
          and "closed_pipe.quiet" not in text]
  assert not loud
  assert OTHERS <= {name for name, _ in programs()}


@contextlib.contextmanager
def unread():
  """Standard output that nobody reads."""
  reads, writes = os.pipe()
  os.close(reads)
  with os.fdopen(writes, "w") as out, contextlib.redirect_stdout(out):
    yield out


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_program_ends_with_1_however_much_it_prints(lines):
  @closed_pipe.quiet
  def program():
    for number in range(lines):
      print(number)
    return 0

  with unread() as out:
    assert program() == closed_pipe.CLOSED
    out.flush()  # As at the interpreter's exit: into nothing.


def test_help_and_programs_that_catch_errors_of_files_end_quietly_too():
  @closed_pipe.quiet
  def helps():
    print("usage")
    raise SystemExit(0)

  @closed_pipe.quiet
  def catches():
    try:
      print("usage", flush=True)
    except OSError as error:
      assert closed_pipe.is_of_output(error)
      raise

  for program in (helps, catches):
    with unread():
      assert program() == closed_pipe.CLOSED


def test_another_broken_pipe_is_raised(tmp_path):
  @closed_pipe.quiet
  def program():
    raise BrokenPipeError("of a server")

  with (tmp_path / "out").open("w") as out, contextlib.redirect_stdout(out):
    with pytest.raises(BrokenPipeError, match="of a server"):
      program()


def test_a_list_of_sessions_ends_quietly(tmp_path, capfd):
  url = f"sqlite:///{tmp_path}/traces.db"
  with open_store(url, create=True, writable=True) as store:
    store.write_all([trace("1+1=")])
  with unread():
    assert commands.main(["review", "sessions", f"--database-url={url}"]) == closed_pipe.CLOSED
  assert capfd.readouterr().err == ""


@pytest.mark.parametrize("words", [
  ["-c", "import sys; from atlas_jax.data.traces import commands; sys.exit(commands.main(['--help']))"],
  ["scripts/prepare_text.py", "--help"]])
def test_a_process_says_nothing_of_its_closed_pipe(words):
  reads, writes = os.pipe()
  os.close(reads)
  done = subprocess.run([sys.executable, *words], stdout=writes, stderr=subprocess.PIPE, text=True, cwd=ROOT,
                        env={**os.environ, "PYTHONPATH": str(ROOT)})
  os.close(writes)
  # argparse itself passes over a write that fails; without a buffer nothing is left to fail then.
  assert done.returncode in (0, closed_pipe.CLOSED) and done.stderr == ""
