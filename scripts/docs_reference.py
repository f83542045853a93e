"""Writes docs/configuration.md: every field of a run's config, from atlas_jax/defaults and readers.py.

  python scripts/docs_reference.py

A field's meaning is its comment in atlas_jax/defaults: on its own line, or else above it. A comment above a
field that has one on its line too heads the fields below it. Defaults, types, bounds and choices are those
that a run is checked with, and the readers are those by which unread settings are refused.
"""
import ast
import io
import pathlib
import re
import sys
import tokenize
from collections.abc import Iterator
from typing import NamedTuple

from atlas_jax import fields, readers
from atlas_jax.defaults import default

ROOT = pathlib.Path(__file__).parents[1]
DEFAULTS = ROOT / "atlas_jax/defaults"
PAGE = ROOT / "docs/configuration.md"
HEAD = """# Configuration reference

Every field of `config`, generated from `atlas_jax/defaults` and `atlas_jax/readers.py` by
`python scripts/docs_reference.py`; a test fails where this page is behind the code.

- A field is set on the command line, `--config.optim.lr=3e-4`, or in a config file, `config.optim.lr = 3e-4`.
  `None` switches off what may be off.
- **Values** are the type, and the bounds or choices that a run is checked with before anything is compiled.
- **Read by** names the recipes that read a field, and the conditions under which they do. A field that is set
  and that the run's recipe does not read is refused, with a line that says who reads it. A recipe of your
  own, named with dots, may read every field.
- What a config file leaves out has the default. Fields that a file of `configs/` sets differ from it: a run's
  `config.json` holds the values that it was trained with.
"""
KINDS = {bool: "True or False", int: "whole number", float: "number", str: "text"}


class Comments(NamedTuple):
  """The comments of a file by line."""

  beside: dict[int, str]  # behind code
  alone: dict[int, str]  # on a line of their own


class Described(NamedTuple):
  """A field or group as its file describes it."""

  meaning: str
  heading: str  # that stands above it and the fields that follow


def described() -> dict[str, Described]:
  """Returns what the files of atlas_jax/defaults say of every field and group, by dotted name.

  Raises:
    ValueError: if a dict is built in a way that is not understood.
  """
  files = {path.stem: path for path in DEFAULTS.glob("*.py")}
  trees = {stem: ast.parse(path.read_text()) for stem, path in files.items()}
  comments = {stem: _comments(path.read_text()) for stem, path in files.items()}
  return dict(_walk("__init__", "_fields", "", trees, comments))


def _comments(text: str) -> Comments:
  beside, alone = {}, {}
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.type == tokenize.COMMENT:
      is_alone = not token.line[:token.start[1]].strip()
      (alone if is_alone else beside)[token.start[0]] = token.string.lstrip("# ").rstrip()
  return Comments(beside, alone)


def _walk(stem: str, function: str, prefix: str, trees, comments) -> Iterator[tuple[str, Described]]:
  found = next(node for node in trees[stem].body
               if isinstance(node, ast.FunctionDef) and node.name == function)
  returned = next(node.value for node in ast.walk(found) if isinstance(node, ast.Return))
  yield from _dict(returned, stem, prefix, trees, comments)


def _dict(node, stem: str, prefix: str, trees, comments) -> Iterator[tuple[str, Described]]:
  if not isinstance(node, ast.Dict):
    raise ValueError(f"atlas_jax/defaults/{stem}.py:{node.lineno}: a group must be a dict written out")
  for key, value in zip(node.keys, node.values):
    if key is None:  # **other(), whose fields stand there.
      yield from _call(value, stem, prefix, trees, comments)
      continue
    name = prefix + key.value
    yield name, _described(key.lineno, value, comments[stem])
    if isinstance(value, ast.Dict) and name not in fields.OPTIONS:
      yield from _dict(value, stem, f"{name}.", trees, comments)
    elif isinstance(value, ast.Call) and not value.args and name not in fields.FIELDS:
      yield from _call(value, stem, f"{name}.", trees, comments)


