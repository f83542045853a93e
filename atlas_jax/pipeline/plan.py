"""The plan of a pipeline: its stages, settings and data, resolved before anything is done."""
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from atlas_jax import command, readers
from atlas_jax import config as configs
from atlas_jax.data.traces import filters, sources
from atlas_jax.pipeline import places

CONFIG = "configs/teacher_rcl.py"
GKD_CONFIG = "configs/teacher_gkd.py"
SFT_CONFIG = "configs/teacher_sft.py"
RECIPES = ("teacher", "grpo", "gkd", "sft")
DEMOS = ("cpu", "smoke")  # Arguments of configs that show the way and learn little.
# What a demonstration has besides: its questions may be longer than those that its config is made for.
DEMO_FIELDS = {"data.max_prompt_tokens": "512", "data.segment_len": "512", "data.overlong": "truncate"}
FEW_STEPS = 10  # Updates of a demonstration on too few sessions.
LEAST_GROUPS = 2  # Questions: one to train on, one to hold out.
# Fields that the pipeline sets, and the flag that they follow from.
OURS = {"data.name": None, "data.files": "--export-path or --database-url",
        "data.held_out_frac": "--eval-ratio", "traces.rejects_file": None,
        "traces.max_age_days": "--max-age-days"}
FILTERS = ("review_status", "status", "min_reward", "learning_key", "lane", "verified", "guidance",
           "versions", "require_ground_truth")


class PipelineSettings(NamedTuple):
  """The wishes of a user, as flags have them."""

  export_path: str | None  # files of traces; see data/traces/sources.py
  database_url: str | None  # of a store
  output_dir: str
  config: str  # of the training, FILE or FILE:ARGUMENTS
  sft_config: str | None = None  # of a supervised tuning before; None: there is none
  eval_ratio: float | None = None  # of the questions that are held out; None: as the config has it
  max_samples: int | None = None  # sessions at most; None: all
  overrides: Mapping[str, str] = {}  # of the training
  sft_overrides: Mapping[str, str] = {}
  wandb_project: str | None = None
  wandb_run_name: str | None = None
  allow_few: bool = False  # whether to go on where no question can be held out
  max_age_days: float | None = None  # of sessions


class Training(NamedTuple):
  """One run of training in a plan."""

  name: str  # of the stage
  spec: str
  overrides: dict[str, str]
  workdir: pathlib.Path
  config: Any  # resolved

  def to_json(self) -> dict[str, Any]:
    """Returns what a plan shows of it."""
    return {"stage": self.name, "recipe": self.config.recipe, "config": self.spec,
            "overrides": self.overrides, "workdir": str(self.workdir), "settings": self.config.to_dict()}


class Plan(NamedTuple):
  """A resolved plan."""

  settings: PipelineSettings
  output: pathlib.Path
  sft: Training | None
  training: Training
  is_demo: bool

  def to_json(self) -> dict[str, Any]:
    """Returns the plan as it is printed."""
    source = self.settings.export_path or shown_url(self.settings.database_url or "")
    trainings = [one.to_json() for one in (self.sft, self.training) if one is not None]
    return {"source": source, "output_dir": str(self.output),
            "held_out_frac": held_out_frac(self.training.config),
            "max_samples": self.settings.max_samples, "demonstration": self.is_demo,
            "filters": filters_of(self.training.config, self.settings.max_age_days),
            "stages": places.stages(has_sft=self.sft is not None), "trainings": trainings,
            "outputs": [str(self.output / name) for name in places.OUTPUTS]}


def resolve(settings: PipelineSettings) -> Plan:
  """Resolves all configs of a pipeline; reads no data and writes nothing.

  Raises:
    ValueError: for a setting that is unknown or cannot be, naming its flag.
  """
  if bool(settings.export_path) == bool(settings.database_url):
    raise ValueError(f"--export-path={settings.export_path} and --database-url="
                     f"{shown_url(settings.database_url or '')}: give one of them, the file of traces or "
                     "the store")
  if settings.export_path and not sources.is_store(settings.export_path):
    for one in settings.export_path.split(","):
      if not any(mark in one for mark in "*?[") and not pathlib.Path(one).expanduser().exists():
        raise ValueError(f"--export-path={settings.export_path}: there is no {one}; arc-atlas export writes "
                         "one from a store, and --database-url reads the store itself")
  if not settings.output_dir:
    raise ValueError("--output-dir= is empty; name a folder, or leave it out for results/teacher")
  output = pathlib.Path(settings.output_dir)
  model = None if settings.sft_config is None else str(output / places.RUNS["sft"])
  if model is not None and (given := settings.overrides.get("model.path")) is not None:
    raise ValueError(f"--override model.path={given}: with --sft training starts from what was tuned; give "
                     "the model by --sft-override model.path=FOLDER")
  training = _training("train", settings, settings.config, settings.overrides, output, model=model)
  _check(training.config)
  sft = None
  if settings.sft_config is not None:
    # The split is that of the training: what it holds out is not to be learnt before.
    split = {"data.held_out_frac": str(held_out_frac(training.config)),
             **{f"traces.{name}": str(training.config.traces[name]) for name in ("split_by", "split_seed")}}
    if both := [name for name in split if name in settings.sft_overrides]:
      raise ValueError(f"--sft-override {both[0]}={settings.sft_overrides[both[0]]}: the split is that of "
                       f"the training; set it by {'--eval-ratio' if 'held' in both[0] else '--override'}")
    fields = {**_filters_given(settings.overrides), **settings.sft_overrides, **split}
    asked = settings._replace(eval_ratio=None)
    sft = _training("sft", asked, settings.sft_config, fields, output, model=None)
  return Plan(settings, output, sft, training, is_demo(settings.config))


