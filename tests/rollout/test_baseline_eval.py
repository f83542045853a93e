"""What training gained over the model it began with."""
import json

import pytest

from atlas_jax.evals import EvalOut
from atlas_jax.rollout import baseline_eval
from atlas_jax.state import Trained


def made(calls):
  """An evaluation whose accuracy is what is trained, a number."""
  def answered(trained, *, step, workdir):
    calls.append(trained.params)
    return EvalOut({"val/accuracy": trained.params, "val/length_tokens": 10 - 8 * trained.params}, "text")

  return baseline_eval.make(answered, lambda: 0.25)


def test_gains_are_over_the_first_parameters_which_are_asked_once(tmp_path):
  calls = []
  run = made(calls)
  out = run(Trained(0.5), step=3, workdir=tmp_path)
  found = {name.removeprefix("eval/baseline_"): value for name, value in out.scalars.items()}
  assert out.text == "text" and found["val/accuracy"] == 0.5
  assert found["success"] == found["success_delta"] == 0.25 and found["success_relative"] == 1
  assert found["token_reduction_pct"] == 25 and found["tokens"] == 8
  assert (found["meets_success_target"], found["meets_token_target"], found["meets_all_targets"]) == (1, 0, 0)
  run(Trained(0.75), step=4, workdir=tmp_path)
  assert calls == [0.25, 0.5, 0.75]


def test_a_run_that_goes_on_reads_what_was_measured_first(tmp_path):
  made([])(Trained(0.5), step=3, workdir=tmp_path)
  calls = []
  out = made(calls)(Trained(0.5), step=6, workdir=tmp_path)
  assert calls == [0.5] and out.scalars["eval/baseline_success"] == 0.25
  file = tmp_path / "baseline.json"
  file.write_text(json.dumps({**json.loads(file.read_text()), "success": 0.9}))
  with pytest.raises(ValueError, match="baseline.json: was changed since it was written"):
    made([])(Trained(0.5), step=6, workdir=tmp_path)
