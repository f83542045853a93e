"""The documentation builds, its links lead somewhere, and what it says to type and to expect is so."""

import ast
import importlib.util
import json
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from atlas_jax import command, fields, readers
from atlas_jax.data import prompts, responses
from atlas_jax.data.traces import commands as traces
from atlas_jax.data.traces.record import Trace
from atlas_jax.memory import rules
from atlas_jax.rollout import rewards
from atlas_jax.runtime import cli as runtime
from scripts import docs_hooks, docs_reference
from tests import pages
from tests.pages import DOCS, ROOT, blocks, commands_of, files_of, inline, inline_commands
from tests.readme import MAIN, README
from tests.test_readme import PAGES, write_files

# Programs of others, of which nothing is checked here.
OTHERS = set("curl docker export git jupyter kill mkdocs mypy ruff source tail tensorboard".split()) | {
  "trackio", "wandb"}  # fmt: skip


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
  command_line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
  done = subprocess.run(command_line, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-4000:]
  built = (tmp_path / "api/memory.html").read_text()
  assert "fast weights are trained by the tokens" in built, "docstrings are part of the API"
  assert (tmp_path / "repository/SECURITY.html").is_file() and (tmp_path / "configuration.html").is_file()


# --- links ---


def test_links_of_all_pages_lead_to_files_and_headings():
  faults = pages.link_faults(pages.read_pages())
  assert not faults, "\n".join(faults)


def test_broken_links_and_anchors_are_found():
  good = "# One\n\n[a](README.md) [b](#two-words) [c](README.md#sixty-seconds) `[d](no.md)`\n\n## Two words\n"
  assert pages.link_faults({"SECURITY.md": good, "README.md": "## Sixty seconds\n"}) == []
  for link, message in (("gone.md", "leads to no file"), ("tests", "leads to no file"),
                        ("#three", "has no heading"), ("README.md#three", "has no heading")):  # fmt: skip
    found = pages.link_faults({"SECURITY.md": f"# One\n\n[x]({link})\n", "README.md": "# A\n"})
    assert len(found) == 1 and message in found[0]


def test_links_out_of_docs_become_links_within_the_site(tmp_path, monkeypatch):
  text = "[a](../../SECURITY.md#x) [b](sft.md) `[c](d.md)` [e](https://x.y)\n```\n[f](g.md)\n```\n"
  source = "docs/guides/grpo.md"
  found = docs_hooks.replace_links(text, lambda link: docs_hooks.site_of(docs_hooks.target_of(source, link)))
  assert found == ("[a](repository/SECURITY.md) [b](guides/sft.md) `[c](d.md)` [e](https://x.y)\n"
                   "```\n[f](g.md)\n```\n")  # fmt: skip
  (tmp_path / "page.md").write_text("[x](gone.md)")
  monkeypatch.setattr(docs_hooks, "ROOT", tmp_path)
  with pytest.raises(ValueError, match="page.md: the link gone.md leads to no file"):
    docs_hooks.linked(["page.md"])


def test_every_page_is_in_the_navigation_and_says_something():
  nav = (ROOT / "mkdocs.yml").read_text()
  for name, text in DOCS.items():
    assert name.removeprefix("docs/") in nav, f"{name} is not in mkdocs.yml"
    assert len(text.split()) > 60 or text.count("\n::: ") > 3, f"{name} says nearly nothing"


def test_the_readme_is_short():
  assert len(README.splitlines()) <= 180


# --- the configuration reference ---


def test_the_configuration_reference_is_what_the_script_writes():
  assert DOCS[pages.GENERATED] == docs_reference.page(), "run python scripts/docs_reference.py"


def test_every_field_has_a_row_with_its_default_and_readers():
  rows = [line for line in DOCS[pages.GENERATED].splitlines() if line.startswith("| `")]
  assert len(rows) == len(fields.FIELDS) + len(fields.OPTIONS)
  (row,) = [line for line in rows if line.startswith("| `idle_limit`")]
  assert "`50`" in row and "Updates in a row that learn nothing" in row and "at least 1, or `None`" in row
  assert docs_reference.readers_of("seed") == "all recipes"
  assert docs_reference.readers_of("data.packed") == "sft"


