"""Agents in a folder of Python code, found by reading it: nothing of it is imported.

`find` lists candidates with file and line, `trusted` imports one that a person has named, in a process
without the secrets of this one, `save` keeps what was chosen, and `verify` says what has changed since.
"""
import ast
import datetime
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from atlas_jax.files import json_text, write
from atlas_jax.files.damage import Damaged, one_line
from atlas_jax.runtime import discover_worker
from atlas_jax.runtime.agents.signatures import INPUTS, OTHERS

FILE = pathlib.PurePath(".atlas/discover.json")
FORMAT = 1
SKIPPED = frozenset({"venv", "env", "node_modules", "build", "dist", "site-packages", "__pycache__"})
MOST_FILES = 5_000
MOST_BYTES = 2**20       # Of a file that is read.
ROLES = ("agent", "environment")
ENVIRONMENT_METHODS = ({"reset", "step"},)
AGENT_METHODS = ({"ainvoke"}, {"act"}, {"invoke"}, {"plan"})  # Each is enough.
MAKERS = ("create_", "build_", "make_")
# Variables of the environment that code that is tried out may see.
SAFE_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "SYSTEMROOT")
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Candidate(NamedTuple):
  """Code that may be an agent, or the environment of one."""

  role: str   # one of ROLES
  file: str   # from the folder on, with /
  line: int   # from 1
  name: str   # in the file
  what: str   # "function", "class" or "maker": a function that returns it
  why: str    # it is a candidate
  rank: int   # lower is likelier
  sha256: str  # of its source

  @property
  def place(self) -> str:
    """The name that `--trust` and an agent's config take, FILE.py:NAME."""
    return f"{self.file}:{self.name}"


class FoundAgents(NamedTuple):
  """Candidates of a folder."""

  candidates: tuple[Candidate, ...]
  unread: tuple[str, ...]  # files that were not looked at, each with the reason


class Trusted(NamedTuple):
  """A candidate that was imported."""

  place: str
  kind: str | None     # of agent that it can be, "python" or "graph"; None: of none
  takes: str | None    # what a function takes
  problem: str | None  # why it cannot be used


def find(folder) -> FoundAgents:
  """Returns the candidates of a folder, likeliest first; its code is read and not run.

  Raises:
    ValueError: if there is no such folder.
  """
  root = pathlib.Path(folder)
  if not root.is_dir():
    raise ValueError(f"there is no folder {root}; name the one that the agent's code is in")
  candidates: list[Candidate] = []
  unread: list[str] = []
  for number, path in enumerate(_files(root)):
    name = path.relative_to(root).as_posix()
    if number >= MOST_FILES:
      unread.append(f"{name} and all behind it: there are more than {MOST_FILES} files")
      break
    try:
      if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES} bytes")
      source = path.read_text()
      tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError.
      unread.append(f"{name}: {one_line(error)}")
      continue
    candidates += _candidates(name, source, tree)
  return FoundAgents(tuple(sorted(candidates, key=lambda one: (one.role, one.rank, one.file, one.line))),
               tuple(unread))


def agent_config(candidate: Candidate, trusted: Trusted | None = None) -> dict[str, Any]:
  """Returns the config of an agent for `agents.load`.

  Raises:
    ValueError: for a candidate that no kind of agent can be made of, with what to do.
  """
  kind = trusted.kind if trusted is not None else {"function": "python", "maker": "graph"}.get(candidate.what)
  if kind is None or candidate.role != "agent":
    why = trusted.problem if trusted is not None else f"it is a {candidate.what}"
    raise ValueError(f"{candidate.place} cannot be an agent as it is ({why}); write a function of (task), "
                     "(messages) or (prompt, metadata) that uses it, or one without parameters that returns "
                     "an object with ainvoke")
  return {"kind": kind, {"python": "function", "graph": "object"}[kind]: candidate.place}


