"""The main job from its first update to its report, as small as it gets: runs of a model on made-up text."""

import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import recipes, train, tree
from atlas_jax import state as states
from atlas_jax import step as stepping
from atlas_jax.parallel import hosts
from atlas_jax.parallel import mesh as meshes
from tests import runs
from tests.helpers import assert_close, assert_same_bits, quick_compilation

MAIN = dict(
  optim__ema_decay=0.9, train__accumulate_steps=2, checkpoint__every_steps=5, checkpoint__keep_last=3
)
# Another learning rate would be another program: what shares one is compiled once.
LONG = dict(optim__steps=150, optim__warmup_steps=10, optim__lr=1e-2, train__log_every_steps=1)
LETTERS = "abcdefghijklmnop"
LAYERS = ("layer_01",)
GROUPS = ("embed", "attention", "memory", "mix_gate", "mlp", "norm", "final_norm")
ROW = {
  *("train/loss_nats", "train/perplexity", "train/bits_per_byte", "train/lr", "train/tokens_seen"),
  *("train/skipped_updates", "grad/norm"),
  *(f"grad/norm/{group}" for group in GROUPS),
  *(f"update/to_weight_ratio/{group}" for group in GROUPS),
  *(f"train/{what}_norm/{group}" for what in ("grad", "update", "param")
    for group in ("embed", "memory", "gates", "attention", "feed_forward", "norms")),
  *("perf/tokens_per_s", "perf/model_flops_per_s", "perf/flops_fraction_of_peak", "perf/host_memory_gib"),
  *(
    f"memory/{name}/{layer}"
    for layer in LAYERS
    for name in (
      *("mix_gate_raw_mean", "mix_gate_raw_below_0.1_frac", "mix_gate_mean", "write_rate_mean"),
      *("retention_half_life_tokens", "surprise_norm_mean", "inner_loss_before", "inner_loss_after"),
      *("key_diversity",),
    )
  ),
}
SUMMARY = {
  *("params", "steps", "tokens_seen", "train_loss_nats", "val_bits_per_byte", "trigram_bits_per_byte"),
  *("gzip_bits_per_byte", "memory_gain_documents", "memory_gain_tokens"),
  *(f"memory_gain_{name}_nats{end}" for name in ("emptied", "swapped", "writes_off")
    for end in ("", "_low", "_high", "_by_position_000000-000063")),
  *("memory_gain_gate_zero_nats", "tokens_per_s", "flops_fraction_of_peak", "resumed_from_step", "seconds"),
}


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return runs.write_corpus(tmp_path_factory.mktemp("memory_lm") / "text")


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
  """A run that is never stopped, on one device: (config, workdir, summary)."""
  config = runs.lm_config(corpus, **MAIN, monitor__tensorboard=True, monitor__report=True)
  workdir = tmp_path_factory.mktemp("memory_lm") / "whole"
  return config, workdir, runs.run_lm(config, workdir, evals=True)


@pytest.fixture(scope="module")
def eight(corpus, tmp_path_factory):
  """The same run on eight devices."""
  config = runs.lm_config(corpus, **MAIN)
  workdir = tmp_path_factory.mktemp("memory_lm") / "eight"
  runs.run_lm(config, workdir, mesh=cube())
  return workdir


def cube():
  return meshes.make(data=2, fsdp=2, tensor=2)


def trained(config, workdir):
  return runs.saved(config, recipes.load(config, runs.one_device()), workdir)


def trained_rows(workdir):
  """Rows without what evaluations added to the last one."""
  return [
    {name: value for name, value in row.items() if not name.startswith(("val/", "eval/"))}
    for row in runs.rows_of(workdir)
  ]


def losses(workdir):
  return [row["train/loss_nats"] for row in trained_rows(workdir)]


def numbers(state):
  return state._replace(rng=jax.random.key_data(state.rng))


def without_the_end(workdir, copy, *, step):
  """Copies a run as it was after its checkpoint of a step."""
  shutil.copytree(workdir, copy)
  (copy / "summary.json").unlink()
  for folder in (copy / "checkpoints").iterdir():
    if folder.name != str(step):
      shutil.rmtree(folder)
  return copy


# --- what a run leaves ---


