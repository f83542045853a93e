"""Trains rules with one part of their inner training changed, on recall and on language; keeps the rows.

  python -m experiments.is_it_linear_attention.run --workdir=runs/changed \\
      --out=experiments/is_it_linear_attention/results.json

Rows go by SETTING/RULE/CHANGE/SEED; what the file already holds is not run again. Settings are "recall" and
"language", see `config`, and so are the changes.
"""
import argparse
import pathlib

from experiments import arms
from experiments.is_it_linear_attention import changed
from experiments.is_it_linear_attention.config import RULES, get_config
from experiments.rules_on_recall import run as far_recall

FILE = "experiments/is_it_linear_attention/config.py"
CHANGES = (*changed.CHANGES, "own_queries")
WITHOUT_MOMENTUM = {("recall", "ttt_mlp"), ("language", "ttt_mlp"), ("language", "delta")}


def jobs(settings, rules, changes) -> list[tuple[str, str, str]]:
  """Lists (setting, rule, change) of what differs: rules without momentum cannot lose it."""
  return [(setting, rule, change) for setting in settings for rule in rules for change in changes
          if not (change == "no_momentum" and (setting, rule) in WITHOUT_MOMENTUM)]


def trained(setting: str, rule: str, change: str, seed: int, workdir: pathlib.Path) -> dict:
  """Trains one arm and returns its row."""
  arg = f"rule={rule},change={change}"
  if setting == "language":
    return arms.trained(arms.Arm(f"{rule}/{change}", change, f"{FILE}:{arg}"), {}, seed, workdir)
  arg = f"{arg},recall,seed={seed}"
  return {**far_recall.trained(get_config(arg), workdir), "config": arg, **arms.machine()}


def main(argv: list[str] | None = None) -> None:
  """Runs what the file does not hold yet, seed by seed, and writes it after every run."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--settings", default="recall,language")
  parser.add_argument("--rules", default=",".join(RULES))
  parser.add_argument("--changes", default=",".join(CHANGES))
  parser.add_argument("--seeds", default="0,1,2")
  asked = parser.parse_args(argv)
  parts = [getattr(asked, name).split(",") for name in ("settings", "rules", "changes")]
  for seed in map(int, asked.seeds.split(",")):
    for setting, rule, change in jobs(*parts):
      name = f"{setting}/{rule}/{change}/{seed}"
      if name not in arms.read(asked.out):
        row = trained(setting, rule, change, seed, asked.workdir / name)
        far_recall.add(asked.out, {name: row})
        print(name, {field: row[field] for field in ("val_accuracy", "val_bits_per_byte", "cpu_s")
                     if field in row}, flush=True)


if __name__ == "__main__":
  main()