def _filters_given(overrides: Mapping[str, str]) -> dict[str, str]:
  """Returns the overrides that say which traces are used, so that both trainings have the same gate."""
  names = {f"traces.{name}" for name in FILTERS}
  return {name: value for name, value in overrides.items() if name in names}


def _training(name: str, settings: PipelineSettings, spec: str, given: Mapping[str, str],
              output: pathlib.Path, *, model: str | None) -> Training:
  flag = "--override" if name == "train" else "--sft-override"
  for field, instead in OURS.items():
    if field in given and not (name == "sft" and field == "data.held_out_frac"):
      hint = f"; it follows from {instead}" if instead else ""
      raise ValueError(f"{flag} {field}={given[field]}: the pipeline sets this field{hint}")
  plain = command.read_config(spec)
  _check(plain)
  plain.data.name = sources.NAME
  demo = {field: value for field, value in DEMO_FIELDS.items()
          if is_demo(spec) and readers.is_read(plain, field)}
  fields = {**demo, **given, "data.name": sources.NAME, "data.files": str(output / places.TRACES)}
  if settings.eval_ratio is not None:
    fields["data.held_out_frac"] = str(settings.eval_ratio)
  if settings.wandb_project is not None or settings.wandb_run_name is not None:
    fields.setdefault("monitor.trackers", "wandb")
  if model is not None:
    # The run has a tokenizer and a template of its own, which the training goes on with.
    fields |= {"model.path": model, "data.tokenizer": "model"}
  config = configs.resolve(command.read_config(spec, fields))
  filters.checked(filters.of_config(config.traces)._replace(max_age_days=settings.max_age_days))
  return Training(name, spec, fields, output / places.RUNS[name], config)


def _check(config: Any) -> None:
  """Refuses a training whose result could not be handed over."""
  if config.recipe == "ranked":
    raise ValueError("config.recipe='ranked': pairs of attempts are trained by scripts/train_atlas.py; a "
                     "pipeline has the recipes teacher, grpo, gkd and sft")
  if config.recipe not in RECIPES and "." not in config.recipe:
    raise ValueError(f"config.recipe={config.recipe!r} does not learn from traces; a pipeline has the "
                     f"recipes {', '.join(RECIPES)}")
  if config.model.kind != "decoder":
    raise ValueError(f"config.model.kind={config.model.kind!r}: {places.CHECKPOINT}/ is in the layout of "
                     "Hugging Face, which decoders alone have; train with model.kind=decoder")


def held_out_frac(config: Any) -> float:
  """Returns the fraction of the questions that is held out."""
  return float(config.data.held_out_frac)


def without_held_out(training: Training) -> Training:
  """Returns a training on all that there is, short, as of a demonstration on too few sessions."""
  steps = training.config.optim.steps
  fields = {**training.overrides, "data.held_out_frac": "0"}
  if is_demo(training.spec) and steps is not None:
    fields["optim.steps"] = str(min(steps, FEW_STEPS))
    fields["optim.warmup_steps"] = str(min(training.config.optim.warmup_steps, FEW_STEPS // 2))
  return changed(training, fields)


def changed(training: Training, overrides: dict[str, str]) -> Training:
  """Returns a training with other overrides."""
  config = configs.resolve(command.read_config(training.spec, overrides))
  return training._replace(overrides=overrides, config=config)


def sft_config_of(spec: str) -> str:
  """Returns the supervised tuning that goes before a training: on guidance, or that of its demonstration."""
  arguments = set(spec.partition(":")[2].split(","))
  return f"{SFT_CONFIG}:{next((one for one in DEMOS if one in arguments), 'traces')}"


def is_demo(spec: str) -> bool:
  """Returns whether a config is a small one that shows the way."""
  return bool(set(spec.partition(":")[2].split(",")) & set(DEMOS))


def filters_of(config: Any, max_age_days: float | None) -> dict[str, Any]:
  """Returns the filters of traces that ask for something; --override traces.NAME=VALUE sets one."""
  found = {name: config.traces[name] for name in FILTERS if config.traces[name] is not None}
  return found if max_age_days is None else {**found, "max_age_days": max_age_days}


def shown_url(url: str) -> str:
  """Returns a URL without its password, however that is written, and without parameters."""
  scheme, mark, rest = url.partition("://")
  if not mark or scheme == "sqlite":
    return url
  # To the last @: a password that was not escaped may hold any sign.
  before, at, behind = rest.rpartition("@")
  user, colon, _ = before.partition(":")
  shown = f"{user}:***@{behind}" if colon and at else rest
  return f"{scheme}://{re.split('[?&]', shown)[0]}"
