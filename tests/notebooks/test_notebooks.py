"""Every notebook is clean as it is stored, and runs from top to bottom in a place of its own."""

import json
import os
import pathlib
import re
import subprocess
import sys

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
PARAMETERS = "parameters"
# What a notebook prints, whatever the model has learnt; a state of fixed size is the same number twice.
SAYS = {
  "closed_loop": (
    r"17 sessions, 1 planted, 1 quarantined\n",
    "trained on 16 sessions",
    r"right: alone [\d.]+%, first teacher [\d.]+%, second [\d.]+%; \d+ became worse$",
  ),
  "own_rule": (
    r"error after 24 pairs: linear_attention \d\.\d\d, delta \d\.\d\d, mine\.replace \d\.\d\d\n",
    r"largest difference between one call and two: (0e\+00|\de-0[5-9])\n",
    '"steps": 3',
  ),
  "grpo_sums": (
    r"\{'46': 1\.1, '4': 0\.55, '64': 0\.1, 'ab': 0\.0\}\n",
    '"steps": 3',
    r"update +3: \d+\+\d+=.*, answer \d+, reward \d\.\d\d, advantage [+-]\d\.\d\d$",
  ),
  "quickstart": (
    '"steps": 3',
    '"memory_gain_emptied_nats"',
    r"256 tokens read: ([\d,]+) bytes\n(?s:.*) \1 bytes$",
  ),
  "trm_sudoku": (
    '"steps": 3',
    '"all_exact_accuracy"',
    r"\d of 4 boards are solved after the first step, \d after the last\none solution$",
  ),
}


def code_cells(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook):
  return [cell for cell in notebook.cells if PARAMETERS in cell.metadata.get("tags", [])]


def run(path, folder):
  """Executes a notebook with few steps of a tiny model; gives it with what its cells left."""
  notebook = nbformat.read(path, as_version=4)
  variant = "smoke,pretrain" if path.stem in ("quickstart", "own_rule") else "smoke"
  short = f'variant, steps, workdir = "{variant}", 3, {str(folder / "run")!r}'
  tagged(notebook)[0].source += f"\n{short}\n"
  environment = {
    **os.environ,
    "HOME": str(folder),  # No profile and no kernel of whoever runs the tests.
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # Compiling is most of the work here.
    "JAX_NUM_CPU_DEVICES": "1",
    "PIP_NO_INDEX": "1",  # The package is here: nothing may be fetched.
    "PYTHONPATH": str(ROOT),
    "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"),
  }
  resources = {"metadata": {"path": str(folder)}}
  client = nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources)
  return client.execute(env=environment)


def printed(notebook):
  outputs = [out for cell in code_cells(notebook) for out in cell.outputs]
  return "".join(out.text for out in outputs if out.output_type == "stream").rstrip()


def test_there_is_a_notebook():
  assert NOTEBOOKS


@by_name
def test_a_notebook_is_valid_and_stores_no_output(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  assert notebook.metadata.kernelspec.name == "python3"
  for cell in code_cells(notebook):
    assert not cell.outputs and cell.execution_count is None, cell.id


@by_name
def test_a_notebook_is_written_so_that_its_changes_can_be_read(path):
  text = path.read_text(encoding="utf-8")
  again = json.dumps(json.loads(text), ensure_ascii=False, indent=1, sort_keys=True) + "\n"
  assert text == again, f"{path.name}: write it with sorted keys, an indent of one, and a line end"
  cells = nbformat.read(path, as_version=4).cells
  assert all(re.fullmatch(r"[a-z-]+", cell.id) for cell in cells), "name the cells by words"
  lines = [line for cell in cells if cell.cell_type == "code" for line in cell.source.splitlines()]
  assert max(map(len, lines)) <= 110


@by_name
def test_a_notebook_begins_with_its_parameters_and_ends_with_words(path):
  notebook = nbformat.read(path, as_version=4)
  assert tagged(notebook) == code_cells(notebook)[:1]
  assert notebook.cells[0].cell_type == notebook.cells[-1].cell_type == "markdown"


@by_name
def test_without_a_clone_a_notebook_says_what_it_needs(path, tmp_path):
  cells = {cell.id: cell.source for cell in nbformat.read(path, as_version=4).cells}
  command = [sys.executable, "-I", "-S", "-c", cells["settings"] + "\n" + cells["install"]]  # No packages.
  done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
  assert "set `repository` in the first cell to its Git address" in done.stderr
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
@by_name
def test_a_notebook_runs_and_leaves_plots_and_text(path, tmp_path, monkeypatch):
  monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")  # The kernel of this environment, not one of the user.
  done = run(path, tmp_path)
  for cell in code_cells(done):
    assert cell.execution_count, cell.id
    pictures = sum("image/png" in out.get("data", {}) for out in cell.outputs)
    assert pictures == ("plt.subplots" in cell.source), cell.id
  text = printed(done)
  for words in SAYS[path.stem]:
    assert re.search(words, text), words
  assert (tmp_path / "run" / "metrics.jsonl").exists()
