"""The command line: the flags of the program, the config file it names, and single fields that it changes."""
import ast
import difflib
import functools
import math
import pathlib
import re
import runpy
import traceback
from collections.abc import Mapping

import ml_collections
from absl import flags

from atlas_jax import aliases, modules, readers, remote
from atlas_jax import config as configs

# Flags that one mode alone reads: with any other mode they are refused, not ignored.
OF_MODE = {
    "train": ("stopped_ok",),
    "eval": ("evals",),
    "generate": ("prompt", "tokens", "temperature", "top_k", "seed"),
    "solve": ("task", "seconds", "steps", "attempts", "augmentations", "rows", "lr", "table_lr", "batch_rows",
              "out"),
    "export": ("to", "dtype", "adapters"),
    "serve": ("port",),
    "plan": ("target", "devices", "advise")}
SERVING = ("serve", "chat")  # Modes that read config.serve.
WITH_CONFIG = ("train", "import", "plan")  # Modes that take a config; all others use a run's.
WITHOUT_RUN = ("plan",)  # Modes that neither make nor use a run.
# Modes that use a run wherever it is: in a workdir, or --from a folder or the Hugging Face Hub.
FROM = ("eval", "generate", "solve", "export", *SERVING)
# Groups of the config that these modes alone read, of those that use a run.
GROUPS = {"serve": SERVING, "upload": ("upload",)}
TRAINING = {"evals": "eval.tasks", "seed": "seed", "steps": "optim.steps", "lr": "optim.lr",
            "table_lr": "table.lr",
            "batch_rows": "data.batch_rows", "temperature": "sampler.temperature", "top_k": "sampler.top_k",
            "tokens": "sampler.max_tokens", "dtype": aliases.DTYPE, "prompt": "eval.sample_prompt",
            "augmentations": "puzzles.n_augmentations"}  # What flags of these modes are called in training.


def define_flags() -> flags.FlagValues:
  """Makes the flags of the program, all at their defaults."""
  # Not absl's global FLAGS: libraries define theirs there, which would be listed by --help and could have the
  # same names.
  values = flags.FlagValues()
  text, number = (functools.partial(define, flag_values=values) for define in
                  (flags.DEFINE_string, flags.DEFINE_integer))
  text("config", None, "train, import, plan: FILE or FILE:ARGUMENTS, such as configs/memory_40m.py:cpu.")
  text("workdir", None, "The run's directory.")
  text("from", None, "eval, generate, solve, export, serve, chat: a run that was uploaded, not --workdir: "
       "OWNER/NAME of the Hugging Face Hub, also OWNER/NAME@REVISION, or its folder as it was downloaded.")
  flags.DEFINE_enum("mode", "train", ["train", "import", "plan", *FROM, "upload"], "What to do.",
                    flag_values=values)
  text("evals", None, "eval: only these evaluations of a memory, with commas between them, such as "
       "mqar,niah,babilong. Left out: those of the run's own config.")
  text("prompt", "", "generate: the text to go on from; may be empty.")
  number("tokens", 200, "generate: how many tokens to add at most.", lower_bound=1)
  flags.DEFINE_float("temperature", 0.8, "generate: 0 takes the likeliest token, higher is more random.",
                     lower_bound=0, flag_values=values)
  number("top_k", None, "generate: draw among this many likeliest tokens; left out: all.", lower_bound=1)
  number("seed", 0, "generate: of the draws.", lower_bound=0, upper_bound=2**32 - 1)
  _define_solve_flags(values)
  text("to", None, "export: the folder that is to hold the model, as transformers and vLLM load it.")
  flags.DEFINE_enum("dtype", None, ["float32", "bfloat16", "float16"], "export: of the weights; left out: "
                    "that of the pretrained model the run started from, else float32.", flag_values=values)
  flags.DEFINE_bool("adapters", False, "export: write the adapters of a run with config.lora.rank alone, in "
                    "PEFT's format; left out: the whole model, with them merged.", flag_values=values)
  number("port", None, "serve: to listen at; left out: config.serve.port; 0: any free one.", lower_bound=0,
         upper_bound=2**16 - 1)
  text("target", None, "plan: the machine to compile for, such as h100, rtx5090, v5e, or cpu for this one.")
  number("devices", 1, "plan: of how many devices, over all slices.", lower_bound=1)
  flags.DEFINE_bool("advise", True, "plan: look for the smallest change that fits where the config does not.",
                    flag_values=values)
  text("coordinator", None, "HOST:PORT of process 0, for a run of several processes; left out: as SLURM, "
       "Open MPI, TPU pods or Kubernetes have it.")
  number("num_processes", None, "How many processes the run has; 1 alone: this one, whatever a cluster says.",
         lower_bound=1)
  number("process_id", None, "Which of them this is, from 0.")
  flags.DEFINE_bool("stopped_ok", False, "train: exit with 0 also where the run was stopped before its end; "
                    "left out: with 75, so that schedulers run it again.", flag_values=values)
  text("local_devices", None, "CUDA devices of this process, such as 0,1; left out: all of its machine, or "
       "its part where several tasks run there.")
  flags.DEFINE_bool("trust", False, "Let runs that came from elsewhere import and execute what their configs "
                    "name; see SECURITY.md.", flag_values=values)
  flags.DEFINE_bool("traceback", False, "Also show where in the code an error arose.", flag_values=values)
  flags.DEFINE_bool("help", False, "Show this.", short_name="h", flag_values=values)
  return values


