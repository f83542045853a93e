"""Every config runs in every variant that its argument allows, as far as shapes can tell."""

import ast
import importlib
import itertools
import pathlib
import re

import jax
import pytest

from atlas_jax import config as configs
from atlas_jax import main, readers, tree
from atlas_jax.language import initial_model, pretraining
from atlas_jax.memory import rules
from atlas_jax.models import blocks, placement
from atlas_jax.optim import build as optim
from atlas_jax.parallel import mesh as meshes

ROOT = pathlib.Path(__file__).parents[1]
# The runtime's is no config of training, see tests/runtime/test_settings.py.
FILES = sorted(path for path in (ROOT / "configs").glob("*.py") if path.stem != "runtime")
CONTROLS = ("static", "conv", "ngram", "wide", "compute")
# Arguments but flags, and their values.
CHOICES = {"rule": rules.names, "control": lambda: CONTROLS, "mix": blocks.names}


def flags_of(file) -> dict:
  """Reads the names and defaults that a config hands to parse_arg."""
  calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
  call = next(call for call in calls if getattr(call.func, "attr", "") == "parse_arg")
  given = [(keyword.arg, ast.literal_eval(keyword.value)) for keyword in call.keywords]
  return dict(item for name, part in given for item in (part if name is None else {name: part}).items())


def exclude_each_other(file, arg: str) -> bool:
  """Returns whether a config refuses two of its flags together."""
  try:
    main.read_config(f"{file}:{arg}")
  except ValueError as error:
    return "exclude each other" in str(error)
  return False


def variants(file) -> list[str]:
  """Lists a config's arguments: every set of flags that it takes, then every choice of the others."""
  defaults = flags_of(file)
  switches = [name for name, value in defaults.items() if isinstance(value, bool)]
  sets = itertools.chain.from_iterable(itertools.combinations(switches, n) for n in range(len(switches) + 1))
  others = [f"{name}={value}" for name in defaults if name in CHOICES for value in CHOICES[name]()]
  together = [arg for arg in map(",".join, sets) if not exclude_each_other(file, arg)]
  return together + [arg for arg in others if not exclude_each_other(file, arg)]


ALL = [(file, arg) for file in FILES for arg in variants(file)]
each_variant = pytest.mark.parametrize(("file", "arg"), ALL, ids=[f"{file.stem}:{arg}" for file, arg in ALL])
each_file = pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
SHAPES: dict = {}  # Variants that differ in the length of a run only share a model.


def resolved(file, arg: str = ""):
  """Reads a variant as the program does."""
  return configs.resolve(main.read_config(f"{file}:{arg}"))


def shapes_of(config):
  """Returns the shapes of a config's parameters, traced but not computed."""
  recipe = importlib.import_module(f"atlas_jax.recipes.{config.recipe}")
  if config.recipe in readers.TEXT.split():
    recipe = pretraining
  if not hasattr(recipe, "model_of"):  # It tunes a language model; one that is read has shapes of its own.
    return jax.eval_shape(initial_model.drawn(config).init, jax.random.key(0))
  model = recipe.model_of(config)
  if repr(model) not in SHAPES:
    SHAPES[repr(model)] = jax.eval_shape(lambda: recipe.init_params(config, model, jax.random.key(0)))
  return SHAPES[repr(model)]


@each_file
def test_the_docstring_has_the_commands_and_says_where_results_are(file):
  text = ast.get_docstring(ast.parse(file.read_text()))
  commands = re.findall(r"python -m atlas_jax.main --config=(\S+) --workdir=runs/\w+", text)
  assert f"configs/{file.name}" in commands and re.search("Results?: ", text)
  for command in commands:
    assert command.partition(":")[0] == f"configs/{file.name}"
    resolved(file, command.partition(":")[2])


@each_variant
def test_every_variant_builds(file, arg):
  config = resolved(file, arg)
  params = shapes_of(config)
  assert tree.count(params) > 0
  steps = config.optim.steps or 1  # None: the data tell.
  jax.eval_shape(optim.build(params, **{**config.optim, "steps": steps}).init, params)


