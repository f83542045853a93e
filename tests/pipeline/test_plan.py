"""What a pipeline is asked for becomes a plan, or is refused with what to do; a plan touches nothing."""

import json

import pytest

from atlas_jax.pipeline import plan
from scripts import run_offline_pipeline as script
from tests.pipeline import sums
from tests.program import ROOT

CLI = json.loads((ROOT / "tests/fixtures/arc_atlas/cli.json").read_text())["offline_pipeline"]
CPU = "--config=configs/teacher_rcl.py:cpu"


@pytest.fixture
def traces(tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  return sums.write(tmp_path / "traces.jsonl", 4)


def planned(capsys, traces, *flags):
  """The plan that --dry-run prints."""
  words = [f"--export-path={traces}", f"--output-dir={traces.parent}/out", CPU, "--dry-run", *flags]
  assert script.main(words) == 0
  return json.loads(capsys.readouterr().out)


def refused(capsys, *flags, code=1):
  """What a command says that is refused, in one line."""
  if code == 2:
    with pytest.raises(SystemExit) as ended:
      script.main(flags)
    assert ended.value.code == 2
  else:
    assert script.main(flags) == code
  return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_dry_run_prints_the_plan_and_touches_nothing(traces, capsys):
  before = sorted(traces.parent.rglob("*"))
  found = planned(capsys, traces, "--eval-ratio=0.2", "--max-samples=3", "--override", "optim.steps=5",
                  "--max-age-days=30")  # fmt: skip
  assert found["stages"] == ["ingest", "before", "train", "checkpoint", "report"]
  assert found["held_out_frac"] == 0.2 and found["max_samples"] == 3 and found["demonstration"]
  assert found["filters"] == {"review_status": "approved", "status": "succeeded",
                              "require_ground_truth": False, "max_age_days": 30.0}  # fmt: skip
  training, = found["trainings"]
  assert training["recipe"] == "teacher" and training["settings"]["optim"]["steps"] == 5
  assert training["settings"]["data"]["name"] == "traces"
  assert sorted(traces.parent.rglob("*")) == before


def test_every_flag_of_the_original_is_taken_or_refused_by_name(traces, capsys):
  known = {option for action in script.parser()._actions for option in action.option_strings}
  for flag in CLI["flags"]:
    assert set(flag["flags"]) <= known
  for run in CLI["dry_runs"]:
    words = [f"--export-path={traces}", f"--output-dir={traces.parent}/x", "--dry-run", *run["argv_tail"]]
    if "output_dir=results/x" in run["argv_tail"]:  # The original ends with 2 as well.
      assert "did you mean --output-dir?" in refused(capsys, *words, code=2)
    elif "--config-name" in run["argv_tail"]:
      assert "--config-name=examples/quickstart: configs here are Python files" in refused(capsys, *words)
    elif "--model-config" in run["argv_tail"]:
      assert "--model-config=qwen25_7b: there is no such folder" in refused(capsys, *words)
    else:
      assert script.main(words) == 0
      assert json.loads(capsys.readouterr().out)["trainings"][0]["config"] == plan.CONFIG


WRONG = [
  (["--override", "optim.stps=3"], "there is no field config.optim.stps; did you mean 'config.optim.steps'?"),
  (["--override", "optim.steps"], "--override optim.steps: must be KEY=VALUE"),
  (["--override", "data.files=x"], "the pipeline sets this field; it follows from --export-path or "
                                   "--database-url"),
  (["--override", "data.held_out_frac=0.3"], "it follows from --eval-ratio"),
  (["--eval-ratio=1"], "--eval-ratio=1.0 must be from 0"),
  (["--max-samples=0"], "--max-samples=0 must be at least 1"),
  (["--sft-override", "optim.steps=3"], "add --sft"),
  (["--database-url=sqlite:///x.db"], "give one of them, the file of traces or the store"),
  (["--config=configs/teacher_rcl.pi"], "there is no file 'configs/teacher_rcl.pi'"),
  (["--gkd"], "that is no config of distillation"),
  (["--output-dir="], "--output-dir= is empty"),
  (["--override", "traces.review_status=aproved"], "must be of pending, approved, quarantined"),
  (["--override", "traces.status=running"], "must name statuses of sessions that have ended"),
  (["--max-age-days=-1"], "max_age_days=-1.0"), (["--max-age-days=1e300"], "max_age_days=1e+300"),
  (["--override", "optim.lr=1", "--override", "config.optim.lr=2"], "optim.lr is 1 already; give it once"),
  (["--config=configs/grpo.py:memory"], "which decoders alone have"),
  (["--config=configs/memory_40m.py:cpu"], "does not learn from traces"),
  (["--config=configs/atlas_ranked.py:cpu"], "scripts/train_atlas.py"),
]


@pytest.mark.parametrize("flags, said", WRONG)
def test_what_cannot_be_is_refused_before_anything_is_written(traces, capsys, flags, said):
  config = [] if any(flag.startswith("--config=") for flag in flags) else [CPU]
  line = refused(capsys, f"--export-path={traces}", f"--output-dir={traces.parent}/out", *config, *flags)
  assert line.startswith("run_offline_pipeline: ") and said in line
  assert not (traces.parent / "out").exists()


def test_unknown_flags_name_the_nearest(traces, capsys):
  assert "did you mean --export-path?" in refused(capsys, "--exprt-path=x", code=2)
  assert "did you mean --max-samples?" in refused(capsys, "--max_sample=3", code=2)
  assert "--override KEY=VALUE" in refused(capsys, "--zzzzzz=3", code=2)


def test_a_source_that_is_not_there_is_told(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  line = refused(capsys, "--export-path=none.jsonl", CPU)
  assert "there is no none.jsonl; arc-atlas export writes one" in line
  assert "give one of them" in refused(capsys, CPU)


def test_a_tuning_before_has_the_split_and_the_gate_of_the_training(traces):
  asked = plan.PipelineSettings(
    str(traces), None, f"{traces.parent}/out", "configs/grpo_arithmetic.py:cpu", "configs/sft.py:cpu", 0.25,
    overrides={"traces.review_status": "approved,pending", "traces.split_seed": "3"})  # fmt: skip
  found = plan.resolve(asked)
  assert found.sft.config.data.held_out_frac == found.training.config.data.held_out_frac == 0.25
  assert found.sft.config.traces.review_status == "approved,pending"
  assert found.sft.config.traces.split_seed == 3
  assert found.training.config.model.path == str(found.sft.workdir)
  assert found.to_json()["stages"] == [
    "ingest", "before", "sft", "after_sft", "train", "checkpoint", "report"]  # fmt: skip
  for wrong, said in (
    ({"data.held_out_frac": "0.5"}, "--eval-ratio"), ({"traces.split_seed": "1"}, "--override")):  # fmt: skip
    with pytest.raises(ValueError, match=f"the split is that of the training; set it by {said}"):
      plan.resolve(asked._replace(sft_overrides=wrong))
  with pytest.raises(ValueError, match="with --sft training starts from what was tuned"):
    plan.resolve(asked._replace(overrides={"model.path": "x"}))


def test_a_password_is_in_no_plan(traces):
  url = "postgresql://me:secret@host:5433/atlas"
  asked = plan.PipelineSettings(None, url, "out", "configs/teacher_rcl.py:cpu")
  assert "secret" not in json.dumps(plan.resolve(asked).to_json())
  assert plan.shown_url("postgresql://me:se@cret@host/x") == "postgresql://me:***@host/x"
  assert plan.shown_url("sqlite:///a.db") == "sqlite:///a.db"
  assert plan.shown_url("env:STORE") == "env:STORE"
  assert plan.shown_url("postgresql://me@host/x") == "postgresql://me@host/x"
  for written in ("me:s/crt@host/x", "me:s?crt@host/x", "host/x?password=scrt",
                  "host:1/x?user=a@b&password=scrt", "me:s#crt@host:1/x?user=a@b"):
    assert "crt" not in plan.shown_url(f"postgresql://{written}")
