"""Does the memory pay? The quickstart's model beside controls that take away one thing each.

  python -m experiments.memory_pays.run --workdir=runs/pays --out=experiments/memory_pays/quickstart.json

Every arm has 2.27 million parameters within 1.1%, reads the same 0.61 million bytes, and is scored on the
same held-out bytes; see the README for what came of it.
"""
from experiments import arms
from experiments.arms import Arm

CONFIG = "configs/memory_40m.py:cpu,pretrain"
MEMORY = f"{CONFIG},cells=256"  # As many as the quickstart had when this was measured.
ARMS = [
    Arm("memory", "the quickstart", MEMORY),
    Arm("baseline", "no memory; all widths raised", f"{CONFIG},baseline"),
    Arm("wide", "no memory; wider feed-forward layers", f"{CONFIG},control=wide"),
    Arm("conv", "the layer's projections, convolutions and values; no memory", f"{CONFIG},control=conv"),
    Arm("static", "the same keys; a learned table that is never written", f"{MEMORY},control=static"),
    Arm("ngram", "no memory; embeddings of hashed n-grams", f"{CONFIG},control=ngram"),
    Arm("ngram_compute", "ngram, with as many more updates as the memory costs", f"{CONFIG},control=ngram",
        {"optim.steps": 450}),
    Arm("memory_ngram", "the memory, and embeddings of hashed n-grams", MEMORY,
        {"model.ngram_embed.max_n": 5, "model.ngram_embed.table_rows": 576, "model.ff_width": 480}),
    Arm("no_shift", "a value stands under its own token's key", MEMORY, {"model.memory.shift": False}),
    Arm("compute", "wide, and as many more updates as the memory costs", f"{CONFIG},control=compute"),
    Arm("paper", "Titans in all blocks, in its paper's form", f"{CONFIG},paper"),
]
# Held-out texts on which the gain should grow, stay, or be gone.
TRANSFORMS = ("repeat", "shuffle_lines", "permute_bytes", "random_bytes")


def on_other_texts(arm: Arm, seed: int, workdir, found: dict) -> dict:
  """Evaluates a trained memory on held-out texts made into others, where this has not been done."""
  if arm.name != "memory":
    return {}
  missing = [name for name in TRANSFORMS if f"memory, {name}/{seed}" not in found]
  return {f"memory, {name}/{seed}": arms.evaluated(workdir, {"eval.transform": name}) for name in missing}


COLUMNS = {"val_bits_per_byte": "bits per byte", "memory_gain_emptied_nats": "emptied",
           "memory_gain_swapped_nats": "swapped", "memory_gain_writes_off_nats": "writes off",
           "cpu_s": "CPU-s"}


def main(argv: list[str] | None = None) -> None:
  """Runs what is missing and prints the tables."""
  out = arms.run(ARMS, params=None, argv=argv, says=(__doc__ or "").split("\n")[0], then=on_other_texts)
  others = [Arm(f"memory, {name}", "evaluated on it", MEMORY) for name in TRANSFORMS]
  print(arms.table(arms.read(out), [*ARMS, *others], COLUMNS))


if __name__ == "__main__":
  main()
