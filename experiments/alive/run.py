"""Measures how alive every rule's memory is, as it was and with each cure; keeps the rows in one JSON file.

  python -m experiments.alive.run --out=experiments/alive/results.json

What the file already holds is not measured again. See the README for what the arms are.
"""
import argparse
import datetime
import functools
import importlib
import inspect
import json
import pathlib
import platform
import sys
import time

import jax
import jax.numpy as jnp

from atlas_jax.memory import liveness, rules
from atlas_jax.memory.types import GateStarts

SIZES = dict(key_dim=32, value_dim=32, chunk_size=32)
AT = {1: 4_096, 4: 16_384, 16: 65_536}  # Tokens by segment.
SEEDS = (0, 1, 2)
OLD = GateStarts(retention=0.995, momentum=0.6, write_rate=0.01, write_rate_max=0.1)
NET = ("residual", "norm")
LAYER_NORMED = ("bregman", "elastic_net", "f_divergence", "memora", "moneta", "yaad")
# Where the options were others than residual=True, fade_to="zero" and the norm.
OTHERS: dict = {name: {"surprise_max": None} for name in ("dla", "omega", "tnt", "bregman", "yaad")}
OTHERS |= {"titans": {"surprise_max": 1.0}, "swla": {"residual": False},
           "elastic_net": {"threshold": 1e-3, "surprise_max": None}}
ARMS = ("before", "gates", "start", "net", "together")


def before(name: str) -> dict:
  """Returns the options with which a rule was shipped, as far as it knows them."""
  known = inspect.signature(importlib.import_module(f"{rules.__name__}.{name}").make).parameters
  norm = "affine" if name.startswith("ttt_") else "layer" if name in LAYER_NORMED else None
  options = {"fade_to": "zero", "residual": True, "norm": norm} | OTHERS.get(name, {})
  return {option: value for option, value in options.items() if option in known}


def arm_of(name: str, arm: str) -> tuple[dict, bool]:
  """Returns the options of an arm, and whether it starts from the rule's own gates."""
  old = before(name)
  if arm == "start":
    return old | ({"fade_to": "start"} if "fade_to" in old else {}), False
  if arm == "net":
    return {option: value for option, value in old.items() if option not in NET}, False
  return ({} if arm in ("together", "bound") else old), arm != "before"


def measure(name: str, arm: str, likeness: float) -> list[dict]:
  """Measures with every seed: norm, weight of one write and loss at the start and after each of `AT`.

  Numbers that are not finite are None.
  """
  options, own = arm_of(name, arm)
  rule = rules.load(name, **SIZES, **options)
  starts = rule.starts if own else OLD
  if arm == "bound":
    starts = starts._replace(write_rate=starts.write_rate_max)
  of_seed = functools.partial(liveness.measure, rule._replace(starts=starts), **SIZES, steps=max(AT),
                              streams=liveness.Streams(likeness=likeness))
  lives = jax.vmap(lambda seed: of_seed(seed=seed))(jnp.asarray(SEEDS))
  rows = []
  for seed, at_seed in enumerate(zip(*lives, strict=True)):
    life = liveness.Life(*at_seed)
    kept = {field: [_number(x[at]) for at in (0, *AT)] for field, x in life._asdict().items()}
    rows.append({"rule": name, "arm": arm, "likeness": likeness, "seed": SEEDS[seed], **kept,
                 "faults": len(liveness.faults(life))})
  return rows


def _number(x) -> float | None:
  value = float(x)
  return float(f"{value:.4g}") if abs(value) < float("inf") else None


def jobs() -> list[tuple[str, str, float]]:
  """Lists what is measured: every arm that differs, then alike keys and write rates at their bounds."""
  found = []
  for name in rules.names():
    arms: list = []
    for arm in ARMS:
      if arm_of(name, arm) not in [arm_of(name, other) for other in arms]:
        arms.append(arm)
    runs = [(arm, 0.0) for arm in arms]
    runs += [("before", 0.5), ("together", 0.5), ("bound", 0.0), ("bound", 0.5)]
    found += [(name, arm, likeness) for arm, likeness in runs]
  return found


def main(argv: list[str] | None = None) -> None:
  """Measures what the file does not hold yet, and writes it after every rule."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--out", type=pathlib.Path, required=True)
  asked = parser.parse_args(argv)
  started_s = time.process_time()
  found = json.loads(asked.out.read_text()) if asked.out.exists() else {"rows": []}
  done = {(row["rule"], row["arm"], row["likeness"]) for row in found["rows"]}
  todo = [job for job in jobs() if job not in done]
  for number, job in enumerate(todo, 1):
    found["rows"] += measure(*job)
    if number == len(todo) or todo[number][0] != job[0]:
      found |= {"command": " ".join(["python -m experiments.alive.run", *sys.argv[1:]]),
                "date": datetime.date.today().isoformat(), "jax": jax.__version__,
                "python": platform.python_version(), "backend": jax.default_backend(),
                "cpu_s": round(time.process_time() - started_s, 1)}
      asked.out.write_text(json.dumps(found, indent=None).replace('{"rule"', '\n{"rule"') + "\n")
      print(job[0], flush=True)
      jax.clear_caches()  # What is compiled for all rules is more than a process may map.


if __name__ == "__main__":
  main()