def test_a_field_without_a_comment_or_reader_is_named(monkeypatch):
  said = docs_reference.described()
  said["seed"] = docs_reference.Described("", "")
  monkeypatch.setattr(docs_reference, "described", lambda: said)
  with pytest.raises(ValueError, match="says nothing of seed;"):
    docs_reference.page()
  monkeypatch.setattr(readers, "readers_of", lambda name: None)
  with pytest.raises(ValueError, match=r"no entry of readers.READERS covers config.seed"):
    docs_reference.readers_of("seed")


# --- commands ---


def commands_on(name: str) -> list[str]:
  """Lists what a page says to type; commands of the README's table begin with a flag."""
  text = PAGES[name]
  typed = [one for block in blocks(text, "(?:ba)?sh") for one in commands_of(block)] + inline_commands(text)
  return typed + [f"{MAIN} {one}" for one in inline(text) if re.match(r"--(config|mode)=.* --workdir=", one)]


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_says_to_type_parses_and_names_what_exists(name, tmp_path, monkeypatch):
  for folder in ("configs", "experiments", "scripts", "atlas_jax", "notebooks", "tests"):
    (tmp_path / folder).symlink_to(ROOT / folder)
  write_files(name, tmp_path, monkeypatch)
  for line in commands_on(name):
    try:
      check_command(line)
    except (ValueError, AssertionError) as error:
      raise AssertionError(f"{name}: {line}\n{error}") from error


def check_command(line: str):
  words = shlex.split(line)
  while re.fullmatch(r"[A-Z_]+=.*", words[0]):  # Variables of the environment.
    words.pop(0)
  if line in (MAIN, f"{MAIN} --help", "python scripts/traces.py"):
    return  # The program itself, named in the text.
  if words[:3] == MAIN.split():
    check_flags(words[2:])
  elif words[:2] == ["bash", "scripts/launch_local.sh"]:
    assert words[2].isdecimal()
    check_flags(words[2:])
  elif words[:2] == ["python", "-m"]:
    assert words[2] == "pytest" or importlib.util.find_spec(words[2]), f"there is no module {words[2]}"
  elif words[0] == "arc-atlas" or words[:2] == ["python", "scripts/traces.py"]:
    given = words[1 if words[0] == "arc-atlas" else 2:]
    try:
      is_review = bool(given[:1]) and given[0] in traces.OF_REVIEW
      traces.parser({}).parse_args(["review", *given] if is_review else given)
    except SystemExit as ended:
      raise ValueError(f"{line}: these are no flags of the command") from ended
  elif words[0] == "atlas":
    try:
      _, rest = runtime.parser().parse_known_args(runtime.split(words[1:])[0])
    except SystemExit as ended:
      raise ValueError(f"{line}: these are no flags of the command") from ended
    assert words[1] == "train" or not rest, f"atlas {words[1]} does not take {rest}"
  elif words[0] in ("python", "bash"):
    script = "".join(path.read_text() for path in ROOT.glob(words[1].replace("bench.py", "bench*.py")))
    assert (ROOT / words[1]).is_file()
    for flag in re.findall(r"--(\w+)", " ".join(words[2:])):
      known = words[0] == "bash" or re.search(rf'"(--)?{flag}"|--{flag}\b', script)
      assert known, f"{words[1]} has no flag --{flag}"
  elif words[0] == "pip":
    assert re.fullmatch(r"install (-e \.(\[[\w,]+\])?|[\w-]+|atlas_jax\[[\w,]+\])", " ".join(words[1:]))
  else:
    assert words[0] in OTHERS, f"say here how {words[0]} is checked"


def check_flags(argv: list[str]):
  """Reads a command of the program as it does itself, up to the files of the user that it names."""
  placeholders = ("--num_processes=N", "--process_id=I")
  asked, overrides = command.parse([one for one in argv if one not in placeholders])
  command.check_flags(asked, overrides)
  if asked.config:
    command.read_config(asked.config, overrides)
  for field in overrides:
    assert field in fields.FIELDS or field.startswith(fields.OPTIONS), f"there is no config.{field}"


