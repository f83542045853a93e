"""Checks this project on the device of this machine and writes one JSON file; see hardware_check.sh.

Every check has a process of its own, so that one that fails, hangs or fills the memory leaves the others;
with --tiny all are in this process. `FIELDS` says what the file holds.
"""
import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any

from atlas_jax.files import closed_pipe

ROOT = pathlib.Path(__file__).resolve().parents[1]
KEPT = "experiments/benchmarks/hardware"
VERSION = 1
LIMIT_S = 570.0  # Of all checks together.
LEAST_S = 20.0  # With less time left a check is not begun.
# In the order in which they are made: what is left out for want of time stands last.
TRAINED = ("memory_40m", "trm", "grpo", "memory_340m", "atlas_ranked")
NAMES = ("against_cpu", "kernels", *TRAINED, "pallas_kernels")
MOST_OVER_PLAN = {"step": 2.0, "peak": 1.1}  # Measured over planned, and planned over measured.

NUMBER, TEXT, MAYBE = (int, float), str, type(None)
DEVICE = {"platform": TEXT, "kind": TEXT, "devices": int, "memory_bytes": (int, MAYBE),
          "peak_flops": (*NUMBER, MAYBE), "runtime": TEXT, "versions": dict}
FIELDS = {"version": int, "ok": bool, "tiny": bool, "date": TEXT, "seconds": NUMBER, "commit": (TEXT, MAYBE),
          "python": TEXT, "device": dict, "checks": dict}
EVERY = {"ok": bool, "seconds": NUMBER}
ROWS = {"rows": list}
ROW = {"kernel": TEXT, "shape": TEXT, "impl": TEXT, "gap": NUMBER, "limit": NUMBER}
OF_TRAINING = {
    "config": TEXT, "fields": dict, "parameters": int, "loss": NUMBER, "skipped": int, "compile_s": NUMBER,
    "first_batch_s": NUMBER, "batch_s": NUMBER, "step_s": NUMBER, "unit": TEXT, "per_step": int,
    "per_s": NUMBER, "flops": NUMBER, "fraction_of_peak": (*NUMBER, MAYBE), "peak_bytes": int,
    "compiled_bytes": int, "plan": dict, "plan_agrees": (bool, MAYBE),
    **dict.fromkeys(("step_over_plan", "peak_over_plan"), (*NUMBER, MAYBE))}
PLAN = {"step_s": (*NUMBER, MAYBE), "peak_bytes": (int, MAYBE), "why": (TEXT, MAYBE)}
AGAINST_CPU = {**dict.fromkeys(("loss_gap", "norm_gap", "update_gap"), NUMBER), "limits": dict,
               **dict.fromkeys(("losses", "cpu_losses"), list)}


# ------------------------------------------------------------------------------------------------ the report


def problems(report: Mapping[str, Any]) -> list[str]:
  """Returns what is wrong with a report, nothing for one as this program writes it."""
  bad = _wrong(report, FIELDS, "")
  if bad:
    return bad
  if report["version"] != VERSION:
    bad.append(f"version is {report['version']}, not {VERSION}")
  bad += _wrong(report["device"], DEVICE, "device.")
  if tuple(report["checks"]) != NAMES:
    bad.append(f"checks are {', '.join(report['checks'])}, not {', '.join(NAMES)}")
  for name, part in report["checks"].items():
    where = f"checks.{name}."
    bad += _wrong(part, EVERY, where)
    if "error" in part:
      continue
    wanted = AGAINST_CPU if name == "against_cpu" else OF_TRAINING if name in TRAINED else ROWS
    bad += _wrong(part, wanted, where)
    bad += _wrong(part.get("plan", {}), PLAN, f"{where}plan.") if wanted is OF_TRAINING else []
    for row in part.get("rows", ()):
      bad += _wrong(row, ROW, f"{where}rows.")
  if report["ok"] != all(part.get("ok") is True for part in report["checks"].values()):
    bad.append("ok does not say whether all checks are")
  return bad


def _wrong(found: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> list[str]:
  bad = [f"{where}{name} is missing" for name in wanted if name not in found]
  for name, kind in wanted.items():
    value = found.get(name)
    # A bool is an int to Python, and no number to us.
    mistaken = isinstance(value, bool) and kind is not bool and not (isinstance(kind, tuple) and bool in kind)
    if name in found and (mistaken or not isinstance(value, kind)):
      bad.append(f"{where}{name} is {value!r}, a {type(value).__name__}")
  return bad


def plan(part: Mapping[str, Any], device_kind: str, left_s: float) -> dict:
  """Returns what is planned for a training step on a device: seconds and bytes, or why there is no plan.

  The plan is made by the program in a process that sees no device, and needs the extra `plan`.

  Args:
    part: what was measured, with its "config" and "fields".
    device_kind: as jax names it.
    left_s: seconds that it may take.
  """
  from atlas_jax.plan import targets  # Data alone: no device is looked for.

  target = targets.name_of_kind(device_kind)
  if target is None:
    return no_plan(f"no target of a plan is a {device_kind!r}")
  if left_s < LEAST_S:
    return no_plan(f"{left_s:.0f} s were left")
  changed = [f"--config.{name}={value}" for name, value in part["fields"].items()]
  command = [sys.executable, "-m", "atlas_jax.main", "--mode=plan", f"--config={part['config']}",
             "--noadvise", f"--target={target}", *changed]
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "-1"}
  try:
    done = subprocess.run(command, capture_output=True, text=True, timeout=left_s, cwd=ROOT, env=env)
    found = json.loads(done.stdout)
  except subprocess.TimeoutExpired:
    return no_plan(f"stopped after {left_s:.0f} s, the time left")
  except ValueError:
    return no_plan((done.stderr.strip().splitlines() or ["it printed nothing"])[-1])
  return {"step_s": found["estimate"]["step_s"], "peak_bytes": found["memory"]["peak"], "why": None}