def _call(node, stem: str, prefix: str, trees, comments) -> Iterator[tuple[str, Described]]:
  if isinstance(node.func, ast.Name):
    yield from _walk(stem, node.func.id, prefix, trees, comments)
  else:
    yield from _walk(node.func.value.id, node.func.attr, prefix, trees, comments)


def _described(line: int, value, comments: Comments) -> Described:
  above = []
  while line - 1 - len(above) in comments.alone:
    above.insert(0, comments.alone[line - 1 - len(above)])
  # A dict begins on the line of its name and ends elsewhere; its comment stands beside the name.
  last = line if isinstance(value, ast.Dict) else value.end_lineno
  beside = " ".join(comments.beside[at] for at in range(line, last + 1) if at in comments.beside)
  return Described(beside, " ".join(above)) if beside else Described(" ".join(above), "")


def values_of(name: str) -> str:
  """Returns which values a field takes: its type, choices and bounds."""
  kind, may_be_none = fields.FIELDS[name]
  bound = fields.BOUNDED.get(name)
  choices = fields.CHOICES.get(name, ())
  said = ", ".join(f"`{choice}`" for choice in choices) or KINDS[kind]
  if choices and bound is not None and bound.or_module:
    said += ", or a dotted module name"
  if bound is not None and bound.need:
    said += f", {bound.need}"
  return said + (", or `None`" if may_be_none else "")


def readers_of(name: str) -> str:
  """Returns the recipes that read a field, with their conditions."""
  found = readers.readers_of(name)
  if found is None:
    raise ValueError(f"no entry of readers.READERS covers config.{name}; say there which recipes read it")
  by_condition: dict[str, list[str]] = {}
  for reader in found:
    condition = " and ".join(f"`{one}`" for one in reader.conditions)
    by_condition.setdefault(condition, []).extend(reader.recipes)
  return "; ".join(("all recipes" if set(recipes) == set(readers.ALL.split()) else ", ".join(recipes))
                   + (f" if {condition}" if condition else "") for condition, recipes in by_condition.items())


def page() -> str:
  """Returns the text of the page.

  Raises:
    ValueError: if a field has no comment, or no reader.
  """
  said, config = described(), default()
  names = [*fields.FIELDS, *fields.OPTIONS]
  if missing := sorted(name for name in names if name not in said or not said[name].meaning):
    raise ValueError(f"atlas_jax/defaults says nothing of {', '.join(missing)}; write a comment with the "
                     "unit")
  groups: dict[str, list[str]] = {}
  for name in said:  # In the order of the files.
    if name in names:
      groups.setdefault(name.rpartition(".")[0], []).append(name)
  parts = [HEAD]
  for group, members in groups.items():
    parts.append(f"\n## {f'config.{group}' if group else 'config'}\n")
    if group in said and said[group].meaning:
      parts.append(f"\n{said[group].meaning}\n")
    parts.append("\n| field | default | meaning | values | read by |\n| --- | --- | --- | --- | --- |\n")
    for name in members:
      parts += _row(name, said[name], fields.at(config, name))
  return "".join(parts)


def _row(name: str, said: Described, value) -> list[str]:
  last = name.rpartition(".")[2]
  heading = [f"| | | *{_cell(said.heading)}* | | |\n"] if said.heading else []
  shown = value.to_dict() if hasattr(value, "to_dict") else value
  values = "names and values that whoever reads them knows" if name in fields.OPTIONS else values_of(name)
  cells = (f"`{last}`", f"`{shown!r}`", said.meaning, values, readers_of(name))
  return [*heading, f"| {' | '.join(map(_cell, cells))} |\n"]


def _cell(text: str) -> str:
  # A bar ends a cell, in code too; angle brackets and stars outside of code would be markup.
  parts = re.split(r"(`[^`]*`)", text.replace("|", "&#124;"))
  return "".join(part.replace("&#124;", "\\|") if part.startswith("`") else
                 part.replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_") for part in parts)


def main() -> None:
  """Writes the page anew."""
  try:
    PAGE.write_text(page())
  except ValueError as error:
    sys.exit(f"docs_reference: {error}")


if __name__ == "__main__":
  main()