def trusted(folder, place: str, *, timeout_s: float = 60.0) -> Trusted:
  """Imports what a person has named, in a process of its own, and returns what it is.

  The process has none of this one's variables of the environment but PATH and the language, and a home of its
  own; it may still do whatever its user may.

  Args:
    folder: that the process works in.
    place: FILE.py:NAME, the file from the folder on, or package.module:NAME.
    timeout_s: for the import.

  Raises:
    ValueError: for a name that cannot be, and where the process fails or takes too long.
  """
  if ":" not in place:
    raise ValueError(f"--trust {place!r} must be FILE.py:NAME or package.module:NAME")
  root = pathlib.Path(folder).resolve()
  package = str(pathlib.Path(discover_worker.__file__).resolve().parents[2])
  with tempfile.TemporaryDirectory() as home:
    answer = pathlib.Path(home) / "answer.json"
    environment = {name: os.environ[name] for name in SAFE_VARIABLES if name in os.environ}
    environment |= {"HOME": home, "PYTHONDONTWRITEBYTECODE": "1"}
    program = (f"import sys; sys.path[:0] = [{str(root)!r}]; sys.path.append({package!r}); "
               f"from atlas_jax.runtime import discover_worker; discover_worker.main(*sys.argv[1:])")
    command = [sys.executable, "-I", "-c", program, place, str(answer)]
    said = _run(command, root, environment, timeout_s, place)
    try:
      found = json_text.parse(answer.read_text())
    except (OSError, ValueError) as error:
      raise ValueError(f"importing {place} ended the process: {one_line(said[-2000:]) or 'without a word'}"
                       ) from error
  return Trusted(place, found["kind"], found["takes"], found["problem"])


def save(folder, found: FoundAgents, chosen: Candidate | None, check: Trusted | None = None) -> pathlib.Path:
  """Writes the candidates and the one that was chosen to .atlas/discover.json; returns its path."""
  root = pathlib.Path(folder)
  files = sorted({one.file for one in found.candidates})
  content = {
    "format": FORMAT, "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "chosen": None if chosen is None else chosen._asdict(),
    "checked": None if check is None else check._asdict(),
    "candidates": [one._asdict() for one in found.candidates], "unread": list(found.unread),
    "files": {name: _file_hash(root / name) for name in files}}
  path = root / FILE
  path.parent.mkdir(exist_ok=True)
  write.json(path, content)
  return path


def read(folder) -> dict[str, Any]:
  """Returns what was saved.

  Raises:
    FileNotFoundError: if nothing was, with what to do.
    Damaged: if the file cannot be used.
  """
  path = pathlib.Path(folder) / FILE
  if not path.exists():
    raise FileNotFoundError(f"there is no {path}; run atlas env init")
  remedy = "run atlas env init again"
  try:
    found = json_text.parse(path.read_text())
  except (ValueError, json.JSONDecodeError) as error:
    raise Damaged(path, error, remedy) from error
  if not isinstance(found, dict) or found.get("format") != FORMAT:
    raise Damaged(path, f"it is not of format {FORMAT}", remedy)
  try:
    for one in found["candidates"] + ([found["chosen"]] if found["chosen"] else []):
      Candidate(**one)
    if not all(isinstance(value, str | None) for value in found["files"].values()):
      raise TypeError("files is no object of hashes")
  except (AttributeError, KeyError, TypeError) as error:
    raise Damaged(path, error, remedy) from error
  return found


def verify(folder) -> list[str]:
  """Returns what has changed since it was saved, one line each; the chosen one first; [] if nothing has.

  Raises:
    FileNotFoundError, Damaged: see `read`.
  """
  saved = read(folder)
  now = find(folder)
  old = {one.place: one for one in (Candidate(**given) for given in saved["candidates"])}
  new = {one.place: one for one in now.candidates}
  changes = []
  for place, one in old.items():
    if place not in new:
      changes.append((place, f"{place} is gone (it was {one.what} in line {one.line})"))
    elif new[place].sha256 != one.sha256:
      changes.append((place, f"{place} has changed (line {new[place].line})"))
  changes += [(place, f"{place} is new (line {one.line})") for place, one in new.items() if place not in old]
  said = {place.rpartition(":")[0] for place, _ in changes}
  for name, digest in saved["files"].items():
    path = pathlib.Path(folder) / name
    if path.exists() and _file_hash(path) != digest and name not in said:
      changes.append((name, f"{name} has changed, outside of its candidates"))
  chosen = Candidate(**saved["chosen"]).place if saved["chosen"] else None
  # A sort keeps the order of equals.
  return [line for _, line in sorted(changes, key=lambda one: one[0] != chosen)]


