"""The study for an hour: thirteen times as many updates, the memory beside the controls that matter most.

  python -m experiments.memory_pays.hour --workdir=runs/pays_hour --out=experiments/memory_pays/hour.json

8.2 million bytes; `compute` has as many more updates as the memory costs CPU-seconds. Some hours per seed.
"""
from experiments import arms
from experiments.arms import Arm
from experiments.memory_pays.run import COLUMNS

CONFIG = "configs/memory_40m.py:cpu_1h,pretrain"
ARMS = [
    Arm("memory", "the quickstart's model, for an hour", CONFIG),
    Arm("baseline", "no memory; all widths raised", f"{CONFIG},baseline"),
    Arm("compute", "no memory, and as many more updates as the memory costs", f"{CONFIG},control=compute"),
    Arm("ngram", "no memory; embeddings of hashed n-grams", f"{CONFIG},control=ngram"),
    Arm("memory_ngram", "the memory, and embeddings of hashed n-grams", CONFIG,
        {"model.ngram_embed.max_n": 5, "model.ngram_embed.table_rows": 576, "model.ff_width": 480}),
]


def main(argv: list[str] | None = None) -> None:
  """Runs what is missing and prints the table."""
  out = arms.run(ARMS, params=None, argv=argv, says=(__doc__ or "").split("\n")[0])
  print(arms.table(arms.read(out), ARMS, COLUMNS))


if __name__ == "__main__":
  main()