def test_every_row_has_every_metric(whole):
  _, workdir, _ = whole
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows] == list(range(1, 11))
  for row in rows:
    # The first step is compiled while it is timed: it has no speed.
    wanted = ROW if row["step"] > 1 else {name for name in ROW if not name.startswith("perf/")}
    assert row.keys() >= wanted, wanted - row.keys()
    assert all(value is not None and math.isfinite(value) for value in row.values())
    for layer in LAYERS:
      assert 0 < row[f"memory/mix_gate_raw_mean/{layer}"] < 1
      assert 0 <= row[f"memory/mix_gate_raw_below_0.1_frac/{layer}"] <= 1
      for name in ("write_rate_mean", "retention_half_life_tokens", "surprise_norm_mean"):
        assert row[f"memory/{name}/{layer}"] > 0
    assert_close(row["train/perplexity"], math.exp(row["train/loss_nats"]), tolerance=1e-5)
    # A byte is a token here, but for the mark between documents, which has no bytes.
    assert 0.9999 < row["train/bits_per_byte"] / row["train/loss_nats"] * math.log(2) < 1.1
  tokens = [row["train/tokens_seen"] for row in rows]
  assert all(0 < now - before <= 4 * 32 for before, now in zip([0, *tokens], tokens))
  assert_close([row["train/lr"] for row in rows[:4]], [1e-3 * n / 4 for n in (1, 2, 3, 4)], tolerance=1e-7)


def test_a_finished_run_leaves_its_files_and_a_second_start_leaves_them_alone(whole):
  config, workdir, summary = whole
  assert summary.keys() >= SUMMARY, SUMMARY - summary.keys()
  assert json.loads((workdir / "summary.json").read_text()) == summary
  assert summary["resumed_from_step"] is None and summary["steps"] == 10
  assert summary["tokens_seen"] == runs.rows_of(workdir)[-1]["train/tokens_seen"]
  assert (workdir / "report.png").read_bytes()[:4] == b"\x89PNG"
  assert list((workdir / "tensorboard").glob("events.out.tfevents.*"))
  assert train.Checkpoints(workdir).steps() == [5, 10]
  before = {file: file.stat().st_mtime_ns for file in workdir.rglob("*") if file.is_file()}
  assert runs.run_lm(config, workdir, evals=True) == summary
  assert {file: file.stat().st_mtime_ns for file in workdir.rglob("*") if file.is_file()} == before


def test_every_parameter_of_every_layer_gets_a_gradient(whole):
  """Adam's first moment is an average of gradients: zero only where all of them were."""
  config, workdir, _ = whole
  named = dict(tree.named_leaves(trained(config, workdir).opt_state))
  moments = {name: np.asarray(leaf) for name, leaf in named.items() if "/mu/" in name}
  assert len(moments) >= 18
  for name, leaf in moments.items():
    layers = leaf if "/blocks/" in name else leaf[None]
    for layer in layers:
      assert np.isfinite(layer).all() and np.any(layer != 0), name


# --- stopping, layouts ---


def test_a_run_stopped_between_two_rows_goes_on_bit_for_bit(whole, corpus, tmp_path):
  """With an average and accumulation on, a document carried over the stop, a row every third step."""
  config, workdir, _ = whole
  fewer = runs.lm_config(corpus, **MAIN, train__log_every_steps=3)
  assert runs.run_lm(fewer, tmp_path, stop_at=3) == {}
  carried = trained(fewer, tmp_path).carry
  assert np.any(np.asarray(carried.doc_B) >= 0)
  assert any(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(carried.memory))
  assert runs.run_lm(fewer, tmp_path)["resumed_from_step"] == 4
  expected = [row for row in trained_rows(workdir) if row["step"] in (3, 6, 9, 10)]
  assert trained_rows(tmp_path) == expected
  assert_same_bits(numbers(trained(fewer, tmp_path)), numbers(trained(config, workdir)))


def test_eight_devices_give_the_losses_of_one(whole, eight):
  _, workdir, _ = whole
  assert len(losses(eight)) == 10
  assert_close(losses(eight), losses(workdir), tolerance=1e-5)


