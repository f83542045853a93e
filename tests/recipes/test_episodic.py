"""Episodic training: its loss row by row, phases of the gate, the way of gradients, and a run to its end."""
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import config as configs
from atlas_jax import recipes
from atlas_jax.data import tokenizer as tokenizers
from atlas_jax.language import pretraining
from atlas_jax.losses.next_token import next_token_loss
from atlas_jax.models import head
from atlas_jax.optim import accumulate
from atlas_jax.recipes import episodic
from tests import runs
from tests.helpers import assert_close, assert_same_bits, quick_compilation

FIELDS = {**runs.EPISODES, "recipe": "episodic", "model__gate_floor": 0.05, "optim__steps": 4,
          "eval__gain_max_tokens": 8_192,
          "optim__warmup_steps": 2, "eval__baselines": False}


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  folder = runs.write_corpus(tmp_path_factory.mktemp("episodic") / "text", files=24)
  texts = [file.read_text() for file in sorted(folder.iterdir())]
  for at in range(8):  # Of which those held out go on into a second segment.
    (folder / f"long_{at}.txt").write_text("".join(texts[at:at + 8]))
  return folder


def config_of(corpus, **fields):
  return runs.lm_config(corpus, **{**FIELDS, **fields})


@pytest.fixture(scope="module")
def prepared(corpus):
  """(config, model, parameters, a batch, a drawn start)."""
  config = config_of(corpus)
  model = pretraining.model_of(config)
  source = episodic.source_of(config, model, tokenizers.load(config.data.tokenizer))
  start = jax.jit(pretraining.init_of(config, model))(jax.random.key(0))
  return config, model, start.params, source.next(), start.carry


def with_fields(config, **fields):
  return runs.changed(configs.unfrozen(config), fields)


def outcome(config, model, params, batch, carry, **given):
  loss = functools.partial(episodic.loss_of(config, model), frozen=None, carry=carry, rng=jax.random.key(1))
  return jax.jit(lambda params: loss(params, batch, **given))(params)


def nll_of(config, model, params, batch, carry, **given):
  out = model.apply({"params": params}, batch["tokens_BT"], carry, doc_BT=batch["doc_BT"], **given)
  return np.asarray(next_token_loss(out.hidden_BTD, head.head_weights(params), batch["targets_BT"],
                                    batch["weight_BT"])[2], np.float64)


# --- the loss ---


def test_the_loss_is_the_mean_over_tokens_of_text_and_of_answers_that_weigh_more(prepared):
  config, model, params, batch, carry = prepared
  nll_BT = nll_of(config, model, params, batch, carry, gate_floor=0.3)
  counted, answer = batch["weight_BT"] > 0, batch["answer_BT"] > 0
  total = nll_BT[counted & ~answer].sum() + 5 * nll_BT[answer].sum()
  expected = total / ((counted & ~answer).sum() + 5 * answer.sum())
  out = outcome(config, model, params, batch, carry, gate_floor=jnp.float32(0.3), phase=jnp.int32(0))
  assert_close(np.asarray(out.loss), expected, tolerance=1e-5)
  metrics = episodic.finish(out.metrics)
  assert_close(np.asarray(metrics["train/recall_loss_nats"]), nll_BT[answer].mean(), tolerance=1e-5)
  assert_close(np.asarray(metrics["train/text_loss_nats"]), nll_BT[counted & ~answer].mean(), tolerance=1e-5)
  assert float(out.seen) == (batch["doc_BT"] >= 0).sum()
  assert float(metrics["train/gate_floor"]) == np.float32(0.3)


def test_the_weights_are_those_of_the_config(prepared):
  config, model, params, batch, carry = prepared

  def total(store, recall):
    weighted = with_fields(config, episode__store_weight=store, episode__recall_weight=recall)
    out = outcome(weighted, model, params, batch, carry)
    return float(out.loss * out.weight)

  assert total(3.0, 4.0) == pytest.approx(3 * total(1.0, 1e-9) + 2 * total(0.0, 2.0), rel=1e-5)


