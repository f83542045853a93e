"""Writes down the figures of a finished run without memory, for other runs to stand beside.

  python scripts/record_baseline.py --workdir=runs/baseline --out=experiments/memory_pays/baseline.json \\
    --command="python -m atlas_jax.main --config=configs/memory_40m.py:cpu,baseline --workdir=runs/baseline"

A run with --config.eval.baseline=FILE then reports them, if its text, segments, rows and updates are the
same. Prints the figures.
"""
import datetime
import json
import pathlib
import sys

from absl import app, flags

from atlas_jax import config as configs
from atlas_jax.checkpoint import Checkpoints
from atlas_jax.evals import baseline
from atlas_jax.fields import mixes
from atlas_jax.files import closed_pipe, json_file, write
from atlas_jax.language import pretraining
from atlas_jax.readers import TEXT

flags.DEFINE_string("workdir", None, "of the finished run", required=True)
flags.DEFINE_string("out", None, "the file to write", required=True)
flags.DEFINE_string("command", None, "the command that made the run", required=True)


def record(workdir: pathlib.Path, command: str) -> dict:
  """Returns what the file holds.

  Raises:
    ValueError: if it is no finished run without memory, or its text is no longer what it was trained on.
  """
  if not (workdir / "summary.json").is_file():
    raise ValueError(f"--workdir={workdir} has no summary.json: it is no finished run; train it to its end")
  config, summary = configs.load(workdir), json_file.read(workdir / "summary.json")
  if config.recipe not in TEXT.split() or config.model.memory_mix in mixes("memory"):
    raise ValueError(f"--workdir={workdir} is no run of a model without memory (config.recipe="
                     f"{config.recipe!r}, config.model.memory_mix={config.model.memory_mix!r}); take one of "
                     "configs/memory_40m.py:baseline or its siblings")
  checkpoints = Checkpoints(workdir, **config.checkpoint)
  trained = checkpoints.read_meta()["source"]["manifest"]
  checkpoints.close()
  setting = pretraining.setting_of(config)
  if changed := baseline.differences(pretraining.data_of(trained), setting_of_data(setting)):
    raise ValueError(f"--workdir={workdir} was trained on text that is not here any more: "
                     f"{'; '.join(changed)}; train it anew")
  ended = datetime.date.fromtimestamp((workdir / "summary.json").stat().st_mtime)
  return baseline.record(setting, summary, command=command, date=ended.isoformat())


def setting_of_data(setting: dict) -> dict:
  """Returns the part of a setting that says which text was read."""
  return {name: value for name, value in setting.items() if name.startswith("data.")}


def main(argv):
  """Writes the file and prints it, or one line on what is wrong."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
  asked = flags.FLAGS
  try:
    text = json.dumps(record(pathlib.Path(asked.workdir), asked.command), indent=2)
  except (ValueError, FileNotFoundError) as error:
    sys.exit(f"record_baseline: {error}")
  out = pathlib.Path(asked.out)
  out.parent.mkdir(parents=True, exist_ok=True)
  write.whole(out, text + "\n")
  print(text)


if __name__ == "__main__":
  closed_pipe.quiet(app.run)(main)
