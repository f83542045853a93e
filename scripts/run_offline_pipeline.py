"""From traces of agents to a better teacher: ingest, split, train, evaluate before and after, hand over.

  python scripts/run_offline_pipeline.py --export-path=traces.jsonl --output-dir=results/teacher \
    --override model.path=TEACHER --override teacher.student=STUDENT
  python scripts/run_offline_pipeline.py --database-url=sqlite:///traces.db --output-dir=results/teacher
  --dry-run python scripts/run_offline_pipeline.py --export-path=traces.jsonl
  --config=configs/teacher_rcl.py:cpu

The output has rl_checkpoint/ in the layout of Hugging Face with manifest.json, metrics.jsonl, eval.json (and
.md, .png), rejects.jsonl and config_used.json. The same command goes on where it was stopped, by stages;
exit code 75 says that it was. The result is one JSON object on standard output; --dry-run prints the plan and
touches nothing. docs/guides/teacher.md tells more.
"""
import argparse
import difflib
import json
import pathlib
import sys
import time
from collections.abc import Sequence

from absl import flags

from atlas_jax.explain import code_of, explain, start_log
from atlas_jax.files import closed_pipe
from atlas_jax.parallel import hosts, signals
from atlas_jax.pipeline import plan, stages
from atlas_jax.pipeline.plan import PipelineSettings

# Groups of the configs of Atlas Core, by the flags that named them.
TRAINERS = {"grpo": plan.CONFIG, "teacher_grpo": plan.CONFIG, "gkd": plan.GKD_CONFIG}
GROUPS = {"config_name": ("train",), "data_config": ("runtime_traces", "runtime_pg")}


