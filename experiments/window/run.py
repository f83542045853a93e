"""Does a shorter attention window make a model use its memory? Windows short, random and delayed in training.

  python -m experiments.window.run --workdir=runs/window --out=experiments/window/results.json

The size and parameters of `what_makes_memory_pay`; see the README for what came of it.
"""
from experiments import arms
from experiments.arms import Arm
from experiments.what_makes_memory_pay.run import CONFIG, PARAMS, SIZE

BASELINE = "configs/memory_40m.py:cpu,pretrain,baseline"
RANDOM = {"window.kind": "random", "window.least_tokens": 4}
DELAYED = {"window.kind": "delayed", "window.least_tokens": 4, "window.delay_steps": 90}
# What attention sees: words, and fields.
WINDOWS = {
    "64": ("64 tokens", {}),
    "16": ("16 tokens", {"model.window_tokens": 16}),
    "256": ("256 tokens", {"model.window_tokens": 256}),
    "random": ("random from 4 to 64 in training, then 64", RANDOM),
    "delayed": ("4 for 90 of 180 updates, then 64", DELAYED),
    "random_256": ("random from 4 to 256 in training, then 256", RANDOM | {"model.window_tokens": 256}),
}


def arm(kind: str, window: str) -> Arm:
  """Makes the arm with ("memory") or without ("none") a memory that is trained with a window."""
  words, fields = WINDOWS[window]
  return Arm(f"{kind}_{window}", f"{'memory' if kind == 'memory' else 'no memory'}, {words}",
             CONFIG if kind == "memory" else BASELINE, SIZE | fields)


ARMS = [*(arm("memory", window) for window in ("64", "16", "256", "random", "delayed")),
        *(arm("none", window) for window in ("64", "16", "256", "random", "delayed")),
        *(arm(kind, "random_256") for kind in ("memory", "none"))]
COLUMNS = {"val_bits_per_byte": "bits per byte", "memory_gain_swapped_nats": "swapped",
           "memory_gain_emptied_nats": "emptied", "cpu_s": "CPU-s"}


def main(argv: list[str] | None = None) -> None:
  """Runs what is missing and prints the table."""
  out = arms.run(ARMS, params=PARAMS, argv=argv, says=(__doc__ or "").split("\n")[0])
  print(arms.table(arms.read(out), ARMS, COLUMNS))


if __name__ == "__main__":
  main()