def test_a_batch_in_pieces_has_the_gradient_of_the_whole(prepared):
  config, model, params, batch, carry = prepared
  # Drawn large, so that rows differ in loss and not in weight alone.
  params = {**params, "embed": 30 * params["embed"]}
  loss = episodic.loss_of(config, model)
  find = jax.jit(lambda parts: accumulate.gradients(loss, params, batch, carry, frozen=None,
                                                    rng=jax.random.key(0), parts=parts), static_argnums=0)
  (whole, _), out = find(1)
  (parts, _), pieces = find(2)
  assert_close(parts, whole, tolerance=1e-5)
  one, two = episodic.finish(out.metrics), episodic.finish(pieces.metrics)
  for name in ("train/recall_loss_nats", "train/text_loss_nats", "train/bits_per_byte"):
    assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-5), name


def test_a_target_of_a_gate_that_the_model_has_not_is_refused():
  with pytest.raises(ValueError, match="config.episode.write_target=0.1 has no write gate with a bound"):
    episodic.price({"read": jnp.ones(1)}, {"read": None, "write": 0.1}, 1.0)


def test_the_loss_of_answers_reaches_what_is_written(prepared):
  """Fault 2: a write path without gradient."""
  config, model, params, batch, carry = prepared
  only = with_fields(config, episode__store_weight=0.0)
  loss = functools.partial(episodic.loss_of(only, model), frozen=None, carry=carry, rng=jax.random.key(0))
  norms = jax.jit(jax.grad(lambda params: loss(params, batch).loss))(params)
  named = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(norms)}
  memory = {name: float(jnp.linalg.norm(leaf)) for name, leaf in named.items() if "memory" in name}
  assert memory and all(value > 0 for value in memory.values()), memory


# --- phases and usage ---


def test_phases_are_arguments_of_one_program(corpus):
  by_step = episodic.by_step_of(config_of(corpus, optim__steps=10))
  given = [by_step(jnp.int32(step)) for step in (0, 2, 3, 6, 7, 9)]
  assert [int(one["phase"]) for one in given] == [0, 0, 1, 1, 2, 2]
  assert [round(float(one["gate_floor"]), 2) for one in given] == [0.3, 0.3, 0.1, 0.1, 0.05, 0.05]


def test_the_floor_changes_the_loss(prepared):
  """Fault 6: a floor that is never applied."""
  config, model, params, batch, carry = prepared
  loss = functools.partial(episodic.loss_of(config, model), frozen=None, carry=carry, rng=jax.random.key(0))
  traces = []

  @jax.jit
  def at(floor):
    traces.append(floor)
    return loss(params, batch, gate_floor=floor).loss

  found = [float(at(jnp.float32(floor))) for floor in (0.05, 0.3, 0.9)]
  assert len(set(found)) == 3 and len(traces) == 1
  assert found[0] == pytest.approx(float(outcome(config, model, params, batch, carry).loss), rel=1e-6)


def test_a_price_moves_gates_to_their_target(prepared):
  config, model, params, batch, carry = prepared
  priced = with_fields(config, episode__read_target=0.9, episode__usage_weight=2.0)
  free = outcome(config, model, params, batch, carry)
  usage = model.apply({"params": params}, batch["tokens_BT"], carry, doc_BT=batch["doc_BT"]).usage
  expected = 2.0 * float(jnp.mean((usage["read"] - 0.9) ** 2))
  more = float(outcome(priced, model, params, batch, carry).loss - free.loss)
  assert more == pytest.approx(expected, rel=1e-3)
  loss = functools.partial(episodic.loss_of(priced, model), frozen=None, carry=carry, rng=jax.random.key(0))
  plain = functools.partial(episodic.loss_of(config, model), frozen=None, carry=carry, rng=jax.random.key(0))
  moved = jax.jit(jax.grad(lambda params: loss(params, batch).loss - plain(params, batch).loss))(params)
  gates = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(moved)
           if "mix_gate" in jax.tree_util.keystr(path) and "bias" in jax.tree_util.keystr(path)]
  assert gates and all((leaf < 0).all() for leaf in gates)  # Opening them lowers the price.