def parser() -> argparse.ArgumentParser:
  """Returns the parser of the command line."""
  made = argparse.ArgumentParser(prog="run_offline_pipeline", description=__doc__, allow_abbrev=False,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
  add = made.add_argument
  add("--export-path", metavar="FILES", help="traces as JSON lines: files, folders, globs, with commas "
                                             "between")
  add("--database-url", metavar="URL", help="store of traces: sqlite:///PATH, postgresql://..., or env:NAME")
  add("--output-dir", default="results/teacher", metavar="DIR", help="of all that is made")
  add("--config", metavar="FILE:ARGS", help=f"of the training; left out: {plan.CONFIG}, or {plan.GKD_CONFIG}")
  add("--sft", action="store_true", help="tune on the traces before, with --sft-config")
  add("--sft-config", metavar="FILE:ARGS", help=f"left out: {plan.SFT_CONFIG}:traces, or its demonstration")
  add("--gkd", action="store_true", help=f"distil in place of GRPO, with {plan.GKD_CONFIG}")
  add("--eval-ratio", type=float, metavar="FRAC", help="of the questions, held out; left out: as the config "
                                                       "has it")
  add("--max-samples", type=int, metavar="N", help="sessions at most, drawn by a hash; left out: all")
  add("--max-age-days", type=float, metavar="DAYS", help="of a session since it began")
  add("--allow-few", action="store_true", help="train also where no question can be held out")
  add("--override", action="append", default=[], metavar="KEY=VALUE", help="a field of the training's config")
  add("--sft-override", action="append", default=[], metavar="KEY=VALUE", help="a field of the tuning's "
                                                                               "config")
  add("--wandb-project", metavar="NAME", help="log to Weights & Biases (extra trackers)")
  add("--wandb-run-name", metavar="NAME")
  add("--dry-run", action="store_true", help="print the resolved plan as JSON, and do nothing")
  add("--trainer-config", choices=sorted(TRAINERS), help="the name that Atlas Core has for --config or --gkd")
  add("--model-config", metavar="MODEL", help="the model to start from, with its tokenizer; an "
                                              "rl_checkpoint too")
  add("--config-name", help=argparse.SUPPRESS)
  add("--data-config", help=argparse.SUPPRESS)
  return made


def settings_of(asked: argparse.Namespace) -> PipelineSettings:
  """Returns what is asked for.

  Raises:
    ValueError: for flags that contradict each other, or name groups that are not here.
  """
  for name, known in GROUPS.items():
    value = getattr(asked, name)
    if value is not None and value not in known:
      raise ValueError(f"--{name.replace('_', '-')}={value}: configs here are Python files; give "
                       f"--config=FILE:ARGS, such as --config={plan.CONFIG}")
  if asked.config and asked.trainer_config:
    raise ValueError(f"--config={asked.config} and --trainer-config={asked.trainer_config} both name the "
                     "training; give one")
  config = asked.config or (TRAINERS[asked.trainer_config] if asked.trainer_config else
                            plan.GKD_CONFIG if asked.gkd else plan.CONFIG)
  if asked.gkd and "gkd" not in config:
    raise ValueError(f"--gkd with --config={config}: that is no config of distillation; leave one of them "
                     f"out, or give {plan.GKD_CONFIG}")
  if (asked.sft_config or asked.sft_override) and not asked.sft:
    raise ValueError("--sft-config and --sft-override are of a supervised tuning; add --sft")
  if asked.max_samples is not None and asked.max_samples < 1:
    raise ValueError(f"--max-samples={asked.max_samples} must be at least 1; leave it out for all")
  if asked.eval_ratio is not None and not 0 <= asked.eval_ratio < 1:
    raise ValueError(f"--eval-ratio={asked.eval_ratio} must be from 0, which holds nothing out, to below 1")
  sft = None
  if asked.sft:
    sft = asked.sft_config or plan.sft_config_of(config)
  overrides = fields_of(asked.override, "--override")
  if asked.model_config is not None:
    overrides["model.path"] = model_of(asked.model_config, overrides)
    overrides.setdefault("data.tokenizer", "model")
  return PipelineSettings(
      asked.export_path, asked.database_url, asked.output_dir, config, sft, asked.eval_ratio,
      asked.max_samples, overrides, fields_of(asked.sft_override, "--sft-override"), asked.wandb_project,
      asked.wandb_run_name, asked.allow_few, asked.max_age_days)


def fields_of(words: Sequence[str], flag: str) -> dict[str, str]:
  """Returns fields by name, from KEY=VALUE."""
  found = {}
  for word in words:
    key, equals, value = word.partition("=")
    if not equals or not key:
      raise ValueError(f"{flag} {word}: must be KEY=VALUE, such as {flag} optim.steps=100")
    name = key.removeprefix("config.")
    if found.setdefault(name, value) != value:
      raise ValueError(f"{flag} {word}: {name} is {found[name]} already; give it once")
  return found


def model_of(name: str, overrides: dict[str, str]) -> str:
  """Returns the model that --model-config names."""
  if "model.path" in overrides:
    raise ValueError(f"--model-config={name} and --override model.path={overrides['model.path']} both name "
                     "the model; give one")
  if not name.startswith("hf:") and not pathlib.Path(name).expanduser().exists():
    raise ValueError(f"--model-config={name}: there is no such folder; give a pretrained folder, hf:NAME, "
                     "or the workdir of a run")
  return name


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Returns the flags; an unknown one ends the program with the nearest known one."""
  made = parser()
  asked, others = made.parse_known_args(argv)
  if others:
    name = others[0].partition("=")[0].strip("-").replace("_", "-")
    known = [option.strip("-") for action in made._actions for option in action.option_strings]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean --{close[0]}?" if close else "fields of the config are --override KEY=VALUE"
    made.error(f"unknown argument {others[0]!r}; {hint}")
  return asked


@closed_pipe.quiet
def main(argv: Sequence[str] | None = None) -> int:
  """Runs the pipeline; returns the exit code."""
  asked = parse(argv)
  flags.FLAGS.mark_as_parsed()  # absl logs only after this.
  start_log()
  began = time.time()
  try:
    resolved = plan.resolve(settings_of(asked))
  except ValueError as error:
    print(f"run_offline_pipeline: {' '.join(str(error).split())}", file=sys.stderr)
    return 1
  if asked.dry_run:
    print(json.dumps(resolved.to_json(), indent=2))
    return 0
  try:
    with signals.StopSignals(lambda code: hosts.leave(code, "ended by a second signal")):
      hosts.start(None, 1)
      found = stages.run(resolved)
    print(json.dumps({**found, "seconds": round(time.time() - began, 1)}, indent=2), flush=True)
    return 0
  except stages.StageStopped as stopped:
    print(f"run_offline_pipeline: stopped in the stage {stopped}; the same command goes on", file=sys.stderr)
    return signals.STOPPED
  except (Exception, KeyboardInterrupt) as error:
    if closed_pipe.is_of_output(error):
      raise
    line = explain(error, str(resolved.output))
    if line is None:
      raise
    print(f"run_offline_pipeline: {line}", file=sys.stderr, flush=True)
    return code_of(error)


if __name__ == "__main__":
  sys.exit(main())
