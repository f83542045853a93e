"""Compares the runs of `vllm_cpu_lane.sh`: the curves with vLLM's server and with the native sampler.

  python scripts/vllm_cpu_lane.py OUT VERSIONS

Writes OUT/figures.json and prints it. Exits 1 if the curves differ by more than noise: the mean reward of
every ten steps with the server must lie within 0.03 of what the native runs of two seeds span.
"""
import datetime
import json
import os
import pathlib
import re
import sys

import numpy as np

from atlas_jax.files import closed_pipe

MARGIN = 0.03
BLOCK = 10
HAND_OVER = re.compile(r"version (\d+) of the weights handed over in ([\d.]+) s; largest gap (\S+) nats")


def column(folder: pathlib.Path, name: str) -> list[float]:
  """Reads a number of every step of a run."""
  rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
  return [row[name] for row in rows if name in row]


def curve(folder: pathlib.Path) -> list[float]:
  """Reads a run's rewards."""
  return [round(value, 4) for value in column(folder, "rollout/reward_mean")]


def hand_overs(log: pathlib.Path) -> dict:
  """Reads what a run's log says of its hand-overs."""
  found = HAND_OVER.findall(log.read_text())
  seconds, gaps = ([float(row[at]) for row in found] for at in (1, 2))
  return {"versions": [int(row[0]) for row in found], "gap_nats_max": max(gaps),
          "seconds_median": float(np.median(seconds)), "seconds_first": seconds[0]}


def blocks(values: list[float]) -> list[float]:
  """Returns the means of every ten."""
  return np.asarray(values).reshape(-1, BLOCK).mean(axis=1).round(4).tolist()


@closed_pipe.quiet
def main(out: pathlib.Path, versions: str) -> int:
  """Compares, writes and prints."""
  served = curve(out / "letters_vllm")
  step_s = lambda name: float(np.median(column(out / name, "perf/step_s")))
  native = [curve(out / name) for name in ("letters_native", "letters_native_other_seed")]
  spans = list(zip(*map(blocks, native)))
  agree = [min(span) - MARGIN <= value <= max(span) + MARGIN for value, span in zip(blocks(served), spans)]
  figures = {
      "date": datetime.date.today().isoformat(), "versions": versions, "cores": os.cpu_count(),
      "load": [round(load, 1) for load in os.getloadavg()],
      "sampler": json.loads((out / "sampler.json").read_text()),
      "arithmetic": {"reward": curve(out / "arithmetic"), **hand_overs(out / "arithmetic.log"),
                     "sampler_gap_nats_max": max(column(out / "arithmetic", "policy/sampler_gap_nats_max"))},
      "letters": {"vllm": served, "native": native[0], "native_other_seed": native[1],
                  "every_ten": {"vllm": blocks(served), "native": list(map(list, spans)), "agree": agree},
                  "step_s_median": {name: step_s(name) for name in ("letters_vllm", "letters_native")},
                  **hand_overs(out / "letters_vllm.log")}}
  (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
  print(json.dumps(figures))
  return int(not all(agree))


if __name__ == "__main__":
  sys.exit(main(pathlib.Path(sys.argv[1]), sys.argv[2]))