REFUSED = [
  ({"episode__read_target": 0.5}, "config.episode.usage_weight=0.0 is the weight of a price on gates"),
  ({"episode__usage_weight": 1.0}, "config.episode.usage_weight=1.0 is the weight of a price on gates"),
  ({"episode__read_target": 0.5, "episode__usage_weight": 1.0, "model__memory_mix": "none"},
   "config.episode.read_target=0.5 has no read gate to act on with config.model.memory_mix='none'"),
  ({"model__gate_floor": 0.2}, "config.model.gate_floor=0.2 is what the model is used with"),
  ({"episode__gate_floors": "0.3,0.05"}, "has 2 floors, and config.episode.phase_fracs='0.3,0.7' makes 3"),
  ({"eval__episode_distances": "8"}, "config.eval.episode_distances has 8 tokens at most, and attention"),
]


@pytest.mark.parametrize(("fields", "words"), REFUSED)
def test_what_contradicts_itself_is_refused_before_anything_compiles(fields, words, corpus):
  with pytest.raises(ValueError, match=words):
    recipes.load(config_of(corpus, **fields), runs.one_device())


# --- a run ---


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
  config = config_of(corpus)
  workdir = tmp_path_factory.mktemp("episodic") / "whole"
  return config, workdir, runs.run_lm(config, workdir, evals=True)


def test_the_summary_has_recall_with_its_controls_and_gains(whole):
  _, workdir, summary = whole
  wanted = {"recall_accuracy_past_window", "recall_accuracy_emptied", "recall_accuracy_swapped",
            "recall_accuracy_writes_off", "recall_chance", "recall_accuracy_by_distance_64",
            "recall_accuracy_by_items_2", "memory_gain_emptied_nats", "memory_gain_swapped_nats",
            "raw_gate_mean_min_layer", "val_bits_per_byte", "collapse"}
  assert wanted <= set(summary), wanted - set(summary)
  assert (workdir / "summary.json").is_file()


def test_rows_tell_both_losses_and_the_phase_and_no_perplexity(whole):
  _, workdir, _ = whole
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  for row in rows:
    assert {"train/text_loss_nats", "train/recall_loss_nats", "train/bits_per_byte", "train/phase",
            "train/gate_floor"} <= set(row)
    assert "train/perplexity" not in row and not {"text_nats", "answer_tokens"} & set(row)
  assert [row["train/phase"] for row in rows] == [0, 1, 1, 2]


def test_a_stopped_run_ends_as_if_it_had_not_been(whole, corpus, tmp_path):
  """Fault 26: a resume that loses its place, its phase or its memory."""
  config, workdir, _ = whole
  assert runs.run_lm(config, tmp_path / "run", stop_at=2) == {}
  runs.run_lm(config, tmp_path / "run")
  recipe = recipes.load(config, runs.one_device())
  one, two = (runs.saved(config, recipe, folder) for folder in (workdir, tmp_path / "run"))
  assert_same_bits(two._replace(rng=0), one._replace(rng=0))


def test_a_run_is_read_back_with_the_floor_that_it_ends_with(whole, tmp_path):
  """Fault 40: modes and floors that a checkpoint does not hold."""
  config, _, _ = whole
  configs.save(config, tmp_path)
  loaded = configs.load(tmp_path)
  assert loaded.model.gate_floor == 0.05 and loaded.episode.to_dict() == config.episode.to_dict()


def test_rows_without_attention_are_drawn_and_counted(prepared):
  config, model, params, batch, carry = prepared
  dropped = with_fields(config, window__drop_frac=0.5)
  out = outcome(dropped, model, params, batch, carry)
  assert float(out.metrics["train/attention_kept_frac"]) in (0, 0.25, 0.5, 0.75, 1)
  always = outcome(with_fields(config, window__drop_frac=1.0), model, params, batch, carry)
  assert float(always.metrics["train/attention_kept_frac"]) == 0
  assert float(always.loss) != float(outcome(config, model, params, batch, carry).loss)
