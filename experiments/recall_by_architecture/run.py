"""Which architecture recalls past its window? MQAR and needles for each mix of memory and attention.

  python -m experiments.recall_by_architecture.run --workdir=runs/architectures \
    --out=experiments/recall_by_architecture/results.json

Every arm has as many parameters within 1.1%, by the width of its feed-forward layers, and reads the same
tokens in the same order. Rows go by ARM/SEED; what the file already holds is not run again.
"""
from atlas_jax.fields import MIXES
from experiments import arms
from experiments.arms import Arm

CONFIG = "experiments/recall_by_architecture/config.py"
PARAMS = 300_000
SAYS = {"none": "attention alone", "only": "memory alone", "gate": "memory beside attention, through a gate",
        "layer": "memory below attention", "context": "memory as context of attention",
        "e2e": "attention, and layers that learn while they read"}
ARMS = [Arm(mix, says, f"{CONFIG}:mix={mix}") for mix, says in SAYS.items() if mix in MIXES]
COLUMNS = {"recall_mqar_accuracy": "MQAR", "recall_mqar_emptied_accuracy": "MQAR, emptied",
           "recall_mqar_swapped_accuracy": "MQAR, swapped", "recall_niah_accuracy": "needles",
           "recall_niah_length_6144_accuracy": "needles, 16 times as long",
           "recall_niah_emptied_accuracy": "needles, emptied",
           "recall_niah_swapped_accuracy": "needles, swapped",
           "params": "parameters", "cpu_s": "CPU-s"}


def main(argv: list[str] | None = None) -> None:
  """Runs what is missing and prints the table."""
  out = arms.run(ARMS, params=PARAMS, argv=argv, says=(__doc__ or "").split("\n")[0])
  print(arms.table(arms.read(out), ARMS, COLUMNS))


if __name__ == "__main__":
  main()
