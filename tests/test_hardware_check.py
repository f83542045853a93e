"""The check of an accelerator runs end to end on a CPU, finds what is wrong, and writes by its schema."""

import copy
import json
import pathlib
import sys

import pytest

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import hardware_cases  # noqa: E402  Scripts are no package.
import hardware_check  # noqa: E402

KEPT = SCRIPTS.parent / hardware_check.KEPT


@pytest.fixture(scope="module")
def report(tmp_path_factory):
  """The report of a tiny check."""
  out = tmp_path_factory.mktemp("check") / "new" / "report.json"
  code = hardware_check.main(["--tiny", f"--out={out}"])
  found = json.loads(out.read_text())
  assert code == 0, {name: part for name, part in found["checks"].items() if not part["ok"]}
  return found


def test_a_check_passes_on_a_cpu_and_its_report_is_as_the_schema_says(report):
  assert hardware_check.problems(report) == []
  assert report["ok"] and report["tiny"] and report["device"]["platform"] == "cpu"
  for name in hardware_check.TRAINED:
    part = report["checks"][name]
    assert part["per_s"] > 0 and part["peak_bytes"] > 0 and part["compiled_bytes"] > 4 * part["parameters"]
    assert part["plan"]["step_s"] is not None or part["plan"]["why"]
  kernels = {row["kernel"] for row in report["checks"]["kernels"]["rows"]}
  assert kernels == {"local_attention", "vocab_loss", "newton_schulz", "memory_scan"}
  assert len(report["checks"]["against_cpu"]["losses"]) == 3


def test_the_names_are_those_of_the_checks():
  assert tuple(hardware_cases.CHECKS) == hardware_check.NAMES
  assert tuple(hardware_cases.TRAINED) == hardware_check.TRAINED


@pytest.mark.parametrize("place, value, found", [
  (("version",), 2, "version is 2, not 1"),
  (("device", "platform"), None, "device.platform is None"),
  (("checks", "trm", "step_s"), "fast", "checks.trm.step_s is 'fast', a str"),
  (("checks", "trm", "loss"), True, "checks.trm.loss is True, a bool"),
  (("checks", "memory_40m", "plan"), {}, "checks.memory_40m.plan.step_s is missing"),
  (("checks", "kernels", "rows"), [{}], "checks.kernels.rows.gap is missing"),
  (("ok",), False, "ok does not say whether all checks are"),
])  # fmt: skip
def test_a_report_that_is_not_as_it_should_be_is_found(report, place, value, found):
  changed = copy.deepcopy(report)
  part = changed
  for name in place[:-1]:
    part = part[name]
  part[place[-1]] = value
  assert any(found in problem for problem in hardware_check.problems(changed))


def test_the_reports_that_are_kept_are_as_the_schema_says():
  for path in sorted(KEPT.glob("*.json")):
    kept = json.loads(path.read_text())
    assert hardware_check.problems(kept) == [] and not kept["tiny"], path.name


def test_a_measured_step_is_compared_with_its_plan():
  part = {"step_s": 0.3, "peak_bytes": 1_050}
  found = hardware_check.with_plan(part, {"step_s": 0.2, "peak_bytes": 1_000, "why": None})
  assert (found["step_over_plan"], found["peak_over_plan"]) == pytest.approx((1.5, 1.05))
  assert found["plan_agrees"] is True
  for planned in ({"step_s": 0.7, "peak_bytes": 1_000}, {"step_s": 0.3, "peak_bytes": 900}):
    assert hardware_check.with_plan(part, planned)["plan_agrees"] is False
  unknown = {"step_s": None, "peak_bytes": None, "why": "no plan"}
  assert hardware_check.with_plan(part, unknown)["plan_agrees"] is None


def test_a_wrong_value_is_a_check_that_fails(monkeypatch):
  kernel = lambda: iter([("2", impl, lambda x, by=by: by * x, hardware_cases.bench_kernels.arrays((2,)))
                         for impl, by in (("reference", 1.0), ("chunked", 1.001))])  # fmt: skip
  monkeypatch.setattr(hardware_cases.bench_kernels, "ROWS", {"scale": kernel})
  part = hardware_check.here("kernels", True)
  assert part["ok"] is False and part["rows"][0]["gap"] == pytest.approx(1e-3, rel=0.01)


def test_a_check_that_breaks_or_finds_no_time_leaves_the_others(monkeypatch, capsys):
  def broken(tiny):
    raise MemoryError("no room")

  monkeypatch.setitem(hardware_cases.CHECKS, "trm", broken)
  assert hardware_check.here("trm", True)["error"] == "MemoryError: no room"
  assert "not begun: 3 s were left" in hardware_check.apart("trm", True, 3.0)["error"]
  monkeypatch.setattr(hardware_check, "apart", lambda *args: {"ok": False, "seconds": 0.0, "error": "broken"})
  with pytest.raises(RuntimeError, match="no device can be used: broken"):
    hardware_check.check(False, 100.0)


def test_a_check_in_a_process_of_its_own_returns_its_part():
  part = hardware_check.apart("about", True, 300.0)
  assert part["platform"] == "cpu" and "error" not in part


def test_a_tiny_check_is_not_kept_by_accident(capsys):
  with pytest.raises(SystemExit):
    hardware_check.main(["--tiny"])
  assert "--tiny needs --out" in capsys.readouterr().err


def test_a_plan_is_asked_of_the_program_for_the_device_that_is_there(monkeypatch):
  asked = []

  class Done:
    """A program that has ended."""

    stdout, stderr = json.dumps({"estimate": {"step_s": 0.2}, "memory": {"peak": 5}}), "line\nwhy not"

  def run(command, **given):
    asked.append((command, given["env"]["JAX_PLATFORMS"], given["timeout"]))
    return Done

  monkeypatch.setattr(hardware_check.subprocess, "run", run)
  part = {"config": "configs/memory_40m.py", "fields": {"data.batch_rows": 8}}
  found = hardware_check.plan(part, "NVIDIA H100 80GB HBM3", 100)
  assert found == {"step_s": 0.2, "peak_bytes": 5, "why": None}
  command, platform, limit_s = asked[0]
  assert {"--target=h100", "--config.data.batch_rows=8", "--mode=plan"} <= set(command)
  assert (platform, limit_s) == ("cpu", 100)
  Done.stdout = ""
  assert hardware_check.plan(part, "NVIDIA H100 80GB HBM3", 100)["why"] == "why not"
  assert "'NVIDIA Abacus'" in hardware_check.plan(part, "NVIDIA Abacus", 100)["why"]
  assert hardware_check.plan(part, "NVIDIA H100 80GB HBM3", 0)["why"] == "0 s were left" and len(asked) == 2
