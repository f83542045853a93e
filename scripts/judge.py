"""Scores the answers in a file by judges.

  python scripts/judge.py --config=configs/rim.py --data=answers.jsonl
  python scripts/judge.py --config=configs/rim.py:scripted --data=answers.jsonl --out=scores.jsonl
  python scripts/judge.py --config=configs/rim.py --data=answers.jsonl --config.rim.temperatures=0.2,0.8

A line of the data is an object with "prompt" and "response", and what else is known: "ground_truth",
"baseline", "plan", "guidance", "trajectory", "attempts", "principles", "mode", "metadata". Prints one JSON
object; scores, lines that cannot be used, and the replies of an endpoint lie beside the data or beside --out.
A run that was broken off is started again with the same command. It ends with 1 where more rows than
--bad_input_frac were rejected, or no row has a verdict.
"""
import json
import sys

from absl import app, flags

from atlas_jax import config as configs
from atlas_jax.command import read_config
from atlas_jax.files import closed_pipe
from atlas_jax.rollout.judges import judge_file

flags.DEFINE_string("config", None, "config file with the group rim, such as configs/rim.py")
flags.DEFINE_string("data", None, "file of JSON lines")
flags.DEFINE_string("out", None, "file of scores; left out: the data's name with .judged.jsonl")
flags.DEFINE_float("bad_input_frac", 0.05, "fraction of lines that may be rejected", lower_bound=0,
                   upper_bound=1)
OVERRIDES: dict[str, str] = {}
FIELD = "--config."


def parse(argv: list[str]) -> list[str]:
  """Reads flags, and fields of the config apart."""
  for word in argv:
    if word.startswith(FIELD):
      name, _, value = word.removeprefix(FIELD).partition("=")
      OVERRIDES[name] = value
  return flags.FLAGS([word for word in argv if not word.startswith(FIELD)])


def judged(args, overrides: dict[str, str]) -> dict:
  """Does what the flags ask and returns the summary."""
  for name in ("config", "data"):
    if getattr(args, name) is None:
      raise ValueError(f"--{name} is missing; such as --config=configs/rim.py --data=answers.jsonl")
  for name, value in overrides.items():
    if not name.startswith("rim."):
      raise ValueError(f"--config.{name}={value} is not read here; only fields of config.rim are")
  return judge_file.run(configs.resolve(read_config(args.config, overrides)).rim, args.data, args.out)


def main(argv) -> None:
  """Prints the summary, or in one line why there is none."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
  try:
    summary = judged(flags.FLAGS, OVERRIDES)
  except (ModuleNotFoundError, OSError, ValueError) as error:
    sys.exit(f"judge: {error}")
  print(json.dumps(summary, indent=2))
  lines = summary["rows"] + summary["rejected"]
  if summary["rejected"] > flags.FLAGS.bad_input_frac * lines:
    sys.exit(f"judge: {summary['rejected']} of {lines} lines were rejected, see {summary['rejects']}; mend "
             "them, or raise --bad_input_frac")
  if summary["no_verdict"] == summary["rows"]:
    sys.exit(f"judge: none of {summary['rows']} rows has a verdict; failures: {summary['failures']}")


if __name__ == "__main__":
  closed_pipe.quiet(app.run)(main, flags_parser=parse)
