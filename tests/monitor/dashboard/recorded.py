"""Recorded runs in a folder of their own, with alerts; made by tests/record_runs.py."""

import json
import pathlib
import shutil

RUNS = pathlib.Path(__file__).parents[2] / "fixtures" / "dashboard"
NAMES = tuple(sorted(path.name for path in RUNS.iterdir()))
ALERTS = [
  {"time": 1_796_057_000.0, "step": 10, "rule": "gate_collapse", "severity": "warning", "state": "firing",
   "value": 0.04, "metric": "eval/raw_gate_mean/layer_01", "text": "raw gate mean is 0.04, below 0.1"},
  {"time": 1_796_057_100.0, "step": 14, "rule": "gate_collapse", "severity": "warning", "state": "recovered",
   "value": 0.3, "metric": "eval/raw_gate_mean/layer_01", "text": "raw gate mean is 0.3 again"},
  {"time": 1_796_057_200.0, "step": 20, "rule": "loss_spike", "severity": "critical", "state": "firing",
   "value": 9.1, "metric": "train/loss_nats", "text": "the loss is 9.1, above twice its median of 4.2"},
  {"time": 1_796_057_300.0, "step": 24, "rule": "checkpoint_saved", "severity": "info", "state": "told",
   "value": None, "metric": None, "text": "saved step 24"},
]


def copy(folder, *names, alerts=()):
  """Copies recorded runs, all by default; those named in `alerts` get the events above."""
  for name in names or NAMES:
    shutil.copytree(RUNS / name, folder / name)
    if name in alerts:
      (folder / name / "alerts.jsonl").write_text("".join(json.dumps(event) + "\n" for event in ALERTS))
  return folder