@pytest.mark.parametrize("to", ("one", "eight"))
def test_a_checkpoint_goes_on_on_another_layout(whole, eight, corpus, to, tmp_path):
  config, workdir, _ = whole
  origin = eight if to == "one" else workdir
  copy = without_the_end(origin, tmp_path / "run", step=5)
  summary = runs.run_lm(config, copy, mesh=runs.one_device() if to == "one" else cube())
  assert summary["resumed_from_step"] == 5
  assert [row["step"] for row in trained_rows(copy)] == list(range(1, 11))
  assert_close(losses(copy), losses(workdir), tolerance=1e-5)


# --- what is learnt ---


def uneven_batch(source):
  """The first batch whose two pieces count unequally many tokens."""
  while True:
    batch = source.next(None)
    counted_B = batch["weight_BT"].sum(axis=1)
    if counted_B[::2].sum() != counted_B[1::2].sum():
      return batch


def first_update(config):
  """The state and metrics after an update of the first state."""
  mesh = runs.one_device()
  recipe = recipes.load(config, mesh)
  abstract, _ = train.abstract_state(config, recipe, mesh)
  state = states.build(abstract, *train.state_args(config, recipe))
  step = stepping.jit_step(config, recipe, mesh, state)
  batch = hosts.global_batch(mesh, uneven_batch(recipe.source))
  with hosts.StopFlag(mesh) as stop:
    return step(state, batch, (), stop.array())


def test_two_pieces_of_a_batch_give_the_gradients_of_the_whole(corpus):
  whole, one = first_update(runs.lm_config(corpus, **LONG))
  pieces, two = first_update(runs.lm_config(corpus, **MAIN))
  moments = lambda state: [leaf for name, leaf in tree.named_leaves(state.opt_state) if "/mu/" in name]
  assert_close(moments(pieces), moments(whole), tolerance=1e-5)
  assert_close(pieces.carry, whole.carry, tolerance=1e-5)
  for name in ("train/loss_nats", "train/perplexity", "grad/norm", "train/step_tokens"):
    assert_close(two[name], one[name], why=name, tolerance=1e-5)


def test_random_letters_are_never_predicted_better_than_by_chance(tmp_path):
  """The model learns which letters there are and no more: every batch is new text."""
  text = tmp_path / "text"
  text.mkdir()
  draw = np.random.default_rng(0)
  for n in range(12):
    (text / f"{n}.txt").write_text("".join(draw.choice(list(LETTERS), size=4000)))
  config = runs.lm_config(text, **LONG)
  assert recipes.load(config, runs.one_device()).source.steps_per_epoch >= config.optim.steps
  runs.run_lm(config, tmp_path / "run")
  found, entropy = np.array(losses(tmp_path / "run")), math.log(len(LETTERS))
  # The mark between documents costs more than a letter; a batch of 128 near-equal odds scatters by about 1%.
  assert found.min() > entropy - 0.03
  assert entropy - 0.005 < found[-50:].mean() < entropy + 0.1


def test_a_model_without_memory_and_carry_trains(whole, corpus, tmp_path):
  config = runs.lm_config(corpus, data__carry=False, model__memory_mix="none", optim__steps=3)
  recipe = recipes.load(config, runs.one_device())
  assert "memory_gain" not in recipe.evals and "perplexity" in recipe.evals
  summary = runs.run_lm(config, tmp_path)
  assert summary["params"] < whole[2]["params"]
  assert trained(config, tmp_path).carry == ()
  rows = trained_rows(tmp_path)
  assert len(rows) == 3 and not any(name.startswith("memory/") for row in rows for name in row)


def test_a_vocabulary_that_is_not_the_tokenizers_is_refused(corpus):
  config = runs.lm_config(corpus, model__vocab_size=300)
  with pytest.raises(ValueError, match=r"vocab_size=300 is not the vocabulary of .*'byte', 257"):
    recipes.load(config, runs.one_device())


def test_what_is_carried_starts_as_having_read_nothing(corpus):
  config = runs.lm_config(corpus)
  recipe = recipes.load(config, runs.one_device())
  carry = jax.jit(lambda: recipe.init(jax.random.key(0)).carry)()
  assert np.all(np.asarray(carry.doc_B) < 0)
  assert jax.tree.all(jax.tree.map(lambda leaf: leaf.shape[0] == config.data.batch_rows, carry))
  assert jnp.result_type(carry.memory.running.memory.fast["w0"]) == jnp.float32
