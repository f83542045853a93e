"""The house rules hold for the repository, and each checker finds a breach of its rule."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from atlas_jax.losses import distill, next_token, token_logprobs
from atlas_jax.parallel import mesh as meshes
from tests import house, mirror
from tests.kernels import lowering

ROOT = pathlib.Path(__file__).parents[1]
CHECKERS = {
  "imports": house.import_violations,
  "recipes": house.recipe_violations,
  "lengths": house.length_violations,
  "hidden_defaults": house.hidden_default_violations,
  "names": house.name_violations,
  "docstrings": house.docstring_violations,
  "machine_paths": house.machine_path_violations,
  "links": house.link_violations,
  "scripts": house.script_violations,
}
DOC = '"""Says what it gives."""\n'
FOLDERS = ("", "memory/", "models/", "data/", "monitor/", "recipes/")
TOKENIZER = '''def load(options):
  """Loads."""
  import transformers
  return options.get(transformers)
'''
GOOD = {
  **{f"atlas_jax/{folder}__init__.py": DOC for folder in FOLDERS},
  "atlas_jax/tree.py": DOC + "import jax\nfrom absl import logging\n",
  "atlas_jax/config.py": DOC + 'def read(config):\n  """Reads."""\n  return config.get("seed", 0)\n',
  "atlas_jax/memory/layer.py": DOC + "import flax.linen\nfrom atlas_jax import tree\nfrom . import scan\n",
  "atlas_jax/memory/scan.py": DOC + "import jax.numpy as jnp\ndef _part(x_BT):\n  return jnp.sum(x_BT)\n",
  "atlas_jax/models/lm.py": DOC + "from atlas_jax.memory import layer\nimport flax.linen\n",
  "atlas_jax/data/tokenizer.py": DOC + TOKENIZER,
  "atlas_jax/monitor/writer.py": DOC + "import rich\nimport tensorboardX\nfrom atlas_jax.data import x\n",
  "atlas_jax/recipes/sft.py": DOC + "from atlas_jax.recipes import Recipe\nfrom atlas_jax.data import x\n",
  "configs/tiny.py": DOC + "def get_config(arg=None):\n  return arg\n",
  "README.md": "[map](configs/tiny.py#top) [site](https://example.org/home/page) [below](#map)\n",
  "scripts/go.sh": 'echo "ok"\n',
}
LONG = "def long():\n" + "  pass\n" * 50
UP = "atlas_jax/memory/up.py"
TRAIN = "atlas_jax/train.py"
BREACHES = [
  ("imports", UP, "from atlas_jax.models import lm\n", "of level 3 and imports models"),
  ("imports", UP, "def f():\n  from atlas_jax import train\n", "imports train of level 10"),
  ("imports", UP, "from ..data import tokenizer\n", "imports data of level 5"),
  ("imports", "atlas_jax/data/side.py", "from atlas_jax import state\n", "imports state of level 5"),
  ("imports", "atlas_jax/memory/side.py", "from flax import linen\n", "imports flax.linen, which"),
  ("imports", "atlas_jax/models/nnx.py", "from flax import nnx\n", "imports flax.nnx, which no"),
  ("imports", "atlas_jax/data/text.py", "def f():\n  import transformers\n", "imports transformers"),
  ("imports", TRAIN, "import orbax.checkpoint as ocp\n", "imports orbax"),
  ("imports", TRAIN, "import torch\n", "imports torch, which no level allows"),
  ("imports", "atlas_jax/data/flags.py", "from absl import flags\n", "imports absl"),
  ("imports", "atlas_jax/new/thing.py", "import jax\n", "new has no level"),
  ("imports", "atlas_jax/__init__.py", "from atlas_jax import nothing\n", "nothing, which has no level"),
  ("recipes", "atlas_jax/recipes/mine.py", "from atlas_jax.recipes import sft\n", "imports atlas_jax.rec"),
  ("recipes", "atlas_jax/recipes/mine.py", "def f():\n  from .sft import loss\n", "mine.py:3: imports"),
  ("lengths", "atlas_jax/tall.py", "\n" * 401, "402 lines, ceiling 400"),
  ("lengths", "atlas_jax/kernels/x/pallas.py", "\n" * 600, "601 lines, ceiling 600"),
  ("lengths", "atlas_jax/tall.py", LONG, "long has 51 lines, ceiling 50"),
  ("hidden_defaults", TRAIN, "def f(config):\n  return config.optim.get('lr')\n", "train.py:3"),
  ("hidden_defaults", TRAIN, "def f(config):\n  return getattr(config, 'lr', 1)\n", "train.py:3"),
  ("hidden_defaults", TRAIN, "def f(config):\n  m = config.model\n  return m.get('x')\n", "train.py:4"),
  ("names", "atlas_jax/utils.py", "", "a module's name says"),
  ("names", "atlas_jax/memory/rules/x.py", "", "has no __init__.py"),
  ("names", "atlas_jax/tree.py", "def f(x_BQ):\n  return x_BQ\n", "x_BQ has an axis outside"),
  ("docstrings", "atlas_jax/tree.py", "def f():\n  pass\n", "f has no docstring"),
  ("docstrings", "atlas_jax/memory/x.py", None, "the module has no docstring"),
  ("machine_paths", "configs/x.py", "PATH = '/ro" + "ot/data'\n", "names a path of one machine"),
  ("links", "docs.md", "[x](missing.md)\n", "missing.md leads nowhere"),
  ("scripts", "scripts/bad.sh", "if then\n", "scripts/bad.sh"),
]


def write_tree(root: pathlib.Path, files: dict[str, str]):
  """Writes a small repository."""
  for name, text in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize("rule", CHECKERS)
def test_the_repository_keeps_the_rule(rule):
  violations = CHECKERS[rule](ROOT)
  assert not violations, "\n".join(violations)


@pytest.mark.parametrize("rule", CHECKERS)
def test_a_good_tree_passes(rule, tmp_path):
  write_tree(tmp_path, GOOD)
  assert CHECKERS[rule](tmp_path) == []


@pytest.mark.parametrize("rule, name, text, message", BREACHES)
def test_a_breach_is_found(rule, name, text, message, tmp_path):
  body = "import jax\n" if text is None else text
  head = DOC if name.endswith(".py") and text is not None else ""
  write_tree(tmp_path, {**GOOD, name: head + body})
  violations = CHECKERS[rule](tmp_path)
  assert len(violations) == 1
  assert message in violations[0]


def test_every_module_has_a_test_of_its_name_or_is_listed_with_the_reason():
  violations = mirror.violations(ROOT / "atlas_jax", ROOT / "tests")
  assert not violations, "\n".join(violations)


def test_a_module_without_a_test_is_found(tmp_path):
  write_tree(tmp_path, {"atlas_jax/tree.py": DOC, "tests/test_other.py": DOC})
  found = mirror.violations(tmp_path / "atlas_jax", tmp_path / "tests")
  assert found[0].startswith("tree.py has no test test_tree.py") and "aliases.py is of no module" in found[2]


ROWS, LENGTH, D, V, BLOCK = 8, 16, 24, 112, 32


def mean_logprob(hidden_BTD, head_DV, tokens_BT, mask_BT):
  logprob_BT = token_logprobs.token_logprobs(hidden_BTD, head_DV, tokens_BT, block_tokens=BLOCK)
  return jnp.mean(logprob_BT * mask_BT)


def mean_entropy(hidden_BTD, head_DV, tokens_BT, mask_BT):
  both = token_logprobs.token_logprobs_and_entropies(hidden_BTD, head_DV, tokens_BT, block_tokens=BLOCK)
  return jnp.mean((both[0] + both[1]) * mask_BT)


def mean_distance(hidden_BTD, head_DV, tokens_BT, mask_BT):
  del tokens_BT
  sides = (hidden_BTD, head_DV, hidden_BTD, head_DV)
  return distill.distill_loss(*sides, mask_BT, beta=0.5, block_tokens=BLOCK)[0]


def mean_nats(hidden_BTD, head_DV, tokens_BT, mask_BT):
  return next_token.next_token_loss(hidden_BTD, head_DV, tokens_BT, mask_BT, block_tokens=BLOCK)[0]


@pytest.mark.parametrize("loss", (mean_nats, mean_logprob, mean_entropy, mean_distance))
def test_a_loss_over_the_vocabulary_leaves_rows_where_they_are(loss):
  """Eight devices, eight rows: of a block of 32 tokens each device scores its own 4, and sums at the end."""
  mesh = meshes.make()
  rows, whole = meshes.batch_sharding(mesh), meshes.replicated(mesh)
  given = (jnp.zeros((ROWS, LENGTH, D)), jnp.zeros((D, V)), jnp.zeros((ROWS, LENGTH), jnp.int32),
           jnp.ones((ROWS, LENGTH)))  # fmt: skip
  both = jax.jit(jax.value_and_grad(loss, (0, 1)), in_shardings=(rows, whole, rows, rows))
  text = both.lower(*given).compile().as_text()
  sent = lowering.collectives(text)
  assert set(sent) == {"all-reduce"} and sent["all-reduce"] <= 2, sent
  logits = {shape[0] for shape in lowering.shapes(text) if shape[1:] == (V,) and shape[0] != D}
  assert logits == {BLOCK // mesh.size}


def test_the_table_of_levels_names_what_exists():
  present = {path.stem for path in (ROOT / "atlas_jax").iterdir() if not path.name.startswith("_")}
  assert present <= set(house.LEVELS)
  assert {"config", "train", "main", "memory", "models", "data"} <= present


@pytest.mark.core
def test_importing_train_loads_no_other_framework():
  code = "import sys, atlas_jax.train; print(*sorted({name.split('.')[0] for name in sys.modules}))"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
  assert done.returncode == 0, done.stderr
  loaded = set(done.stdout.split())
  assert "jax" in loaded
  heavy = {"torch", "tensorflow", "transformers", "vllm", "datasets", "tensorflow_datasets", "keras"}
  assert not loaded & heavy
