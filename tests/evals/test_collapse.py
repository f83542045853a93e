"""Collapse told on real held-out text: a memory made by hand is healthy, and each way to kill it is named.

Fault 8 of the program that this one follows, gates metered behind their clamp, is put back in
`test_gates_metered_behind_the_floor_would_blind_the_check`; its fault of reading NaN as collapse in
`tests/evals/test_collapse_signs.py`.
"""
import functools
import json
import math
import pathlib
import shutil
import sysconfig

import jax
import jax.numpy as jnp
import pytest

from atlas_jax import train
from atlas_jax.evals import Eval, EvalOut, collapse, memory_gain, memory_health
from atlas_jax.language import pretraining
from atlas_jax.models.blocks import gate as gate_block
from atlas_jax.monitor.writer import MetricsWriter
from atlas_jax.state import Trained
from tests import runs
from tests.helpers import quick_compilation

WIDTH = 258  # Bytes, the mark between documents, and one more: heads are of even width.
FLOOR = 0.3
EVALUATIONS = 3


@pytest.fixture(scope="module", autouse=True)
def quick():
  with quick_compilation():
    yield


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
  """(config, model, evaluation) on a few modules of the standard library.

  The bytes of each document are renamed by a permutation of its own, so that only what was read of a document
  tells which byte follows which.
  """
  folder = tmp_path_factory.mktemp("collapse") / "text"
  folder.mkdir()
  modules = sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py"))
  for file in [one for one in modules if 4_000 < one.stat().st_size < 9_000][:24]:
    shutil.copy(file, folder / f"{file.stem}.txt")
  config = runs.lm_config(
    folder, data__segment_len=16, eval__transform="permute_bytes", eval__batch_rows=8,
    eval__gain_max_tokens=4_096, eval__collapse_evals=EVALUATIONS, model__width=WIDTH, model__depth=1,
    model__heads=1, model__ff_width=4, model__memory_layers=None, model__gate_floor=FLOOR,
    model__memory__heads=1, model__memory__key_dim=WIDTH, model__memory__value_dim=WIDTH,
    model__memory__options={"momentum": False, "feature_map": "none"})  # fmt: skip
  model = pretraining.model_of(config)
  return config, model, collapse.evals_of(config, model, held_out(config), runs.one_device())["collapse"]


def held_out(config):
  return functools.partial(pretraining.held_out_of, config)


def by_hand(setting, *, mix=0.0, retention=-1e4, rate=-1.4):
  """Params of a model that answers with what followed the byte before, on a mean over the document.

  Args:
    setting: as the fixture gives it.
    mix: of the gate of reading, before the sigmoid.
    retention: -softplus of it is the log of what stays of a memory per token.
    rate: of writing, before the sigmoid.
  """
  config, model, _ = setting
  drawn = jax.eval_shape(functools.partial(pretraining.init_params, config, model), jax.random.key(0))
  zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), drawn)
  eye = jnp.eye(WIDTH)
  block = zero["blocks"]
  taps = block["memory"]["conv_kernel"]
  memory = block["memory"] | {
    "qkv_kernel": eye[None, :, None], "value_kernel": eye[None, :, None],
    "conv_kernel": taps.at[:, -1].set(1), "gates": block["memory"]["gates"] | {
      "bias": jnp.array([[retention, rate]], jnp.float32)}}  # fmt: skip
  block = block | {
    "memory": memory, "memory_out": {"kernel": 100 * eye[None, None]},
    "mix_gate": block["mix_gate"] | {"bias": jnp.full((1, 1), mix, jnp.float32)},
    "norm_mix": {"scale": jnp.ones((1, WIDTH))}, "norm_mlp": {"scale": jnp.ones((1, WIDTH))}}  # fmt: skip
  # Logits of at most 6: what is recalled is likely, and not sure.
  final = {"scale": jnp.full(WIDTH, 6 / WIDTH**0.5)}
  return {**zero, "embed": eye[:257], "blocks": block, "final_norm": final}


def evaluated(evaluation, params, workdir, steps, resume_step=0):
  """Evaluates at several steps as the loop does: each row is written before the next is measured."""
  out = None
  with MetricsWriter(workdir, tensorboard=False, resume_step=resume_step) as writer:
    for step in steps:
      writer.write(step, {"train/loss_nats": 2.0})
      out = evaluation.run(Trained(params), step=step, workdir=workdir)
      writer.write(step, out.scalars)
  return out


