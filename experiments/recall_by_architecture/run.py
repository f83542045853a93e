"""Which architecture recalls past its window? Pairs and needles for each mix of memory and attention.

  python -m experiments.recall_by_architecture.run --workdir=runs/recall --out=runs/recall.json

Every arm has as many parameters within 1.1%, by the width of its feed-forward layers, and reads the same
tokens in the same order as the others of its task. Rows go by MIX_TASK/SEED; what the file already holds is
not run again. --arms=gate_mqar,gate_niah runs some of them.
"""
from atlas_jax.fields import MIXES
from experiments import arms
from experiments.arms import Arm
from experiments.recall_by_architecture.config import FARTHEST, LONGEST

CONFIG = "experiments/recall_by_architecture/config.py"
PARAMS = 330_000
SAYS = {"none": "attention alone", "only": "memory alone", "gate": "memory beside attention, through a gate",
        "layer": "memory below attention", "context": "memory as context of attention",
        "e2e": "attention, and layers that learn while they read"}
TASKS = ("mqar", "niah")
ARMS = [Arm(f"{mix}_{task}", says, f"{CONFIG}:mix={mix},task={task}") for task in TASKS
        for mix, says in SAYS.items() if mix in MIXES]
WAYS = {"": "as it is", "emptied_": "emptied", "swapped_": "swapped", "writes_off_": "writes off"}
LENGTHS = {"mqar": [f"distance_{FARTHEST}", f"distance_{16 * FARTHEST}"],
           "niah": [f"length_{LONGEST}", f"length_{4 * LONGEST}", f"length_{16 * LONGEST}"]}


def columns(task: str) -> dict[str, str]:
  """Returns the fields of a task's table, and what they are called."""
  found = {f"recall_{task}_{way}accuracy": words for way, words in WAYS.items()}
  found |= {f"recall_{task}_{length}_accuracy": length.replace("_", " ") for length in LENGTHS[task]}
  return {**found, "params": "parameters", "cpu_s": "CPU-s"}


def main(argv: list[str] | None = None) -> None:
  """Runs what is missing and prints a table for each task."""
  out = arms.run(ARMS, params=PARAMS, argv=argv, says=(__doc__ or "").split("\n")[0])
  for task in TASKS:
    print(arms.table(arms.read(out), [arm for arm in ARMS if arm.name.endswith(task)], columns(task)), "\n")


if __name__ == "__main__":
  main()
