"""Rows as runs write them, with the names of real ones and some noise, and faults put into them."""

import json

import numpy as np

LAYERS = ("layer_01", "layer_03")


def row(step, draw, **changes):
  """A row of a healthy memory_lm run."""
  noise = lambda scale: float(1 + scale * draw.normal())
  found = {
    "step": step,
    "train/loss_nats": (1.5 + 4 * float(np.exp(-step / 200))) * noise(0.02),
    "grad/norm": 0.8 * noise(0.2), "train/lr": 1e-3, "train/skipped_in_row": 0, "train/skipped_updates": 0,
    "update/changed_frac": 1.0, "data/repeated_frac": 0.0, "perf/step_s": 0.5 * noise(0.1),
    "perf/tokens_per_s": 2000 * noise(0.1), "system/disk_free_gib": 40.0 * noise(0.01),
    "perf/time_step_s": 0.5 * step, "perf/time_input_s": 0.01 * step,
  }
  for layer in LAYERS:
    found |= {f"memory/mix_gate_raw_mean/{layer}": 0.4 * noise(0.05),
              f"memory/fast_norm_mean/{layer}": 2.0 * noise(0.1),
              f"memory/recall_loss_after/{layer}": 0.25 * noise(0.1),
              f"memory/recall_loss_zero/{layer}": 0.5}
  if step % 20 == 0:
    found |= {"val/loss_nats": (1.6 + 4 * float(np.exp(-step / 200))) * noise(0.01)}
  return found | {name.replace("__", "/"): value for name, value in changes.items()}


def rows(fault=None, *, steps=400, every=10, at=200, seed=0):
  """Rows of a run; from step `at` on the function `fault(row, step)` changes them."""
  draw = np.random.default_rng(seed)
  found = []
  for step in range(every, steps + 1, every):
    one = row(step, draw)
    if fault is not None and step > at:
      fault(one, step)
    found.append(one)
  return found


def each(prefix, value):
  """A fault that sets the metric of every block."""
  def fault(one, step):
    one |= {name: value(step) if callable(value) else value for name in one if name.startswith(prefix)}
  return fault


def one_of(name, value):
  """A fault that sets a metric where the row has it."""
  def fault(one, step):
    if name in one:
      one[name] = value(step) if callable(value) else value
  return fault


# Rule that tells of it -> the fault.
FAULTS = {
  "nan": one_of("train/skipped_updates", lambda step: (step - 200) // 10),
  "divergence": one_of("train/loss_nats", lambda step: 3.0 + (step - 200) / 15),
  "throughput": one_of("perf/step_s", 2.5),
  "stall": one_of("perf/step_s", 120.0),
  "gate_collapse": each("memory/mix_gate_raw_mean/", 0.02),
  "dead_memory": each("memory/fast_norm_mean/", 1e-5),
  "frozen_memory": each("memory/fast_norm_mean/", 50.0),
  "memory_recall": each("memory/recall_loss_after/", 0.5),
  "repeated_data": one_of("data/repeated_frac", 1.0),
  "disk": one_of("system/disk_free_gib", 0.4),
  "validation": one_of("val/loss_nats", lambda step: 3.2 + (step - 200) / 100),
  "loss_spike": one_of("train/loss_nats", 9.0),
  "gradient_spike": one_of("grad/norm", 300.0),
  "idle": one_of("update/changed_frac", 0.0),
}


def write(folder, found, config=None):
  """Writes rows, and a config, as a run directory."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found))
  return folder