def test_a_memory_that_is_used_shows_no_sign(setting, tmp_path):
  out = evaluated(setting[2], by_hand(setting), tmp_path, steps=(10,))
  assert out.notes == {"collapse": "none"}, out.text
  ends = [out.scalars[f"eval/{name}"] for name in ("collapse_signs", "collapse_unknown", "collapsed")]
  assert ends == [0.0, 0.0, 0.0]
  assert out.scalars["eval/memory_gain_swapped_nats_low"] > 0.1
  assert out.scalars["eval/raw_gate_mean_min_layer"] == pytest.approx(0.5)
  assert "memory collapse: none" in out.text


# How a memory is killed -> the signs that stand for it.
DEAD = {
  "gate shut behind its floor": (dict(mix=-6.0), {"gate"}),
  "hardly written": (dict(rate=-25.0), {"norm_in_values", "recall", "emptied", "swapped"}),
  "forgotten at once": (dict(retention=5.0), {"half_life"}),
}


@pytest.mark.parametrize("how", DEAD)
def test_each_way_to_kill_a_memory_is_named_after_so_many_evaluations(setting, how, tmp_path):
  changes, names = DEAD[how]
  params = by_hand(setting, **changes)
  early = evaluated(setting[2], params, tmp_path, steps=(10, 20))
  assert early.scalars["eval/collapsed"] == 0 and early.scalars["eval/collapse_signs"] >= len(names)
  assert "not yet at 3 evaluations in a row" in early.notes["collapse"] and "2 seen" in early.text
  out = evaluated(setting[2], params, tmp_path, steps=(30,), resume_step=20)
  assert out.scalars["eval/collapsed"] == 1
  assert "has collapsed, at each of the last 3 evaluations" in out.notes["collapse"]
  for name in names:
    where = "the model" if name in ("emptied", "swapped") else "layer_00"
    assert f"{name} of {where}: " in out.notes["collapse"]
  row = runs.rows_of(tmp_path)[-1]
  assert row["step"] == 30 and row["eval/collapsed"] == 1


def test_gates_metered_behind_the_floor_would_blind_the_check(setting, monkeypatch):
  """With the fault the floor of .3 is all that is seen, and a gate of .0025 looks open."""
  config, model, evaluation = setting
  params = Trained(by_hand(setting, mix=-6.0))
  out = evaluation.run(params, step=1)
  assert "gate of layer_00: raw gate mean is 0.00247, below 0.1" in out.notes["collapse"]
  honest = gate_block.gate_stats
  monkeypatch.setattr(gate_block, "gate_stats", lambda raw, gate, *rest: honest(gate, gate, *rest))
  text = functools.partial(held_out(config), config.eval.gain_max_tokens)
  blind = memory_health.make(model, text, runs.one_device())
  parts = (lambda trained, **given: EvalOut({name: value for name, value in out.scalars.items()
                                             if name.startswith("eval/memory_gain")}), blind)
  fooled = collapse.make(parts, chunk_size=8, evaluations=1)(params, step=1)
  assert fooled.scalars["eval/raw_gate_mean/layer_00"] == pytest.approx(FLOOR, abs=0.01)
  assert fooled.scalars["eval/collapse_signs"] == 0 and fooled.notes == {"collapse": "none"}


def test_a_parameter_that_is_no_number_is_unknown_and_no_collapse(setting, tmp_path):
  out = evaluated(setting[2], by_hand(setting, mix=math.nan), tmp_path, steps=(10,))
  assert math.isnan(out.scalars["eval/collapsed"]) and out.scalars["eval/collapse_signs"] == 0
  assert "unknown, for want of a finite number: gate of layer_00" in out.notes["collapse"]
  assert runs.rows_of(tmp_path)[-1]["eval/collapsed"] is None


# --- the history, of a run as small as it gets ---


def fixed(**scalars):
  """An evaluation that always measures the same."""
  return lambda trained, **given: EvalOut({"eval/memory_health_tokens": 9.0, **scalars})


SHUT = fixed(**{"eval/raw_gate_mean/layer_00": 0.05})


