"""Tuning starts from what the config says: drawn, a pretrained folder, a run; wrong starts are refused."""
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import config as configs
from atlas_jax import state as states
from atlas_jax import tree
from atlas_jax.checkpoint import Checkpoints
from atlas_jax.language import assets
from atlas_jax.language import initial_model as starts
from atlas_jax.language.pretrained import hf_import
from atlas_jax.models import lora
from tests import hf_fixture, runs
from tests.helpers import assert_close

QWEN = str(hf_fixture.FOLDER / "qwen2_tiny")


def config_of(**changes):
  config = configs.shrink(configs.default())
  config.model.kind = "decoder"
  return runs.changed(config, changes)


def save_run(config, workdir, params):
  """Leaves a run of one checkpoint."""
  configs.save(config, workdir)
  saver = Checkpoints(workdir, **config.checkpoint)
  field = {"params": params} if config.optim.ema_decay is None else {"params": params, "ema": params}
  saver.save(3, field, {"step": 3})
  saver.close()


def test_without_a_path_parameters_are_drawn():
  start = starts.load_initial_model(config_of())
  assert start.read(runs.one_device(), True) == (None, {})
  params, rest = jax.eval_shape(start.init, jax.random.key(0))
  assert not rest and "blocks" in params
  assert start.end_tokens == (256,)


def test_a_pretrained_folder_gives_model_tokenizer_and_ends():
  pytest.importorskip("tokenizers")
  start = starts.load_initial_model(config_of(model__path=QWEN, data__tokenizer=str(
      hf_fixture.FOLDER / "byte_tokenizer")))
  params, rest = start.read(runs.one_device(), True)
  assert_close(params, hf_import.load(QWEN, param_dtype="float32").params, tolerance=0)
  assert not rest and start.folder is not None
  assert start.tokenizer.vocab_size <= start.language.vocab_size


def test_on_resuming_nothing_is_read_but_the_base_of_adapters():
  mesh = runs.one_device()
  whole = starts.load_initial_model(config_of(model__path=QWEN))
  assert whole.read(mesh, False) == (None, {})
  adapted = starts.load_initial_model(config_of(model__path=QWEN, lora__rank=2, lora__targets="q, v"))
  params, rest = adapted.read(mesh, False)
  assert params is None and set(rest) == {"base"}
  adapters, base = jax.eval_shape(adapted.init, jax.random.key(0))
  assert {name.rpartition("/")[2] for name, _ in tree.named_leaves(adapters)} == {"lora_a", "lora_b"}
  states.check_same(rest["base"], base["base"])


def test_adapters_and_base_make_the_whole():
  start = starts.load_initial_model(config_of(lora__rank=2))
  params, rest = start.init(jax.random.key(0))
  joined = starts.merge_frozen(params, rest)
  assert tree.count(joined) == tree.count(params) + tree.count(rest["base"])
  assert starts.merge_frozen(params, ()) is params


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_run_gives_its_newest_parameters(tmp_path, ema):
  config = config_of(optim__ema_decay=ema)
  params, _ = starts.load_initial_model(config).init(jax.random.key(4))
  save_run(config, tmp_path, params)
  again, _ = starts.load_initial_model(config_of(model__path=str(tmp_path))).read(runs.one_device(), True)
  assert_close(again, params, tolerance=0)


def test_a_run_with_adapters_gives_them_merged(tmp_path):
  config = config_of(lora__rank=2)
  start = starts.load_initial_model(config)
  adapters, _ = start.init(jax.random.key(4))
  adapters = jax.tree.map(lambda x: x + 0.1, adapters)
  save_run(config, tmp_path, adapters)
  base = states.first(start.init, config.seed)[1]["base"]
  again, _ = starts.load_initial_model(config_of(model__path=str(tmp_path))).read(runs.one_device(), True)
  expected = lora.merge(lora.join(adapters, base), start.language.module.lora)
  assert_close(again, expected, tolerance=1e-6)


def test_a_memory_run_is_gone_on_with(tmp_path):
  config = config_of(model__kind="memory")
  params, _ = starts.load_initial_model(config).init(jax.random.key(4))
  save_run(config, tmp_path, params)
  start = starts.load_initial_model(config_of(model__kind="memory", model__path=str(tmp_path)))
  assert_close(start.read(runs.one_device(), True)[0], params, tolerance=0)
  assert start.language.align_tokens == config.model.memory.chunk_size


def test_the_template_of_a_run_is_that_which_it_was_tuned_with(tmp_path):
  """A model that was drawn has no pretrained folder; what starts from its run is asked as it was tuned."""
  template = tmp_path / "my_chat"
  template.mkdir()
  (template / "chat_template.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
  config = config_of(data__chat_template=str(template))
  start = starts.load_initial_model(config)
  run, onward = tmp_path / "run", tmp_path / "onward"
  save_run(config, run, start.init(jax.random.key(0))[0])
  assets.save(config, start, run)
  shutil.rmtree(template)
  config = config_of(model__path=str(run), data__chat_template="model")
  again = starts.load_initial_model(config)
  assert again.template.prompt([{"role": "user", "content": "x"}], again.tokenizer).tolist()[-3:] == [*b"[x]"]
  assets.save(config, again, onward)
  assert (onward / "template/chat_template.jinja").is_file()


@pytest.mark.parametrize(("changes", "words"), [
  (dict(model__path="nowhere"), "config.model.path='nowhere' is no folder"),
  (dict(model__path=QWEN, model__kind="memory"), "pretrained model, and config.model.kind='memory'"),
  (dict(decoder__vocab_size=200), "has 257 ids, the model only 200.*set config.decoder.vocab_size=257"),
  (dict(data__tokenizer="model"), "config.data.tokenizer='model' is that of config.model.path"),
  (dict(data__chat_template="model"), "config.data.chat_template='model' is that of a pretrained model"),
  (dict(lora__rank=2, lora__targets="q,z"), "config.lora.targets"),
  (dict(lora__rank=2, model__kind="memory"), "config.lora.rank=2 puts adapters into a decoder"),
])
def test_a_wrong_start_is_refused(changes, words):
  with pytest.raises(ValueError, match=words):
    starts.load_initial_model(config_of(**changes))


def test_a_run_of_another_kind_is_refused(tmp_path):
  config = config_of()
  save_run(config, tmp_path, starts.load_initial_model(config).init(jax.random.key(0))[0])
  with pytest.raises(ValueError, match="set config.model.kind='decoder'"):
    starts.load_initial_model(config_of(model__kind="memory", model__path=str(tmp_path)))


def test_parameters_of_other_shapes_are_refused():
  given = {"embed": jnp.zeros((3, 2)), "extra": jnp.zeros(2)}
  with pytest.raises(ValueError, match="embed is .*3, 2.* there and .*4, 2.* in this config"):
    states.check_same(given, {"embed": np.zeros((4, 2), np.float32)})
