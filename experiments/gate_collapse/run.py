"""Does the gate of the memory collapse? Faults of the original one at a time, plain training, and episodes.

  python -m experiments.gate_collapse.run --workdir=runs/gate_collapse \\
      --out=experiments/gate_collapse/results.json

Every arm is one command of the program, has as many parameters within 1.1% and reads as many tokens. Rows go
by ARM/SEED; what the file already holds is not run again. `analysis` draws the picture and writes the tables.
"""
import pathlib

from atlas_jax.monitor import report
from experiments import arms
from experiments.arms import Arm

CONFIG = "experiments/gate_collapse/config.py"
PARAMS = 285_140  # Of the arm "episodic"; the others have as many within 1.1%.


def arm(name: str, says: str, *, train: str = "episodic", faults: str = "", **fields) -> Arm:
  """Makes an arm of the study's config."""
  given = [f"{key}={value}" for key, value in (("train", train), ("faults", faults)) if value]
  return Arm(name, says, f"{CONFIG}:{','.join(given)}", {key.replace("__", "."): value
                                                         for key, value in fields.items()})


OURS = [arm("episodic", "the episodic recipe"), arm("plain", "plain next-token training", train="plain")]
FAULTY = [
    arm("look_ahead", "memory looks ahead", faults="look_ahead"),
    arm("no_grad", "write path without gradient", faults="no_grad"),
    arm("diverging", "diverging inner step, clipped norm", faults="diverging"),
    arm("clamp", "gates start shut, floor by clamp", faults="shut+clamp"),
    arm("shut", "control: gates start shut, our floor", faults="shut"),
    arm("copy_loss", "copying in place of answers", faults="copy_loss"),
    arm("visible", "answers within the window", faults="visible"),
    arm("fast_gates", "gates at 5 times the learning rate", faults="fast_gates"),
    arm("paper", "no shift, the papers' keys", faults="paper"),
    arm("original", "the original's episodes: all of them", faults="original_keys+convex+look_ahead+no_grad+"
        "diverging+clamp+copy_loss+visible+fast_gates"),
    arm("original_plain", "the original's long run: plain text, no floor", train="plain",
        faults="original_keys+convex+look_ahead+no_grad+diverging+fast_gates"),
]
OPTIONS = [
    arm("window_random", "attention sees 4 to 32 tokens, at random", window__kind="random",
        window__least_tokens=4),
    arm("window_delayed", "attention sees 4 tokens in the first half", window__kind="delayed",
        window__least_tokens=4, window__delay_steps=80),
    arm("drop", "a fourth of the rows without attention", window__drop_frac=0.25),
    arm("recall_1", "weight of answers 1 in place of 5", episode__recall_weight=1.0),
    arm("recall_20", "weight of answers 20", episode__recall_weight=20.0),
]
ARMS = [*OURS, *FAULTY, *OPTIONS]
GATE = "memory/mix_gate_raw_mean/layer_"
AT_EVALS = {"eval/memory_gain_emptied_nats": "emptied", "eval/memory_gain_emptied_nats_low": "emptied_low",
            "eval/memory_gain_emptied_nats_high": "emptied_high", "eval/memory_gain_swapped_nats": "swapped",
            "val/bits_per_byte": "bits_per_byte"}


def curves(rows) -> dict[str, list]:
  """Returns the raw gates of every block and what evaluations found, by tokens read.

  Args:
    rows: of a run's metrics.jsonl.
  """
  gates = [{"tokens": row["train/tokens_seen"],
            "raw": [row[name] for name in sorted(row) if name.startswith(GATE)]}
           for row in rows if any(name.startswith(GATE) for name in row)]
  found = [{"tokens": row["train/tokens_seen"], **{short: row[name] for name, short in AT_EVALS.items()
                                                   if name in row}}
           for row in rows if "eval/memory_gain_emptied_nats" in row]
  return {"gates": gates, "evals": found}


def with_curves(arm: Arm, seed: int, workdir: pathlib.Path, found: dict) -> dict:
  """Returns the row of a run with its curves, where it lacks them; see `arms.run`."""
  name = f"{arm.name}/{seed}"
  return {} if "gates" in found[name] else {name: found[name] | curves(report.read_metrics(workdir))}


def main(argv: list[str] | None = None) -> None:
  """Runs what is missing."""
  arms.run(ARMS, params=None, argv=argv, says=(__doc__ or "").split("\n")[0], then=with_curves)


if __name__ == "__main__":
  main()
