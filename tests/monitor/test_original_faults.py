"""Faults of runs and of what they record that recipes/test_original_faults.py lists, put back.

Each fails a check that ours pass.
"""
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from atlas_jax import command, readers, recipes, train, tree
from atlas_jax import config as configs
from atlas_jax import step as stepping
from atlas_jax.evals import Eval, EvalOut, memory_health
from atlas_jax.language import pretraining
from atlas_jax.memory import statistics
from atlas_jax.monitor import phases, report
from atlas_jax.monitor.curves import Series
from atlas_jax.optim import floors
from atlas_jax.recipes import episodic
from tests import runs, test_configs
from tests.evals.recall import test_asking
from tests.helpers import assert_close, assert_same_bits, quick_compilation
from tests.monitor import test_phases
from tests.recipes import test_episodic

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return runs.write_corpus(tmp_path_factory.mktemp("faults") / "text", files=24)


# --- figures of memories ---


def controls_tell(reader):
  """Checks that a perfect memory is right, and not once it is emptied or another text's."""
  scalars = test_asking.asked("key_value", reader).scalars
  assert scalars["eval/recall/key_value/accuracy"] == 1.0
  for way in ("emptied", "swapped"):
    assert scalars[f"eval/recall/key_value/{way}_accuracy"] < 0.35, f"{way} changes nothing"


def test_controls_that_change_nothing_are_noticed():
  """Fault 11: what was stored is compared with itself."""
  reader = test_asking.scripted(test_asking.copying)
  controls_tell(reader)

  def as_it_is(*given):
    return type(found := reader.score(*given))(*(np.repeat(part[:1], len(part), axis=0) for part in found))

  with pytest.raises(AssertionError, match="emptied changes nothing"):
    controls_tell(reader._replace(score=as_it_is))


def is_of_one_memory(norm):
  """Checks that a figure of memories is the same for twice as many rows of them."""
  fast = {"w0": jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 4, 5)))}
  assert_close(norm({"w0": jnp.tile(fast["w0"], (2, 1, 1, 1))}), norm(fast), why="twice the rows")


def test_a_norm_over_all_rows_together_is_noticed():
  """Fault 12."""
  is_of_one_memory(statistics.mean_norm)
  with pytest.raises(AssertionError, match="twice the rows"):
    is_of_one_memory(lambda fast: jnp.sqrt(jnp.sum(fast["w0"] ** 2)))


# --- steps of a run ---

PIECES = dict(optim__steps=12, train__accumulate_steps=3, train__log_every_steps=4, train__eval_every_steps=4,
              checkpoint__best_metric="val_score")


class Jumping(train.Run):
  """A run that counts pieces of batches as steps: two or three at a time."""

  def __setattr__(self, name, value):
    if name == "step" and value == self.__dict__.get("step", 0) + 1:
      value += 1 if self.step % 5 == 0 else 2
    super().__setattr__(name, value)


def start(config, workdir, **source):
  evals = {"score": Eval(lambda trained, *, step, **_: EvalOut({"val/score": float(step)}), "every")}
  return train.run(config, runs.toy_recipe(config, evals=evals, **source), runs.one_device(), workdir)


@pytest.fixture(scope="module")
def stepped(tmp_path_factory):
  """The config and workdirs of a run, and of one whose steps jump."""
  config, folder = runs.toy_config(**PIECES), tmp_path_factory.mktemp("steps")
  start(config, folder / "ours")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train, "Run", Jumping)
    start(config, folder / "jumping")
  return config, folder / "ours", folder / "jumping"


def meets_every_interval(config, workdir):
  """Checks that rows and evaluations stand at every multiple of their intervals."""
  rows = runs.rows_of(workdir)
  every = range(4, config.optim.steps + 1, 4)
  assert [row["step"] for row in rows] == list(every), "rows are missing"
  assert all("val/score" in row for row in rows), "evaluations are missing"


def test_steps_that_jump_over_intervals_are_noticed(stepped):
  """Fault 15."""
  config, ours, jumping = stepped
  meets_every_interval(config, ours)
  with pytest.raises(AssertionError, match="rows are missing"):
    meets_every_interval(config, jumping)