def _define_solve_flags(values: flags.FlagValues) -> None:
  text, number, real = (functools.partial(define, flag_values=values) for define in
                        (flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float))
  text("task", None, 'solve: the file of one ARC task, {"train": [...], "test": [...]}, or of {id: task}.')
  real("seconds", 60, "solve: how long to tune to the task, compilation and answering apart; 0: not at all.",
       lower_bound=0)
  number("steps", None, "solve: how many updates to tune, in place of --seconds.", lower_bound=0)
  number("attempts", 2, "solve: answers per test input.", lower_bound=1)
  number("augmentations", None, "solve: augmentations of the task besides itself; left out: as in training.",
         lower_bound=0)
  flags.DEFINE_enum("rows", "mean", ["mean", "zero", "run"],
                    "solve: where the task's rows of the puzzle table start: the mean of the run's rows, "
                    "zero, or the rows that the run has trained for the task.", flag_values=values)
  real("lr", None, "solve: learning rate of the network; left out: the run's highest.", lower_bound=0)
  real("table_lr", None, "solve: learning rate of the rows; left out: the run's highest.", lower_bound=0)
  number("batch_rows", None, "solve: pairs tuned on side by side; left out: as in training.", lower_bound=1)
  text("out", None, "solve: the file to write the attempts to, as ARC's graders read them. A file of several "
       "tasks needs it; called again, tasks that were answered are not solved again.")


def parse(argv: list[str]) -> tuple[flags.FlagValues, dict[str, str]]:
  """Reads the command line: flags, and the config fields it sets, as text.

  Raises:
    ValueError: says which flag is wrong, and the nearest known name.
  """
  values = define_flags()
  rest, overrides = _split(argv)
  try:
    left = values(rest)
  except flags.UnrecognizedFlagError as error:
    known = [name for name in values if len(name) > 1]
    raise ValueError(f"there is no flag --{error.flagname}; {meant(error.flagname, known)}") from None
  except flags.IllegalFlagValueError as error:
    name = re.match(r"flag --(\w+)=", str(error))
    need = values[name[1]].parser.syntactic_help if name else ""
    words = str(error).removeprefix("flag ")
    raise ValueError(f"{words.split(': ')[0]}: must be {need}" if need else words) from None
  except flags.Error as error:
    raise ValueError(str(error)) from None
  # absl hands back the program's own name, and behind it all that is no flag.
  if len(left) > 1:
    raise ValueError(f"{left[1]!r} is no flag; flags are written --name=value")
  return values, overrides


def meant(flag: str, known: list[str]) -> str:
  """Returns what a flag that does not exist may stand for: another flag, a field, or nothing known."""
  name = flag.replace("-", "_").lower()
  # From certain to likely: a word that other programs use is known by its meaning, before anything that is
  # only spelt like it.
  if name in aliases.RESUME:
    return "the same command with the same --workdir goes on from its newest checkpoint, so leave it out"
  if name in aliases.WORKDIR:
    return "the directory of the run is --workdir"
  if name in known:
    return f"did you mean --{name}?"
  if name in aliases.OTHERWISE:
    return aliases.OTHERWISE[name]
  if name.startswith("no_"):
    return meant(name.removeprefix("no_"), known)
  fields = configs.fields_like(name)
  near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
  # A misspelt --steps may be the flag of another mode or the field of training. Most commands train, so the
  # field is offered and the flag is mentioned.
  if near and near[0] in TRAINING and fields is not None and fields.is_guess:
    return f"did you mean --config.{TRAINING[near[0]]}? (--{near[0]} is of another mode)"
  if fields is not None and not (near and fields.is_guess):
    return f"did you mean {' or '.join(f'--config.{field}' for field in fields.names)}?"
  return configs.nearest(flag, known)