@each_file
def test_a_smoke_test_is_small(file):
  if "smoke" in flags_of(file):
    config = resolved(file, "smoke")
    assert tree.count(shapes_of(config)) < 200_000
    length = config.data.segment_len if readers.is_read(config, "data.segment_len") else 1
    assert config.optim.steps * config.data.batch_rows * length < 10_000


@each_file
def test_nothing_large_is_whole_on_every_device(file):
  mesh = meshes.make(data=2, fsdp=2, tensor=2)
  assert placement.large_replicated(mesh, {"params": shapes_of(resolved(file))}) == []


@each_file
def test_the_name_says_how_many_parameters_there_are(file):
  size = re.search(r"_(\d+)([mb])(_|$)", file.stem)
  if size is None:
    pytest.skip("no size in the name")
  millions = int(size[1]) * (1000 if size[2] == "b" else 1)
  text = ast.get_docstring(ast.parse(file.read_text()))
  said = int(re.search(r"([\d,]+) parameters at a vocabulary", text)[1].replace(",", ""))
  for mix in ["", *(f"mix={name}" for name in blocks.names())]:
    config = main.read_config(f"{file}:{mix}")
    config.model.vocab_size = 32_000  # Names count with a vocabulary of this size, whatever the default.
    count = tree.count(shapes_of(configs.resolve(config)))
    assert abs(count / 1e6 / millions - 1) < 0.03 and abs(count / said - 1) < 0.03, (mix, count)
    assert mix or count == said


@pytest.mark.parametrize("compared", ["baseline", "paper"])
@each_file
def test_what_is_compared_has_as_many_parameters(file, compared):
  sizes = [arg for arg in variants(file) if compared in arg.split(",") and "smoke" not in arg]
  for arg in sizes:
    other = ",".join(part for part in arg.split(",") if part != compared)
    counts = [tree.count(shapes_of(resolved(file, each))) for each in (arg, other)]
    assert abs(counts[0] / counts[1] - 1) < 0.01, (arg, counts)


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("size", ["", "cpu,", "cpu_1h,"])
def test_a_control_has_as_many_parameters_as_the_memory_at_the_same_shape(size, control):
  if control == "compute" and not size:
    pytest.skip("what the memory costs was measured on a CPU")
  file = ROOT / "configs/memory_40m.py"
  with_memory, other = resolved(file, size.rstrip(",")), resolved(file, f"{size}control={control}")
  ratio = tree.count(shapes_of(other)) / tree.count(shapes_of(with_memory))
  assert abs(ratio - 1) < 0.011, ratio
  same = ("model.depth", "model.width", "model.heads", "model.window_tokens", "data.segment_len",
          "data.batch_rows", "data.align_tokens", "optim.lr", "optim.warmup_steps", "seed")
  for name in same:
    assert configs.at(other, name) == configs.at(with_memory, name), name
  ratio = other.optim.steps / with_memory.optim.steps
  assert (1.2 < ratio < 1.6) if control == "compute" else ratio == 1


@pytest.mark.parametrize("name", ["cpu", "cpu_1h", "smoke"])
def test_a_corpus_that_a_small_variant_would_not_read_is_refused(name):
  with pytest.raises(ValueError, match=f"'corpus=other' and '{name}' exclude each other"):
    main.read_config(f"{ROOT}/configs/memory_40m.py:corpus=other,{name}")


def test_the_configs_of_studies_set_nothing_that_is_not_read():
  files = [file for file in (ROOT / "experiments").glob("**/*.py") if "def get_config" in file.read_text()
           and "atlas_jax.runtime" not in file.read_text()]
  assert files and all(main.read_config(str(file)) for file in files)


@pytest.mark.parametrize("arg", ["cpu,baseline,rule=titans", "paper,baseline", "cpu,cpu_1h",
                                 "control=wide,paper", "cpu,control=conv,baseline", "control=static,rule=dla",
                                 "control=compute", "cpu,control=compute,smoke"])
def test_arguments_of_which_one_would_be_ignored_are_refused(arg):
  with pytest.raises(ValueError, match="exclude each other"):
    main.read_config(f"configs/memory_40m.py:{arg}")
