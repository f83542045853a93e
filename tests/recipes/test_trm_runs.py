"""Runs of recursive models: stopped and gone on, on other layouts, of the length that epochs give."""

import json
import re
import shutil

import jax
import numpy as np
import pytest

from atlas_jax import config as configs
from atlas_jax import opening, recipes, train, tree
from atlas_jax.parallel import hosts
from atlas_jax.parallel import mesh as meshes
from atlas_jax.puzzles import sets as puzzle_sets
from tests import puzzle_runs, runs
from tests.helpers import assert_close, assert_same_bits, quick_compilation

RUN = dict(optim__steps=8, optim__ema_decay=0.9, checkpoint__every_steps=4, checkpoint__keep_last=3,
           supervision__explore_prob=0.3, puzzles__shift="fresh", table__lr=1e-1)  # fmt: skip
SCORES = {f"ARC/pass@{k}" for k in (1, 2, 5, 10, 100, 1000)}
MEANS = {f"eval/all/{name}" for name in ("count", "accuracy", "exact_accuracy", "steps", "lm_loss")}


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("trm_runs")


@pytest.fixture(scope="module")
def whole(folder):
  """A run on ARC tasks that is never stopped, on one device: (config, workdir, summary)."""
  config = puzzle_runs.arc_config(folder / "boards", **RUN)
  return config, folder / "whole", puzzle_runs.run(config, folder / "whole", evals=True)


@pytest.fixture(scope="module")
def eight(whole, folder):
  """The same run on eight devices."""
  puzzle_runs.run(whole[0], folder / "eight", mesh=cube())
  return folder / "eight"


def cube():
  return meshes.make(data=2, fsdp=2, tensor=2)


def loaded(config, mesh=None):
  return puzzle_runs.stirred(recipes.load(config, mesh or runs.one_device()))


def trained(config, workdir, **where):
  return puzzle_runs.host(runs.saved(config, loaded(config), workdir, **where))


def trained_rows(workdir):
  """Rows of metrics without what the evaluation added to the last one."""
  keep = lambda name: not name.startswith(("ARC/", "eval/"))
  return [{name: value for name, value in row.items() if keep(name)} for row in runs.rows_of(workdir)]


def losses(workdir):
  return [row["train/loss_nats"] for row in trained_rows(workdir)]


def place_of(config, workdir):
  """Where the newest checkpoint is in the data."""
  recipe = loaded(config)
  abstract, _ = train.abstract_state(config, recipe, runs.one_device())
  saver = train.Checkpoints(workdir, **config.checkpoint, read_only=True)
  return saver.restore(abstract)[1]["source"]


def numbers(state):
  return state._replace(rng=jax.random.key_data(state.rng))


# --- what a run leaves ---


def test_a_run_on_arc_writes_scores_and_files(whole):
  config, workdir, summary = whole
  last = runs.rows_of(workdir)[-1]
  assert last.keys() >= SCORES | MEANS, (SCORES | MEANS) - last.keys()
  params = jax.eval_shape(loaded(config).init, jax.random.key(0)).params
  assert summary["params"] == tree.count(params)
  assert (summary["steps"], summary["supervision_steps_seen"]) == (8, 64)
  assert summary["ARC_pass@2"] == last["ARC/pass@2"]
  (file,) = workdir.glob("evals/*/submission.json")
  tasks = puzzle_sets.load(config).tasks
  submission = json.loads(file.read_text())
  assert submission.keys() == tasks.keys()
  for name, task in tasks.items():
    assert [answer.keys() for answer in submission[name]] == [{"attempt_1", "attempt_2"}] * len(task["test"])


def test_slots_do_halt_early_in_these_runs(whole):
  """Or stopping and layouts would be tried on slots that all march in step."""
  pool = trained(whole[0], whole[1], step=4).carry.pool
  assert len(set(pool.steps_B.tolist())) > 1 and pool.halted_B.any() and not pool.halted_B.all()


# --- stopping and layouts ---


def test_a_run_stopped_by_a_signal_goes_on_bit_for_bit(whole, folder):
  """With a table, an average, exploration, and shifts drawn anew at each visit."""
  config, workdir, _ = whole
  assert puzzle_runs.run(config, folder / "cut", stop_at=5) == {}
  assert puzzle_runs.run(config, folder / "cut")["resumed_from_step"] == 6
  assert trained_rows(folder / "cut") == trained_rows(workdir)
  expected = trained(config, workdir)
  assert np.count_nonzero(expected.tables["puzzles"].any(axis=1)) > 8
  assert_same_bits(numbers(trained(config, folder / "cut")), numbers(expected))
  assert place_of(config, folder / "cut") == place_of(config, workdir)


