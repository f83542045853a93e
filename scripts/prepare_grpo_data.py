"""Writes ranked responses as two files, training and validation, that no prompt shares.

  python scripts/prepare_grpo_data.py --out=data
  python scripts/prepare_grpo_data.py --out=data --files=ranked.jsonl,more.parquet --held_out_frac=0.05
  python scripts/prepare_grpo_data.py --out=data --vocab_size=300

Files hold rows of {"prompt": text, "responses": [{"text": text, "rank": 1 is best, "score": more is better}],
"meta": object}, as JSON lines, a JSON list, CSV or Parquet; atlas_jax/data/responses.py says what may be left
out. Without files, responses to sums are ranked, or with --tasks=arithmetic,countdown also to Countdowns:
right in steps, right without, wrong by a slip, and garbage. Prints one JSON object.
"""
import json
import pathlib
import sys
from collections.abc import Sequence

from absl import app, flags, logging

from atlas_jax.data import columns, ranked_tasks, records, responses, tokenizer
from atlas_jax.data.responses import AnswerGroup
from atlas_jax.files import closed_pipe
from atlas_jax.files import write as write_file

TRAINING, VALIDATION, TOKENIZER = "grpo_training.json", "validation.json", "tokenizer"

flags.DEFINE_string("out", None, "folder to write to; made if absent")
flags.DEFINE_string("files", None, "files, folders, globs, with commas between; left out: tasks made here")
flags.DEFINE_float("held_out_frac", 0.1, "fraction of the prompts that goes to validation", lower_bound=0,
                   upper_bound=1)
flags.DEFINE_float("bad_input_frac", 0.0, "fraction of the files' rows that may be left out as unusable",
                   lower_bound=0, upper_bound=1)
flags.DEFINE_list("tasks", ["arithmetic"], "without files: the tasks, of arithmetic and countdown")
flags.DEFINE_integer("prompts", 3_000, "without files: training prompts, over all tasks", lower_bound=1)
flags.DEFINE_integer("digits", 2, "without files: digits of the numbers that are added", lower_bound=1)
flags.DEFINE_bool("scores", False, "without files: write scores besides ranks; they win over ranks")
flags.DEFINE_integer("seed", 0, "without files: draws problems and responses", lower_bound=0)
flags.DEFINE_integer("vocab_size", None, f"also train a byte-level BPE of so many ids, in OUT/{TOKENIZER}; "
                     "needs atlas_jax[hf]", lower_bound=257)


def made(args) -> tuple[list[AnswerGroup], list[AnswerGroup]]:
  """Ranks responses to tasks: (training, validation) groups, of every task in turn."""
  unknown = set(args.tasks) - set(ranked_tasks.CANDIDATES)
  if unknown or not args.tasks:
    raise ValueError(f"--tasks={','.join(args.tasks)} must be some of {', '.join(ranked_tasks.CANDIDATES)}")

  def groups(split: str, total: int) -> list[AnswerGroup]:
    found: list[AnswerGroup] = []
    for number, task in enumerate(args.tasks):
      count = total * (number + 1) // len(args.tasks) - total * number // len(args.tasks)
      options = {"digits": args.digits} if task == "arithmetic" else {}
      found += ranked_tasks.make(task, split=split, count=count, seed=args.seed, options=options,
                                 held_out_frac=args.held_out_frac, scores=args.scores)
    return found

  held_out = max(1, round(args.prompts * args.held_out_frac)) if args.held_out_frac else 0
  return groups("train", args.prompts), groups("held_out", held_out) if held_out else []


def given(args) -> tuple[list[AnswerGroup], list[AnswerGroup], list[str]]:
  """Reads files: (training, validation) groups, and what is wrong with the rows that were left out."""
  found: list[AnswerGroup] = []
  bad: list[str] = []
  for where, row in records.read(args.files):
    try:
      found.append(responses.without_twins(responses.parse_row(where, row, renumber=True)))
    except ValueError as error:
      bad.append(str(error))
      logging.warning("left out %s", error)
  if len(bad) > args.bad_input_frac * (len(found) + len(bad)):
    more = f" ({len(bad)} of {len(found) + len(bad)} rows cannot be used)" if len(bad) > 1 else ""
    raise ValueError(f"{bad[0]}{more}; mend them, or raise --bad_input_frac={args.bad_input_frac}")
  if not found:
    raise ValueError(f"--files={args.files} have no row")
  responses.warn(found)
  columns.log(f"--files={args.files}", [group.unused for group in found])
  return *responses.split(found, args.held_out_frac), bad


def write(file: pathlib.Path, found: Sequence[AnswerGroup]) -> None:
  """Writes a JSON list, one group per line, whole or not at all."""
  rows = ",\n".join(json.dumps(responses.as_row(group), ensure_ascii=False, default=str) for group in found)
  write_file.whole(file, f"[\n{rows}\n]\n".encode("utf-8", "surrogatepass"))


def train_tokenizer(found: Sequence[AnswerGroup], vocab_size: int, folder: pathlib.Path) -> int:
  """Trains a tokenizer on the training texts and returns its number of ids."""
  if (folder / "tokenizer.json").exists():
    raise ValueError(f"{folder} holds a tokenizer already; name another --out, or leave out --vocab_size to "
                     "keep it")
  texts = (text.encode("utf-8", "replace") for group in found for text in responses.texts(group))
  return tokenizer.train_bpe(texts, vocab_size=vocab_size, folder=folder).vocab_size


def prepare(args) -> dict:
  """Does what the flags ask and says what came of it."""
  if args.out is None:
    raise ValueError("--out is missing: the folder to write to, such as --out=data")
  out = pathlib.Path(args.out).expanduser()
  targets = [out / TRAINING, out / VALIDATION]
  if args.files is not None:
    inputs = {file.resolve() for file in records.files(args.files)}
    if inputs & {target.resolve() for target in targets}:
      raise ValueError(f"--files={args.files} has a file that --out={args.out} would overwrite; choose "
                       "another folder")
  train, held_out, bad = given(args) if args.files is not None else (*made(args), [])
  out.mkdir(parents=True, exist_ok=True)
  report: dict = {}
  chosen = [f"--config.data.files={targets[0]}", f"--config.ranked.eval_files={targets[1]}"]
  if args.vocab_size is not None:
    size = train_tokenizer(train, args.vocab_size, out / TOKENIZER)
    report = {"vocab_size": size}
    chosen += [f"--config.data.tokenizer={out / TOKENIZER}", f"--config.decoder.vocab_size={size}"]
  for target, found in zip(targets, (train, held_out), strict=True):
    if found:
      write(target, found)
      report[target.stem] = {"file": str(target), **responses.counts(found)}
    elif target.exists():
      raise ValueError(f"--held_out_frac=0 leaves nothing for {target}, which is of another set; delete it")
  return {**report, "left_out": len(bad), "flags": chosen if held_out else chosen[:1] + chosen[2:]}


def main(argv) -> None:
  """Prints what was written, or in one line why nothing was."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
  try:
    print(json.dumps(prepare(flags.FLAGS), indent=2))
  except (ModuleNotFoundError, OSError, ValueError) as error:
    sys.exit(f"prepare_grpo_data: {error}")


if __name__ == "__main__":
  closed_pipe.quiet(app.run)(main)
