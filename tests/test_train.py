"""The one loop, with a recipe small enough to try every turn of it."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from atlas_jax import state as states
from atlas_jax import step as stepping
from atlas_jax import train
from atlas_jax.checkpoint import CheckpointError
from atlas_jax.evals import Eval, EvalOut
from atlas_jax.monitor.skipped import NonFiniteError
from atlas_jax.monitor.writer import MetricsWriter
from atlas_jax.parallel import hosts
from atlas_jax.parallel import mesh as meshes
from tests import runs
from tests.helpers import assert_close, assert_same_bits, quick_compilation


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


def start(config, workdir, **source):
  recipe = runs.toy_recipe(config, **source)
  return train.run(config, recipe, runs.one_device(), workdir)


def end_state(config, workdir, step=None):
  return runs.saved(config, runs.toy_recipe(config), workdir, step=step)


def updates(config, n, **source):
  """The states before and after each of n updates, and their metrics."""
  recipe, mesh = runs.toy_recipe(config, **source), runs.one_device()
  state = jax.jit(lambda: states.create(*train.state_args(config, recipe)))()
  frozen = states.first(recipe.init, config.seed).frozen
  step = jax.jit(stepping.make_step(config, recipe, state.params))
  seen, metrics = [state], []
  with hosts.StopFlag(mesh) as stop:
    for _ in range(n):
      state, found = step(state, recipe.source.next(None), frozen, stop.array())
      seen.append(state)
      metrics.append(jax.device_get(found))
  return seen, metrics


# --- stopping and going on ---


@pytest.mark.core
@pytest.mark.parametrize("asked_at, stopped_at", ((1, 2), (3, 4), (4, 4)))
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(asked_at, stopped_at, tmp_path):
  """Between two rows of metrics; and where a checkpoint is due, once before and once after the host reads."""
  config = runs.toy_config(optim__ema_decay=0.5, train__log_every_steps=3, checkpoint__every_steps=4)
  start(config, tmp_path / "whole")
  ask = lambda step: runs.ask_to_stop() if step == asked_at else None
  assert start(config, tmp_path / "cut", before=ask) == {}
  assert train.Checkpoints(tmp_path / "cut").latest_step() == stopped_at
  summary = start(config, tmp_path / "cut")
  assert summary["resumed_from_step"] == stopped_at
  assert [row["step"] for row in runs.rows_of(tmp_path / "cut")] == [3, 6]
  assert runs.rows_of(tmp_path / "cut") == runs.rows_of(tmp_path / "whole")
  assert_same_bits(
    jax.tree.map(_plain, end_state(config, tmp_path / "cut")),
    jax.tree.map(_plain, end_state(config, tmp_path / "whole")),
  )


def _plain(leaf):
  return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def test_rows_of_steps_after_the_checkpoint_are_made_anew(tmp_path):
  """A run that dies loses what came after its checkpoint, and no step is written twice."""
  config = runs.toy_config(checkpoint__every_steps=2)
  start(config, tmp_path / "whole")

  def die(step):
    if step == 6:
      raise OSError("no more text")

  with pytest.raises(OSError, match="no more text"):
    start(config, tmp_path / "cut", before=die)
  assert [row["step"] for row in runs.rows_of(tmp_path / "cut")][-1] == 4
  with MetricsWriter(tmp_path / "cut", tensorboard=False, resume_step=4) as writer:
    writer.write(5, {"train/loss_nats": 1e9})
  assert start(config, tmp_path / "cut")["resumed_from_step"] == 4
  assert runs.rows_of(tmp_path / "cut") == runs.rows_of(tmp_path / "whole")


def test_a_run_asked_to_stop_while_it_is_evaluated_evaluates_when_started_again(tmp_path, caplog):
  config, calls = runs.toy_config(), []

  def first(trained, *, step, **_):
    calls.append("first")
    if len(calls) == 1:
      runs.ask_to_stop()
    return EvalOut({"val/first": 1.0})

  def second(trained, *, step, **_):
    calls.append("second")
    return EvalOut({"eval/second": 2.0}, text="a text")

  evals = {"first": Eval(first, "every"), "second": Eval(second, "end")}
  assert start(config, tmp_path, evals=evals) == {}
  assert calls == ["first"] and not (tmp_path / "summary.json").exists()
  assert "stopped at step 6" in caplog.text and "same command goes on" in caplog.text
  summary = start(config, tmp_path, evals=evals)
  assert calls == ["first", "first", "second"]
  assert (summary["val_first"], summary["second"]) == (1.0, 2.0)


def test_an_evaluation_due_where_a_run_was_stopped_is_made_when_it_goes_on(tmp_path):
  """Its row, and its place among the best checkpoints, as in a run that was never stopped."""
  fields = dict(train__eval_every_steps=2, checkpoint__every_steps=2, checkpoint__keep_last=1, optim__steps=6)
  config = runs.toy_config(**fields, checkpoint__best_metric="val_score")
  scores = {2: 3.0, 4: 1.0, 6: 2.0}
  evals = {"score": Eval(lambda trained, *, step, **_: EvalOut({"val/score": scores[step]}), "every")}
  start(config, tmp_path / "whole", evals=evals)
  for asked_at in (3, 4):  # Known at the end of step 4, before its evaluation.
    cut = tmp_path / f"cut_{asked_at}"
    ask = lambda step: runs.ask_to_stop() if step == asked_at else None  # noqa: B023  # Used in this round.
    assert start(config, cut, evals=evals, before=ask) == {}
    saver = train.Checkpoints(cut, read_only=True)
    assert saver.latest_step() == 4 and not saver.is_ranked(4)
    assert "val/score" not in runs.rows_of(cut)[-1]
    start(config, cut, evals=evals)
    assert runs.rows_of(cut) == runs.rows_of(tmp_path / "whole")
    assert train.Checkpoints(cut, read_only=True).steps() == [4, 6]
    assert train.Checkpoints(cut, read_only=True).newest_good() == cut / "checkpoints" / "6"


def test_a_run_asked_to_stop_before_its_first_update_goes_on(tmp_path, monkeypatch):
  config = runs.toy_config()
  with monkeypatch.context() as patch:
    patch.setattr(hosts.StopFlag, "requested", True)
    assert start(config, tmp_path) == {}
  assert train.Checkpoints(tmp_path, read_only=True).steps() == [0]
  assert start(config, tmp_path)["resumed_from_step"] == 0


def test_a_finished_run_is_left_as_it_is_and_more_steps_go_on_with_it(tmp_path):
  config = runs.toy_config()
  first = start(config, tmp_path)
  before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()}
  assert start(config, tmp_path) == first == json.loads((tmp_path / "summary.json").read_text())
  assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.is_file()} == before
  longer = start(runs.toy_config(optim__steps=8), tmp_path)
  assert (longer["steps"], longer["resumed_from_step"]) == (8, 6)
  assert [row["step"] for row in runs.rows_of(tmp_path)] == list(range(1, 9))


def test_a_finished_run_without_its_checkpoints_is_not_written_over(tmp_path):
  config = runs.toy_config()
  start(config, tmp_path)
  (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
  with pytest.raises(CheckpointError, match=r"summary.json is of a finished run.*another --workdir"):
    start(config, tmp_path)
  assert len(runs.rows_of(tmp_path)) == 6


def test_rows_of_a_start_without_a_checkpoint_are_dropped_with_a_word(tmp_path, caplog):
  with MetricsWriter(tmp_path, tensorboard=False) as writer:
    writer.write(5, {"train/loss_nats": 1e9})
  start(runs.toy_config(optim__steps=2), tmp_path)
  assert "rows up to step 5" in caplog.text
  assert [row["step"] for row in runs.rows_of(tmp_path)] == [1, 2]


# --- one update ---


def test_the_host_reads_a_step_after_the_next_one_was_sent(tmp_path, monkeypatch):
  events = []
  sent, read = hosts.StopFlag.array, train._observe

  def send(self):  # The flag is an argument of the step: it is asked for when the step is sent.
    events.append(("sent", sum(kind == "sent" for kind, _ in events) + 1))
    return sent(self)

  def observe(run_, step, *others):
    events.append(("read", step))
    return read(run_, step, *others)

  monkeypatch.setattr(hosts.StopFlag, "array", send)
  monkeypatch.setattr(train, "_observe", observe)
  start(runs.toy_config(checkpoint__every_steps=4), tmp_path)
  order = [("sent", 1)]
  for step in (2, 3, 4):
    order += [("sent", step), ("read", step - 1)]
  order += [("read", 4), ("sent", 5), ("sent", 6), ("read", 5), ("read", 6)]  # Step 4 is read to be saved.
  assert events == order


@pytest.mark.core
def test_the_first_update_warms_up_and_every_row_says_what_was_done():
  config = runs.toy_config()
  seen, metrics = updates(config, 4)
  assert_close([row["train/lr"] for row in metrics[:3]], [0.1 / 3, 0.2 / 3, 0.1])
  # Adam's first update is the learning rate times the gradient's sign.
  moved = np.asarray(seen[1].params["embed"]) - np.asarray(seen[0].params["embed"])
  assert_close(np.abs(moved), np.full(3, 0.1 / 3, np.float32), tolerance=1e-4)
  for row in metrics:
    assert_close(row["train/perplexity"], np.exp(row["train/loss_nats"]))
    assert {"grad/norm", "grad/norm/embed", "grad/norm/mlp", "update/to_weight_ratio/embed",
            "update/to_weight_ratio/mlp", "train/skipped_updates", "toy/first"} <= row.keys()
    whole = math.hypot(row["grad/norm/embed"], row["grad/norm/mlp"])
    assert_close(row["grad/norm"], np.float32(whole))
    assert row["train/step_tokens"] == 13
  ratio = np.linalg.norm(moved) / np.linalg.norm(seen[0].params["embed"])
  assert_close(metrics[0]["update/to_weight_ratio/embed"], np.float32(ratio))


def test_the_average_is_that_of_all_parameters_so_far():
  seen, _ = updates(runs.toy_config(optim__ema_decay=0.75), 3)
  expected = np.asarray(seen[0].params["embed"])
  for state in seen[1:]:
    expected = 0.75 * expected + 0.25 * np.asarray(state.params["embed"])
    assert_close(state.ema["embed"], expected)
  assert not np.allclose(seen[-1].ema["embed"], seen[-1].params["embed"])
  seen, _ = updates(runs.toy_config(), 1)
  assert seen[0].ema == seen[1].ema == ()


@pytest.mark.parametrize("what", ("loss", "grad", "carry"))
def test_an_update_that_is_not_finite_is_skipped_and_counted(what):
  config = runs.toy_config(optim__ema_decay=0.75)
  seen, metrics = updates(config, 4, bad={2: what, 3: what})
  for state in seen[2:4]:
    for field in ("params", "opt_state", "carry", "ema"):
      assert_same_bits(getattr(state, field), getattr(seen[1], field), why=field)
  assert [int(row["train/skipped_updates"]) for row in metrics] == [0, 1, 2, 2]
  assert [int(row["train/skipped_in_row"]) for row in metrics] == [0, 1, 2, 0]
  assert [bool(np.isfinite(row["train/loss_nats"])) for row in metrics] == [True, *[what != "loss"] * 2, True]
  assert [int(state.step) for state in seen] == [0, 1, 2, 3, 4]
  assert np.isfinite(seen[4].params["embed"]).all()
  assert not np.array_equal(seen[4].params["embed"], seen[1].params["embed"])
  # Of the schedule only updates that were made count.
  assert_close([row["train/lr"] for row in metrics], [0.1 / 3, 0.2 / 3, 0.2 / 3, 0.2 / 3])


def test_too_many_skipped_in_a_row_end_the_run_with_what_one_needs_to_know(tmp_path, caplog):
  bad = {2: "grad", 4: "loss", 5: "loss", 6: "loss"}
  config = runs.toy_config(optim__steps=9, train__skip_limit=3, checkpoint__every_steps=3)
  with pytest.raises(NonFiniteError) as error:
    start(config, tmp_path, bad=bad)
  good = tmp_path / "checkpoints" / "3"
  for part in ("step 6", "train/loss_nats is nan", "3 batches in a row", "numbers@5", f"checkpoint: {good}"):
    assert part in str(error.value)
  assert "step 2: grad/norm is nan; update skipped, batch from numbers@1" in caplog.text
  rows = runs.rows_of(tmp_path)
  assert [row["train/skipped_in_row"] for row in rows] == [0, 1, 0, 1, 2]
  assert rows[3]["train/loss_nats"] is None and rows[2]["train/loss_nats"] is not None
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(end_state(config, tmp_path).params))


def test_the_picture_of_a_run_is_drawn_where_it_is_asked_for(tmp_path):
  for asked in (True, False):
    start(runs.toy_config(monitor__report=asked), tmp_path / str(asked))
    assert (tmp_path / str(asked) / "report.png").exists() == asked


def test_frozen_parameters_are_those_the_run_starts_from(tmp_path):
  config = runs.toy_config()
  recipe = runs.toy_recipe(config)
  run_ = train.Run(config, recipe, runs.one_device(), tmp_path, train.Checkpoints(tmp_path))
  state = train._start(run_)
  assert_same_bits(run_.frozen, state.params)


def test_a_state_stays_where_it_was_placed():
  mesh, config = meshes.make(data=2, fsdp=2, tensor=2), runs.toy_config(data__batch_rows=8)
  recipe = runs.toy_recipe(config)
  abstract, _ = train.abstract_state(config, recipe, mesh)
  frozen = states.first(recipe.init, config.seed).frozen  # Not the state's own: that is donated.
  state = states.build(abstract, *train.state_args(config, recipe))
  step = stepping.jit_step(config, recipe, mesh, state)
  batch = hosts.global_batch(mesh, recipe.source.next(None))
  with hosts.StopFlag(mesh) as stop:
    state, metrics = step(state, batch, frozen, stop.array())
  placed = jax.tree.map(lambda leaf: leaf.sharding, (state, metrics))
  assert placed[0] == jax.tree.map(lambda leaf: leaf.sharding, abstract)
  assert all(sharding.is_fully_replicated for sharding in jax.tree.leaves(placed[1]))
  assert not placed[0].carry["mean_B"].is_fully_replicated