def run_of(workdir, *, evaluations, part=SHUT, steps=6, stop=None, **changes):
  config = runs.toy_config(train__eval_every_steps=1, checkpoint__every_steps=1, checkpoint__keep_last=9,
                           checkpoint__keep_best=0, optim__steps=steps, **changes)
  before = lambda step: runs.ask_to_stop() if step == stop else None
  found = {"collapse": Eval(collapse.make((part,), chunk_size=8, evaluations=evaluations), "every")}
  return train.run(config, runs.toy_recipe(config, evals=found, before=before), runs.one_device(), workdir)


def collapsed_of(workdir):
  return [row["eval/collapsed"] for row in runs.rows_of(workdir)]


def test_a_run_counts_evaluations_over_a_stop(tmp_path):
  assert run_of(tmp_path, evaluations=4, stop=3) == {}
  summary = run_of(tmp_path, evaluations=4)
  assert collapsed_of(tmp_path) == [0, 0, 0, 1, 1, 1]
  assert summary["collapsed"] == 1 and summary["collapse_signs"] == 1
  assert summary["collapse"].startswith("the memory has collapsed, at each of the last 4 evaluations")
  assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_rows_behind_the_step_that_a_run_goes_on_from_do_not_count(tmp_path):
  """The gate was shut up to step 6, and the run goes on from step 2, where it opens."""
  run_of(tmp_path, evaluations=3)
  assert collapsed_of(tmp_path) == [0, 0, 1, 1, 1, 1]
  (tmp_path / "summary.json").unlink()
  for folder in (tmp_path / "checkpoints").iterdir():
    if folder.name not in ("1", "2"):
      shutil.rmtree(folder)
  open_ = fixed(**{"eval/raw_gate_mean/layer_00": 0.5})
  turns = lambda trained, *, step, workdir=None: (open_ if step == 3 else SHUT)(trained)
  run_of(tmp_path, evaluations=3, part=turns)
  assert collapsed_of(tmp_path) == [0, 0, 0, 0, 0, 1]
  # Also where nobody has dropped the later rows, as in an evaluation of an older checkpoint.
  assert [row["step"] for row in collapse.earlier(tmp_path, 4, most=9)] == [1, 2, 3]
  assert [row["step"] for row in collapse.earlier(tmp_path, 4, most=2)] == [2, 3]
  assert collapse.earlier(tmp_path, 4, most=0) == collapse.earlier(None, 4, most=2) == []


def test_a_number_that_is_none_leaves_a_summary_that_can_be_read(tmp_path):
  unknown = fixed(**{"eval/raw_gate_mean/layer_00": math.nan})
  summary = run_of(tmp_path, evaluations=3, part=unknown, steps=4)
  assert summary["collapsed"] is None and summary["collapse"].startswith("unknown")
  assert json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail) == summary
  assert run_of(tmp_path, evaluations=3, part=unknown, steps=4) == summary  # It is finished.


def test_a_history_that_is_damaged_ends_no_run(tmp_path, caplog):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1, "eval/memory_health_tokens": 9.0\n{"step": 2}\n')
  run = collapse.make((SHUT,), chunk_size=8, evaluations=2)
  with caplog.at_level("INFO", logger="absl"):
    out = run(None, step=3, workdir=tmp_path)
  assert out.scalars["eval/collapse_signs"] == 1 and out.scalars["eval/collapsed"] == 0
  assert "at earlier evaluations are not counted" in caplog.text and "metrics.jsonl:1" in caplog.text


def test_signs_are_logged_while_a_run_goes_on(tmp_path, caplog):
  run = collapse.make((SHUT,), chunk_size=8, evaluations=1)
  with caplog.at_level("INFO", logger="absl"):
    run(None, step=7, workdir=tmp_path)
  (record,) = [one for one in caplog.records if "collapse" in one.getMessage()]
  assert record.levelname == "WARNING" and record.getMessage().startswith("step 7: the memory has collapsed")


def test_a_model_without_memory_has_none_of_it_and_one_row_is_refused(setting):
  config, model, _ = setting
  bare = model.clone(memory_mix="none")
  assert collapse.evals_of(config, bare, held_out(config), runs.one_device()) == {}
  one = runs.changed(config.as_configdict(), {"eval__batch_rows": 1})
  with pytest.raises(ValueError, match="config.eval.batch_rows=1 leaves no other row"):
    collapse.evals_of(one, model, held_out(one), runs.one_device())
  assert memory_gain.ABLATIONS[:2] == ("emptied", "swapped")  # The gains that signs are read from.
