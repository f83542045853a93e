"""Faults of settings and imports that recipes/test_original_faults.py lists, put back.

Each fails a check that ours pass.
"""
import ast
import itertools
import pathlib
import re

import jax
import pytest

from atlas_jax import command, tree
from atlas_jax import config as configs
from atlas_jax.models import lm
from tests import house, runs, test_configs

ROOT = pathlib.Path(__file__).parents[1]


def secrets(fields) -> list[str]:
  """Lists fields that would hold a secret, and be written with the config of every run."""
  return [name for name in fields if re.search(r"(token|secret|password|api_key)$", name)]


def test_secrets_that_a_config_would_save_are_noticed():
  """Fault 42: here a config names the variable of the environment that has one."""
  assert secrets(configs.FIELDS) == []
  assert secrets({**configs.FIELDS, "alerts.telegram_token": None}) == ["alerts.telegram_token"]


# --- sizes ---


def least_bytes(config) -> int:
  """Counts what an update holds at least: parameters, moments, gradients, memories, and logits twice."""
  params = test_configs.shapes_of(config)
  carry = jax.eval_shape(lambda: lm.build(config.model.to_dict()).zero_state(config.data.batch_rows))
  piece = config.data.batch_rows * config.data.segment_len // config.train.accumulate_steps
  logits = min(config.loss.block_tokens or piece, piece) * config.model.vocab_size
  return 16 * tree.count(params) + tree.size_bytes(carry) + 2 * 4 * logits


def fits(config, gigabytes=40):
  """Checks that an update of a config could fit on a device."""
  needed = least_bytes(config)
  assert needed < gigabytes * 1e9, f"an update holds {needed / 1e9:.0f} GB at least"


def test_a_batch_of_whole_logits_is_noticed():
  """Fault 41: 64 rows of 4,096 tokens, whose logits alone are 33 GB."""
  config = test_configs.resolved(ROOT / "configs/memory_340m.py")
  fits(config)
  theirs = {"loss__block_tokens": None, "data__batch_rows": 64, "train__accumulate_steps": 1}
  with pytest.raises(AssertionError, match="an update holds"):
    fits(runs.changed(configs.unfrozen(config), theirs))


def size_is_true(name: str, docstring: str, count: int):
  """Checks that a config's name and docstring say how many parameters there are."""
  named = int(re.search(r"_(\d+)m", name)[1]) * 1e6
  said = int(re.search(r"([\d,]+) parameters at a vocabulary", docstring)[1].replace(",", ""))
  assert abs(count / named - 1) < 0.03 and count == said, f"{name} has {count:,} parameters"


def test_a_wrong_size_in_a_name_is_noticed():
  """Fault 44: there 10M was 13.8 million, and 300M was 389."""
  file = ROOT / "configs/memory_40m.py"
  config = command.read_config(str(file)).unlock()
  config.model.vocab_size = 32_000
  count = tree.count(test_configs.shapes_of(configs.resolve(config)))
  docstring = ast.get_docstring(ast.parse(file.read_text()))
  size_is_true(file.stem, docstring, count)
  with pytest.raises(AssertionError, match="memory_30m has"):
    size_is_true("memory_30m", docstring, count)


# --- imports ---


def defined(file: pathlib.Path) -> set[str]:
  """Lists the names at the top of a module."""
  found: set[str] = set()
  for node in itertools.chain.from_iterable(ast.walk(one) if isinstance(one, ast.If | ast.Try) else [one]
                                            for one in ast.parse(file.read_text()).body):
    if isinstance(node, ast.Import | ast.ImportFrom):
      found |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
      found.add(node.name)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
      targets = node.targets if isinstance(node, ast.Assign) else [node.target]
      found |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
  return found


def leads_somewhere(root: pathlib.Path, name: str) -> bool:
  """Returns whether a dotted name is a module below a root, or is defined in one."""
  place = root.joinpath(*name.split("."))
  if place.is_dir() or place.with_suffix(".py").is_file():
    return True
  file = place.parent / "__init__.py" if place.parent.is_dir() else place.parent.with_suffix(".py")
  # A module that makes its names when they are used, as the package itself does, may have any.
  return file.is_file() and bool({place.name, "__getattr__"} & defined(file))


def broken_imports(root: pathlib.Path) -> list[str]:
  """Finds imports of tests that lead nowhere in the package."""
  return [f"{relative}:{line}: {name}" for relative, _, parsed in house.sources(root, "tests")
          for line, name in house.imports_of(relative, parsed)
          if name.startswith("atlas_jax.") and not leads_somewhere(root, name)]


def package_with(folder, place, text):
  """Writes a package of one module, and a file beside it."""
  for name, content in (("atlas_jax/data/episodes.py", "def make():\n  pass\n"), (place, text)):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)
  return folder


def test_imports_that_lead_nowhere_are_noticed(tmp_path):
  """Faults 37 and 38."""
  assert broken_imports(ROOT) == []
  text = "from atlas_jax.data.episodes import make, load_all\nfrom atlas_jax.data import episodes, modular\n"
  found = broken_imports(package_with(tmp_path, "tests/test_x.py", text))
  assert found == ["tests/test_x.py:1: atlas_jax.data.episodes.load_all",
                   "tests/test_x.py:2: atlas_jax.data.modular"]


def silent_imports(root: pathlib.Path) -> list[str]:
  """Finds places that go on without a library, and neither raise nor say so."""
  handlers = [(relative, node) for relative, _, parsed in house.sources(root, "atlas_jax", "scripts")
              for node in ast.walk(parsed) if isinstance(node, ast.ExceptHandler) and node.type is not None]
  missing = [(relative, node) for relative, node in handlers
             if re.search(r"\b(ImportError|ModuleNotFoundError)\b", ast.unparse(node.type))]
  spoken = re.compile(r"\braise\b|sys\.exit\(|logging\.\w+\(|\b_failed\(")
  return [f"{relative}:{node.lineno}" for relative, node in missing
          if not spoken.search("\n".join(map(ast.unparse, node.body)))]


def test_a_missing_library_that_nobody_is_told_of_is_noticed(tmp_path):
  """Fault 39."""
  assert silent_imports(ROOT) == []
  text = "try:\n  import sklearn\nexcept ImportError:\n  sklearn = None\n"
  assert silent_imports(package_with(tmp_path, "atlas_jax/geometry.py", text)) == ["atlas_jax/geometry.py:3"]