def steps_are_updates(config, workdir):
  """Checks that the last row's step counts updates of the optimizer, and tokens are those of that many."""
  state = runs.saved(config, runs.toy_recipe(config), workdir)
  count = next(int(leaf) for name, leaf in tree.named_leaves(state.opt_state) if name.endswith("count"))
  row = runs.rows_of(workdir)[-1]
  assert row["step"] == int(state.step) == count, f"step {row['step']} is update {count}"
  assert row["train/tokens_seen"] == 13 * row["step"]


def test_steps_that_are_no_updates_are_noticed(stepped):
  """Fault 18."""
  config, ours, jumping = stepped
  steps_are_updates(config, ours)
  with pytest.raises(AssertionError, match="step 12 is update 5"):
    steps_are_updates(config, jumping)


# --- checkpoints and what a run says of itself ---


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
  """The config of a run, its workdir, and that of one which was stopped half-way."""
  config, folder = runs.toy_config(optim__steps=4), tmp_path_factory.mktemp("halves")
  start(config, folder / "whole")
  start(config, folder / "cut", before=lambda step: runs.ask_to_stop() if step == 1 else None)
  return config, folder / "whole", folder / "cut"


def goes_on(config, whole, cut):
  """Checks that a stopped run ends as one that was never stopped."""
  start(config, cut)
  ends = [runs.saved(config, runs.toy_recipe(config), folder) for folder in (cut, whole)]
  assert runs.rows_of(cut) == runs.rows_of(whole), "other rows"
  assert_same_bits(*(end._replace(rng=jax.random.key_data(end.rng)) for end in ends))


LOST = {"nothing": lambda state: state, "place": lambda state: state,
        "memory": lambda state: state._replace(carry=jax.tree.map(jnp.zeros_like, state.carry)),
        "random numbers": lambda state: state._replace(rng=jax.random.key(9))}


@pytest.mark.parametrize("lost", LOST)
def test_a_resume_that_loses_something_is_noticed(lost, halves, tmp_path, monkeypatch):
  """Fault 26."""
  config, whole, cut = halves
  copy = shutil.copytree(cut, tmp_path / "cut")
  restore = train.Checkpoints.restore

  def forgetful(self, *args):
    state, meta = restore(self, *args)
    return LOST[lost](state), meta

  monkeypatch.setattr(train.Checkpoints, "restore", forgetful)
  if lost == "nothing":
    return goes_on(config, whole, copy)
  if lost == "place":
    monkeypatch.setattr(runs.ToySource, "restore", lambda self, state: None)
  with pytest.raises(AssertionError, match="other rows"):
    goes_on(config, whole, copy)


def says_its_model(config, saved, workdir):
  """Checks that a workdir is enough to make the model again."""
  configs.save(saved, workdir)
  found, expected = (repr(pretraining.model_of(one)) for one in (configs.load(workdir), config))
  assert found == expected, "another model"


def test_a_run_that_does_not_say_its_model_is_noticed(corpus, tmp_path):
  """Fault 25."""
  config = runs.lm_config(corpus)
  says_its_model(config, config, tmp_path / "ours")
  without = configs.unfrozen(config).unlock()
  del without["model"]
  # That of the default does not fit the rest of the config, or is another one.
  with pytest.raises((AssertionError, ValueError), match="another model|is not of this version"):
    says_its_model(config, without, tmp_path / "theirs")


def is_evaluated(config, found):
  """Checks that a run is evaluated as it goes, on what it is not trained on."""
  going = [one for one in found.values() if one.when == "every"]
  assert config.data.held_out_frac > 0 and going, "never evaluated"
  assert config.train.eval_every_steps is not None, "evaluated at the end alone"


def test_a_run_without_evaluation_is_noticed(corpus, monkeypatch):
  """Fault 27: the configs here that train from text, and what the recipe makes of one."""
  for file in (ROOT / "configs").glob("memory_*.py"):
    is_evaluated(test_configs.resolved(file), {"perplexity": Eval(None, "every")})
  config = runs.lm_config(corpus, train__eval_every_steps=5)
  found = recipes.load(config, runs.one_device()).evals
  is_evaluated(config, found)
  with pytest.raises(AssertionError, match="evaluated at the end alone"):
    is_evaluated(runs.lm_config(corpus, train__eval_every_steps=None), found)
  monkeypatch.setattr(pretraining, "evals_of", lambda *args, **fields: {})
  with pytest.raises(AssertionError, match="never evaluated"):
    is_evaluated(config, recipes.load(config, runs.one_device()).evals)