def no_plan(why: str) -> dict:
  """Returns the plan of a step that has none."""
  return {"step_s": None, "peak_bytes": None, "why": why}


def with_plan(part: Mapping[str, Any], planned: Mapping[str, Any]) -> dict:
  """Adds to a measured step how far it is from its plan."""
  step, peak = (None if planned[name] is None else part[name] / planned[name]
                for name in ("step_s", "peak_bytes"))
  ratios = {"step": step, "peak": peak}
  far = {name: max(ratio, 1 / ratio) for name, ratio in ratios.items() if ratio is not None}
  agrees = all(far[name] <= MOST_OVER_PLAN[name] for name in far) if far else None
  return {**part, "plan": dict(planned), "step_over_plan": step, "peak_over_plan": peak,
          "plan_agrees": agrees}


# ------------------------------------------------------------------------------------------------ the checks


def here(name: str, tiny: bool) -> dict:
  """Makes a check in this process; an exception becomes the part's error."""
  began = time.perf_counter()
  try:
    import hardware_cases as cases  # Imports jax, which the process that starts the others must not.

    part = cases.about(tiny) if name == "about" else cases.CHECKS[name](tiny)
  except Exception as error:
    traceback.print_exc()
    part = {"ok": False, "error": " ".join(f"{type(error).__name__}: {error}".split())[:1_000]}
  return {**part, "seconds": round(time.perf_counter() - began, 3)}


def apart(name: str, tiny: bool, left_s: float) -> dict:
  """Makes a check in a process of its own, which has so many seconds."""
  if left_s < LEAST_S:
    return {"ok": False, "seconds": 0.0, "error": f"not begun: {left_s:.0f} s were left"}
  platforms = os.environ.get("JAX_PLATFORMS", "")
  # The CPU is what the device is compared with.
  beside = {"JAX_PLATFORMS": f"{platforms},cpu"} if platforms and "cpu" not in platforms.split(",") else {}
  command = [sys.executable, str(pathlib.Path(__file__).resolve()), f"--only={name}", *["--tiny"] * tiny]
  began = time.perf_counter()
  try:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=left_s, cwd=ROOT,
                          env={**os.environ, **beside})
  except subprocess.TimeoutExpired:
    return {"ok": False, "seconds": round(left_s, 3), "error": f"stopped after {left_s:.0f} s, the time left"}
  lines = done.stdout.splitlines()
  if done.returncode or not lines:
    seconds = round(time.perf_counter() - began, 3)
    return {"ok": False, "seconds": seconds, "error": f"its process ended with exit code {done.returncode}"}
  return json.loads(lines[-1])


def check(tiny: bool, limit_s: float) -> dict:
  """Makes all checks; returns the report."""
  began = time.perf_counter()

  def make(name):
    return here(name, tiny) if tiny else apart(name, tiny, limit_s - (time.perf_counter() - began))

  device = make("about")
  if "error" in device:
    raise RuntimeError(f"no device can be used: {device['error']}")
  parts = {}
  for name in NAMES:
    part = make(name)
    if name in TRAINED and "error" not in part:
      left_s = limit_s - (time.perf_counter() - began)
      part = with_plan(part, no_plan("a CPU has none here; see python -m atlas_jax.plan.measure")
                       if device["platform"] == "cpu" else plan(part, device["kind"], left_s))
    parts[name] = part
    print(f"hardware_check: {name}: {_line(part)}", file=sys.stderr, flush=True)
  return {"version": VERSION, "ok": all(part["ok"] for part in parts.values()), "tiny": tiny,
          "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
          "seconds": round(time.perf_counter() - began, 1), "commit": _commit(),
          "python": sys.version.split()[0], "device": {name: device[name] for name in DEVICE},
          "checks": parts}


def _line(part: Mapping[str, Any]) -> str:
  result = "ok" if part["ok"] else part.get("error", "a result is out of its limits, see the file")
  speed = f", {part['per_s']:.4g} {part['unit']}/s" if "per_s" in part else ""
  return f"{result}{speed} ({part['seconds']:.0f} s)"


def _commit() -> str | None:
  try:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
  except FileNotFoundError:
    return None
  return done.stdout.strip() if done.returncode == 0 else None


@closed_pipe.quiet
def main(argv: list[str] | None = None) -> int:
  """Runs the program; returns its exit code."""
  parser = argparse.ArgumentParser(prog="hardware_check", allow_abbrev=False)
  parser.add_argument("--tiny", action="store_true", help="tiny sizes in one process, to check this program")
  parser.add_argument("--out", help=f"the file that is written; left out: one in {KEPT}")
  parser.add_argument("--limit_s", type=float, default=LIMIT_S, help="seconds for all checks together")
  parser.add_argument("--only", choices=("about", *NAMES), help="one check, whose part is printed")
  args = parser.parse_args(argv)
  if args.only:
    print(json.dumps(here(args.only, args.tiny)), flush=True)
    return 0
  if args.tiny and args.out is None:
    parser.error(f"--tiny needs --out, such as --out=runs/hardware_check.json: {KEPT} is for measurements")
  report = check(args.tiny, args.limit_s)
  kind = re.sub(r"[^a-z0-9]+", "_", report["device"]["kind"].lower()).strip("_")
  out = pathlib.Path(args.out or ROOT / KEPT / f"{kind}_{report['date'][:10]}.json")
  out.parent.mkdir(parents=True, exist_ok=True)
  out.write_text(json.dumps(report, indent=1) + "\n")
  print(out)
  return 0 if report["ok"] else 1


if __name__ == "__main__":
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
  sys.exit(main())
