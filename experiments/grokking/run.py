"""Trains modular addition until held-out pairs are right, in several ways, and keeps the curves.

  python -m experiments.grokking.run --workdir=runs/grokking --out=experiments/grokking/results.json

Rows go by ARM/SEED; what the file already holds is not run again.
"""
import argparse
import pathlib

from atlas_jax.monitor import phases, report
from experiments import arms
from experiments.rules_on_recall.run import add

CONFIG = "configs/modular.py"
CURVE = ("step", "eval/train_accuracy", phases.ACCURACY, "eval/train_loss_nats", phases.LOSS)
ARMS = {arm.name: arm for arm in (
    arms.Arm("plain", "the preset", CONFIG),
    arms.Arm("stablemax", "StableMax in place of softmax", CONFIG, {"loss.kind": "stablemax"}),
    arms.Arm("orthogonal", "gradients without the part along the weights", CONFIG,
             {"optim.orthogonal_grads": 1.0}),
    arms.Arm("stablemax_no_decay", "StableMax, no weight decay", CONFIG,
             {"loss.kind": "stablemax", "optim.weight_decay": 0.0}),
    arms.Arm("no_decay", "no weight decay", CONFIG, {"optim.weight_decay": 0.0}))}


def curve_of(workdir) -> list[str]:
  """Writes the numbers of every evaluation of a run, a line each, in the order of `CURVE`."""
  # A text for each: as lists of JSON, every number would take a line of the file of results.
  return [" ".join(f"{row[name]:.6g}" for name in CURVE) for row in report.read_metrics(workdir)
          if phases.ACCURACY in row]


def rows_of(curve: list[str]) -> list[dict]:
  """Returns a recorded curve as rows of metrics."""
  return [dict(zip(CURVE, map(float, line.split()))) for line in curve]


def first_step(curve: list[str], name: str, least: float) -> int | None:
  """Returns the first step at which a number of the curve is so high; None if none is."""
  return next((int(row["step"]) for row in rows_of(curve) if row[name] >= least), None)


def trained(arm: arms.Arm, fields: dict, seed: int, workdir: pathlib.Path) -> dict:
  """Trains an arm and returns its row."""
  progress = {"monitor.progress": False, "monitor.tensorboard": False}
  row = arms.trained(arm, {**arm.fields, **fields, **progress}, seed, workdir)
  curve = curve_of(workdir)
  # No phases: they follow from the curve and from thresholds, see `analysis`.
  return {**row, "train_accuracy_999_at_step": first_step(curve, "eval/train_accuracy", 0.999),
          "held_out_accuracy_95_at_step": first_step(curve, phases.ACCURACY, 0.95), "curve": curve}


def main(argv: list[str] | None = None) -> None:
  """Runs what the file does not hold yet and writes it after every run."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--arms", default=",".join(ARMS))
  parser.add_argument("--seeds", default="0")
  parser.add_argument("--steps", type=int, help="updates on modular addition; those of the config if absent")
  asked = parser.parse_args(argv)
  for seed in map(int, asked.seeds.split(",")):
    for name in asked.arms.split(","):
      key = f"{name}/{seed}"
      if key in arms.read(asked.out):
        continue
      fields = {"optim.steps": asked.steps} if asked.steps else {}
      row = trained(ARMS[name], fields, seed, asked.workdir / name / str(seed))
      add(asked.out, {key: row})
      print(key, row["held_out_accuracy_95_at_step"], row["cpu_s"], flush=True)


if __name__ == "__main__":
  main()