def is_used_as_trained(config, workdir):
  """Checks that a run is read back with the floor of its last update."""
  by_step = episodic.by_step_of(config)
  configs.save(config, workdir)
  trained, used = float(by_step(config.optim.steps - 1)["gate_floor"]), configs.load(workdir).model.gate_floor
  assert trained == pytest.approx(used), f"trained with a floor of {trained:.2f}, used with {used}"


def test_a_floor_that_a_reloaded_run_does_not_have_is_noticed(corpus, tmp_path, monkeypatch):
  """Fault 40."""
  is_used_as_trained(test_episodic.config_of(corpus), tmp_path / "ours")
  forgotten = test_episodic.config_of(corpus, model__gate_floor=0.0)
  with pytest.raises(ValueError, match="config.model.gate_floor=0.0 is what the model is used with"):
    is_used_as_trained(forgotten, tmp_path / "refused")
  monkeypatch.setattr(floors, "check_last", lambda *args: None)
  with pytest.raises(AssertionError, match="trained with a floor of 0.05, used with 0.0"):
    is_used_as_trained(forgotten, tmp_path / "theirs")


# --- settings and panels ---


def is_refused(field, value):
  """Checks that a setting which nothing would read is not accepted."""
  with pytest.raises(ValueError, match=f"config.{field}=.* is not read"):
    command.read_config("configs/memory_40m.py:smoke,pretrain", {field: value})


def test_settings_that_are_ignored_are_noticed(monkeypatch):
  """Fault 28."""
  is_refused("window.delay_steps", "7")
  monkeypatch.setattr(readers, "check", lambda *args, **fields: None)
  with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
    is_refused("window.delay_steps", "7")


def metrics_of(config) -> set[str]:
  """Lists the metrics of an update, which is traced and not compiled, and of an evaluation of memories."""
  mesh = runs.one_device()
  recipe = recipes.load(config, mesh)
  state, _ = train.abstract_state(config, recipe, mesh)
  step = stepping.make_step(config, recipe, state.params)
  found = set(jax.eval_shape(step, state, recipe.source.next(None), (), jnp.zeros(1))[1])
  ones = dict.fromkeys(("tokens", "start/layer_01", "norm/layer_01", "mix_gate_raw_mean/layer_01"), 1.0)
  return found | set(memory_health.result(ones).scalars)


def panels_are_drawn(metrics):
  """Checks that panels of a memory model find among the metrics of a run what they show."""
  series = Series({name: (np.arange(3.0), np.ones(3)) for name in metrics})
  for panel in ("loss", "bits_per_byte", "gates", "raw_gates"):
    axes = Figure().subplots()
    report.draw(axes, series, panel)
    assert axes.has_data(), f"the panel {panel} is empty"


def test_panels_of_what_no_run_writes_are_noticed(corpus, monkeypatch):
  """Fault 32."""
  metrics = metrics_of(runs.lm_config(corpus))
  panels_are_drawn(metrics)
  monkeypatch.setattr(report, "GATE", re.compile(r"layer_(\d+)/gate_mean$"))
  with pytest.raises(AssertionError, match="the panel gates is empty"):
    panels_are_drawn(metrics)


# --- phases ---


def training_rows_tell_nothing(phases_of):
  """Checks that a run which knows its training rows and is at chance on others has learnt nothing."""
  count = 40
  rows = test_phases.rows(np.full(count, 1 / 97), np.linspace(4.6, 14, count))
  found = {one.phase for one in phases_of(rows, test_phases.USUAL)}
  assert len(found) > 1 and not {"grokked", "generalising", "converged"} & found, "told from training rows"


def test_grokking_told_from_training_rows_is_noticed():
  """Fault 34."""
  training_rows_tell_nothing(phases.phases_of)

  def of_training_rows(rows, thresholds):
    known = [{**row, phases.ACCURACY: row["eval/train_accuracy"], phases.LOSS: 1e-3} for row in rows]
    return phases.phases_of(known, thresholds)

  with pytest.raises(AssertionError, match="told from training rows"):
    training_rows_tell_nothing(of_training_rows)