def _split(argv: list[str]) -> tuple[list[str], dict[str, str]]:
  """Parts --config.NAME=VALUE, also with a space in place of =, from all else."""
  rest = []
  overrides = {}
  words = iter(argv)
  for word in words:
    found = re.fullmatch(r"--?config\.([^=]*)(=?)(.*)", word, re.DOTALL)
    if found is None:
      rest.append(word)
      continue
    name, equals, value = found.groups()
    # The end of the line counts as another flag: either way no value follows. One dash is none, as in
    # `--config.seed -1`.
    value = value if equals else next(words, "--")
    if not equals and value.startswith("--"):
      raise ValueError(f"{word} needs a value, {word}=...")
    overrides[name] = value
  return rest, overrides


def read_config(spec: str, overrides: Mapping[str, str] | None = None) -> ml_collections.ConfigDict:
  """Reads a config file with its argument, and changes single fields.

  Args:
    spec: FILE or FILE:ARGUMENTS, such as "configs/memory_40m.py:cpu".
    overrides: dotted field -> its value as text, such as {"optim.steps": "40"}. With another
      model.memory.rule than the config's, the options are none before they are changed.

  Raises:
    ValueError: if there is no such file, or it or an override has an unknown field, a wrong value, or a field
      that the config's recipe does not read.
  """
  path, _, arg = spec.partition(":")
  if not pathlib.Path(path).is_file():
    known = [file.as_posix() for file in pathlib.Path("configs").glob("*.py")]
    here = "" if pathlib.Path(path).is_absolute() else f" in {pathlib.Path.cwd()}"
    raise ValueError(f"--config={spec}: there is no file {path!r}{here}; {configs.nearest(path, known)}")
  # A config file is Python of the user's own, as --config names it: nothing of it is checked before it runs.
  contents = _run(path)
  if "get_config" not in contents:
    raise ValueError(f"--config={spec}: {path} defines no get_config; configs/memory_40m.py shows one")
  try:
    config = contents["get_config"](arg or None)
  except ValueError as error:
    raise ValueError(f"--config={spec}: {error}") from error
  except (AttributeError, KeyError, TypeError) as error:  # What a locked config raises.
    # The last line of the file itself that was at work; the frames below it are of ml_collections.
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    raise ValueError(f"{path}:{lines[-1] if lines else 1}: {_locked(error)}") from error
  # Before the overrides are applied, which may set options of the new rule: --config.model.memory.rule=X
  # --config.model.memory.options.depth=2.
  rule = (overrides or {}).get("model.memory.rule", config.model.memory.rule)
  if rule != config.model.memory.rule:
    config.model.memory.options = {}  # Those of the config are of its own rule.
  for name, text in (overrides or {}).items():
    override(config, name, text)
  # Before `config.resolve`: a field that it derives would look like one that the user has set.
  readers.check(config, overrides or {})
  return config


def _run(path: str) -> dict:
  """Runs a config file and returns what it defines.

  Raises:
    ValueError: if it is not Python, or imports what is not found.
  """
  try:
    return runpy.run_path(path)
  except SyntaxError as error:
    raise ValueError(f"{error.filename}:{error.lineno}: {error.msg}") from error
  except ModuleNotFoundError as error:
    raise ValueError(f"{path} imports {error.name!r}, and there is no such module"
                     f"{modules.where(str(error.name))}") from error


def _locked(error: Exception) -> str:
  """Returns what a locked config says of a field, without the list of all others."""
  words = str(error.args[0] if error.args else error).splitlines()[0]
  # Three wordings of ml_collections; the last is a KeyError, whose text is the name alone.
  field = re.search(r'Key "(\w+)" does not exist|instead of "(\w+)"|^\W*(\w+)\W*$', words)
  return words if field is None else configs.unknown_field(field[1] or field[2] or field[3])


