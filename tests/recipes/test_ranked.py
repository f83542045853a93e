"""Tuning on ranked responses: a batch against one response at a time, references, measures, runs, resume."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from atlas_jax import recipes, train, tree
from atlas_jax import state as states
from atlas_jax.data import tokenizer
from atlas_jax.evals import ranking
from atlas_jax.language.initial_model import load_initial_model
from atlas_jax.language.pretrained import hf_import, model_folder
from atlas_jax.losses import ranked as losses
from atlas_jax.models import placement
from atlas_jax.parallel import hosts
from atlas_jax.parallel import mesh as meshes
from atlas_jax.recipes import ranked
from atlas_jax.state import Trained
from configs import atlas_ranked
from tests import hf_fixture, runs
from tests.helpers import assert_close, assert_same_bits

LORA = {"lora__rank": 2, "lora__targets": "q,v"}


def config_of(arg="smoke", **changes):
  config = atlas_ranked.get_config(arg)
  config.monitor.update(tensorboard=False, report=False)
  config.decoder.remat = "none"  # Compiles sooner.
  return runs.changed(config, changes)


def made(**changes):
  """A recipe, what it starts from, and its first batch."""
  config = config_of(**changes)
  recipe = recipes.load(config, runs.one_device())
  start = states.first(recipe.init, config.seed)
  return config, recipe, start, recipe.source.next(None)


def loss_of(recipe, start, batch):
  return jax.jit(functools.partial(recipe.loss, carry=(), rng=jax.random.key(0)))(
    start.params, batch, frozen=start.frozen)  # fmt: skip


def test_the_preset_has_its_number_of_parameters():
  start = load_initial_model(config_of("", data__tokenizer="byte"))
  assert tree.count(jax.eval_shape(start.language.init, jax.random.key(0))) == 1_102_345_728


def test_the_preset_fits_a_card_of_16_gb():
  config = config_of("", data__files=None, data__tokenizer="byte", ranked__eval_files=None, optim__steps=1,
                     decoder__remat="block")
  recipe = recipes.load(config, runs.one_device())
  state, _ = train.abstract_state(config, recipe, runs.one_device())
  assert tree.count(state.params) == 1_102_345_728
  params, moments = (tree.size_bytes(part) for part in (state.params, state.opt_state))
  assert params == 2 * 1_019_215_872 + 4 * 83_129_856
  assert moments == 4 * 1_102_345_728 + 8  # Two counts beside them.
  rows, length, fields = 4, config.data.segment_len, config.decoder
  tokens = rows * length
  inputs = fields.depth * tokens * fields.width * 2
  queries = fields.attention_block_tokens
  block = 6 * tokens * fields.ff_width * 2 + 3 * rows * fields.heads * queries * length * 4
  logits = 3 * config.loss.block_tokens * fields.vocab_size * 4
  total = params + moments + 2 * params + inputs + block + logits
  assert config.data.batch_rows == config.train.accumulate_steps == 4 and fields.remat == "block"
  assert 14.0e9 < total < 14.1e9, total


def test_the_published_settings_are_those_of_the_guide():
  config = atlas_ranked.get_config()
  assert (config.optim.lr, config.data.batch_rows, config.data.epochs) == (5e-6, 4, 10)
  assert (config.ranked.pair_weight, config.checkpoint.every_steps) == (0.5, 1_000)
  assert config.decoder.learned_positions == 2_048 and config.decoder.vocab_size == 52_000


def test_the_loss_of_a_batch_is_that_of_its_responses_one_by_one():
  config, recipe, start, batch = made()
  language = load_initial_model(config).language

  @jax.jit
  def read(tokens_BT, doc_BT):
    return language.read(start.params, tokens_BT, doc_BT)[0][0] @ language.head(start.params)

  logprob_BGT = np.zeros(batch["mask_BGT"].shape)
  for row, number in np.argwhere(batch["valid_BG"]):
    one = {name: batch[name][row, number] for name in ("tokens_BGT", "targets_BGT", "doc_BGT")}
    logits_TV = np.asarray(read(one["tokens_BGT"][None], one["doc_BGT"][None]), np.float64)
    all_T = np.log(np.exp(logits_TV).sum(axis=1))
    logprob_BGT[row, number] = logits_TV[np.arange(len(all_T)), one["targets_BGT"]] - all_T
  out = losses.ranked_loss(np.float32(logprob_BGT), batch["mask_BGT"], batch["score_BG"], batch["valid_BG"],
                           ranked.settings_of(config))  # fmt: skip
  found = loss_of(recipe, start, batch)
  assert_close(found.loss, out.loss)
  assert float(found.weight) == 4 == float(out.weight)


def test_logits_may_be_made_block_by_block():
  whole = made()
  pieces = made(loss__block_tokens=7)
  assert_close(loss_of(*pieces[1:]).loss, loss_of(*whole[1:]).loss, tolerance=1e-6)


@pytest.mark.parametrize("adapters", ({}, LORA))
def test_the_reference_is_what_training_starts_from(adapters):
  _, recipe, start, batch = made(ranked__anchored=True, **adapters)
  assert ("base" in start.frozen) == bool(adapters)
  assert_same_bits(start.frozen["reference"], start.params)
  found = loss_of(recipe, start, batch).metrics
  with_pairs_B = np.array([len(set(score_G[valid_G])) > 1 for score_G, valid_G in
                           zip(batch["score_BG"], batch["valid_BG"], strict=True)])  # fmt: skip
  assert with_pairs_B.any()
  assert_close(found["ranked/pair_nats"], np.float32(np.log(2) * with_pairs_B.mean()), tolerance=1e-5)
  _, recipe, start, batch = made(ranked__objective="group_relative", ranked__kl_weight=0.5, **adapters)
  assert_close(loss_of(recipe, start, batch).metrics["ranked/kl_nats"], jnp.float32(0), tolerance=1e-6)
  moved = jax.tree.map(lambda x: x + 0.05, start.params)
  assert float(loss_of(recipe, start._replace(params=moved), batch).metrics["ranked/kl_nats"]) > 1e-4


def test_adapters_alone_are_trained():
  _, recipe, start, batch = made(**LORA)
  assert {name.rpartition("/")[2] for name, _ in tree.named_leaves(start.params)} == {"lora_a", "lora_b"}
  grad = jax.grad(lambda params: recipe.loss(params, batch, frozen=start.frozen, carry=(), rng=None).loss)(
    start.params)  # fmt: skip
  assert float(tree.global_norm(grad)) > 0


def test_a_memory_model_reads_every_response_from_nothing():
  _, recipe, start, batch = made(model__kind="memory")
  swapped = {name: np.concatenate([x[:, 1::-1], x[:, 2:]], axis=1) for name, x in batch.items()}
  assert_close(loss_of(recipe, start, swapped).loss, loss_of(recipe, start, batch).loss)


def test_many_devices_give_the_loss_of_one():
  _, recipe, start, batch = made()
  mesh = meshes.make(data=2, fsdp=2, tensor=2)
  spread = jax.device_put(start.params, placement.shardings(mesh, start.params))
  loss = jax.jit(lambda params, batch: recipe.loss(params, batch, frozen=(), carry=(), rng=None))
  many = loss(spread, hosts.global_batch(mesh, batch))
  assert_close(many.loss, loss_of(recipe, start, batch).loss)
  assert_close(many.metrics[ranked.RIGHT], loss_of(recipe, start, batch).metrics[ranked.RIGHT])


# --- what is measured ---


def order_of(score, nats, valid=None):
  score_BG = np.float32([score])
  valid_BG = np.ones(score_BG.shape, bool) if valid is None else np.array([valid], bool)
  batch = {"mask_BGT": np.broadcast_to(valid_BG[..., None], (*valid_BG.shape, 2)), "score_BG": score_BG,
           "valid_BG": valid_BG}  # fmt: skip
  found = ranking.orders(-np.repeat(np.float32([nats])[..., None], 2, axis=2), batch)
  return {name: float(value_B[0]) for name, value_B in found.items()}


def test_pairs_and_the_top_one_are_counted():
  expected = {"pairs": 3, "pairs_right": 2, "top1_prompts": 1, "top1": 1, "best_nats": 1}
  assert order_of([2, 1, 0], [1.0, 4.0, 3.0]) == expected
  assert order_of([2, 1, 0], [3.0, 2.0, 1.0]) == {**expected, "pairs_right": 0, "top1": 0, "best_nats": 3}


def test_ties_make_no_pairs_and_any_best_one_may_be_on_top():
  assert order_of([1, 1, 0], [3.0, 1.0, 2.0]) == {"pairs": 2, "pairs_right": 1, "top1_prompts": 1, "top1": 1,
                                                  "best_nats": 3}  # fmt: skip
  assert order_of([1, 1], [3.0, 1.0])["top1_prompts"] == 0


def test_one_response_or_none_makes_no_choice():
  alone = order_of([0, 9], [2.0, 0.0], [True, False])
  assert alone == {"pairs": 0, "pairs_right": 0, "top1_prompts": 0, "top1": 0, "best_nats": 2}
  assert not any(order_of([0, 0], [2.0, 1.0], [False, False]).values())


def test_held_out_groups_are_each_measured_once():
  config, recipe, start, _ = made()
  run = recipe.evals["ranking"].run
  trained = Trained(start.params, start.frozen)
  few = run(trained, step=0).scalars
  whole = made(eval__batch_rows=40)[1].evals["ranking"].run(trained, step=0).scalars
  assert few["val/prompts"] == whole["val/prompts"] == 40
  assert few["val/pairs"] == whole["val/pairs"] > 100
  assert 0.3 < few["val/pairs_right_frac"] < 0.9
  for name, value in whole.items():
    assert_close(np.float32(few[name]), np.float32(value), why=name)


def test_shares_of_nothing_are_left_out():
  means = {ranked.RIGHT: jnp.float32(0), ranked.PAIRS: jnp.float32(0)}
  assert np.isnan(ranked.finish(means)[ranked.RIGHT])
  totals = {
    "prompts": 2.0,
    "loss_nats": 3.0,
    "pairs": 0.0,
    "pairs_right": 0.0,
    "top1": 0.0,
    "top1_prompts": 0.0,
  }
  assert ranking.scalars(totals) == {
    "val/prompts": 2,
    "val/pairs": 0,
    "val/top1_prompts": 0,
    "val/loss_nats": 1.5,
  }


# --- runs ---


def run(config, workdir, *, stop_at=None):
  recipe = recipes.load(config, runs.one_device())
  before = lambda step: runs.ask_to_stop() if step == stop_at else None
  if not (workdir / "tokenizer").exists():
    recipe.assets.save(workdir)
  recipe = recipe._replace(source=runs.Watched(recipe.source, before))
  summary = train.run(config, recipe, runs.one_device(), workdir)
  runs.check_names(workdir)
  return recipe, summary


def test_a_run_leaves_its_model_and_what_is_known_of_it(tmp_path):
  config = config_of(optim__steps=2)
  recipe, summary = run(config, tmp_path)
  folder = tmp_path / "model"
  wanted = {"model.safetensors", "config.json", "vocabulary.json", "training_stats.json", "tokenizer.json"}
  assert {file.name for file in folder.iterdir()} >= wanted
  again = hf_import.load(str(folder))
  assert again.model == load_initial_model(config).language.module
  assert_same_bits(again.params, runs.saved(config, recipe, tmp_path).params)
  stats = json.loads((folder / "training_stats.json").read_text())
  assert stats["steps"] == 2 and stats["prompts_seen"] == 8 and stats["all_params"] == summary["params"]
  assert (stats["learning_rate"], stats["batch_size"], stats["grpo_preference_weight"]) == (5e-6, 4, 0.5)
  assert stats["val_pairs_right_frac"] == summary["val_pairs_right_frac"]
  assert stats["data"]["train"]["prompts"] == 400
  assert not list(tmp_path.rglob("*.pkl")) and not list(tmp_path.rglob("*.bin"))
  for where in (tmp_path, folder):
    vocabulary = json.loads((where / "vocabulary.json").read_text())
    assert (vocabulary["vocab_size"], vocabulary["doc_id"]) == (257, 256)
    assert vocabulary["tokens"][ord("A")] == "A" and vocabulary["tokens"][256] == ""


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path):
  config = config_of(ranked__objective="group_relative", ranked__kl_weight=0.1)
  recipe, _ = run(config, tmp_path / "whole")
  _, summary = run(config, tmp_path / "parts", stop_at=2)
  assert summary == {}
  _, summary = run(config, tmp_path / "parts")
  assert 0 < summary["resumed_from_step"] < 4
  whole, parts = (runs.saved(config, recipe, tmp_path / name) for name in ("whole", "parts"))
  assert_same_bits(whole.params, parts.params)
  assert runs.rows_of(tmp_path / "whole") == runs.rows_of(tmp_path / "parts")


def test_a_pretrained_model_is_tuned_and_left_as_one(tmp_path):
  fields = dict(model__path=str(hf_fixture.FOLDER / "llama_tiny"), ranked__anchored=True, optim__steps=2)
  config = config_of(**fields)
  run(config, tmp_path)
  again = hf_import.load(str(tmp_path / "model"))
  model, params = hf_fixture.load("llama_tiny")
  assert again.model == model
  moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), again.params, params)
  assert 0 < max(jax.tree.leaves(moved)) < 1e-3


def test_the_folder_of_a_memory_model_has_our_names(tmp_path):
  config = config_of(model__kind="memory", optim__steps=1)
  recipe, _ = run(config, tmp_path)
  tensors = load_file(tmp_path / "model" / "model.safetensors")
  params = runs.saved(config, recipe, tmp_path).params
  for name, leaf in tree.named_leaves(params):
    np.testing.assert_array_equal(tensors[name.replace("/", ".")], leaf)
  assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "atlas_memory"


def test_adapters_are_merged_into_what_a_run_leaves(tmp_path):
  config = config_of(optim__steps=1, optim__lr=0.1, **LORA)
  run(config, tmp_path)
  again = hf_import.load(str(tmp_path / "model"))
  assert again.model.lora is None
  stats = json.loads((tmp_path / "model" / "training_stats.json").read_text())
  assert stats["params"] < stats["all_params"] == tree.count(again.params)


def test_bytes_that_cannot_be_shown_have_signs(tmp_path):
  model_folder.write_vocabulary(tmp_path, tokenizer.load("byte"))
  tokens = json.loads((tmp_path / "vocabulary.json").read_text())["tokens"]
  assert len(tokens) == len(set(tokens)) == 257


# --- mistakes ---


@pytest.mark.parametrize(("fields", "says"), (
  (dict(ranked__preference="nll"), "config.ranked.preference='nll' is not known"),
  (dict(data__name="python_stdlib"), "config.data.name='python_stdlib' has no ranked responses"),
  (dict(data__files="nowhere.jsonl"), "config.data.files='nowhere.jsonl' cannot be read .* first run"),
  (dict(decoder__learned_positions=32), "config.data.segment_len=64 is longer than the model's 32"),
  (dict(ranked__folder=""), "config.ranked.folder='' must be the name of one folder"),
  (dict(ranked__folder="checkpoints"), "config.ranked.folder='checkpoints' must be .* none of checkpoints"),
  (dict(ranked__folder="a/b"), "config.ranked.folder='a/b' must be the name of one folder"),
  (dict(decoder__vocab_size=200), "has 257 ids, the model only 200"),
))  # fmt: skip
def test_settings_that_cannot_be_are_named(fields, says):
  with pytest.raises(ValueError, match=says):
    recipes.load(config_of(**fields), runs.one_device())


def test_the_epochs_set_the_length():
  config, recipe, _, _ = made(data__epochs=3)
  assert recipe.source.steps_of(config.data.epochs) == 300