def test_a_command_that_would_be_refused_is_found():
  for line, message in ((f"{MAIN} --config=configs/sft.py --workdir=x --config.optim.stepz=1", "optim.steps"),
                        (f"{MAIN} --config=configs/sft.py --workdir=x --config.trm.width=64", "is not read"),
                        (f"{MAIN} --mode=serve --workdir=x --prt=1", "there is no flag"),
                        ("python scripts/rules_table.py --fast", "no flag --fast"),
                        ("arc-atlas export --outpt=x", "no flags of the command"),
                        ("python -m atlas_jax.nothing", "no module"), ("sudo rm", "how sudo")):  # fmt: skip
    with pytest.raises((ValueError, AssertionError), match=re.escape(message)):
      check_command(line)


# --- files that pages show ---

FILES = [(page, name) for page, text in PAGES.items() for name in files_of(text)]


@pytest.mark.parametrize("page, name", FILES, ids=[f"{page}:{name}" for page, name in FILES])
def test_files_that_pages_show_work(page, name, tmp_path, monkeypatch):
  write_files(page, tmp_path, monkeypatch)
  tree = ast.parse((tmp_path / name).read_text())
  defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
  if defined == ["make"]:
    rule = rules.load("mine.replace", key_dim=5, value_dim=3, chunk_size=4)
    assert rule.uses == ("log_retention", "write_rate")
  elif defined == ["get_config"]:
    assert command.read_config(name).recipe in ("memory_lm", "sft")
  else:
    row = prompts.parse_row("rows:1", {"prompt": "2+2=", "answer": "4", "level": 2.0})
    for function in defined:
      scores = rewards.Rewards({f"{name}:{function}": 1.0}).score([row, row], ["4", "5 and more"])
      assert scores.reward_B[0] >= scores.reward_B[1], function


def test_fragments_that_pages_show_are_python_and_set_fields_that_exist():
  for text in PAGES.values():
    for block in pages.fragments_of(text):
      ast.parse(block)
      for field in re.findall(r"^config\.([\w.]+) = ", block, re.MULTILINE):
        assert field in fields.FIELDS or field.startswith(fields.OPTIONS), f"there is no config.{field}"


def test_rows_that_pages_show_are_read():
  for block in (one for text in DOCS.values() for one in blocks(text, "json")):
    for line in block.splitlines():
      row = json.loads(line)
      if "task" in row:
        trace = Trace.from_json(row)
        assert trace.reward.value is not None and trace.has_guidance and trace.ground_truth
        continue
      ranked = {"responses", "chosen"} & set(row)
      assert (responses if ranked else prompts).parse_row("page:1", row).prompt


# --- errors ---


def spoken() -> list[str]:
  """Lists the texts of the package, with … for what is filled in; texts beside each other are one."""
  found = []
  for path in (ROOT / "atlas_jax").rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.JoinedStr):
        found.append("".join(one.value if isinstance(one, ast.Constant) else "…" for one in node.values))
      elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        found.append(node.value)
  return found


def test_messages_of_the_page_of_errors_are_those_of_the_program():
  said = re.findall(r"^> `(.+)`$", DOCS["docs/faq.md"], re.MULTILINE)
  texts = spoken()
  assert len(said) > 20
  for message in said:
    parts = [part for part in re.split("…", message) if len(part.strip()) > 5]
    for part in parts:
      assert any(part in text for text in texts), f"the program never says {part!r} ({message})"


def test_causes_that_the_guide_names_are_those_that_the_program_tells():
  table = DOCS["docs/guides/learns_nothing.md"].split("## Causes that no line can tell")[0]
  cells = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
  quoted = [one for cell in cells for one in re.findall(r"`(.+?)`", cell)]
  texts = spoken()
  assert len(quoted) > 8
  for words in quoted:
    assert any(words in text for text in texts), f"the program never says {words!r}"


def test_the_picture_of_the_start_is_there():
  for name in ("README.md", "docs/index.md"):
    (picture, *_) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGES[name])
    assert (ROOT / name).parent.joinpath(picture).stat().st_size > 10_000
    assert pathlib.Path(picture).suffix == ".png"