def override(config: ml_collections.ConfigDict, name: str, text: str) -> None:
  """Sets one field from text, as --config.NAME=TEXT does; None switches off what may be off.

  Raises:
    ValueError: if there is no such field, or the text is not of its type.
  """
  group, _, last = name.rpartition(".")
  if group in configs.OPTIONS:  # Who uses them knows and checks them.
    parent, _, field = group.rpartition(".")
    owner = configs.at(config, parent)
    owner[field] = {**owner[field], last: _literal(text)}
    return
  if name not in configs.FIELDS:
    groups = (*configs.FIELDS, *(f"{free}." for free in configs.OPTIONS))
    if any(field.startswith(f"{name}.") for field in groups):
      raise ValueError(f"--config.{name} is a group; set one of its fields, --config.{name}.FIELD=VALUE")
    raise ValueError(f"--config.{name}={text}: {configs.unknown_field(name)}")
  kind, optional = configs.FIELDS[name]
  try:
    # bool("False") is True, so truth values are read by name.
    read = (lambda text: configs.SWITCH[text.lower()]) if kind is bool else kind
    value = None if optional and text == "None" else read(text)
  except (KeyError, ValueError):
    raise ValueError(f"--config.{name}={text}: {configs.need(name)}") from None
  (configs.at(config, group) if group else config)[last] = value


def _literal(text: str):
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return text


def check_flags(asked: flags.FlagValues, overrides: Mapping[str, str]) -> None:
  """Refuses flags that are missing, or that the mode would not use."""
  source = asked["from"].value
  if source and asked.mode not in FROM:
    raise ValueError(f"--from={source} is for --mode={', '.join(FROM)}, and this is --mode={asked.mode}; "
                     "give --workdir")
  if source and asked.workdir:
    raise ValueError(f"--from={source} and --workdir={asked.workdir} both name a run; give one")
  if asked.mode in WITHOUT_RUN and asked.workdir:
    raise ValueError(f"--workdir={asked.workdir}: --mode={asked.mode} neither makes nor uses a run; "
                     "leave it out")
  joining = [name for name in ("coordinator", "num_processes", "process_id", "local_devices")
             if asked[name].present]
  if asked.mode in WITHOUT_RUN and joining:
    raise ValueError(f"--{joining[0]}: --mode={asked.mode} computes on no device; leave it out")
  if asked.mode == "plan" and not asked.target:
    raise ValueError("--target is missing: the machine to compile for, such as --target=h100")
  if not asked.workdir and not source and asked.mode not in WITHOUT_RUN:
    also = ", or --from=OWNER/NAME for one on the Hugging Face Hub" if asked.mode in FROM else ""
    raise ValueError("--workdir is missing: the directory of the run, such as --workdir=runs/quickstart"
                     f"{also}")
  if asked.workdir:
    remote.check(asked.workdir, processes=asked.num_processes)
  if asked.mode in WITH_CONFIG and not asked.config:
    raise ValueError("--config is missing, such as --config=configs/memory_40m.py:cpu")
  if asked.mode not in WITH_CONFIG and asked.config:
    raise ValueError(f"--mode={asked.mode} takes the config of the run in --workdir; leave out "
                     f"--config={asked.config}")
  for mode, names in OF_MODE.items():
    for name in names:
      # `present` counts how often a flag was given: a flag that is set to its default is refused, too.
      if asked.mode != mode and asked[name].present:
        other = f"; the {name} of training is --config.{TRAINING[name]}" if name in TRAINING else ""
        raise ValueError(f"--{name} is for --mode={mode}, this is --mode={asked.mode}{other}")
  for name, text in overrides.items():
    able = GROUPS.get(name.partition(".")[0])
    if able and asked.mode not in (*WITH_CONFIG, *able):
      raise ValueError(f"--config.{name}={text} is read by --mode={' and '.join(able)} alone, and this is "
                       f"--mode={asked.mode}; leave it out")
  if asked.port is not None and "serve.port" in overrides:
    raise ValueError(f"--port={asked.port} and --config.serve.port={overrides['serve.port']} are the same; "
                     "give one")
  if asked.mode == "solve" and not asked.task:
    raise ValueError("--task is missing: the file of the ARC task to solve, such as --task=007bbfb7.json")
  if asked.mode == "export" and not asked.to:
    raise ValueError("--to is missing: the folder to write the model to, such as --to=exported")
  if not math.isfinite(asked.seconds):
    raise ValueError(f"--seconds={asked.seconds} must be a number of seconds, such as 60")
  if asked["steps"].present and asked["seconds"].present:
    raise ValueError(f"--steps={asked.steps} and --seconds={asked.seconds:g} exclude each other; give one")
