"""Flags that are nearly settings, names of other programs, and modules that are not found."""
import pathlib
import re

import pytest

from atlas_jax import aliases, command, modules
from atlas_jax import config as configs
from tests import program
from tests.program import refused

SMOKE = "--config=configs/memory_40m.py:smoke,pretrain"
FLAGS = [
  ("--batch_size=4", "there is no flag --batch_size; did you mean --config.data.batch_rows?"),
  ("--batch-size=4", "there is no flag --batch-size; did you mean --config.data.batch_rows?"),
  ("--resume=", "there is no flag --resume; the same command with the same --workdir goes on from its "),
  ("--resume", "goes on from its newest checkpoint, so leave it out"),
  ("--resume_from_checkpoint=x", "goes on from its newest checkpoint, so leave it out"),
  ("--lr=1", "--lr is for --mode=solve, this is --mode=train; the lr of training is --config.optim.lr"),
  ("--steps=1", "the steps of training is --config.optim.steps"),
  ("--seed=1", "the seed of training is --config.seed"),
  ("--temperature=1", "the temperature of training is --config.sampler.temperature"),
  ("--learning_rate=1", "did you mean --config.optim.lr?"),
  ("--max_steps=9", "did you mean --config.optim.steps?"),
  ("--epochs=2", "did you mean --config.data.epochs or --config.puzzles.epochs?"),
  ("--num_train_epochs=2", "did you mean --config.data.epochs .*--config.puzzles.epochs"),
  ("--model=gpt2", "did you mean --config.model.path?"),
  ("--model_name_or_path=gpt2", "did you mean --config.model.path?"),
  ("--output_dir=x", "the directory of the run is --workdir"),
  ("--data=x", "--config.data.path .*--config.data.name=files.* or --config.data.files"),
  ("--warmup_steps=3", "did you mean --config.optim.warmup_steps?"),
  ("--path=x", "did you mean --config.data.path or .*--config.model.path or --config.puzzles.path"),
  ("--optim.lr=3", "did you mean --config.optim.lr?"),
  ("--batch_row=3", "did you mean --config.data.batch_rows?"),
  ("--warmup_step=3", "did you mean --config.optim.warmup_steps?"),
  ("--LR=1", "there is no flag --LR; did you mean --lr?"),
  ("--load=x", "did you mean --config.model.path?"),
  ("--checkpoint=x", "did you mean --config.model.path?"),
  ("--no_packing", "did you mean --config.data.packed?"),
  ("--do_train", "there is no flag --do_train; training is --mode=train"),
  ("--eval_only", "evaluating a run is --mode=eval"),
  ("--test", "evaluating a run is --mode=eval"),
  ("--smoke", "variants of a config stand behind its name, as in --config=configs/memory_40m.py:cpu"),
  ("--device=cuda", "JAX_PLATFORMS=cpu in the environment"),
  ("--n_layer=2", "did you mean --config.model.depth or --config.decoder.depth?"),
  ("--sliding_window=64", "did you mean --config.model.window_tokens .*--config.window.kind"),
  ("--workdirs=x", "there is no flag --workdirs; did you mean 'workdir'?"),
  ("--config.batch_size=4", "there is no field config.batch_size; did you mean 'config.data.batch_rows'?"),
  ("--config.optim.learning_rate=1", "no field config.optim.learning_rate; did you mean 'config.optim.lr'?"),
]  # fmt: skip


@pytest.mark.parametrize(("flag", "words"), FLAGS)
def test_a_flag_that_is_nearly_a_setting_suggests_it(flag, words, tmp_path):
  line = refused(program.run(SMOKE, f"--workdir={tmp_path}/run", flag))
  assert re.search(words.replace("?", "[?]"), line), line


def test_every_alias_stands_for_fields_that_are_there():
  for name, ours in aliases.ALIASES.items():
    fields = [ours.partition(" ")[0], *re.findall(r"--config[.]([a-z_.]+)", ours)]
    assert all(field in configs.FIELDS for field in fields), name
    assert name not in {field.rpartition(".")[2] for field in configs.FIELDS} - {"data"}, name


VARIANTS = [
  ("smok", "config argument 'smok' is unknown; did you mean 'smoke'? known are baseline, cells, control, "),
  ("large", "'large' is unknown; known are baseline, cells, control, corpus, cpu, cpu_1h, mix, "),
  ("cpu,control=convs", "config argument 'control=convs' is unknown; did you mean 'conv'?"),
  ("cpu,control", "config argument 'control' needs a value, control=..."),
]


@pytest.mark.parametrize(("variant", "words"), VARIANTS)
def test_an_unknown_variant_lists_the_known_ones(variant, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    command.read_config(f"configs/memory_40m.py:{variant}")


# --- modules of one's own ---

MODULES = [
  ("memory.lm", "there is no module 'memory'; looked for in .*/.*; start the program in the folder that"),
  ("atlas_jax.recipes.sfd", "there is no module 'atlas_jax.recipes.sfd'; looked for in .*atlas_jax/recipes"),
  ("mine/recipe.py", "is no name of a module, which is written with dots and .*; write mine.recipe"),
  ("/there/recipe.py", "add /there to PYTHONPATH and write recipe"),
  ("a..b", "is no name of a module"),
  ("atlas_jax.tree", "atlas_jax/tree.py defines no make; define it, or name another module"),
]  # fmt: skip
FIELDS = ("recipe", "data.source", "model.memory.rule")


@pytest.mark.parametrize(("name", "words"), MODULES)
@pytest.mark.parametrize("field", FIELDS)
def test_a_module_that_is_not_found_says_where_it_was_looked_for(field, name, words, tmp_path):
  rows = ["--config.data.batch_rows=8", "--config.eval.batch_rows=8"]
  line = refused(program.run(SMOKE, *rows, f"--workdir={tmp_path}/run", f"--config.{field}={name}"))
  assert f"config.{field}={name!r}" in line and re.search(words, line), line


BROKEN = [("import nothing_of_the_kind", ImportError, "imports 'nothing_of_the_kind', which is not in"),
          ("def make(:", ValueError, "is not Python: .*mine.py:1")]


@pytest.mark.parametrize(("text", "error", "words"), BROKEN)
def test_a_module_that_cannot_be_read_is_named(text, error, words, tmp_path, monkeypatch):
  (tmp_path / "broken_mine.py").write_text(text)
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(error, match=f"config.recipe='broken_mine' {words}"):
    modules.load("broken_mine", field="recipe")


FILES = [("import nothing_of_the_kind", "mine.py imports 'nothing_of_the_kind', and there is no such mod"),
         ("def get_config(:", "mine.py:1: invalid syntax")]


@pytest.mark.parametrize(("text", "words"), FILES)
def test_a_config_file_that_cannot_be_read_is_named(text, words, tmp_path):
  (tmp_path / "mine.py").write_text(text)
  assert words in refused(program.run(f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}/run"))


def test_a_config_file_that_is_not_there_says_where_it_was_looked_for():
  line = refused(program.run("--config=mine/nowhere.py", "--workdir=runs/x"))
  assert f"there is no file 'mine/nowhere.py' in {pathlib.Path.cwd()}; " in line