def test_eight_devices_give_the_losses_of_one(whole, eight):
  assert len(losses(eight)) == 8
  assert_close(losses(eight), losses(whole[1]), tolerance=1e-5)


@pytest.mark.parametrize("to", ("one", "eight"))
def test_a_checkpoint_goes_on_on_another_layout(whole, eight, to, tmp_path):
  config, workdir, _ = whole
  copy = tmp_path / "run"
  shutil.copytree(eight if to == "one" else workdir, copy)
  (copy / "summary.json").unlink()
  shutil.rmtree(copy / "checkpoints" / "8")
  summary = puzzle_runs.run(config, copy, mesh=runs.one_device() if to == "one" else cube())
  assert summary["resumed_from_step"] == 4
  assert_close(losses(copy), losses(workdir), tolerance=1e-5)


@pytest.mark.parametrize("shape", ((8, 1, 1), (2, 2, 2)))
def test_devices_split_the_table_and_never_gather_it(whole, shape):
  """Each has its rows of the table and its slots, and the compiled update holds no whole table."""
  config, workdir, _ = whole
  parts = puzzle_runs.parts_of(config, meshes.make(*shape))
  shards = meshes.n_row_shards(parts.mesh)
  state = puzzle_runs.placed(parts, parts.state)
  where = jax.tree.map(lambda leaf: leaf.sharding, state)
  rows, width = state.tables["puzzles"].shape
  assert state.tables["puzzles"].sharding.shard_shape((rows, width)) == (rows // shards, width)
  for leaf in jax.tree.leaves(state.carry):
    assert leaf.sharding.shard_shape(leaf.shape) == (8 // shards, *leaf.shape[1:])
  batch = hosts.global_batch(parts.mesh, parts.recipe.source.next(None))
  with hosts.StopFlag(parts.mesh) as stop:
    text = parts.step.lower(state, batch, parts.frozen, stop.array()).compile().as_text()
    assert re.search(rf"f32\[{rows // shards},{width}\]", text)
    assert not re.search(rf"f32\[{rows},{width}\]", text)
    after, metrics = parts.step(state, batch, parts.frozen, stop.array())
  assert_close(float(metrics["train/loss_nats"]), losses(workdir)[0], tolerance=1e-5)
  assert jax.tree.map(lambda leaf: leaf.sharding, after) == where
  assert state.tables["puzzles"].is_deleted()


# --- how long a run is ---


@pytest.mark.core
def test_epochs_give_the_length_and_a_run_stopped_by_a_signal_has_it_too(folder):
  """On Sudokus, without a table, gradients added up in two pieces; the length is counted in the data."""
  given = puzzle_runs.small_config(
    folder / "boards", trm__row_width=0, trm__n_prefix=0, trm__mixer="mlp", trm__positions="none",
    optim__steps=None, puzzles__epochs=4, optim__ema_decay=0.5, train__accumulate_steps=2,
    train__log_every_steps=2, checkpoint__every_steps=100)  # fmt: skip
  config = opening.with_steps(given, loaded(given))
  assert config.optim.steps == 4 * 12 // 8
  configs.save(config, folder / "epochs")
  assert configs.load(folder / "epochs").optim.steps == 6
  assert puzzle_runs.run(config, folder / "epochs", stop_at=2) == {}
  configs.check_same(given, folder / "epochs")
  again = opening.with_steps(given, loaded(given))
  summary = puzzle_runs.run(again, folder / "epochs")
  assert (summary["steps"], summary["resumed_from_step"]) == (6, 3)
  puzzle_runs.run(config, folder / "epochs_whole")
  assert trained_rows(folder / "epochs") == trained_rows(folder / "epochs_whole")
  state = trained(config, folder / "epochs")
  assert state.tables == () and state.step == place_of(config, folder / "epochs")["step"] == 6
  assert_same_bits(numbers(state), numbers(trained(config, folder / "epochs_whole")))


def test_a_run_that_is_over_changes_nothing_more(whole):
  config, workdir, summary = whole
  before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
  assert train.run(config, loaded(config), runs.one_device(), workdir) == summary
  assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before