def _files(root: pathlib.Path) -> Iterator[pathlib.Path]:
  for folder, folders, names in os.walk(root):
    folders[:] = sorted(name for name in folders if name not in SKIPPED and not name.startswith("."))
    yield from (pathlib.Path(folder) / name for name in sorted(names) if name.endswith(".py"))


def _candidates(file: str, source: str, tree: ast.Module) -> list[Candidate]:
  found = []
  for node in tree.body:
    if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
      for role, what, why, rank in _reasons(node):
        digest = hashlib.sha256((ast.get_source_segment(source, node) or "").encode()).hexdigest()
        decorators = " ".join(ast.unparse(one) for one in node.decorator_list)
        digest = hashlib.sha256(f"{digest} {decorators}".encode()).hexdigest()
        found.append(Candidate(role, file, node.lineno, node.name, what, why, rank, digest))
  return found


def _reasons(node: Function | ast.ClassDef) -> list[tuple[str, str, str, int]]:
  """Returns (role, what it is, why, rank) of a definition, [] if it is no candidate."""
  what = "class" if isinstance(node, ast.ClassDef) else "function"
  for decorator in node.decorator_list:
    name = decorator.func if isinstance(decorator, ast.Call) else decorator
    last = name.attr if isinstance(name, ast.Attribute) else name.id if isinstance(name, ast.Name) else ""
    if last in ROLES:
      return [(last, what, f"its decorator is {ast.unparse(name)}", 0)]
  if isinstance(node, ast.ClassDef):
    return _of_class(node)
  return _of_function(node)


def _of_class(node: ast.ClassDef) -> list[tuple[str, str, str, int]]:
  methods = {one.name for one in node.body if isinstance(one, Function)}
  for wanted in ENVIRONMENT_METHODS:
    if wanted <= methods:
      return [("environment", "class", f"it has {' and '.join(sorted(wanted))}", 2)]
  for wanted in AGENT_METHODS:
    if wanted <= methods:
      return [("agent", "class", f"it has {' and '.join(sorted(wanted))}", 2)]
  return []


def _of_function(node: Function) -> list[tuple[str, str, str, int]]:
  given = node.args
  names = [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
  if node.name.startswith(MAKERS):
    role = "environment" if "env" in node.name.split("_") or "environment" in node.name else "agent"
    needed = len(given.posonlyargs) + len(given.args) - len(given.defaults) + given.kw_defaults.count(None)
    return [(role, "maker", "its name says that it makes one", 3 if needed == 0 else 4)]
  inputs = [name for name in names if name in INPUTS]
  if len(inputs) == 1 and set(names) <= {*INPUTS, *OTHERS}:
    return [("agent", "function", f"it takes ({', '.join(names)})", 1)]
  return []


def _file_hash(path: pathlib.Path) -> str | None:
  try:
    return hashlib.sha256(path.read_bytes()).hexdigest()
  except OSError:
    return None


def _run(command: Sequence[str], folder: pathlib.Path, environment: Mapping[str, str], timeout_s: float,
         place: str) -> str:
  """Runs a program and returns what it said; ends it, and whatever it started, after a time."""
  with tempfile.TemporaryFile() as said:  # A pipe that a child of it holds open would be waited for.
    with subprocess.Popen(command, cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL, stdout=said,
                          stderr=said, start_new_session=True) as process:
      try:
        process.wait(timeout_s)
      except subprocess.TimeoutExpired as error:
        raise ValueError(f"importing {place} took more than {timeout_s:g} seconds; what runs at import "
                         "belongs behind if __name__ == '__main__'") from error
      finally:
        try:
          os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
          pass  # It has ended, and left nothing behind.
    said.seek(max(0, said.seek(0, os.SEEK_END) - 4000))
    return said.read().decode("utf-8", "replace")
